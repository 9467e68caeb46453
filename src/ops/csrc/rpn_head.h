// What of rpn_head.cc C++ calls too, beside MindSpore.
#ifndef RCNN_OPS_RPN_HEAD_H_
#define RCNN_OPS_RPN_HEAD_H_

#include <cstdint>
#include <vector>

namespace rcnn {

// One level: its maps x (images, channels, height, width), and where its numbers go, one place of the map after the
// other: scores (images, height * width, scores), boxes (images, height * width, boxes).
struct RPNLevel {
  const float *x;
  int64_t height, width;
  float *scores, *boxes;
};

// The hidden convolution's weight (hidden, channels, 3, 3) and bias; weights (scores, hidden) and (boxes, hidden), and
// biases.
struct RPNFilters {
  int64_t hidden, scores, boxes;
  const float *hidden_weight, *hidden_bias, *score_weight, *score_bias, *box_weight, *box_bias;
};

// The head of all levels. Throws std::bad_alloc.
void ApplyRPNHead(const std::vector<RPNLevel> &levels, int64_t images, int64_t channels, const RPNFilters &filters);

}  // namespace rcnn

#endif  // RCNN_OPS_RPN_HEAD_H_
