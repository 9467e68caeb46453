// How MindSpore calls a convolution: its values, and its gradients by the input and by the filters; each with ReLU and
// without.
#ifndef RCNN_OPS_CONV_OPERATORS_H_
#define RCNN_OPS_CONV_OPERATORS_H_

#include <cstdint>
#include <cstdio>
#include <exception>

// An ahead-of-time custom operator of `count` inputs and outputs that does function(params, shapes, relu).
#define RCNN_OPERATOR(name, function, count, relu)                                                             \
  extern "C" int name(int nparam, void **params, int *, int64_t **shapes, const char **, void *, void *) try { \
    if (nparam != (count)) return 1;                                                                           \
    function(params, shapes, relu);                                                                            \
    return 0;                                                                                                  \
  } catch (const std::exception &error) {                                                                      \
    std::fprintf(stderr, "%s: %s\n", #name, error.what());                                                     \
    return 1;                                                                                                  \
  }

// The six of them, by the functions Forward, InputGradient and FilterGradient in scope:
//   Forward: x, weight, bias -> y
//   InputGradient: dy, y, weight, x -> dx. y is read only for ReLU, x never, so that anything may stand for it.
//   FilterGradient: dy, y, x, weight -> dweight, dbias. y is read only for ReLU, weight never.
#define RCNN_CONVOLUTION(name)                                   \
  RCNN_OPERATOR(name##Forward, Forward, 4, false)                \
  RCNN_OPERATOR(name##ForwardReLU, Forward, 4, true)             \
  RCNN_OPERATOR(name##InputGradient, InputGradient, 5, false)    \
  RCNN_OPERATOR(name##InputGradientReLU, InputGradient, 5, true) \
  RCNN_OPERATOR(name##WeightGradient, FilterGradient, 6, false)  \
  RCNN_OPERATOR(name##WeightGradientReLU, FilterGradient, 6, true)

#endif  // RCNN_OPS_CONV_OPERATORS_H_
