#include "reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "files.h"

namespace rcnn {

namespace {

constexpr int64_t kMost = int64_t{1} << 30;  // elements; keeps damaged numbers from asking for all memory

class Reader {
 public:
  explicit Reader(const ModelFile &file) : path_(file.path), bytes_(ReadChecked(file)) {
    if (bytes_.size() < 8 || std::memcmp(bytes_.data(), "RCNNREF2", 8) != 0) Fail();
    at_ = 8;
  }

  template <typename T>
  T Next() {
    T value;
    if (bytes_.size() - at_ < sizeof(T)) Fail();
    std::memcpy(&value, bytes_.data() + at_, sizeof(T));
    at_ += sizeof(T);
    return value;
  }

  Shape NextShape() {
    Shape shape(std::min<uint32_t>(Next<uint32_t>(), 8));
    int64_t elements = 1;
    for (int64_t &side : shape) {
      side = Next<uint32_t>();
      if (side < 1 || side > kMost / elements) Fail();
      elements *= side;
    }
    if (shape.empty()) Fail();
    return shape;
  }

  Samples NextSamples() {
    Samples out;
    out.shape = NextShape();
    out.largest = Next<float>();
    out.step = Next<uint32_t>();
    const auto count = Next<uint32_t>();
    for (uint32_t i = 0; i < count; ++i) out.values.push_back(Next<float>());
    return out;
  }

  ReferenceCase NextCase() {
    ReferenceCase out;
    out.role = Next<uint32_t>();
    out.stage = Next<uint32_t>();
    out.seed = Next<uint64_t>();
    out.scale = Next<float>();
    out.shape = NextShape();
    const auto outputs = Next<uint32_t>();
    for (uint32_t i = 0; i < outputs; ++i) out.outputs.push_back(NextSamples());
    return out;
  }

 private:
  [[noreturn]] void Fail() const {
    throw UserError(path_ + ": not a reference of this version; export the model again");
  }

  std::string path_;
  std::vector<uint8_t> bytes_;
  size_t at_ = 0;
};

int64_t Elements(const Shape &shape) {
  int64_t count = 1;
  for (const int64_t side : shape) count *= side;
  return count;
}

}  // namespace

Reference ReadReference(const ModelFile &file) {
  Reader reader(file);
  Reference out;
  out.tolerance = reader.Next<float>();
  const auto cases = reader.Next<uint32_t>();
  for (uint32_t i = 0; i < cases; ++i) out.cases.push_back(reader.NextCase());
  return out;
}

// src/export/reference.py's `uniform`
std::vector<float> ReferenceInput(const ReferenceCase &reference) {
  std::vector<float> out(static_cast<size_t>(Elements(reference.shape)));
  for (size_t i = 0; i < out.size(); ++i) {
    uint64_t x = (static_cast<uint64_t>(i) + 1) * 0x9E3779B97F4A7C15u + reference.seed;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    x ^= x >> 31;
    out[i] = (static_cast<float>(x >> 40) * 0x1p-23f - 1.0f) * reference.scale;
  }
  return out;
}

double Difference(const Samples &wanted, const float *values) {
  const int64_t last = Elements(wanted.shape) - 1;
  double worst = 0;
  for (size_t s = 0; s < wanted.values.size(); ++s) {
    const int64_t place = std::min(static_cast<int64_t>(s) * wanted.step, last);
    const double difference = std::abs(static_cast<double>(values[place]) - static_cast<double>(wanted.values[s]));
    // written so that what is no number counts as wrong
    if (!(difference <= worst * static_cast<double>(wanted.largest))) {
      worst =
          std::isfinite(difference) && wanted.largest > 0 ? difference / static_cast<double>(wanted.largest) : INFINITY;
    }
  }
  return worst;
}

}  // namespace rcnn
