// Runs the inference program's own mask head: mask_main WEIGHTS FEATURES LABELS COUNT SIDE CLASSES writes the logits,
// as float32, to standard output. FEATURES holds float32, LABELS int32. test_mask_head.py compiles it.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "../../ascend310_infer/src/mask_head.h"

namespace {

std::vector<uint8_t> Read(const std::string &path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

// sidecar.cc's also compares sizes and checksums.
std::vector<uint8_t> rcnn::ReadChecked(const ModelFile &file) { return Read(file.path); }

int main(int, char **words) {
  rcnn::ModelFile file;
  file.path = words[1];
  const std::vector<uint8_t> features = Read(words[2]), labels = Read(words[3]);
  const int64_t count = std::atoll(words[4]), side = std::atoll(words[5]), classes = std::atoll(words[6]);
  const std::unique_ptr<rcnn::MaskHead> head = rcnn::MakeHostMaskHead(file);
  std::copy(features.begin(), features.end(), reinterpret_cast<uint8_t *>(head->Input(count, side)));
  std::vector<float> logits(static_cast<size_t>(4 * count * side * side));
  head->Run(reinterpret_cast<const int32_t *>(labels.data()), classes, logits.data());
  return std::fwrite(logits.data(), sizeof(float), logits.size(), stdout) == logits.size() ? 0 : 1;
}
