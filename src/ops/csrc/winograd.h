// What of winograd.cc C++ calls too, beside MindSpore.
#ifndef RCNN_OPS_WINOGRAD_H_
#define RCNN_OPS_WINOGRAD_H_

#include <cstdint>
#include <memory>

// params: x (N, C, H, W), weight (O, C, 3, 3), bias (O,), y (N, O, H, W), which is written; shapes: theirs. The other
// arguments are MindSpore's, and not read. Returns 0, or 1 where there is no memory.
extern "C" int Conv3x3ForwardReLU(int nparam, void **params, int *ndims, int64_t **shapes, const char **dtypes,
                                  void *stream, void *extra);

namespace rcnn {

// The same convolution with filters that are transformed once.
class Conv3x3 {
 public:
  // weight: (outputs, inputs, 3, 3), not read later. Throws std::bad_alloc.
  Conv3x3(const float *weight, int64_t outputs, int64_t inputs);
  ~Conv3x3();

  // x (images, inputs, height, width), bias (outputs,) -> y (images, outputs, height, width), then ReLU where `relu`.
  // Throws std::bad_alloc.
  void Run(const float *x, int64_t images, int64_t height, int64_t width, const float *bias, bool relu, float *y) const;

  // With ReLU, and a 1x1 convolution of what that gives, weight (head's outputs, outputs) and head_bias -> y (images,
  // head's outputs, height, width): what lies between is never there as a whole (rpn_head.cc). Throws std::bad_alloc.
  void RunWithHead(const float *x, int64_t images, int64_t height, int64_t width, const float *bias,
                   const float *weight, const float *head_bias, int64_t outputs, float *y) const;

 private:
  struct Filters;
  std::unique_ptr<Filters> filters_;
};

}  // namespace rcnn

#endif  // RCNN_OPS_WINOGRAD_H_
