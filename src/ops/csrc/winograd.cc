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
#include <type_traits>
#include <vector>

#include "cache.h"
#include "conv_operators.h"
#include "gemm_kernel.h"
#include "parallel.h"
#include "winograd.h"
#include "winograd_transform.h"
#include "workspace.h"

namespace {

using rcnn::Ceil;
using rcnn::Floats;
using rcnn::kBlockColumns;
using rcnn::kBlockRows;
using rcnn::kCacheLine;
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

// Tiles of a block: not so few that reading the weights, which each block does anew, takes longer than multiplying.
// More pay where the weights don't stay in the L2 cache from block to block, as many as leave a block's transform and
// products there.
constexpr int64_t kFewestTiles = 32, kTiles = 64;

int64_t BlockTiles(int64_t rows, int64_t depth) {
  const int64_t cache = rcnn::CoreCaches().second;
  if (kPositions * rows * depth * 4 <= cache) return kFewestTiles;
  return rcnn::Fitting(cache, kPositions * (rows + depth) * 4, kBlockColumns, kFewestTiles, kTiles);
}

// Channels multiplied at a time. Of a block their part may be a third larger than the L1 cache: reading it from the L2
// cache costs less than one more pass over the sums.
int64_t PartOfDepth() { return rcnn::Fitting(rcnn::CoreCaches().first * 4 / 3, kBlockColumns * 4, 64, 128, 1024); }

constexpr int64_t kSumTiles = 128;  // tiles of a block of the weight's gradient
constexpr int64_t kSumRows = 3;     // rows of the transform that a task of the weight's gradient sums

// Arrays of which one element each is written in turn must not lie a power of two apart: the cache holds few such.
int64_t Stride(int64_t count) { return Workspace::Padded(count) + kCacheLine; }

// A batch of maps (N, C, H, W), taken as 0 where `gate`, a batch of the same shape, isn't positive.
struct Maps {
  const float *data, *gate;  // gate: may be null
  int64_t batch, channels, height, width;

  int64_t TileColumns() const { return Ceil(width, kOut); }
  int64_t TilesOfImage() const { return Ceil(height, kOut) * TileColumns(); }
  int64_t Tiles() const { return batch * TilesOfImage(); }
};

// Neighbouring tiles of one row of tiles.
struct Run {
  int64_t image, y, x;   // of the first tile's first output
  int64_t first, count;  // tiles, in the block
};

// The tiles of the batch as runs; returns their number. `runs` has room for one a tile.
int64_t FindRuns(const Maps &maps, const Range &tiles, Run *runs) {
  int64_t found = 0;
  const int64_t columns = maps.TileColumns(), image_tiles = maps.TilesOfImage();
  for (int64_t tile = tiles.begin; tile < tiles.end;) {
    const int64_t image = tile / image_tiles, rest = tile % image_tiles, column = rest % columns;
    const int64_t count = std::min(tiles.end - tile, columns - column);
    runs[found++] = Run{image, rest / columns * kOut, column * kOut, tile - tiles.begin, count};
    tile += count;
  }
  return found;
}

// Tiles of one channel after the transform along columns: [row of the transform][column of the tile][tile].
template <typename Transform, int64_t kMost>
class Columns {
 public:
  // Only rows [kFirst, kLast) of the transform are made.
  template <int64_t kFirst, int64_t kLast>
  void Read(const Maps &maps, const Run *runs, int64_t run_count, int64_t channel, const float *zeros) {
    for (int64_t i = 0; i < run_count; ++i) {
      const Run &run = runs[i];
      const int64_t plane = (run.image * maps.channels + channel) * maps.height * maps.width;
      Rows rows;
      rows.width = maps.width;
      for (int64_t r = 0; r < kFrom; ++r) {
        const int64_t y = run.y + r - Transform::kReach;
        const bool inside = y >= 0 && y < maps.height;
        rows.data[r] = inside ? maps.data + plane + y * maps.width : zeros;
        rows.gate[r] = inside && maps.gate != nullptr ? maps.gate + plane + y * maps.width : zeros;
      }
      if (maps.gate != nullptr) {
        ReadRun<kFirst, kLast, true>(rows, run);
      } else {
        ReadRun<kFirst, kLast, false>(rows, run);
      }
    }
  }

