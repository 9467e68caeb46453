// 3x3 convolution of stride 1 and zero padding 1, and its gradients, float32, NCHW, as ahead-of-time custom operators
// of MindSpore for the CPU, by Winograd's F(4x4, 3x3) (Lavin and Gray, 2015, arXiv:1509.09308): a quarter of the
// multiplications of the plain sum.
//
// The map is cut into tiles of 4x4 outputs, numbered through the batch. A block of tiles is transformed, multiplied
// (36 matrix products over channels) and transformed back while it is in the cache, so scratch memory doesn't grow
// with the map. The order of every sum is the same whatever the batch, the block and the number of threads.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "cache.h"
#include "conv_operators.h"
#include "gemm_kernel.h"
#include "padding.h"
#include "parallel.h"
#include "winograd.h"
#include "winograd_blocks.h"
#include "winograd_transform.h"
#include "workspace.h"

namespace {

using rcnn::Ceil;
using rcnn::Floats;
using rcnn::kBlockColumns;
using rcnn::kBlockRows;
using rcnn::kIn;
using rcnn::kLanes;
using rcnn::kOut;
using rcnn::kPositions;
using rcnn::Load;
using rcnn::LoadWithin;
using rcnn::Range;
using rcnn::RoundUp;
using rcnn::Store;
using rcnn::Workspace;
using rcnn::winograd::Blocks;
using rcnn::winograd::BlockTiles;
using rcnn::winograd::Columns;
using rcnn::winograd::FindRuns;
using rcnn::winograd::Maps;
using rcnn::winograd::Stride;
using rcnn::winograd::Weights;

// Tiles of a block of the weight's gradient: as few as let the cores' shared cache keep the sums from block to block;
// more, so that they are read less often, where it can't.
constexpr int64_t kFewSumTiles = 64, kSumTiles = 128;
static_assert(kSumTiles % kFewSumTiles == 0);
constexpr int64_t kSumRows = 3;  // rows of the transform that a task of the weight's gradient sums

// y = convolution of x + bias, and then ReLU where `relu`. bias may be null.
class Convolution {
 public:
  // Room for `weights` is taken with what else is needed, and they are made.
  Convolution(const Maps &x, const int64_t *weight_shape, const float *weight, bool turned, const float *bias,
              bool relu, float *y)
      : Convolution(x, weight_shape[turned], weight_shape[!turned], Weights::Room(weight_shape), bias, relu, y) {
    own_ = std::make_unique<Weights>(weight, weight_shape[0], weight_shape[1], turned,
                                     workspace_.Take(Weights::Room(weight_shape)));
    own_->Make(threads_);
    weights_ = own_.get();
  }

  // With weights that are made already.
  Convolution(const Maps &x, const Weights &weights, const float *bias, bool relu, float *y)
      : Convolution(x, weights.rows(), weights.depth(), 0, bias, relu, y) {
    weights_ = &weights;
  }

  void Run() {
    if (count_ == 0 || weights_->rows() == 0) return;
    std::vector<std::unique_ptr<Blocks::Scratch>> scratch;
    for (int i = 0; i < workers_; ++i) {
      scratch.push_back(std::make_unique<Blocks::Scratch>());
      scratch.back()->input = workspace_.Take(blocks_.InputRoom());
      scratch.back()->products = workspace_.Take(blocks_.ProductsRoom());
    }
    const int64_t parts = std::min(Ceil(threads_, count_), Ceil(weights_->rows(), kBlockRows));
    const int64_t part = RoundUp(Ceil(weights_->rows(), parts), kBlockRows);
    std::atomic<int64_t> next{0};
    rcnn::ParallelFor(workers_, workers_, [&](int64_t worker) {
      Blocks::Scratch &s = *scratch[static_cast<size_t>(worker)];
      for (int64_t task = next.fetch_add(1); task < count_ * parts; task = next.fetch_add(1)) {
        const int64_t tile = task / parts * tiles_, row = task % parts * part;
        const Range tiles = {tile, std::min(tile + tiles_, x_.Tiles())};
        const Range rows = {row, std::min(row + part, weights_->rows())};
        if (rows.Size() > 0) blocks_.Run(*weights_, s, tiles, rows, [&](int64_t r) { Write(s, r); });
      }
    });
  }

