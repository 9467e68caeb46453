// Convolution of stride 2 with a square, odd kernel of 3 or more and zero padding kernel / 2, and its gradients,
// float32, NCHW, as ahead-of-time custom operators of MindSpore for the CPU: matrix products over blocks of pixels,
// each block's patches laid out (unfolded) only while it is in the cache.
//
// The output is product.h's. The input's gradient is four convolutions of stride 1, one for each phase of the strided
// grid, with those taps of the turned filter that meet it. The order of every sum is the same whatever the batch and
// the number of threads. On a CPU with a matrix unit the filter's gradient is product.h's, too.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "cache.h"
#include "conv_operators.h"
#include "gemm_kernel.h"
#include "parallel.h"
#include "patches.h"
#include "workspace.h"

namespace {

using rcnn::Ceil;
using rcnn::Floats;
using rcnn::kBlockColumns;
using rcnn::kBlockRows;
using rcnn::kLanes;
using rcnn::Load;
using rcnn::LoadWithin;
using rcnn::Range;
using rcnn::RoundUp;
using rcnn::Store;
using rcnn::Workspace;

constexpr int64_t kStride = 2;
constexpr int64_t kFewestPixels = 64, kPixels = 256;  // of a block
constexpr int64_t kSumPixels = 128;                   // pixels of a block of the weight's gradient

// Pixels of a block: as many as leave their patches in half of the L2 cache.
int64_t BlockPixels(int64_t depth) {
  return rcnn::Fitting(rcnn::CoreCaches().second / 2, depth * 4, kBlockColumns, kFewestPixels, kPixels);
}

// Terms of a sum multiplied at a time: their part of a block stays in the L1 cache.
int64_t PartOfDepth() { return rcnn::Fitting(rcnn::CoreCaches().first * 2 / 3, kBlockColumns * 4, 64, 128, 1024); }

// Maps (N, C, H, W), taken as 0 where `gate`, of the same shape, isn't positive.
struct Maps {
  const float *data, *gate;  // gate: may be null
  int64_t batch, channels, height, width;
};

// Where one term of the sums reads: a pixel (y, x) of the grid reads the map's (y * stride + dy, x * stride + dx).
struct Tap {
  int64_t dy, dx;
  int64_t place;  // in the filter
};

// Pixels of a grid (N, height, width), numbered in this order, and what each sums.
struct Grid {
  int64_t batch, height, width, stride;
  std::vector<Tap> taps;