  const float *At(int64_t row, int64_t column) const { return tiles_[row][column]; }

 private:
  static constexpr int64_t kFrom = Transform::kFrom;

  struct Rows {
    const float *data[kFrom], *gate[kFrom];
    int64_t width;
  };

  template <bool kGated>
  static RCNN_INLINE void ReadColumns(const Rows &rows, int64_t x, Floats out[kIn]) {
    Floats in[kFrom];
#pragma GCC unroll 6
    for (int64_t r = 0; r < kFrom; ++r) {
      in[r] = LoadWithin(rows.data[r], x, rows.width);
      if (kGated) in[r] = LoadWithin(rows.gate[r], x, rows.width) > 0.0f ? in[r] : Floats{};
    }
    Transform::Apply(in, out);
  }

  // Tiles start four columns apart, and those of the input end two columns into the next one.
  template <int64_t kFirst, int64_t kLast, bool kGated>
  void ReadRun(const Rows &rows, const Run &run) {
    constexpr int64_t kFew = kLanes / 4;
    int64_t tile = run.first, x = run.x - Transform::kReach;
    const int64_t end = run.first + run.count;
    // What is written past the run's end is overwritten by the next one's tiles, or unused.
    while (end - tile > 2 * kFew) {
      Floats columns[5][kIn];
      for (int64_t v = 0; v < 4; ++v) ReadColumns<kGated>(rows, x + v * kLanes, columns[v]);
      if (kFrom > kOut) ReadColumns<kGated>(rows, x + 4 * kLanes, columns[4]);
#pragma GCC unroll 6
      for (int64_t row = kFirst; row < kLast; ++row) {
        Floats v[4] = {columns[0][row], columns[1][row], columns[2][row], columns[3][row]};
        rcnn::Deinterleave(v);
        for (int64_t p = 0; p < 4; ++p) Store(tiles_[row][p] + tile, v[p]);
        if (kFrom > kOut) {
          Store(tiles_[row][kFrom - 2] + tile, rcnn::ShuffleBy<rcnn::ShiftedIn<0>>(v[0], columns[4][row]));
          Store(tiles_[row][kFrom - 1] + tile, rcnn::ShuffleBy<rcnn::ShiftedIn<1>>(v[1], columns[4][row]));
        }
      }
      tile += kLanes;
      x += 4 * kLanes;
    }
    while (tile < end) {
      Floats columns[2][kIn];
      ReadColumns<kGated>(rows, x, columns[0]);
      if (kFrom > kOut) ReadColumns<kGated>(rows, x + kLanes, columns[1]);
#pragma GCC unroll 6
      for (int64_t row = kFirst; row < kLast; ++row) {
        const Floats four = rcnn::ShuffleBy<rcnn::Phases>(columns[0][row], columns[0][row]);
        for (int64_t p = 0; p < 4; ++p) StorePart(tiles_[row][p] + tile, four, p);
        if (kFrom > kOut) {
          const Floats ahead = rcnn::ShuffleBy<rcnn::PhasesAhead>(columns[0][row], columns[1][row]);
          StorePart(tiles_[row][kFrom - 2] + tile, ahead, 0);
          StorePart(tiles_[row][kFrom - 1] + tile, ahead, 1);
        }
      }
      tile += kFew;
      x += kLanes;
    }
  }

  static RCNN_INLINE void StorePart(float *to, const Floats &v, int64_t quarter) {
    std::memcpy(to, reinterpret_cast<const char *>(&v) + quarter * kLanes, static_cast<size_t>(kLanes));
  }