 private:
  Convolution(const Maps &x, int64_t rows, int64_t depth, int64_t room, const float *bias, bool relu, float *y)
      : x_(x),
        y_(y),
        threads_(rcnn::NumThreads()),
        // Smaller blocks where there are few tiles, and parts of the channels where there are fewer blocks than
        // threads.
        tiles_(std::clamp(RoundUp(Ceil(x.Tiles(), threads_), kLanes), kLanes, BlockTiles(rows, depth))),
        count_(Ceil(x.Tiles(), tiles_)),
        workers_(static_cast<int>(std::min<int64_t>(threads_, count_ * Ceil(rows, kBlockRows)))),
        blocks_(x, rows, tiles_, bias, relu),
        workspace_(room +
                   workers_ * (Workspace::Padded(blocks_.InputRoom()) + Workspace::Padded(blocks_.ProductsRoom()))) {}

  void Write(const Blocks::Scratch &s, int64_t row) const {
    for (int64_t i = 0; i < s.run_count; ++i) {
      const rcnn::winograd::Run &run = s.runs[i];
      const int64_t width = std::min(run.count * kOut, x_.width - run.x);
      float *to = y_ + ((run.image * weights_->rows() + row) * x_.height + run.y) * x_.width + run.x;
      const int64_t ahead = x_.height * x_.width;
      for (int64_t y = 0; y < std::min(kOut, x_.height - run.y); ++y, to += x_.width) {
        const float *from = s.lines[y] + run.first * kOut;
        for (int64_t x = 0; x < width; x += kLanes) {
          // where the next channel's go
          __builtin_prefetch(to + x + ahead, 1, 3);
          rcnn::StoreFirst(to + x, Load(from + x), width - x);
        }
      }
    }
  }

  const Maps x_;
  float *y_;
  const int threads_;
  const int64_t tiles_, count_;
  const int workers_;
  const Blocks blocks_;
  Workspace workspace_;
  std::unique_ptr<Weights> own_;
  const Weights *weights_ = nullptr;
};

// The weight's and bias's gradients. A task sums some rows of the transform for some of the output channels, over all
// tiles in their order: no two tasks add to the same sum.
class WeightGradient {
 public:
  WeightGradient(const Maps &dy, const Maps &x, float *dw, float *db)
      : dy_(dy),
        x_(x),
        dw_(dw),
        db_(db),
        zeros_(static_cast<size_t>(x.width), 0.0f),
        threads_(rcnn::NumThreads()),
        padded_(RoundUp(x.channels, kLanes)),
        // As many tasks as threads, or a multiple.
        part_(RoundUp(Ceil(dy.channels, threads_ % 2 == 0 ? threads_ / 2
                                        : threads_ == 1   ? 1
                                                          : threads_),
                      kBlockRows)),
        tasks_(kIn / kSumRows * Ceil(dy.channels, std::max(part_, kBlockRows))),
        tiles_(kPositions * dy.channels * padded_ * 4 > rcnn::CoreCaches().third / 2 ? kSumTiles : kFewSumTiles),
        workers_(static_cast<int>(std::min<int64_t>(threads_, tasks_))),
        workspace_(Workspace::Padded(kPositions * dy.channels * padded_) +
                   workers_ * (Room(part_) + Room(x.channels) + Workspace::Padded(part_ * kLanes))),
        sums_(workspace_.Take(kPositions * dy.channels * padded_)) {}

  void Run() {
    if (x_.Tiles() == 0) {
      std::fill_n(dw_, dy_.channels * x_.channels * 9, 0.0f);
      std::fill_n(db_, dy_.channels, 0.0f);
      return;
    }
    std::vector<std::unique_ptr<Scratch>> scratch;
    for (int i = 0; i < workers_; ++i) {
      scratch.push_back(std::make_unique<Scratch>());
      scratch.back()->gradient = workspace_.Take(Room(part_));
      scratch.back()->input = workspace_.Take(Room(x_.channels));
      scratch.back()->bias = workspace_.Take(part_ * kLanes);
    }
    std::atomic<int64_t> next{0};
    rcnn::ParallelFor(workers_, workers_, [&](int64_t worker) {
      Scratch &s = *scratch[static_cast<size_t>(worker)];
      for (int64_t task = next.fetch_add(1); task < tasks_; task = next.fetch_add(1)) {
        const int64_t begin = task / 2 * part_;
        const Range outputs = {begin, std::min(begin + part_, dy_.channels)};
        if (task % 2 == 0) {
          Sum<0>(s, outputs);
        } else {
          Sum<kSumRows>(s, outputs);
        }
      }
    });
    rcnn::ParallelFor(dy_.channels, threads_, [this](int64_t output) { Finish(output); });
  }

 private:
  static_assert(2 * kSumRows == kIn, "a task has the transform's upper or lower rows");

  struct Scratch {
    float *gradient, *input;  // [position of the task's rows][channel][tile]
    float *bias;              // [output channel][lane]
    int64_t run_count;
    rcnn::winograd::Run runs[kSumTiles];
    Columns<rcnn::GradientTransform, kSumTiles> gradient_columns;
    Columns<rcnn::InputTransform, kSumTiles> input_columns;
    alignas(64) float turned[kSumTiles * kBlockColumns];
  };

