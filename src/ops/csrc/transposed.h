// What of transposed.cc C++ calls too, beside MindSpore.
#ifndef RCNN_OPS_TRANSPOSED_H_
#define RCNN_OPS_TRANSPOSED_H_

#include <cstdint>

namespace rcnn {

// x of `shape` (N, C, H, W), weight (C, outputs, 2, 2), bias (outputs,) -> y (N, outputs, 2 H, 2 W), then ReLU where
// `relu`. threads: to use at most. Throws std::bad_alloc.
void TransposedByTwo(const float *x, const int64_t *shape, const float *weight, int64_t outputs, const float *bias,
                     bool relu, float *y, int threads);

}  // namespace rcnn

#endif  // RCNN_OPS_TRANSPOSED_H_