  alignas(64) float tiles_[kIn][kFrom][kMost + kLanes] = {};
};

// Weights (O, C, 3, 3), transformed, in the order that the products read them: [position][block of rows][depth][row].
// Plain: the rows are O and the depth is C. Turned, for the input's gradient: the rows are C, the depth is O, and each
// filter is turned by half a turn.
class Weights {
 public:
  Weights(const float *weight, int64_t outputs, int64_t inputs, bool turned, float *room)
      : weight_(weight),
        turned_(turned),
        rows_(turned ? inputs : outputs),
        depth_(turned ? outputs : inputs),
        stride_(Stride(rows_ * depth_)),
        data_(room) {}

  static int64_t Room(const int64_t *shape) { return kPositions * Stride(shape[0] * shape[1]); }

  void Make(int threads) {
    rcnn::ParallelFor(Ceil(rows_, kBlockRows), threads, [this](int64_t block) {
      if (turned_) {
        MakeTurned(block * kBlockRows);
      } else {
        MakePlain(block * kBlockRows);
      }
    });
  }

  int64_t rows() const { return rows_; }
  int64_t depth() const { return depth_; }
  int64_t BlockRows(int64_t row) const { return std::min(kBlockRows, rows_ - row); }
  const float *At(int64_t position, int64_t row, int64_t depth) const {
    return data_ + position * stride_ + row * depth_ + depth * BlockRows(row);
  }

 private:
  // g: the 9 weights of the block's filters at this depth, rows from row + first in the lanes.
  void Put(int64_t row, int64_t first, int64_t depth, const Floats g[9]) {
    Floats half[3][kIn], all[kIn];
    for (int64_t x = 0; x < 3; ++x) {
      const Floats column[3] = {g[x], g[3 + x], g[6 + x]};
      rcnn::TransformWeights(column, half[x]);
    }
    const int64_t count = BlockRows(row);
    float *to = data_ + row * depth_ + depth * count + first;
    for (int64_t i = 0; i < kIn; ++i) {
      const Floats line[3] = {half[0][i], half[1][i], half[2][i]};
      rcnn::TransformWeights(line, all);
      for (int64_t j = 0; j < kIn; ++j) rcnn::StoreFirst(to + (i * kIn + j) * stride_, all[j], count - first);
    }
  }

  void MakePlain(int64_t row) {
    const int64_t length = depth_ * 9;
    Floats g[9 * kLanes];
    for (int64_t first = 0; first < BlockRows(row); first += kLanes) {
      const int64_t count = BlockRows(row) - first;
      const float *filters = weight_ + (row + first) * length;
      for (int64_t begin = 0; begin < depth_; begin += kLanes) {
        for (int64_t part = 0; part < 9; ++part) {
          Floats *rows = g + part * kLanes;
          const int64_t from = begin * 9 + part * kLanes;
          for (int64_t r = 0; r < kLanes; ++r) {
            rows[r] = r < count && from < length ? LoadWithin(filters + r * length, from, length) : Floats{};
          }
          rcnn::Transpose(rows);
        }
        for (int64_t d = begin; d < std::min(begin + kLanes, depth_); ++d) Put(row, first, d, g + (d - begin) * 9);
      }
    }
  }

  void MakeTurned(int64_t row) {
    float filters[RoundUp(kBlockRows, kLanes)][9] = {};
    for (int64_t d = 0; d < depth_; ++d) {
      std::copy_n(weight_ + (d * rows_ + row) * 9, BlockRows(row) * 9, &filters[0][0]);
      for (int64_t first = 0; first < BlockRows(row); first += kLanes) {
        Floats g[9];
        for (int64_t k = 0; k < 9; ++k) {
          for (int64_t r = 0; r < kLanes; ++r) g[8 - k][r] = filters[first + r][k];
        }
        Put(row, first, d, g);
      }
    }
  }

