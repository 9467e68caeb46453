#include "files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>

namespace rcnn {

namespace {

// The first 32 bits of the fractional parts of the cube roots of the first 64 primes.
constexpr std::array<uint32_t, 64> kRounds = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

uint32_t Rotate(uint32_t x, int bits) { return (x >> bits) | (x << (32 - bits)); }

void AddBlock(const uint8_t *block, std::array<uint32_t, 8> *state) {
  std::array<uint32_t, 64> w;
  for (size_t i = 0; i < 16; ++i) {
    w[i] = static_cast<uint32_t>(block[4 * i]) << 24 | static_cast<uint32_t>(block[4 * i + 1]) << 16 |
           static_cast<uint32_t>(block[4 * i + 2]) << 8 | static_cast<uint32_t>(block[4 * i + 3]);
  }
  for (size_t i = 16; i < 64; ++i) {
    const uint32_t low = Rotate(w[i - 15], 7) ^ Rotate(w[i - 15], 18) ^ (w[i - 15] >> 3);
    const uint32_t high = Rotate(w[i - 2], 17) ^ Rotate(w[i - 2], 19) ^ (w[i - 2] >> 10);
    w[i] = w[i - 16] + low + w[i - 7] + high;
  }
  auto [a, b, c, d, e, f, g, h] = *state;
  for (size_t i = 0; i < 64; ++i) {
    const uint32_t mixed = (Rotate(e, 6) ^ Rotate(e, 11) ^ Rotate(e, 25)) + ((e & f) ^ (~e & g));
    const uint32_t first = h + mixed + kRounds[i] + w[i];
    const uint32_t second = (Rotate(a, 2) ^ Rotate(a, 13) ^ Rotate(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
    h = g;
    g = f;
    f = e;
    e = d + first;
    d = c;
    c = b;
    b = a;
    a = first + second;
  }
  const std::array<uint32_t, 8> sums = {a, b, c, d, e, f, g, h};
  for (size_t i = 0; i < 8; ++i) (*state)[i] += sums[i];
}

// Closes a file at the end of a block.
struct Handle {
  int number;
  ~Handle() {
    if (number >= 0) close(number);
  }
};

}  // namespace

std::string OneLine(const std::string &text) {
  constexpr size_t kLongest = 2000;
  std::string out;
  for (const char c : text) {
    if (static_cast<unsigned char>(c) >= 0x20 && c != 0x7F) {
      out.push_back(c);
      continue;
    }
    char code[8];
    std::snprintf(code, sizeof(code), "\\x%02x", static_cast<unsigned>(static_cast<unsigned char>(c)));
    out += c == '\n' ? "\\n" : code;
  }
  // a message begins with what is wrong and ends with the remedy
  if (out.size() > kLongest) {
    out = out.substr(0, kLongest * 3 / 4) + " ... " + out.substr(out.size() - kLongest / 4);
  }
  return out;
}

std::string SystemReason() { return std::strerror(errno); }

std::vector<uint8_t> ReadFile(const std::string &path, const std::string &what, uint64_t most) {
  // O_NONBLOCK: a pipe that nobody writes to is told, not waited for
  const Handle file{open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  struct stat status{};
  if (file.number < 0 || fstat(file.number, &status) != 0) {
    throw UserError(path + ": can't read the " + what + ": " + SystemReason());
  }
  if (S_ISDIR(status.st_mode)) throw UserError(path + ": can't read the " + what + ": it is a folder");
  if (!S_ISREG(status.st_mode)) throw UserError(path + ": can't read the " + what + ": it is no file");
  if (static_cast<uint64_t>(status.st_size) > most) {
    throw UserError(path + ": can't read the " + what + ": " + std::to_string(status.st_size) +
                    " bytes, more than the " + std::to_string(most) + " that one can have");
  }
  std::vector<uint8_t> data(static_cast<size_t>(status.st_size));
  size_t done = 0;
  while (done < data.size()) {
    const ssize_t got = read(file.number, data.data() + done, data.size() - done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw UserError(path + ": can't read the " + what + ": " + SystemReason());
    if (got == 0) break;  // it shrank meanwhile
    done += static_cast<size_t>(got);
  }
  data.resize(done);
  return data;
}

void WriteFile(const std::string &path, const void *data, size_t bytes) {
  const std::string beside = path + ".writing";
  const auto fail = [&]() {
    const std::string reason = SystemReason();
    unlink(beside.c_str());
    throw UserError(path + ": can't write: " + reason + "; free space or name another --output");
  };
  Handle file{open(beside.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644)};
  if (file.number < 0) fail();
  const uint8_t *from = static_cast<const uint8_t *>(data);
  while (bytes > 0) {
    const ssize_t put = write(file.number, from, bytes);
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) fail();
    from += put;
    bytes -= static_cast<size_t>(put);
  }
  // some file systems tell that they are full only now
  const int closed = close(file.number);
  file.number = -1;
  if (closed != 0 || rename(beside.c_str(), path.c_str()) != 0) fail();
}

void WriteFile(const std::string &path, const std::string &text) { WriteFile(path, text.data(), text.size()); }

std::string Sha256(const uint8_t *data, size_t bytes) {
  std::array<uint32_t, 8> state = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                   0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  size_t done = 0;
  for (; done + 64 <= bytes; done += 64) AddBlock(data + done, &state);
  std::array<uint8_t, 128> tail{};
  const size_t left = bytes - done;
  if (left > 0) std::memcpy(tail.data(), data + done, left);
  tail[left] = 0x80;
  const size_t end = left < 56 ? 64 : 128;
  const uint64_t bits = static_cast<uint64_t>(bytes) * 8;
  for (size_t i = 0; i < 8; ++i) tail[end - 1 - i] = static_cast<uint8_t>(bits >> (8 * i));
  for (size_t i = 0; i < end; i += 64) AddBlock(tail.data() + i, &state);
  std::string text;
  for (const uint32_t word : state) {
    char hex[9];
    std::snprintf(hex, sizeof(hex), "%08x", word);
    text += hex;
  }
  return text;
}

}  // namespace rcnn
