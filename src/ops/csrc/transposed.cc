// Transposed convolution with a filter of 2x2 and stride 2, without padding, and its gradients, float32, NCHW, as
// ahead-of-time custom operators of MindSpore for the CPU: each cell gives a block of 2x2, by matrix products over
// channels, with bias and ReLU in the same pass.
//
// Scratch memory doesn't grow with the batch. The order of every sum is the same whatever the batch and the number of
// threads.
#include <algorithm>
#include <cstdint>

#include "conv_operators.h"
#include "padding.h"
#include "parallel.h"
#include "patches.h"
#include "transposed.h"
#include "workspace.h"

namespace rcnn {

namespace {

constexpr int64_t kGivenFloats = 1 << 20;  // of what cells give, before it is laid side by side
constexpr int64_t kTaps = 4;
constexpr int64_t kPlaces = 128;  // whose blocks are read at a time: a panel's lines stay in the L1 cache
constexpr int64_t kLine = kPlaces + kLanes;
static_assert(kPlaces % kBlockColumns == 0);

const float *Numbers(const void *param) { return static_cast<const float *>(param); }

// A row's blocks, of which even and odd columns are given apart, side by side.
void Interleave(const float *even, const float *odd, int64_t width, float bias, bool relu, float *to) {
  const Activation activation = relu ? Activation::kReLU : Activation::kNone;
  for (int64_t x = 0; x < width; x += kLanes) {
    const Floats a = Activate(activation, LoadWithin(even, x, width) + bias);
    const Floats b = Activate(activation, LoadWithin(odd, x, width) + bias);
    const int64_t rest = 2 * (width - x);
    StoreFirst(to + 2 * x, ShuffleBy<LowHalves>(a, b), rest);
    if (rest > kLanes) StoreFirst(to + 2 * x + kLanes, ShuffleBy<HighHalves>(a, b), rest - kLanes);
  }
}

}  // namespace

void TransposedByTwo(const float *x, const int64_t *shape, const float *weight, int64_t outputs, const float *bias,
                     bool relu, float *y, int threads) {
  const int64_t images = shape[0], inputs = shape[1], height = shape[2], width = shape[3];
  const int64_t cells = height * width, rows = kTaps * outputs;
  if (images * rows * cells == 0) return;
  const int64_t most = std::clamp<int64_t>(kGivenFloats / (rows * cells), 1, images);
  Workspace workspace(Workspace::Padded(most * rows * cells));
  float *given = workspace.Take(most * rows * cells);
  for (int64_t first = 0; first < images; first += most) {
    const int64_t some = std::min(most, images - first);
    const Patches pixels(SeenMaps{x + first * inputs * cells, inputs, height, width});
    MultiplyMatrices(Left{weight, 1, rows}, pixels, {some, rows, cells, inputs}, Finish(), given, threads);
    ParallelFor(some * outputs, threads, [&](int64_t map) {
      float *to = y + (first * outputs + map) * kTaps * cells;
      for (int64_t row = 0; row < 2 * height; ++row) {
        const float *even = given + (kTaps * map + 2 * (row % 2)) * cells + row / 2 * width;
        Interleave(even, even + cells, width, bias[map % outputs], relu, to + row * 2 * width);
      }
    });
  }
}

namespace {

// x (N, C, H, W), weight (C, O, 2, 2), bias (O,) -> y (N, O, 2 H, 2 W)
void Forward(void **params, int64_t **shapes, bool relu) {
  const int64_t *in = shapes[0], *out = shapes[3];
  auto *y = static_cast<float *>(params[3]);
  const int64_t images = ImagesBeforeCopies(Numbers(params[0]), in[0], in[1] * in[2] * in[3]);
  const int64_t some[] = {images, in[1], in[2], in[3]};
  TransposedByTwo(Numbers(params[0]), some, Numbers(params[1]), out[1], Numbers(params[2]), relu, y, NumThreads());
  CopyLast(y, images, in[0], out[1] * out[2] * out[3], NumThreads());
}

// The output's gradient as each cell's block of it: numbers of a block are counted [channel][row][column].
class Blocks {
 public:
  Blocks(void **params, const int64_t *shape, bool relu)
      : data_(Numbers(params[0])),
        gate_{relu ? Numbers(params[1]) : nullptr},
        channels_(shape[1]),
        width_(shape[3]),
        cells_(shape[2] * shape[3]) {}

  const float *Data() const { return data_; }
  const Gate &Passing() const { return gate_; }

  // Of `count` cells from a place on, that number of the blocks, an even one, and the next: they lie side by side. Up
  // to kLanes more are written, of any content.
  void Read(int64_t image, int64_t number, int64_t place, int64_t count, float *even, float *odd) const {
    const int64_t across = width_ / 2;
    const int64_t map = (image * channels_ + number / kTaps) * cells_ + number % kTaps / 2 * width_;
    int64_t x = place % across;
    for (int64_t y = place / across; count > 0; ++y, x = 0) {
      const int64_t run = std::min(across - x, count), row = map + 2 * y * width_;
      const Gate gate = gate_.At(row);
      for (int64_t i = 0; i < run; i += kLanes) {
        const Floats low = LoadGated(data_ + row, gate, 2 * (x + i), width_);
        const Floats high = LoadGated(data_ + row, gate, 2 * (x + i) + kLanes, width_);
        Store(even + i, ShuffleBy<EvenLanes>(low, high));
        Store(odd + i, ShuffleBy<OddLanes>(low, high));
      }
      even += run;
      odd += run;
      count -= run;
    }
  }