  const float *weight_;
  const bool turned_;
  const int64_t rows_, depth_, stride_;
  float *data_;
};

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
    if (blocks_ == 0 || weights_->rows() == 0) return;
    std::vector<std::unique_ptr<Scratch>> scratch;
    for (int i = 0; i < workers_; ++i) {
      scratch.push_back(std::make_unique<Scratch>());
      scratch.back()->input = workspace_.Take(kPositions * input_stride_);
      scratch.back()->products = workspace_.Take(weights_->rows() * kPositions * tile_stride_);
    }
    const int64_t parts = std::min(Ceil(threads_, blocks_), Ceil(weights_->rows(), kBlockRows));
    const int64_t part = RoundUp(Ceil(weights_->rows(), parts), kBlockRows);
    std::atomic<int64_t> next{0};
    rcnn::ParallelFor(workers_, workers_, [&](int64_t worker) {
      for (int64_t task = next.fetch_add(1); task < blocks_ * parts; task = next.fetch_add(1)) {
        const int64_t tile = task / parts * tiles_, row = task % parts * part;
        const Range tiles = {tile, std::min(tile + tiles_, x_.Tiles())};
        const Range rows = {row, std::min(row + part, weights_->rows())};
        if (rows.Size() > 0) RunBlock(*scratch[static_cast<size_t>(worker)], tiles, rows);
      }
    });
  }

 private:
  Convolution(const Maps &x, int64_t rows, int64_t depth, int64_t room, const float *bias, bool relu, float *y)
      : x_(x),
        bias_(bias),
        relu_(relu),
        y_(y),
        zeros_(static_cast<size_t>(x.width), 0.0f),
        threads_(rcnn::NumThreads()),
        // Smaller blocks where there are few tiles, and parts of the channels where there are fewer blocks than
        // threads.
        tiles_(std::clamp(RoundUp(Ceil(x.Tiles(), threads_), kLanes), kLanes, BlockTiles(rows, depth))),
        part_(PartOfDepth()),
        blocks_(Ceil(x.Tiles(), tiles_)),
        workers_(static_cast<int>(std::min<int64_t>(threads_, blocks_ * Ceil(rows, kBlockRows)))),
        tile_stride_(RoundUp(tiles_, kBlockColumns)),
        input_stride_(Stride(depth * tile_stride_)),
        workspace_(room + workers_ * Room(rows)) {}

  struct Scratch {
    float *input;     // [position][columns of a product][channel][tile]
    float *products;  // [output channel][position][tile]
    int64_t run_count;
    ::Run runs[kTiles];
    Columns<rcnn::InputTransform, kTiles> columns;
    alignas(64) float lines[kOut][kTiles * kOut];
  };

  int64_t Room(int64_t rows) const {
    return Workspace::Padded(kPositions * input_stride_) + Workspace::Padded(rows * kPositions * tile_stride_);
  }

  void RunBlock(Scratch &s, const Range &tiles, const Range &rows) const {
    s.run_count = FindRuns(x_, tiles, s.runs);
    for (int64_t c = 0; c < x_.channels; ++c) TransformInput(s, tiles.Size(), c);
    for (int64_t p = 0; p < kPositions; ++p) MultiplyPosition(s, tiles.Size(), rows, p);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      TransformProducts(s, tiles.Size(), row);
      Write(s, row);
    }
  }

  void TransformInput(Scratch &s, int64_t tiles, int64_t channel) const {
    s.columns.Read<0, kIn>(x_, s.runs, s.run_count, channel, zeros_.data());
    for (int64_t t = 0; t < tiles; t += kLanes) {
      float *to = s.input + (t / kBlockColumns * x_.channels + channel) * kBlockColumns + t % kBlockColumns;
      for (int64_t i = 0; i < kIn; ++i) {
        Floats in[kIn], out[kIn];
        for (int64_t j = 0; j < kIn; ++j) in[j] = Load(s.columns.At(i, j) + t);
        rcnn::InputTransform::Apply(in, out);
        for (int64_t j = 0; j < kIn; ++j) Store(to + (i * kIn + j) * input_stride_, out[j]);
      }
    }
  }

  void MultiplyPosition(const Scratch &s, int64_t tiles, const Range &rows, int64_t p) const {
    for (int64_t t = 0; t < tiles; t += kBlockColumns) {
      for (int64_t d = 0; d < x_.channels; d += part_) {
        const int64_t depth = std::min(part_, x_.channels - d);
        const float *b = s.input + p * input_stride_ + t * x_.channels + d * kBlockColumns;
        for (int64_t row = rows.begin; row < rows.end; row += kBlockRows) {
          const int64_t count = weights_->BlockRows(row);
          float *c = s.products + (row * kPositions + p) * tile_stride_ + t;
          rcnn::Multiply(count, tiles - t, depth, weights_->At(p, row, d), 1, count, b, c, kPositions * tile_stride_,
                         d > 0);
        }
      }
    }
  }

  void TransformProducts(Scratch &s, int64_t tiles, int64_t row) const {
    const float *products = s.products + row * kPositions * tile_stride_;
    const Floats shift = rcnn::Broadcast(bias_ == nullptr ? 0.0f : bias_[row]);
    for (int64_t t = 0; t < tiles; t += kLanes) {
      Floats half[kIn][kOut], out[kOut][kOut];
      for (int64_t i = 0; i < kIn; ++i) {
        Floats in[kIn];
        for (int64_t j = 0; j < kIn; ++j) in[j] = Load(products + (i * kIn + j) * tile_stride_ + t);
        rcnn::TransformOutput(in, half[i]);
      }
      for (int64_t x = 0; x < kOut; ++x) {
        const Floats in[kIn] = {half[0][x], half[1][x], half[2][x], half[3][x], half[4][x], half[5][x]};
        Floats column[kOut];
        rcnn::TransformOutput(in, column);
        for (int64_t y = 0; y < kOut; ++y) {
          const Floats v = column[y] + shift;
          // Written so that NaN stays NaN.
          out[y][x] = relu_ ? (v < 0.0f ? Floats{} : v) : v;
        }
      }
      for (int64_t y = 0; y < kOut; ++y) {
        rcnn::Interleave(out[y]);
        for (int64_t x = 0; x < kOut; ++x) Store(s.lines[y] + t * kOut + x * kLanes, out[y][x]);
      }
    }
  }

  void Write(const Scratch &s, int64_t row) const {
    for (int64_t i = 0; i < s.run_count; ++i) {
      const ::Run &run = s.runs[i];
      const int64_t width = std::min(run.count * kOut, x_.width - run.x);
      float *to = y_ + ((run.image * weights_->rows() + row) * x_.height + run.y) * x_.width + run.x;
      for (int64_t y = 0; y < std::min(kOut, x_.height - run.y); ++y, to += x_.width) {
        const float *from = s.lines[y] + run.first * kOut;
        for (int64_t x = 0; x < width; x += kLanes) rcnn::StoreFirst(to + x, Load(from + x), width - x);
      }
    }
  }

  const Maps x_;
  const float *bias_;
  const bool relu_;
  float *y_;
  const std::vector<float> zeros_;
  const int threads_;
  const int64_t tiles_, part_, blocks_;
  const int workers_;
  const int64_t tile_stride_, input_stride_;
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
    ::Run runs[kSumTiles];
    Columns<rcnn::GradientTransform, kSumTiles> gradient_columns;
    Columns<rcnn::InputTransform, kSumTiles> input_columns;
    alignas(64) float turned[kSumTiles * kBlockColumns];
  };

  static int64_t Room(int64_t channels) { return kSumRows * kIn * Stride(channels * kSumTiles); }

  template <int64_t kFirst>
  void Sum(Scratch &s, const Range &outputs) const {
    std::fill_n(s.bias, outputs.Size() * kLanes, 0.0f);
    for (int64_t tile = 0; tile < x_.Tiles(); tile += kSumTiles) {
      const int64_t count = std::min(kSumTiles, x_.Tiles() - tile);
      s.run_count = FindRuns(x_, {tile, tile + count}, s.runs);
      TransformRows<kFirst>(s, s.gradient_columns, dy_, count, outputs, s.gradient);
      TransformRows<kFirst>(s, s.input_columns, x_, count, {0, x_.channels}, s.input);
      if (kFirst == 0) AddBias(s, outputs);
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
    const int64_t stride = Stride(channels.Size() * kSumTiles);
    for (int64_t c = channels.begin; c < channels.end; ++c, to += kSumTiles) {
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
    const float *gradient = s.gradient + p * Stride(outputs.Size() * kSumTiles);
    const float *input = s.input + p * Stride(x_.channels * kSumTiles);
    float *sums = sums_ + (kFirst * kIn + p) * dy_.channels * padded_ + outputs.begin * padded_;
    for (int64_t c = 0; c < x_.channels; c += kBlockColumns) {
      const int64_t columns = std::min(kBlockColumns, x_.channels - c);
      rcnn::TurnBlock(input + c * kSumTiles, kSumTiles, columns, tiles, s.turned);
      for (int64_t o = 0; o < outputs.Size(); o += kBlockRows) {
        rcnn::Multiply(std::min(kBlockRows, outputs.Size() - o), columns, tiles, gradient + o * kSumTiles, kSumTiles, 1,
                       s.turned, sums + o * padded_ + c, padded_, tile > 0);
      }
    }
  }

  void AddBias(const Scratch &s, const Range &outputs) const {
    for (int64_t o = outputs.begin; o < outputs.end; ++o) {
      Floats sum = Load(s.bias + (o - outputs.begin) * kLanes);
      for (int64_t i = 0; i < s.run_count; ++i) {
        const ::Run &run = s.runs[i];
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
  Convolution(MakeMaps(params[0], nullptr, shapes[0]), shapes[1], static_cast<const float *>(params[1]), false,
              static_cast<const float *>(params[2]), relu, static_cast<float *>(params[3]))
      .Run();
}

// dy and y (N, O, H, W), weight (O, C, 3, 3), x (N, C, H, W) -> dx like x. y is read only for ReLU, x never.
void InputGradient(void **params, int64_t **shapes, bool relu) {
  Convolution(MakeMaps(params[0], relu ? params[1] : nullptr, shapes[0]), shapes[2],
              static_cast<const float *>(params[2]), true, nullptr, false, static_cast<float *>(params[4]))
      .Run();
}

// dy and y (N, O, H, W), x (N, C, H, W), weight (O, C, 3, 3) -> dweight like weight, dbias (O,). y is read only for
// ReLU, weight never.
void FilterGradient(void **params, int64_t **shapes, bool relu) {
  WeightGradient(MakeMaps(params[0], relu ? params[1] : nullptr, shapes[0]), MakeMaps(params[2], nullptr, shapes[2]),
                 static_cast<float *>(params[4]), static_cast<float *>(params[5]))
      .Run();
}

}  // namespace

RCNN_CONVOLUTION(Conv3x3)

namespace rcnn {

struct Conv3x3::Filters {
  Filters(const float *weight, int64_t outputs, int64_t inputs)
      : shape{outputs, inputs, 3, 3},
        memory(TakeMemory(Weights::Room(shape))),
        weights(weight, outputs, inputs, false, memory.get()) {
    weights.Make(NumThreads());
  }

  const int64_t shape[4];
  const Memory memory;
  Weights weights;
};

Conv3x3::Conv3x3(const float *weight, int64_t outputs, int64_t inputs)
    : filters_(std::make_unique<Filters>(weight, outputs, inputs)) {}

Conv3x3::~Conv3x3() = default;

void Conv3x3::Run(const float *x, int64_t images, int64_t height, int64_t width, const float *bias, bool relu,
                  float *y) const {
  const Weights &weights = filters_->weights;
  ::Convolution(::Maps{x, nullptr, images, weights.depth(), height, width}, weights, bias, relu, y).Run();
}

}  // namespace rcnn
