// Writes a result with fields: for the tests, which read it in Python.
//
// usage: pack_main COUNT FIELD...: a result of COUNT detections to standard output; FIELD: mask, squares of 2 x 2
// bytes, or points, (3, 2) float32; their bytes and all numbers count up.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "../../ascend310_infer/src/results.h"

int main(int argc, char **argv) {
  const auto count = static_cast<size_t>(std::atoi(argv[1]));
  rcnn::Prepared image;
  image.height = 40;
  image.width = 60;
  rcnn::Detections found;
  for (size_t i = 0; i < count; ++i) {
    const auto v = static_cast<float>(i);
    found.boxes.push_back({v, v + 1, v + 2, v + 3});
    found.scores.push_back(v);
    found.labels.push_back(static_cast<int32_t>(i));
  }
  std::vector<rcnn::Field> fields;
  for (int f = 2; f < argc; ++f) {
    const bool mask = std::string(argv[f]) == "mask";
    fields.push_back(mask ? rcnn::Field{"mask", "u1", {2, 2}, true} : rcnn::Field{"points", "f4", {3, 2}});
    std::vector<uint8_t> bytes;
    for (size_t i = 0; i < count * (mask ? 4 : 6); ++i) {
      const auto v = static_cast<float>(i);
      uint8_t four[] = {static_cast<uint8_t>(i), 0, 0, 0};
      if (!mask) std::memcpy(four, &v, sizeof(v));
      bytes.insert(bytes.end(), four, four + (mask ? 1 : 4));
    }
    found.fields.push_back(bytes);
  }
  const std::vector<uint8_t> bytes = rcnn::PackResult(image, found, fields);
  return std::fwrite(bytes.data(), 1, bytes.size(), stdout) == bytes.size() ? 0 : 1;
}