  int64_t Pixels() const { return batch * height * width; }
};

// Neighbouring pixels of one row of the grid.
struct Run {
  int64_t image, y, x;
  int64_t first, count;  // pixels, in the block
};

int64_t FindRuns(const Grid &grid, const Range &pixels, Run *runs) {
  int64_t found = 0;
  for (int64_t pixel = pixels.begin; pixel < pixels.end;) {
    const int64_t row = pixel / grid.width, x = pixel % grid.width;
    const int64_t count = std::min(pixels.end - pixel, grid.width - x);
    runs[found++] = Run{row / grid.height, row % grid.height, x, pixel - pixels.begin, count};
    pixel += count;
  }
  return found;
}

template <bool kGated, int64_t kStep>
RCNN_INLINE Floats LoadCells(const float *data, const float *gate, int64_t x, int64_t width) {
  Floats v = LoadWithin(data, x, width);
  if (kGated) v = LoadWithin(gate, x, width) > 0.0f ? v : Floats{};
  if (kStep == 1) return v;
  Floats w = LoadWithin(data, x + kLanes, width);
  if (kGated) w = LoadWithin(gate, x + kLanes, width) > 0.0f ? w : Floats{};
  return rcnn::ShuffleBy<rcnn::EvenLanes>(v, w);
}

template <bool kGated, int64_t kStep>
void ReadTap(const Maps &maps, const Tap &tap, const Run *runs, int64_t run_count, int64_t channel, float *to) {
  for (int64_t i = 0; i < run_count; ++i) {
    const Run &run = runs[i];
    const int64_t y = run.y * kStep + tap.dy;
    const bool inside = y >= 0 && y < maps.height;
    const int64_t row = ((run.image * maps.channels + channel) * maps.height + y) * maps.width;
    if (inside && tap.dx == 0) {
      // the next channel's row, once for all taps of it
      const int64_t ahead = row + maps.height * maps.width + run.x * kStep;
      for (int64_t p = 0; p < run.count * kStep; p += rcnn::kCacheLine) {
        __builtin_prefetch(maps.data + ahead + p, 0, 3);
        if (kGated) __builtin_prefetch(maps.gate + ahead + p, 0, 3);
      }
    }
    // What goes beyond the run is overwritten by the next one's, or unused.
    for (int64_t p = 0; p < run.count; p += kLanes) {
      Floats v = {};
      if (inside) {
        v = LoadCells<kGated, kStep>(maps.data + row, kGated ? maps.gate + row : nullptr, (run.x + p) * kStep + tap.dx,
                                     maps.width);
      }
      Store(to + run.first + p, v);
    }
  }
}

// What the pixels of the runs read of one channel by one tap. `to` has room for kLanes more.
void Read(const Maps &maps, const Grid &grid, const Tap &tap, const Run *runs, int64_t run_count, int64_t channel,
          float *to) {
  if (grid.stride == 1) {
    if (maps.gate == nullptr) return ReadTap<false, 1>(maps, tap, runs, run_count, channel, to);
    return ReadTap<true, 1>(maps, tap, runs, run_count, channel, to);
  }
  if (maps.gate == nullptr) return ReadTap<false, 2>(maps, tap, runs, run_count, channel, to);
  return ReadTap<true, 2>(maps, tap, runs, run_count, channel, to);
}

// out[n][c][y * kStride + y0][x * kStride + x0] = sum over the maps' channels and taps of weight * map.
class PhaseProduct {
 public:
  // weight: (O, C, places). Rows are C and the sums run over O.
  PhaseProduct(const Maps &maps, Grid grid, const int64_t *weight_shape, const float *weight)
      : maps_(maps),
        grid_(std::move(grid)),
        weight_(weight),
        places_(weight_shape[2] * weight_shape[3]),
        rows_(weight_shape[1]),
        depth_(maps.channels * static_cast<int64_t>(grid_.taps.size())),
        threads_(rcnn::NumThreads()),
        pixels_(std::clamp(RoundUp(Ceil(grid_.Pixels(), threads_), kLanes), kLanes, BlockPixels(depth_))),
        part_(PartOfDepth()),
        blocks_(Ceil(grid_.Pixels(), pixels_)),
        row_blocks_(Ceil(rows_, kBlockRows)),
        parts_(std::min(Ceil(threads_, std::max<int64_t>(blocks_, 1)), std::max<int64_t>(row_blocks_, 1))),
        workers_(static_cast<int>(std::min<int64_t>(threads_, blocks_ * parts_))),
        padded_(RoundUp(pixels_, kBlockColumns)),
        workspace_(Workspace::Padded(rows_ * depth_) +
                   workers_ * (Workspace::Padded(depth_ * padded_) + Workspace::Padded(rows_ * padded_))) {}

  struct Target {
    float *data;
    int64_t height, width, y, x;
  };

  void Run(const Target &target) {
    if (blocks_ == 0 || rows_ == 0) return;
    float *weights = workspace_.Take(rows_ * depth_);
    rcnn::ParallelFor(row_blocks_, threads_, [&](int64_t block) { Pack(block * kBlockRows, weights); });
    std::vector<std::unique_ptr<Scratch>> scratch;
    for (int i = 0; i < workers_; ++i) {
      scratch.push_back(std::make_unique<Scratch>());
      scratch.back()->patches = workspace_.Take(depth_ * padded_);
      scratch.back()->sums = workspace_.Take(rows_ * padded_);
    }
    const int64_t share = Ceil(row_blocks_, parts_) * kBlockRows;
    std::atomic<int64_t> next{0};
    rcnn::ParallelFor(workers_, workers_, [&](int64_t worker) {
      for (int64_t task = next.fetch_add(1); task < blocks_ * parts_; task = next.fetch_add(1)) {
        const int64_t pixel = task / parts_ * pixels_, row = task % parts_ * share;
        const Range rows = {row, std::min(row + share, rows_)};
        if (rows.Size() > 0) {
          RunBlock(*scratch[static_cast<size_t>(worker)], {pixel, std::min(pixel + pixels_, grid_.Pixels())}, rows,
                   weights, target);
        }
      }
    });
  }

 private:
  struct Scratch {
    float *patches;  // [columns of a product][channel][tap][pixel]
    float *sums;     // [row][pixel]
    int64_t run_count;
    ::Run runs[kPixels];
    alignas(64) float line[kPixels + kLanes];
  };

