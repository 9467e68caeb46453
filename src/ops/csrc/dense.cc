// Dense layer and its gradients, float32, as ahead-of-time custom operators of MindSpore for the CPU: matrix products
// with bias and ReLU in the same pass. A row's numbers don't depend on how many there are.
#include <cstdint>

#include "conv_operators.h"
#include "padding.h"
#include "parallel.h"
#include "patches.h"

namespace {

using rcnn::Activation;
using rcnn::Left;

const float *Numbers(const void *param) { return static_cast<const float *>(param); }

rcnn::Gate GateOf(bool relu, const void *y) { return {relu ? Numbers(y) : nullptr}; }

// A matrix (rows x columns) as the right one of products, or turned: a map of so many channels and one row.
rcnn::SeenMaps Matrix(const void *data, int64_t rows, int64_t columns) { return {Numbers(data), rows, 1, columns}; }

// x (R, D), weight (O, D), bias (O,) -> y (R, O)
void Forward(void **params, int64_t **shapes, bool relu) {
  const int64_t all = shapes[0][0], depth = shapes[0][1], outputs = shapes[1][0];
  const int64_t rows = rcnn::ImagesBeforeCopies(Numbers(params[0]), all, depth);
  auto *y = static_cast<float *>(params[3]);
  rcnn::Finish finish;
  finish.column_bias = Numbers(params[2]);
  finish.activation = relu ? Activation::kReLU : Activation::kNone;
  rcnn::MultiplyMatrices(Left{Numbers(params[0]), depth, 1}, rcnn::TurnedPatches(Matrix(params[1], outputs, depth)),
                         {1, rows, outputs, depth, 1, true}, finish, y, rcnn::NumThreads());
  rcnn::CopyLast(y, rows, all, outputs, 1);
}

// dy and y (R, O), weight (O, D), x (R, D) -> dx like x. y is read only for ReLU, x never.
void InputGradient(void **params, int64_t **shapes, bool relu) {
  const int64_t rows = shapes[0][0], outputs = shapes[0][1], depth = shapes[2][1];
  const Left dy{Numbers(params[0]), outputs, 1, 0, GateOf(relu, params[1])};
  rcnn::MultiplyMatrices(dy, rcnn::Patches(Matrix(params[2], outputs, depth)), {1, rows, depth, outputs, 1, true}, {},
                         static_cast<float *>(params[4]), rcnn::NumThreads());
}

// dy and y (R, O), x (R, D), weight (O, D) -> dweight like weight, dbias (O,). y is read only for ReLU, weight never.
void FilterGradient(void **params, int64_t **shapes, bool relu) {
  const int64_t rows = shapes[0][0], outputs = shapes[0][1], depth = shapes[2][1];
  const Left turned{Numbers(params[0]), 1, outputs, 0, GateOf(relu, params[1]), static_cast<float *>(params[5])};
  rcnn::MultiplyMatrices(turned, rcnn::Patches(Matrix(params[2], rows, depth)), {1, outputs, depth, rows}, {},
                         static_cast<float *>(params[4]), rcnn::NumThreads());
}

}  // namespace

RCNN_CONVOLUTION(Dense)
