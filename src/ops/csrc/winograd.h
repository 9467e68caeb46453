// What of winograd.cc C++ calls too, beside MindSpore.
#ifndef RCNN_OPS_WINOGRAD_H_
#define RCNN_OPS_WINOGRAD_H_

#include <cstdint>

// params: x (N, C, H, W), weight (O, C, 3, 3), bias (O,), y (N, O, H, W), which is written; shapes: theirs. The other
// arguments are MindSpore's, and not read. Returns 0, or 1 where there is no memory.
extern "C" int Conv3x3ForwardReLU(int nparam, void **params, int *ndims, int64_t **shapes, const char **dtypes,
                                  void *stream, void *extra);

#endif  // RCNN_OPS_WINOGRAD_H_