  int64_t Room(int64_t channels) const { return kSumRows * kIn * Stride(channels * tiles_); }

  template <int64_t kFirst>
  void Sum(Scratch &s, const Range &outputs) const {
    std::fill_n(s.bias, outputs.Size() * kLanes, 0.0f);
    for (int64_t tile = 0; tile < x_.Tiles(); tile += tiles_) {
      if (kFirst == 0 && tile % kSumTiles == 0) {
        // of blocks of one size, as its sums go along rows
        s.run_count = FindRuns(x_, {tile, std::min(tile + kSumTiles, x_.Tiles())}, s.runs);
        AddBias(s, outputs);
      }
      const int64_t count = std::min(tiles_, x_.Tiles() - tile);
      s.run_count = FindRuns(x_, {tile, tile + count}, s.runs);
      TransformRows<kFirst>(s, s.gradient_columns, dy_, count, outputs, s.gradient);
      TransformRows<kFirst>(s, s.input_columns, x_, count, {0, x_.channels}, s.input);
      for (int64_t p = 0; p < kSumRows * kIn; ++p) MultiplyPosition<kFirst>(s, tile, count, outputs, p);
    }
    for (int64_t o = 0; kFirst == 0 && o < outputs.Size(); ++o) {
      float sum = 0.0f;
      for (int64_t lane = 0; lane < kLanes; ++lane) sum += s.bias[o * kLanes + lane];
      db_[outputs.begin + o] = sum;
    }
  }

  // Rows [kFirst, kFirst + kSumRows) of the transform of a block of tiles.
  template <int64_t kFirst, typename Transform>
  void TransformRows(const Scratch &s, Columns<Transform, kSumTiles> &columns, const Maps &maps, int64_t tiles,
                     const Range &channels, float *to) const {
    const int64_t stride = Stride(channels.Size() * tiles_);
    for (int64_t c = channels.begin; c < channels.end; ++c, to += tiles_) {
      columns.template Read<kFirst, kFirst + kSumRows>(maps, s.runs, s.run_count, c, zeros_.data());
      for (int64_t t = 0; t < tiles; t += kLanes) {
        for (int64_t i = 0; i < kSumRows; ++i) {
          Floats in[Transform::kFrom], out[kIn];
          for (int64_t j = 0; j < Transform::kFrom; ++j) in[j] = Load(columns.At(kFirst + i, j) + t);
          Transform::Apply(in, out);
          for (int64_t j = 0; j < kIn; ++j) Store(to + (i * kIn + j) * stride + t, out[j]);
        }
      }
    }
  }

  template <int64_t kFirst>
  void MultiplyPosition(Scratch &s, int64_t tile, int64_t tiles, const Range &outputs, int64_t p) const {
    const float *gradient = s.gradient + p * Stride(outputs.Size() * tiles_);
    const float *input = s.input + p * Stride(x_.channels * tiles_);
    float *sums = sums_ + (kFirst * kIn + p) * dy_.channels * padded_ + outputs.begin * padded_;
    for (int64_t c = 0; c < x_.channels; c += kBlockColumns) {
      const int64_t columns = std::min(kBlockColumns, x_.channels - c);
      rcnn::TurnBlock(input + c * tiles_, tiles_, columns, tiles, s.turned);
      for (int64_t o = 0; o < outputs.Size(); o += kBlockRows) {
        rcnn::Multiply(std::min(kBlockRows, outputs.Size() - o), columns, tiles, gradient + o * tiles_, tiles_, 1,
                       s.turned, sums + o * padded_ + c, padded_, tile > 0);
      }
    }
  }

  void AddBias(const Scratch &s, const Range &outputs) const {
    for (int64_t o = outputs.begin; o < outputs.end; ++o) {
      Floats sum = Load(s.bias + (o - outputs.begin) * kLanes);
      for (int64_t i = 0; i < s.run_count; ++i) {
        const rcnn::winograd::Run &run = s.runs[i];
        const int64_t right = std::min(run.x + run.count * kOut, dy_.width);
        for (int64_t y = run.y; y < std::min(run.y + kOut, dy_.height); ++y) {
          const int64_t row = ((run.image * dy_.channels + o) * dy_.height + y) * dy_.width;
          for (int64_t x = run.x; x < right; x += kLanes) {
            Floats v = LoadWithin(dy_.data + row, x, right);
            if (dy_.gate != nullptr) v = LoadWithin(dy_.gate + row, x, right) > 0.0f ? v : Floats{};
            sum += v;
          }
        }
      }
      Store(s.bias + (o - outputs.begin) * kLanes, sum);
    }
  }

