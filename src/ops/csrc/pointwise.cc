// 1x1 convolution of stride 1 or 2, and its gradients, float32, NCHW, as ahead-of-time custom operators of MindSpore
// for the CPU: matrix products over channels, with bias, a sum with another map, and ReLU or ReLU6 in the same pass.
//
// Scratch memory doesn't grow with the map. The order of every sum is the same whatever the batch and the number of
// threads.
#include <algorithm>
#include <cstdint>

#include "conv_operators.h"
#include "parallel.h"
#include "patches.h"
#include "workspace.h"

namespace {

using rcnn::Activation;
using rcnn::Ceil;
using rcnn::FilterAxis;
using rcnn::Finish;
using rcnn::Floats;
using rcnn::kLanes;
using rcnn::Left;
using rcnn::LoadWithin;
using rcnn::SeenMaps;
using rcnn::StoreFirst;
using rcnn::Workspace;

constexpr int64_t kSpreadFloats = 1 << 20;  // of an input's gradient at stride 2, before it is spread

const float *Numbers(const void *param) { return static_cast<const float *>(param); }

// maps (N, C, H, W) and one axis of `stride`.
SeenMaps MapsOf(const void *data, const int64_t *shape) { return {Numbers(data), shape[1], shape[2], shape[3]}; }
FilterAxis AxisOf(int64_t size, int64_t stride) { return {1, stride, 0, Ceil(size, stride)}; }

rcnn::Gate GateOf(Activation activation, const void *y) {
  if (activation == Activation::kNone) return {};
  rcnn::Gate gate{Numbers(y)};
  if (activation == Activation::kReLU6) gate.below = 6.0f;
  return gate;
}

enum class Summand { kNone, kLike, kHalf };

// x (N, C, H, W), weight (O, C, 1, 1), bias (O,), of two summands other, like y or half as wide and high
// -> y (N, O, h, w)
template <int64_t kStride, Summand kSummand>
void Forward(void **params, int64_t **shapes, Activation activation) {
  const int64_t *in = shapes[0], *out = shapes[kSummand == Summand::kNone ? 3 : 4], channels = in[1];
  const rcnn::Patches patches(MapsOf(params[0], in), AxisOf(in[2], kStride), AxisOf(in[3], kStride));
  Finish finish;
  finish.row_bias = Numbers(params[2]);
  if (kSummand != Summand::kNone) finish.other = Numbers(params[3]);
  if (kSummand == Summand::kHalf) finish.enlarged_to = out[3];
  finish.activation = activation;
  rcnn::MultiplyMatrices(Left{Numbers(params[1]), channels, 1}, patches, {out[0], out[1], out[2] * out[3], channels},
                         finish, static_cast<float *>(params[kSummand == Summand::kNone ? 3 : 4]), rcnn::NumThreads());
}

// Rows (h, w) of some channels -> rows (height, width) with zeros between; from: `stride` apart.
void Spread(const float *from, int64_t row, int64_t width, float *to) {
  const int64_t places = Ceil(width, 2);
  if (row % 2 != 0) {
    std::fill_n(to, width, 0.0f);
    return;
  }
  for (int64_t x = 0; x < places; x += kLanes) {
    const Floats v = LoadWithin(from, x, places);
    const int64_t rest = width - 2 * x;
    StoreFirst(to + 2 * x, rcnn::ShuffleBy<rcnn::LowHalves>(v, Floats{}), rest);
    if (rest > kLanes) {
      StoreFirst(to + 2 * x + kLanes, rcnn::ShuffleBy<rcnn::HighHalves>(v, Floats{}), rest - kLanes);
    }
  }
}

// dy and y (N, O, h, w), weight (O, C, 1, 1), x (N, C, H, W) -> dx like x. y is read only for an activation, x for
// kPassed.
// kPassed: x has passed ReLU, other comes before dx and is like it: the gradient is their sum, where x is positive.
template <int64_t kStride, bool kPassed = false>
void InputGradient(void **params, int64_t **shapes, Activation activation) {
  const int64_t *out = shapes[0], *in = shapes[kPassed ? 5 : 4], channels = in[1];
  SeenMaps dy = MapsOf(params[0], out);
  dy.gate = GateOf(activation, params[1]);
  const Left turned{Numbers(params[2]), 1, channels};
  auto *dx = static_cast<float *>(params[kPassed ? 5 : 4]);
  const int threads = rcnn::NumThreads();
  if constexpr (kStride == 1) {
    Finish finish;
    if (kPassed) {
      finish.other = Numbers(params[4]);
      finish.positive = Numbers(params[3]);
    }
    rcnn::MultiplyMatrices(turned, rcnn::Patches(dy), {out[0], channels, out[2] * out[3], out[1]}, finish, dx, threads);
    return;
  }
  // some rows of an image at a time
  const int64_t rows = std::clamp<int64_t>(kSpreadFloats / std::max<int64_t>(channels * out[3], 1), 1, out[2]);
  Workspace workspace(Workspace::Padded(channels * rows * out[3]));
  float *room = workspace.Take(channels * rows * out[3]);
  const int64_t image_floats = out[1] * out[2] * out[3];
  for (int64_t n = 0; n < out[0]; ++n) {
    SeenMaps image = dy;
    image.data += n * image_floats;
    image.gate = dy.gate.At(n * image_floats);
    for (int64_t row = 0; row < out[2]; row += rows) {
      const int64_t some = std::min(rows, out[2] - row), cells = some * out[3];
      const rcnn::Patches patches(image, row * out[3]);
      rcnn::MultiplyMatrices(turned, patches, {1, channels, cells, out[1]}, Finish(), room, threads);
      rcnn::ParallelFor(channels, threads, [&](int64_t c) {
        for (int64_t y = 2 * row; y < std::min(2 * (row + some), in[2]); ++y) {
          Spread(room + c * cells + (y / 2 - row) * out[3], y, in[3], dx + ((n * channels + c) * in[2] + y) * in[3]);
        }
      });
    }
  }
}

// dy and y (N, O, h, w), x (N, C, H, W), weight (O, C, 1, 1) -> dweight like weight, dbias (O,). y is read only for an
// activation, weight never.
template <int64_t kStride>
void FilterGradient(void **params, int64_t **shapes, Activation activation) {
  const int64_t *out = shapes[0], *in = shapes[2], cells = out[2] * out[3];
  Left dy{Numbers(params[0]), cells, 1, out[1] * cells, GateOf(activation, params[1]), static_cast<float *>(params[5])};
  const rcnn::TurnedPatches patches(MapsOf(params[2], in), AxisOf(in[2], kStride), AxisOf(in[3], kStride));
  rcnn::MultiplyMatrices(dy, patches, {1, out[1], in[1], cells, out[0]}, Finish(), static_cast<float *>(params[4]),
                         rcnn::NumThreads());
}

// dy (N, C, H, W) of even sides -> the sums of its 2 x 2 (N, C, H / 2, W / 2): the gradient to what was enlarged.
void AddFours(void **params, int64_t **shapes, int) {
  const int64_t height = shapes[1][2], width = shapes[1][3];
  const float *dy = Numbers(params[0]);
  auto *sums = static_cast<float *>(params[1]);
  rcnn::ParallelFor(shapes[1][0] * shapes[1][1], rcnn::NumThreads(), [=](int64_t map) {
    for (int64_t y = 0; y < height; ++y) {
      const float *upper = dy + (map * height + y) * 4 * width, *lower = upper + 2 * width;
      for (int64_t x = 0; x < width; x += kLanes) {
        const auto column = [&](int64_t at) {
          return LoadWithin(upper, at, 2 * width) + LoadWithin(lower, at, 2 * width);
        };
        const Floats low = column(2 * x), high = column(2 * x + kLanes);
        const Floats v = rcnn::ShuffleBy<rcnn::EvenLanes>(low, high) + rcnn::ShuffleBy<rcnn::OddLanes>(low, high);
        StoreFirst(sums + (map * height + y) * width + x, v, width - x);
      }
    }
  });
}

}  // namespace