  // Weights in the order that the products read them: [block of rows][channel][tap][row].
  void Pack(int64_t row, float *to) const {
    const int64_t count = std::min(kBlockRows, rows_ - row);
    to += row * depth_;
    for (int64_t c = 0; c < maps_.channels; ++c) {
      for (const Tap &tap : grid_.taps) {
        for (int64_t r = 0; r < count; ++r) to[r] = weight_[(c * rows_ + row + r) * places_ + tap.place];
        to += count;
      }
    }
  }

  void RunBlock(Scratch &s, const Range &pixels, const Range &rows, const float *weights, const Target &target) const {
    s.run_count = FindRuns(grid_, pixels, s.runs);
    float *to = s.patches;
    for (int64_t c = 0; c < maps_.channels; ++c) {
      for (const Tap &tap : grid_.taps) {
        Read(maps_, grid_, tap, s.runs, s.run_count, c, s.line);
        for (int64_t p = 0; p < pixels.Size(); p += kLanes) {
          Store(to + p / kBlockColumns * depth_ * kBlockColumns + p % kBlockColumns, Load(s.line + p));
        }
        to += kBlockColumns;
      }
    }
    for (int64_t p = 0; p < pixels.Size(); p += kBlockColumns) {
      for (int64_t d = 0; d < depth_; d += part_) {
        const float *b = s.patches + p * depth_ + d * kBlockColumns;
        for (int64_t row = rows.begin; row < rows.end; row += kBlockRows) {
          const int64_t count = std::min(kBlockRows, rows_ - row);
          rcnn::Multiply(count, pixels.Size() - p, std::min(part_, depth_ - d), weights + row * depth_ + d * count, 1,
                         count, b, s.sums + row * padded_ + p, padded_, d > 0);
        }
      }
    }
    for (int64_t row = rows.begin; row < rows.end; ++row) Write(s, row, target);
  }

  void Write(const Scratch &s, int64_t row, const Target &target) const {
    for (int64_t i = 0; i < s.run_count; ++i) {
      const ::Run &run = s.runs[i];
      const float *from = s.sums + row * padded_ + run.first;
      const int64_t line = (run.image * rows_ + row) * target.height + run.y * kStride + target.y;
      float *to = target.data + line * target.width + run.x * kStride + target.x;
      for (int64_t x = 0; x < run.count; ++x) to[x * kStride] = from[x];
    }
  }

  const Maps maps_;
  const Grid grid_;
  const float *weight_;
  const int64_t places_, rows_, depth_;
  const int threads_;
  const int64_t pixels_, part_, blocks_, row_blocks_, parts_;
  const int workers_;
  const int64_t padded_;
  Workspace workspace_;
};

// The weight's and bias's gradients. A task sums for some output channels and some of the (channel, tap) pairs over all
// pixels in their order: no two tasks add to the same sum.
class WeightGradient {
 public:
  // The grid is the output's.
  WeightGradient(const Maps &dy, const Maps &x, Grid grid, float *dw, float *db)
      : dy_(dy),
        x_(x),
        grid_(std::move(grid)),
        dw_(dw),
        db_(db),
        taps_(static_cast<int64_t>(grid_.taps.size())),
        depth_(x.channels * taps_),
        threads_(rcnn::NumThreads()),
        depth_part_(
            std::max(RoundUp(Ceil(depth_, threads_), kBlockColumns), std::min<int64_t>(64, RoundUp(depth_, kLanes)))),
        depth_parts_(Ceil(depth_, std::max<int64_t>(depth_part_, 1))),
        output_part_(RoundUp(Ceil(dy.channels, Ceil(threads_, std::max<int64_t>(depth_parts_, 1))), kBlockRows)),
        tasks_(depth_parts_ * Ceil(dy.channels, std::max(output_part_, kBlockRows))),
        workers_(static_cast<int>(std::min<int64_t>(threads_, tasks_))),
        padded_(RoundUp(depth_part_, kBlockColumns)),
        workspace_(tasks_ * Workspace::Padded(output_part_ * padded_) +
                   workers_ * (Workspace::Padded(output_part_ * kRow) + Workspace::Padded(output_part_ * kLanes))) {}