  void Finish(int64_t output) const {
    const int64_t plane = dy_.channels * padded_;
    for (int64_t c = 0; c < x_.channels; c += kLanes) {
      const float *from = sums_ + output * padded_ + c;
      Floats half[kIn][3];
      for (int64_t i = 0; i < kIn; ++i) {
        Floats line[kIn];
        for (int64_t j = 0; j < kIn; ++j) line[j] = Load(from + (i * kIn + j) * plane);
        rcnn::TransformWeightGradient(line, half[i]);
      }
      for (int64_t x = 0; x < 3; ++x) {
        const Floats in[kIn] = {half[0][x], half[1][x], half[2][x], half[3][x], half[4][x], half[5][x]};
        Floats column[3];
        rcnn::TransformWeightGradient(in, column);
        for (int64_t y = 0; y < 3; ++y) {
          for (int64_t lane = 0; lane < std::min(kLanes, x_.channels - c); ++lane) {
            dw_[((output * x_.channels + c + lane) * 3 + y) * 3 + x] = column[y][lane];
          }
        }
      }
    }
  }

  const Maps dy_, x_;
  float *dw_, *db_;
  const std::vector<float> zeros_;
  const int threads_;
  const int64_t padded_;  // input channels, to whole vectors
  const int64_t part_;    // output channels of a task, at most
  const int64_t tasks_;
  const int64_t tiles_;  // of a block
  const int workers_;
  Workspace workspace_;
  float *sums_;  // [position][output channel][input channel]
};

Maps MakeMaps(const void *data, const void *gate, const int64_t *shape) {
  return Maps{
      static_cast<const float *>(data), static_cast<const float *>(gate), shape[0], shape[1], shape[2], shape[3]};
}

// x (N, C, H, W), weight (O, C, 3, 3), bias (O,) -> y (N, O, H, W)
void Forward(void **params, int64_t **shapes, bool relu) {
  Maps x = MakeMaps(params[0], nullptr, shapes[0]);
  auto *y = static_cast<float *>(params[3]);
  const int64_t images = x.batch, cells = x.height * x.width;
  x.batch = rcnn::ImagesBeforeCopies(x.data, images, x.channels * cells);
  Convolution(x, shapes[1], static_cast<const float *>(params[1]), false, static_cast<const float *>(params[2]), relu,
              y)
      .Run();
  rcnn::CopyLast(y, x.batch, images, shapes[1][0] * cells, rcnn::NumThreads());
}

// dy and y (N, O, H, W), weight (O, C, 3, 3), x (N, C, H, W) -> dx like x. y is read only for ReLU, x never.
void InputGradient(void **params, int64_t **shapes, bool relu) {
  Maps dy = MakeMaps(params[0], relu ? params[1] : nullptr, shapes[0]);
  auto *dx = static_cast<float *>(params[4]);
  const int64_t images = dy.batch, cells = dy.height * dy.width, floats = shapes[2][1] * cells;
  dy.batch = rcnn::ImagesBeforeZeros(dy.data, images, dy.channels * cells);
  Convolution(dy, shapes[2], static_cast<const float *>(params[2]), true, nullptr, false, dx).Run();
  std::fill_n(dx + dy.batch * floats, (images - dy.batch) * floats, 0.0f);
}

// dy and y (N, O, H, W), x (N, C, H, W), weight (O, C, 3, 3) -> dweight like weight, dbias (O,). y is read only for
// ReLU, weight never.
void FilterGradient(void **params, int64_t **shapes, bool relu) {
  Maps dy = MakeMaps(params[0], relu ? params[1] : nullptr, shapes[0]), x = MakeMaps(params[2], nullptr, shapes[2]);
  x.batch = dy.batch = rcnn::ImagesBeforeZeros(dy.data, dy.batch, dy.channels * dy.height * dy.width);
  WeightGradient(dy, x, static_cast<float *>(params[4]), static_cast<float *>(params[5])).Run();
}

}  // namespace

RCNN_CONVOLUTION(Conv3x3)

namespace rcnn {

Conv3x3::Conv3x3(const float *weight, int64_t outputs, int64_t inputs)
    : filters_(std::make_unique<Filters>(weight, outputs, inputs)) {}

Conv3x3::~Conv3x3() = default;

void Conv3x3::Run(const float *x, int64_t images, int64_t height, int64_t width, const float *bias, bool relu,
                  float *y) const {
  const Weights &weights = filters_->weights;
  ::Convolution(Maps{x, nullptr, images, weights.depth(), height, width}, weights, bias, relu, y).Run();
}

}  // namespace rcnn