 private:
  const float *data_;
  const Gate gate_;
  const int64_t channels_, width_, cells_;
};

// Terms are the blocks' numbers, columns the cells.
class CellColumns : public Columns {
 public:
  explicit CellColumns(const Blocks &blocks) : blocks_(blocks) {}

  void Pack(int64_t image, int64_t first, int64_t count, const Range &depth, int64_t panel_depth,
            float *to) const override {
    alignas(64) float even[kLine], odd[kLine];
    for (int64_t d = depth.begin; d < depth.end; d += 2, to += 2 * kBlockColumns) {
      for (int64_t p = 0; p < count; p += kPlaces) {
        const int64_t some = std::min(kPlaces, count - p);
        blocks_.Read(image, d, first + p, some, even, odd);
        for (int64_t c = 0; c < some; c += kLanes) {
          const int64_t panel = (p + c) / kBlockColumns * kBlockColumns;
          float *place = to + panel * panel_depth + (p + c - panel);
          Store(place, Load(even + c));
          Store(place + kBlockColumns, Load(odd + c));
        }
      }
    }
  }

 private:
  const Blocks &blocks_;
};

// The same matrix turned.
class NumberColumns : public Columns {
 public:
  explicit NumberColumns(const Blocks &blocks) : blocks_(blocks) {}

  void Pack(int64_t image, int64_t first, int64_t count, const Range &depth, int64_t panel_depth,
            float *to) const override {
    for (int64_t c = 0; c < count; c += kBlockColumns, to += panel_depth * kBlockColumns) {
      const int64_t some = std::min(kBlockColumns, count - c);
      alignas(64) float lines[kBlockColumns * kLine];
      for (int64_t d = 0; d < depth.Size(); d += kPlaces) {
        const int64_t places = std::min(kPlaces, depth.Size() - d);
        for (int64_t i = 0; i < some; i += 2) {
          blocks_.Read(image, first + c + i, depth.begin + d, places, lines + i * kLine, lines + (i + 1) * kLine);
        }
        // up to kLanes more than there are, which a panel has room for
        TurnBlock(lines, kLine, some, places, to + d * kBlockColumns);
      }
    }
  }

 private:
  const Blocks &blocks_;
};

// dy and y (N, O, 2 H, 2 W), weight (C, O, 2, 2), x (N, C, H, W) -> dx like x. y is read only for ReLU, x never.
void InputGradient(void **params, int64_t **shapes, bool relu) {
  const int64_t *in = shapes[4], *out = shapes[0], depth = kTaps * out[1], floats = in[1] * in[2] * in[3];
  const int64_t images = ImagesBeforeZeros(Numbers(params[0]), out[0], out[1] * out[2] * out[3]);
  const Blocks blocks(params, out, relu);
  auto *dx = static_cast<float *>(params[4]);
  MultiplyMatrices(Left{Numbers(params[2]), depth, 1}, CellColumns(blocks), {images, in[1], in[2] * in[3], depth},
                   Finish(), dx, NumThreads());
  std::fill_n(dx + images * floats, (in[0] - images) * floats, 0.0f);
}

// dy and y (N, O, 2 H, 2 W), x (N, C, H, W), weight (C, O, 2, 2) -> dweight like weight, dbias (O,). y is read only for
// ReLU, weight never.
void FilterGradient(void **params, int64_t **shapes, bool relu) {
  const int64_t *in = shapes[2], *out = shapes[0], cells = in[2] * in[3];
  const int64_t images = ImagesBeforeZeros(Numbers(params[0]), out[0], out[1] * out[2] * out[3]);
  const Blocks blocks(params, out, relu);
  MultiplyMatrices(Left{Numbers(params[2]), cells, 1, in[1] * cells}, NumberColumns(blocks),
                   {1, in[1], kTaps * out[1], cells, images}, Finish(), static_cast<float *>(params[4]), NumThreads());
  auto *dbias = static_cast<float *>(params[5]);
  ParallelFor(out[1], NumThreads(), [&](int64_t o) {
    double total = 0.0;
    for (int64_t n = 0; n < images; ++n) {
      const int64_t map = (n * out[1] + o) * kTaps * cells;
      const Gate gate = blocks.Passing().At(map);
      Floats sum = {};
      for (int64_t i = 0; i < kTaps * cells; i += kLanes) sum += LoadGated(blocks.Data() + map, gate, i, kTaps * cells);
      for (int64_t lane = 0; lane < kLanes; ++lane) total += sum[lane];
    }
    dbias[o] = static_cast<float>(total);
  });
}

}  // namespace

RCNN_CONVOLUTION(TransposedByTwo)

}  // namespace rcnn
