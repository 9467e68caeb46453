// Runs a graph on the inference program's own runtime: graph_main GRAPH THREADS INPUT OUTPUT SIDE... reads float32 of
// these sides from INPUT, and writes to OUTPUT each output's rank and sides, as int64, and its numbers.
// graph_main GRAPH --damage SEED COUNT SIDE... runs it COUNT times, with bytes of the file changed each time: it is
// refused, or gives numbers. test_own_runtime.py compiles it.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "../../ascend310_infer/src/files.h"
#include "../../ascend310_infer/src/graph_session.h"

namespace {

std::vector<uint8_t> bytes;

std::vector<uint8_t> Read(const std::string &path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

int64_t Count(const rcnn::Shape &shape) {
  int64_t count = 1;
  for (const int64_t side : shape) count *= side;
  return count;
}

void Damage(const std::vector<uint8_t> &whole, std::mt19937 *random) {
  bytes = whole;
  const auto below = [&](size_t end) { return static_cast<size_t>((*random)() % end); };
  if (below(4) == 0) bytes.resize(below(bytes.size()));
  // names and sides, which are few bytes of many, lie at the start and the end, and among the numbers
  for (size_t i = 0; i < 1 + below(6) && !bytes.empty(); ++i) {
    const size_t near = std::min<size_t>(bytes.size(), 4096);
    const size_t place = below(2) == 0 ? below(bytes.size()) : bytes.size() - 1 - below(near);
    bytes[place] = below(2) == 0 ? static_cast<uint8_t>(below(256)) : bytes[place] ^ (1u << below(8));
  }
}

}  // namespace

// sidecar.cc's also compares sizes and checksums.
std::vector<uint8_t> rcnn::ReadChecked(const ModelFile &) { return bytes; }

int main(int count, char **words) try {
  rcnn::ModelFile file;
  file.path = words[1];
  bytes = Read(words[1]);
  rcnn::Device device;
  rcnn::Shape shape;
  for (int i = 5; i < count; ++i) shape.push_back(std::atoll(words[i]));
  if (std::string(words[2]) == "--damage") {
    const std::vector<uint8_t> whole = bytes;
    std::mt19937 random(static_cast<uint32_t>(std::atoll(words[3])));
    int refused = 0;
    for (int64_t i = 0; i < std::atoll(words[4]); ++i) {
      Damage(whole, &random);
      try {
        const std::unique_ptr<rcnn::GraphSession> session = rcnn::MakeOwnSession(file, device);
        session->Resize({shape});
        std::fill_n(static_cast<float *>(session->Input(0)), Count(shape), 0.5f);
        session->Run();
      } catch (const rcnn::UserError &) {
        ++refused;
      }
    }
    std::printf("%d\n", refused);
    return 0;
  }
  device.threads = std::atoi(words[2]);
  const std::unique_ptr<rcnn::GraphSession> session = rcnn::MakeOwnSession(file, device);
  session->Resize({shape});
  const std::vector<uint8_t> input = Read(words[3]);
  std::copy(input.begin(), input.end(), static_cast<uint8_t *>(session->Input(0)));
  session->Run();
  std::ofstream to(words[4], std::ios::binary);
  const auto write = [&](const void *data, int64_t size) { to.write(static_cast<const char *>(data), size); };
  for (size_t i = 0; i < session->Outputs(); ++i) {
    const rcnn::Shape made = session->OutputShape(i);
    const auto rank = static_cast<int64_t>(made.size());
    write(&rank, sizeof(rank));
    write(made.data(), rank * static_cast<int64_t>(sizeof(int64_t)));
    write(session->Output(i), Count(made) * static_cast<int64_t>(sizeof(float)));
  }
  return to.good() ? 0 : 1;
} catch (const rcnn::UserError &error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 2;
}
