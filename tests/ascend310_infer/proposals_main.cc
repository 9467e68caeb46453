// Says how many proposals there are above a score: for the tests, whose anchors don't overlap.
//
// usage: proposals_main THRESHOLD LOGITS_FIRST: reads logits (float32) from standard input, half of them one level's,
// and half another's of the same stride, and prints the number of proposals.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "../../ascend310_infer/src/detector.h"

int main(int, char **words) {
  std::vector<float> logits(1 << 12);
  logits.resize(std::fread(logits.data(), sizeof(float), logits.size(), stdin));
  const auto half = static_cast<int64_t>(logits.size() / 2);
  const std::vector<float> deltas(logits.size() * 4, 0.0f);
  const std::vector<rcnn::Box> small = {{0, 0, 4, 4}}, large = {{8, 0, 16, 8}};
  const std::vector<rcnn::RpnLevel> levels = {{logits.data(), deltas.data(), 1, half, 1, half, 32, 32, &small},
                                              {logits.data() + half, deltas.data(), 1, half, 1, half, 32, 32, &large}};
  rcnn::BoxCoder coder;
  coder.stds = {1, 1, 1, 1};
  rcnn::NmsSettings settings;
  settings.nms_pre = settings.max_per_img = 1 << 12;
  settings.iou_threshold = 0.5f;
  const bool by_logits = std::string(words[2]) == "1";
  const auto proposals = rcnn::MakeProposals(levels, coder, settings, static_cast<float>(std::atof(words[1])),
                                             {by_logits, false}, {32, 32 * half, false});
  std::printf("%zu\n", proposals.size());
  return 0;
}
