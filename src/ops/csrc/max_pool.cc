// Max pooling, float32, NCHW; and of a 3x3 window of stride 2, with its gradient, as ahead-of-time custom operators of
// MindSpore for the CPU.
#include "max_pool.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "conv_operators.h"
#include "parallel.h"
#include "simd.h"

namespace rcnn {

namespace {

constexpr float kLeast = -std::numeric_limits<float>::infinity();

// The larger one; what is no number wins.
RCNN_INLINE Floats Larger(const Floats &a, const Floats &b) {
  const Floats larger = a > b ? a : b;  // b, where either is no number
  return a == a ? larger : a;
}

// kLanes places of a row from x on. line: the largest of each column, from the first one that a window has.
Floats Across(const float *line, int64_t x, const PoolAxis &across) {
  if (across.stride == 2 && across.kernel == 3) {
    const Floats low = Load(line + 2 * x), high = Load(line + 2 * x + kLanes);
    const Floats next = ShuffleBy<EvenLanes>(Load(line + 2 * x + 2), Load(line + 2 * x + 2 + kLanes));
    return Larger(Larger(ShuffleBy<EvenLanes>(low, high), ShuffleBy<OddLanes>(low, high)), next);
  }
  Floats v = {};
  for (int64_t i = 0; i < std::min(kLanes, across.places - x); ++i) {
    const float *from = line + (x + i) * across.stride;
    float most = from[0];
    for (int64_t k = 1; k < across.kernel; ++k) most = from[k] > most || from[k] != from[k] ? from[k] : most;
    v[i] = most;
  }
  return v;
}

}  // namespace

void MaxPool(const float *x, int64_t maps, const PoolAxis &down, const PoolAxis &across, float outside, float *y,
             int64_t y_map, int threads) {
  const int64_t wide = (across.places - 1) * across.stride + across.kernel;
  const int64_t room = std::max(wide, across.before + across.size) + 2 * kLanes;
  // a line for each map at work, made before threads run
  const int64_t workers = std::min<int64_t>(threads, maps);
  std::vector<float> lines(static_cast<size_t>(room * std::max<int64_t>(workers, 0)), outside);
  std::atomic<int64_t> next{0};
  ParallelFor(workers, static_cast<int>(workers), [&](int64_t worker) {
    float *line = lines.data() + worker * room, *most = line + across.before;
    for (int64_t map = next.fetch_add(1); map < maps; map = next.fetch_add(1)) {
      const float *from = x + map * down.size * across.size;
      for (int64_t place = 0; place < down.places; ++place) {
        const int64_t first = place * down.stride - down.before;
        const int64_t begin = std::max<int64_t>(first, 0), end = std::min(first + down.kernel, down.size);
        const Floats start = Broadcast(end - begin < down.kernel ? outside : kLeast);
        for (int64_t c = 0; c < across.size; c += kLanes) {
          Floats v = start;
          for (int64_t row = begin; row < end; ++row)
            v = Larger(v, LoadWithin(from + row * across.size, c, across.size));
          StoreFirst(most + c, v, across.size - c);
        }
        float *to = y + map * y_map + place * across.places;
        for (int64_t c = 0; c < across.places; c += kLanes)
          StoreFirst(to + c, Across(line, c, across), across.places - c);
      }
    }
  });
}

namespace {

constexpr int64_t kWindow = 3, kStride = 2;

PoolAxis AxisOf(int64_t size, int64_t before) { return {size, kWindow, kStride, before, size / 2}; }

// x (N, C, H, W) -> y (N, C, H / 2, W / 2), rounded down. before: cells of the first window before the map.
void Forward(void **params, int64_t **shapes, int64_t before) {
  const int64_t *in = shapes[0];
  const PoolAxis down = AxisOf(in[2], before), across = AxisOf(in[3], before);
  MaxPool(static_cast<const float *>(params[0]), in[0] * in[1], down, across, kLeast, static_cast<float *>(params[1]),
          down.places * across.places, NumThreads());
}

// dy (N, C, H / 2, W / 2), x (N, C, H, W) -> dx like x: a window's gradient goes to the first of its largest numbers.
void Gradient(void **params, int64_t **shapes, int64_t before) {
  const int64_t *out = shapes[0], *in = shapes[1], height = in[2], width = in[3];
  const auto *dy = static_cast<const float *>(params[0]), *x = static_cast<const float *>(params[1]);
  auto *dx = static_cast<float *>(params[2]);
  ParallelFor(in[0] * in[1], NumThreads(), [=](int64_t map) {
    const float *from = x + map * height * width, *gradient = dy + map * out[2] * out[3];
    float *to = dx + map * height * width;
    std::fill_n(to, height * width, 0.0f);
    for (int64_t row = 0; row < out[2]; ++row) {
      const int64_t top = row * kStride - before, bottom = std::min(top + kWindow, height);
      for (int64_t column = 0; column < out[3]; ++column) {
        const int64_t left = column * kStride - before, right = std::min(left + kWindow, width);
        int64_t best = std::max<int64_t>(top, 0) * width + std::max<int64_t>(left, 0);
        for (int64_t y = std::max<int64_t>(top, 0); y < bottom; ++y) {
          for (int64_t c = std::max<int64_t>(left, 0); c < right; ++c) {
            if (from[y * width + c] > from[best]) best = y * width + c;
          }
        }
        to[best] += gradient[row * out[3] + column];
      }
    }
  });
}

}  // namespace

}  // namespace rcnn

// padded by one above and on the left; and as MindSpore's mode `same` does maps of even sides
RCNN_OPERATOR(MaxPool3x3, rcnn::Forward, 2, 1)
RCNN_OPERATOR(MaxPool3x3Gradient, rcnn::Gradient, 3, 1)
RCNN_OPERATOR(MaxPool3x3Same, rcnn::Forward, 2, 0)
RCNN_OPERATOR(MaxPool3x3SameGradient, rcnn::Gradient, 3, 0)