#define RCNN_POINTWISE(name, stride, suffix, activation)                                             \
  RCNN_OPERATOR(name##Forward##suffix, (Forward<stride, Summand::kNone>), 4, Activation::activation) \
  RCNN_OPERATOR(name##InputGradient##suffix, (InputGradient<stride>), 5, Activation::activation)     \
  RCNN_OPERATOR(name##WeightGradient##suffix, (FilterGradient<stride>), 6, Activation::activation)

RCNN_POINTWISE(Pointwise, 1, , kNone)
RCNN_POINTWISE(Pointwise, 1, ReLU, kReLU)
RCNN_POINTWISE(Pointwise, 1, ReLU6, kReLU6)
RCNN_POINTWISE(PointwiseStride2, 2, , kNone)
RCNN_POINTWISE(PointwiseStride2, 2, ReLU, kReLU)
RCNN_POINTWISE(PointwiseStride2, 2, ReLU6, kReLU6)
RCNN_OPERATOR(PointwiseForwardSum, (Forward<1, Summand::kLike>), 5, Activation::kNone)
RCNN_OPERATOR(PointwiseForwardSumReLU, (Forward<1, Summand::kLike>), 5, Activation::kReLU)
RCNN_OPERATOR(PointwiseForwardEnlarged, (Forward<1, Summand::kHalf>), 5, Activation::kNone)
RCNN_OPERATOR(PointwiseInputGradientPassedReLU, (InputGradient<1, true>), 6, Activation::kReLU)
RCNN_OPERATOR(SumOfFour, AddFours, 2, 0)