  void Run() {
    if (grid_.Pixels() == 0) {
      std::fill_n(dw_, dy_.channels * depth_, 0.0f);
      std::fill_n(db_, dy_.channels, 0.0f);
      return;
    }
    std::vector<std::unique_ptr<Scratch>> scratch;
    for (int i = 0; i < workers_; ++i) {
      scratch.push_back(std::make_unique<Scratch>());
      scratch.back()->gradient = workspace_.Take(output_part_ * kRow);
      scratch.back()->bias = workspace_.Take(output_part_ * kLanes);
    }
    std::vector<float *> sums;
    for (int64_t task = 0; task < tasks_; ++task) sums.push_back(workspace_.Take(output_part_ * padded_));
    std::atomic<int64_t> next{0};
    rcnn::ParallelFor(workers_, workers_, [&](int64_t worker) {
      for (int64_t task = next.fetch_add(1); task < tasks_; task = next.fetch_add(1)) {
        const int64_t d = task % depth_parts_ * depth_part_, o = task / depth_parts_ * output_part_;
        Sum(*scratch[static_cast<size_t>(worker)], {o, std::min(o + output_part_, dy_.channels)},
            {d, std::min(d + depth_part_, depth_)}, sums[static_cast<size_t>(task)]);
      }
    });
  }

 private:
  static constexpr int64_t kRow = kSumPixels + kLanes;

  struct Scratch {
    float *gradient;  // [output channel][pixel]
    float *bias;      // [output channel][lane]
    int64_t run_count;
    ::Run runs[kSumPixels];
    alignas(64) float patches[kBlockColumns * kRow];  // [channel and tap][pixel]
    alignas(64) float turned[kSumPixels * kBlockColumns];
  };

  void Sum(Scratch &s, const Range &outputs, const Range &terms, float *sums) const {
    const Grid plain = {grid_.batch, grid_.height, grid_.width, 1, {{0, 0, 0}}};
    const bool with_bias = terms.begin == 0;
    std::fill_n(s.bias, outputs.Size() * kLanes, 0.0f);
    for (int64_t pixel = 0; pixel < grid_.Pixels(); pixel += kSumPixels) {
      const int64_t count = std::min(kSumPixels, grid_.Pixels() - pixel);
      s.run_count = FindRuns(grid_, {pixel, pixel + count}, s.runs);
      for (int64_t o = 0; o < outputs.Size(); ++o) {
        float *row = s.gradient + o * kRow;
        Read(dy_, plain, plain.taps[0], s.runs, s.run_count, outputs.begin + o, row);
        if (with_bias) {
          Floats sum = Load(s.bias + o * kLanes);
          for (int64_t p = 0; p < count; p += kLanes) sum += LoadWithin(row, p, count);
          Store(s.bias + o * kLanes, sum);
        }
      }
      for (int64_t d = terms.begin; d < terms.end; d += kBlockColumns) {
        const int64_t columns = std::min(kBlockColumns, terms.end - d);
        for (int64_t i = 0; i < columns; ++i) {
          Read(x_, grid_, grid_.taps[static_cast<size_t>((d + i) % taps_)], s.runs, s.run_count, (d + i) / taps_,
               s.patches + i * kRow);
        }
        rcnn::TurnBlock(s.patches, kRow, columns, count, s.turned);
        for (int64_t o = 0; o < outputs.Size(); o += kBlockRows) {
          rcnn::Multiply(std::min(kBlockRows, outputs.Size() - o), columns, count, s.gradient + o * kRow, kRow, 1,
                         s.turned, sums + o * padded_ + d - terms.begin, padded_, pixel > 0);
        }
      }
    }
    for (int64_t o = 0; o < outputs.Size(); ++o) {
      std::copy_n(sums + o * padded_, terms.Size(), dw_ + (outputs.begin + o) * depth_ + terms.begin);
      if (!with_bias) continue;
      float sum = 0.0f;
      for (int64_t lane = 0; lane < kLanes; ++lane) sum += s.bias[o * kLanes + lane];
      db_[outputs.begin + o] = sum;
    }
  }

