// What of depthwise.cc C++ calls too, beside MindSpore.
#ifndef RCNN_OPS_DEPTHWISE_H_
#define RCNN_OPS_DEPTHWISE_H_

#include <cstdint>

// params: x (N, C, H, W), weight (C, 1, k, k), bias (C,), y (N, C, h, w), which is written; shapes: theirs. k is 3
// or 5. The other arguments are MindSpore's, and not read. Returns 0, or 1 where there is no memory.
using DepthwiseOperator = int(int nparam, void **params, int *ndims, int64_t **shapes, const char **dtypes,
                              void *stream, void *extra);

extern "C" {
// Padded by k / 2 on every side.
DepthwiseOperator DepthwiseForward, DepthwiseForwardReLU, DepthwiseForwardReLU6;
DepthwiseOperator DepthwiseStride2Forward, DepthwiseStride2ForwardReLU, DepthwiseStride2ForwardReLU6;
// Padded by no more than is needed, and where that is odd, by one less above and on the left.
DepthwiseOperator DepthwiseSameStride2Forward, DepthwiseSameStride2ForwardReLU, DepthwiseSameStride2ForwardReLU6;
}

#endif  // RCNN_OPS_DEPTHWISE_H_