  const Maps dy_, x_;
  const Grid grid_;
  float *dw_, *db_;
  const int64_t taps_, depth_;
  const int threads_;
  const int64_t depth_part_, depth_parts_, output_part_, tasks_;
  const int workers_;
  const int64_t padded_;
  Workspace workspace_;
};

Maps MakeMaps(const void *data, const void *gate, const int64_t *shape) {
  return Maps{
      static_cast<const float *>(data), static_cast<const float *>(gate), shape[0], shape[1], shape[2], shape[3]};
}

// The maps, and an axis of the filter, as product.h sees them.
rcnn::SeenMaps Seen(const Maps &maps) { return {maps.data, maps.channels, maps.height, maps.width}; }
rcnn::FilterAxis AxisOf(const int64_t *weight_shape, int64_t places) {
  return {weight_shape[2], kStride, weight_shape[2] / 2, places};
}

// The output's pixels, and all taps of the filter.
Grid OutputGrid(const Maps &x, int64_t kernel) {
  Grid grid = {x.batch, Ceil(x.height, kStride), Ceil(x.width, kStride), kStride, {}};
  for (int64_t i = 0; i < kernel * kernel; ++i) {
    grid.taps.push_back(Tap{i / kernel - kernel / 2, i % kernel - kernel / 2, i});
  }
  return grid;
}

// The pixels (y + 2 i, x + 2 j) of a gradient (height, width) to the input, and the taps that meet them: dx[y] sums
// dy[(y + pad - tap) / 2] where that divides.
Grid PhaseGrid(const Maps &dy, int64_t kernel, int64_t height, int64_t width, int64_t y, int64_t x) {
  Grid grid = {dy.batch, Ceil(height - y, kStride), Ceil(width - x, kStride), 1, {}};
  for (int64_t i = 0; i < kernel * kernel; ++i) {
    const int64_t down = y + kernel / 2 - i / kernel, right = x + kernel / 2 - i % kernel;
    if (down % kStride == 0 && right % kStride == 0) grid.taps.push_back(Tap{down / kStride, right / kStride, i});
  }
  return grid;
}

// x (N, C, H, W), weight (O, C, k, k), bias (O,) -> y (N, O, ceil(H / 2), ceil(W / 2))
void Forward(void **params, int64_t **shapes, bool relu) {
  const Maps x = MakeMaps(params[0], nullptr, shapes[0]);
  const int64_t *out = shapes[3], depth = shapes[1][1] * shapes[1][2] * shapes[1][3];
  rcnn::Finish finish;
  finish.row_bias = static_cast<const float *>(params[2]);
  finish.activation = relu ? rcnn::Activation::kReLU : rcnn::Activation::kNone;
  const rcnn::Patches patches(Seen(x), AxisOf(shapes[1], out[2]), AxisOf(shapes[1], out[3]));
  rcnn::MultiplyMatrices(rcnn::Left{static_cast<const float *>(params[1]), depth, 1}, patches,
                         {out[0], out[1], out[2] * out[3], depth}, finish, static_cast<float *>(params[3]),
                         rcnn::NumThreads());
}

// dy and y (N, O, h, w), weight (O, C, k, k), x (N, C, H, W) -> dx like x. y is read only for ReLU, x never.
void InputGradient(void **params, int64_t **shapes, bool relu) {
  const Maps dy = MakeMaps(params[0], relu ? params[1] : nullptr, shapes[0]);
  const int64_t height = shapes[4][2], width = shapes[4][3];
  float *dx = static_cast<float *>(params[4]);
  for (int64_t phase = 0; phase < kStride * kStride; ++phase) {
    const int64_t y = phase / kStride, x = phase % kStride;
    PhaseProduct product(dy, PhaseGrid(dy, shapes[2][2], height, width, y, x), shapes[2],
                         static_cast<const float *>(params[2]));
    product.Run({dx, height, width, y, x});
  }
}

// dy and y (N, O, h, w), x (N, C, H, W), weight (O, C, k, k) -> dweight like weight, dbias (O,). y is read only for
// ReLU, weight never.
void FilterGradient(void **params, int64_t **shapes, bool relu) {
  const Maps x = MakeMaps(params[2], nullptr, shapes[2]);
  if (const int64_t *out = shapes[0]; rcnn::OnTiles(out[1])) {
    const int64_t cells = out[2] * out[3];
    rcnn::Left dy{static_cast<const float *>(params[0]), cells, 1, out[1] * cells};
    if (relu) dy.gate.data = static_cast<const float *>(params[1]);
    dy.sums = static_cast<float *>(params[5]);
    const rcnn::TurnedPatches patches(Seen(x), AxisOf(shapes[3], out[2]), AxisOf(shapes[3], out[3]));
    rcnn::MultiplyMatrices(dy, patches, {1, out[1], shapes[3][1] * shapes[3][2] * shapes[3][3], cells, out[0]}, {},
                           static_cast<float *>(params[4]), rcnn::NumThreads());
    return;
  }
  WeightGradient(MakeMaps(params[0], relu ? params[1] : nullptr, shapes[0]), x, OutputGrid(x, shapes[3][2]),
                 static_cast<float *>(params[4]), static_cast<float *>(params[5]))
      .Run();
}

}  // namespace

RCNN_CONVOLUTION(ConvStride2)
