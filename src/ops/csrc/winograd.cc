// 3x3 convolution of stride 1 and zero padding 1 and its gradients, float32, NCHW, as ahead-of-time custom operators
// of MindSpore for the CPU, by Winograd's F(4x4, 3x3) (Lavin and Gray, 2015, arXiv:1509.09308): a quarter of the
// multiplications of the plain sum.
//
// The map is cut into tiles of 4x4 outputs, numbered through the batch. A block of tiles is transformed, multiplied
// (36 matrix products over channels) and transformed back while it is in the cache, so scratch memory doesn't grow
// with the map. Every sum runs in an order that neither the batch nor the number of threads changes.
#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <new>
#include <vector>

#include "gemm_kernel.h"
#include "parallel.h"
#include "winograd_transform.h"

namespace {

using rcnn::Floats;
using rcnn::kBlockColumns;
using rcnn::kBlockRows;
using rcnn::kIn;
using rcnn::kLanes;
using rcnn::kOut;
using rcnn::kPositions;
using rcnn::Load;
using rcnn::LoadWithin;
using rcnn::Store;

constexpr int64_t kLine = 16;        // floats of a cache line
constexpr int64_t kMaxTiles = 64;    // tiles of a block, forward
constexpr int64_t kDepth = 256;      // channels of a product at a time: b's block fits the L1 cache
constexpr int64_t kSumTiles = 64;    // tiles of a block of the weight gradient

int64_t Ceil(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t RoundUp(int64_t a, int64_t b) { return Ceil(a, b) * b; }

struct Free {
  void operator()(float *p) const { std::free(p); }
};
using Buffer = std::unique_ptr<float[], Free>;

Buffer Allocate(int64_t count) {
  void *p = std::aligned_alloc(64, static_cast<size_t>(RoundUp(std::max<int64_t>(count, 1), kLine)) * sizeof(float));
  if (p == nullptr) throw std::bad_alloc();
  return Buffer(static_cast<float *>(p));
}

// A batch of maps (N, C, H, W), read where `gate`, a map of the same shape, is positive; everywhere without one.
struct Maps {
  const float *data, *gate;
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

// The tiles [begin, end) of the batch as runs; returns their number. `runs` has room for one a tile.
int64_t FindRuns(const Maps &maps, int64_t begin, int64_t end, Run *runs) {
  int64_t found = 0;
  const int64_t columns = maps.TileColumns(), image_tiles = maps.TilesOfImage();
  for (int64_t tile = begin; tile < end;) {
    const int64_t image = tile / image_tiles, rest = tile % image_tiles, column = rest % columns;
    const int64_t count = std::min(end - tile, columns - column);
    runs[found++] = Run{image, rest / columns * kOut, column * kOut, tile - begin, count};
    tile += count;
  }
  return found;
}

// Tiles of one channel after the transform along columns: [row of the transform][column of the tile][tile].
template <typename Transform>
class Columns {
 public:
  static constexpr int64_t kFrom = Transform::kFrom;

  // Only transformed rows [kFirst, kLast) are made.
  template <int64_t kFirst, int64_t kLast>
  void Read(const Maps &maps, const Run *runs, int64_t run_count, int64_t channel, const float *zeros) {
    for (int64_t i = 0; i < run_count; ++i) {
      const Run &run = runs[i];
      const int64_t plane = (run.image * maps.channels + channel) * maps.height * maps.width;
      Rows rows;
      for (int64_t r = 0; r < kFrom; ++r) {
        const int64_t y = run.y + r - Transform::kReach;
        const bool inside = y >= 0 && y < maps.height;
        rows.data[r] = inside ? maps.data + plane + y * maps.width : zeros;
        rows.gate[r] = inside && maps.gate != nullptr ? maps.gate + plane + y * maps.width : zeros;
      }
      rows.width = maps.width;
      if (maps.gate != nullptr) {
        ReadRun<kFirst, kLast, true>(rows, run);
      } else {
        ReadRun<kFirst, kLast, false>(rows, run);
      }
    }
  }

  const float *At(int64_t row, int64_t column) const { return tiles_[row][column]; }

 private:
  struct Rows {
    const float *data[kFrom], *gate[kFrom];
    int64_t width;
  };

  template <bool kGated>
  static RCNN_INLINE void ReadColumn(const Rows &rows, int64_t x, Floats out[kIn]) {
    Floats in[kFrom];
#pragma GCC unroll 6
    for (int64_t r = 0; r < kFrom; ++r) {
      in[r] = LoadWithin(rows.data[r], x, rows.width);
      if (kGated) in[r] = LoadWithin(rows.gate[r], x, rows.width) > 0.0f ? in[r] : Floats{};
    }
    Transform::Apply(in, out);
  }

  template <int64_t kFirst, int64_t kLast, bool kGated>
  void ReadRun(const Rows &rows, const Run &run) {
    constexpr int64_t kFew = kLanes / 4;
    int64_t tile = run.first, x = run.x - Transform::kReach;
    const int64_t end = run.first + run.count;
    // What goes beyond the run is overwritten by the next one's, or unused.
    while (end - tile > 2 * kFew) {
      Floats columns[5][kIn];
      for (int64_t v = 0; v < 4; ++v) ReadColumn<kGated>(rows, x + v * kLanes, columns[v]);
      if (kFrom > kOut) ReadColumn<kGated>(rows, x + 4 * kLanes, columns[4]);
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
      ReadColumn<kGated>(rows, x, columns[0]);
      if (kFrom > kOut) ReadColumn<kGated>(rows, x + kLanes, columns[1]);
#pragma GCC unroll 6
      for (int64_t row = kFirst; row < kLast; ++row) {
        const Floats four = rcnn::ShuffleBy<rcnn::Phases>(columns[0][row], columns[0][row]);
        for (int64_t p = 0; p < 4; ++p) StorePart<kFew>(tiles_[row][p] + tile, four, p);
        if (kFrom > kOut) {
          const Floats ahead = rcnn::ShuffleBy<rcnn::PhasesAhead>(columns[0][row], columns[1][row]);
          StorePart<kFew>(tiles_[row][kFrom - 2] + tile, ahead, 0);
          StorePart<kFew>(tiles_[row][kFrom - 1] + tile, ahead, 1);
        }
      }
      tile += kFew;
      x += kLanes;
    }
  }

  template <int64_t kCount>
  static RCNN_INLINE void StorePart(float *to, const Floats &v, int64_t part) {
    std::memcpy(to, reinterpret_cast<const char *>(&v) + part * kCount * 4, static_cast<size_t>(kCount) * 4);
  }

  alignas(64) float tiles_[kIn][kFrom][std::max(kMaxTiles, kSumTiles) + kLanes] = {};
};

// Matrix products of any number of rows, by blocks. a: blocks of kBlockRows rows (the last has what is left).
template <typename Call>
RCNN_INLINE void ForRows(int64_t rows, const Call &call) {
  switch (rows) {
#define RCNN_CASE(n) \
  case n:            \
    if constexpr (n <= kBlockRows) call(std::integral_constant<int64_t, n>()); \
    break;
    RCNN_CASE(1)
    RCNN_CASE(2)
    RCNN_CASE(3)
    RCNN_CASE(4)
    RCNN_CASE(5)
    RCNN_CASE(6)
    RCNN_CASE(7)
    RCNN_CASE(8)
    RCNN_CASE(9)
    RCNN_CASE(10)
    RCNN_CASE(11)
    RCNN_CASE(12)
    RCNN_CASE(13)
    RCNN_CASE(14)
#undef RCNN_CASE
  }
}

void Multiply(int64_t rows, int64_t columns, int64_t depth, const float *a, int64_t a_row, int64_t a_depth,
              const float *b, float *c, int64_t c_row, bool add) {
  ForRows(rows, [&](auto fixed) {
    if (columns > kLanes) {
      rcnn::MultiplyBlock<decltype(fixed)::value, 2>(depth, a, a_row, a_depth, b, c, c_row, add);
    } else {
      rcnn::MultiplyBlock<decltype(fixed)::value, 1>(depth, a, a_row, a_depth, b, c, c_row, add);
    }
  });
}

// Weights (O, C, 3, 3), transformed, as the products read them: [position][block of rows][depth][row of the block].
// Plain: rows are O and depth is C. Turned, for the input's gradient: rows are C, depth is O, each filter turned by
// half a turn.
class Weights {
 public:
  Weights(const float *weight, int64_t outputs, int64_t inputs, bool turned, int threads)
      : rows_(turned ? inputs : outputs), depth_(turned ? outputs : inputs), stride_(rows_ * depth_ + kLine) {
    data_ = Allocate(kPositions * stride_);
    rcnn::ParallelFor(Ceil(rows_, kBlockRows), threads, [&](int64_t block) {
      if (turned) {
        MakeTurned(weight, block * kBlockRows);
      } else {
        MakePlain(weight, block * kBlockRows);
      }
    });
  }

  int64_t rows() const { return rows_; }
  int64_t depth() const { return depth_; }
  const float *At(int64_t position, int64_t row, int64_t depth) const {
    return data_.get() + position * stride_ + row * depth_ + depth * BlockRows(row);
  }
  int64_t BlockRows(int64_t row) const { return std::min(kBlockRows, rows_ - row); }

 private:
  // g: the filters' 9 weights, rows of the block in the lanes.
  void Put(int64_t row, int64_t depth, const Floats g[9]) {
    Floats half[3][kIn], all[kIn];
    for (int64_t x = 0; x < 3; ++x) {
      const Floats column[3] = {g[x], g[3 + x], g[6 + x]};
      rcnn::TransformWeights(column, half[x]);
    }
    const int64_t count = BlockRows(row);
    float *to = data_.get() + row * depth_ + depth * count;
    for (int64_t i = 0; i < kIn; ++i) {
      const Floats line[3] = {half[0][i], half[1][i], half[2][i]};
      rcnn::TransformWeights(line, all);
      for (int64_t j = 0; j < kIn; ++j) rcnn::StoreFirst(to + (i * kIn + j) * stride_, all[j], count);
    }
  }

  void MakePlain(const float *weight, int64_t row) {
    const int64_t length = depth_ * 9, count = BlockRows(row);
    Floats g[9 * kLanes];
    for (int64_t begin = 0; begin < depth_; begin += kLanes) {
      for (int64_t part = 0; part < 9; ++part) {
        Floats *rows = g + part * kLanes;
        const int64_t from = begin * 9 + part * kLanes;
        for (int64_t r = 0; r < kLanes; ++r) {
          rows[r] = r < count && from < length ? LoadWithin(weight + (row + r) * length, from, length) : Floats{};
        }
        rcnn::Transpose(rows);
      }
      for (int64_t d = begin; d < std::min(begin + kLanes, depth_); ++d) Put(row, d, g + (d - begin) * 9);
    }
  }

  void MakeTurned(const float *weight, int64_t row) {
    const int64_t count = BlockRows(row);
    for (int64_t d = 0; d < depth_; ++d) {
      float filters[kLanes][9] = {};
      std::copy_n(weight + (d * rows_ + row) * 9, count * 9, &filters[0][0]);
      Floats g[9];
      for (int64_t k = 0; k < 9; ++k) {
        for (int64_t r = 0; r < kLanes; ++r) g[8 - k][r] = filters[r][k];
      }
      Put(row, d, g);
    }
  }

  int64_t rows_, depth_, stride_;
  Buffer data_;
};

// y = convolution of x, + bias, below 0 cut off where `relu`. bias may be null.
class Forward {
 public:
  Forward(const Maps &x, const Weights &weights, const float *bias, bool relu, float *y)
      : x_(x), weights_(weights), bias_(bias), relu_(relu), y_(y), zeros_(static_cast<size_t>(x.width), 0.0f) {}

  void Run(int threads) {
    const int64_t tiles = x_.Tiles();
    if (tiles == 0 || weights_.rows() == 0) return;
    // Small blocks where there are few tiles: all threads should have work.
    const int64_t size = std::clamp(RoundUp(Ceil(tiles, threads), kLanes), kLanes, kMaxTiles);
    const int64_t blocks = Ceil(tiles, size);
    const int workers = static_cast<int>(std::min<int64_t>(threads, blocks));
    std::vector<std::unique_ptr<Scratch>> scratch;
    for (int i = 0; i < workers; ++i) scratch.push_back(std::make_unique<Scratch>(weights_, size));
    std::atomic<int64_t> next{0};
    rcnn::ParallelFor(workers, workers, [&](int64_t worker) {
      for (int64_t block = next.fetch_add(1); block < blocks; block = next.fetch_add(1)) {
        RunBlock(*scratch[static_cast<size_t>(worker)], block * size, std::min(tiles, (block + 1) * size));
      }
    });
  }

 private:
  struct Scratch {
    Scratch(const Weights &weights, int64_t size)
        : input_stride(weights.depth() * RoundUp(size, kBlockColumns) + kLine),
          product_row(RoundUp(size, kBlockColumns)),
          input(Allocate(kPositions * input_stride)),
          products(Allocate(weights.rows() * kPositions * product_row)) {}

    int64_t input_stride, product_row;
    Buffer input;     // [position][block of tiles][channel][tile]
    Buffer products;  // [channel][position][tile]
    Columns<rcnn::InputTransform> columns;
    ::Run runs[kMaxTiles];
    alignas(64) float lines[kOut][kMaxTiles * kOut];
  };

  void RunBlock(Scratch &s, int64_t begin, int64_t end) const {
    const int64_t tiles = end - begin, run_count = FindRuns(x_, begin, end, s.runs);
    for (int64_t c = 0; c < x_.channels; ++c) {
      s.columns.Read<0, kIn>(x_, s.runs, run_count, c, zeros_.data());
      for (int64_t t = 0; t < tiles; t += kLanes) {
        float *to = s.input.get() + (t / kBlockColumns * x_.channels + c) * kBlockColumns + t % kBlockColumns;
        for (int64_t i = 0; i < kIn; ++i) {
          Floats in[kIn], out[kIn];
          for (int64_t j = 0; j < kIn; ++j) in[j] = Load(s.columns.At(i, j) + t);
          rcnn::InputTransform::Apply(in, out);
          for (int64_t j = 0; j < kIn; ++j) Store(to + (i * kIn + j) * s.input_stride, out[j]);
        }
      }
    }
    for (int64_t p = 0; p < kPositions; ++p) {
      for (int64_t t = 0; t < tiles; t += kBlockColumns) {
        for (int64_t d = 0; d < x_.channels; d += kDepth) {
          const float *b = s.input.get() + p * s.input_stride + t * x_.channels + d * kBlockColumns;
          for (int64_t row = 0; row < weights_.rows(); row += kBlockRows) {
            const int64_t rows = weights_.BlockRows(row);
            Multiply(rows, tiles - t, std::min(kDepth, x_.channels - d), weights_.At(p, row, d), 1, rows, b,
                     s.products.get() + (row * kPositions + p) * s.product_row + t, kPositions * s.product_row, d > 0);
          }
        }
      }
    }
    for (int64_t o = 0; o < weights_.rows(); ++o) {
      const float *products = s.products.get() + o * kPositions * s.product_row;
      const Floats shift = Floats{} + (bias_ == nullptr ? 0.0f : bias_[o]);
      for (int64_t t = 0; t < tiles; t += kLanes) {
        Floats half[kIn][kOut];
        for (int64_t i = 0; i < kIn; ++i) {
          Floats in[kIn];
          for (int64_t j = 0; j < kIn; ++j) in[j] = Load(products + (i * kIn + j) * s.product_row + t);
          rcnn::TransformOutput(in, half[i]);
        }
        Floats out[kOut][kOut];
        for (int64_t q = 0; q < kOut; ++q) {
          const Floats in[kIn] = {half[0][q], half[1][q], half[2][q], half[3][q], half[4][q], half[5][q]};
          Floats column[kOut];
          rcnn::TransformOutput(in, column);
          for (int64_t r = 0; r < kOut; ++r) {
            const Floats v = column[r] + shift;
            out[r][q] = relu_ ? (v > 0.0f ? v : (v == v ? Floats{} : v)) : v;
          }
        }
        for (int64_t r = 0; r < kOut; ++r) {
          rcnn::Interleave(out[r]);
          for (int64_t q = 0; q < kOut; ++q) Store(s.lines[r] + t * kOut + q * kLanes, out[r][q]);
        }
      }
      for (int64_t i = 0; i < run_count; ++i) {
        const ::Run &run = s.runs[i];
        const int64_t width = std::min(run.count * kOut, x_.width - run.x);
        float *to = y_ + ((run.image * weights_.rows() + o) * x_.height + run.y) * x_.width + run.x;
        for (int64_t r = 0; r < std::min(kOut, x_.height - run.y); ++r, to += x_.width) {
          const float *from = s.lines[r] + run.first * kOut;
          for (int64_t x = 0; x < width; x += kLanes) rcnn::StoreFirst(to + x, Load(from + x), width - x);
        }
      }
    }
  }

  const Maps x_;
  const Weights &weights_;
  const float *bias_;
  const bool relu_;
  float *y_;
  const std::vector<float> zeros_;
};

// The weight's and bias's gradients. Each of the transform's 6 rows is a task of its own, and so is each part of the
// output channels where there are more threads: no task adds to another's sums.
class WeightGradient {
 public:
  WeightGradient(const Maps &dy, const Maps &x, float *dw, float *db)
      : dy_(dy), x_(x), dw_(dw), db_(db), padded_(RoundUp(x.channels, kLanes)),
        zeros_(static_cast<size_t>(x.width), 0.0f) {}

  void Run(int threads) {
    const int64_t outputs = dy_.channels;
    if (outputs == 0) return;
    sums_ = Allocate(kPositions * outputs * padded_);
    const int64_t blocks = Ceil(outputs, kBlockRows);
    const int64_t parts = std::clamp<int64_t>(Ceil(threads, kIn), 1, blocks);
    const int64_t part = Ceil(blocks, parts) * kBlockRows;  // output channels of a task
    const int64_t tasks = kIn * Ceil(outputs, part);
    const int workers = static_cast<int>(std::min<int64_t>(threads, tasks));
    std::vector<std::unique_ptr<Scratch>> scratch;
    for (int i = 0; i < workers; ++i) scratch.push_back(std::make_unique<Scratch>(part, padded_));
    std::atomic<int64_t> next{0};
    rcnn::ParallelFor(workers, workers, [&](int64_t worker) {
      for (int64_t task = next.fetch_add(1); task < tasks; task = next.fetch_add(1)) {
        Scratch &s = *scratch[static_cast<size_t>(worker)];
        const int64_t begin = task / kIn * part, end = std::min(outputs, begin + part);
        switch (task % kIn) {
          case 0: Sum<0>(s, begin, end); break;
          case 1: Sum<1>(s, begin, end); break;
          case 2: Sum<2>(s, begin, end); break;
          case 3: Sum<3>(s, begin, end); break;
          case 4: Sum<4>(s, begin, end); break;
          default: Sum<5>(s, begin, end); break;
        }
      }
    });
    rcnn::ParallelFor(outputs, threads, [&](int64_t o) { Finish(o); });
  }

 private:
  struct Scratch {
    Scratch(int64_t outputs, int64_t padded)
        : gradient(Allocate(kIn * outputs * kSumTiles)),
          input(Allocate(kIn * (RoundUp(padded, kBlockColumns) * kSumTiles + kLine))),
          bias(Allocate(outputs * kLanes)) {}

    Buffer gradient;  // [position of the row][output channel][tile]
    Buffer input;     // [position of the row][block of input channels][tile][channel]
    Buffer bias;      // [output channel][lane]
    Columns<rcnn::GradientTransform> gradient_columns;
    Columns<rcnn::InputTransform> input_columns;
    ::Run runs[kSumTiles];
  };

  template <int64_t kRow>
  void Sum(Scratch &s, int64_t begin, int64_t end) const {
    const int64_t tiles = x_.Tiles(), outputs = dy_.channels, plane = outputs * padded_;
    const int64_t input_stride = RoundUp(padded_, kBlockColumns) * kSumTiles + kLine;
    const int64_t gradient_stride = (end - begin) * kSumTiles;
    float *sums = sums_.get() + kRow * kIn * plane;
    if (tiles == 0) {
      for (int64_t j = 0; j < kIn; ++j) std::fill_n(sums + j * plane + begin * padded_, (end - begin) * padded_, 0.0f);
    }
    std::fill_n(s.bias.get(), (end - begin) * kLanes, 0.0f);
    for (int64_t tile = 0; tile < tiles; tile += kSumTiles) {
      const int64_t count = std::min(kSumTiles, tiles - tile);
      const int64_t run_count = FindRuns(x_, tile, tile + count, s.runs);
      for (int64_t o = begin; o < end; ++o) {
        s.gradient_columns.Read<kRow, kRow + 1>(dy_, s.runs, run_count, o, zeros_.data());
        for (int64_t t = 0; t < count; t += kLanes) {
          Floats in[kOut], out[kIn];
          for (int64_t j = 0; j < kOut; ++j) in[j] = Load(s.gradient_columns.At(kRow, j) + t);
          rcnn::GradientTransform::Apply(in, out);
          float *to = s.gradient.get() + (o - begin) * kSumTiles + t;
          for (int64_t j = 0; j < kIn; ++j) Store(to + j * gradient_stride, out[j]);
          if (kRow == 1) {
            // Position (1, 1) of the transform is the sum of the tile.
            float *bias = s.bias.get() + (o - begin) * kLanes;
            for (int64_t lane = 0; lane < std::min(kLanes, count - t); ++lane) bias[lane] += out[1][lane];
          }
        }
      }
      for (int64_t c = 0; c < padded_; c += kLanes) {
        for (int64_t t = 0; t < count; t += kLanes) {
        }
        Floats turned[kSumTiles / kLanes][kIn][kLanes];
        for (int64_t lane = 0; lane < kLanes; ++lane) {
          if (c + lane < x_.channels) {
            s.input_columns.Read<kRow, kRow + 1>(x_, s.runs, run_count, c + lane, zeros_.data());
          }
          for (int64_t t = 0; t < count; t += kLanes) {
            Floats in[kIn], out[kIn];
            for (int64_t j = 0; j < kIn; ++j) in[j] = Load(s.input_columns.At(kRow, j) + t);
            rcnn::InputTransform::Apply(in, out);
            for (int64_t j = 0; j < kIn; ++j) turned[t / kLanes][j][lane] = out[j];
          }
        }
        for (int64_t t = 0; t < count; t += kLanes) {
          for (int64_t j = 0; j < kIn; ++j) {
            rcnn::Transpose(turned[t / kLanes][j]);
            float *to = s.input.get() + j * input_stride + c / kBlockColumns * kBlockColumns * kSumTiles +
                        t * kBlockColumns + c % kBlockColumns;
            for (int64_t lane = 0; lane < kLanes; ++lane) Store(to + lane * kBlockColumns, turned[t / kLanes][j][lane]);
          }
        }
      }
      for (int64_t j = 0; j < kIn; ++j) {
        for (int64_t c = 0; c < padded_; c += kBlockColumns) {
          for (int64_t o = begin; o < end; o += kBlockRows) {
            Multiply(std::min(kBlockRows, end - o), padded_ - c, count,
                     s.gradient.get() + j * gradient_stride + (o - begin) * kSumTiles, kSumTiles, 1,
                     s.input.get() + j * input_stride + c * kSumTiles, sums + j * plane + o * padded_ + c, padded_,
                     tile > 0);
          }
        }
      }
    }
    if (kRow == 1) {
      for (int64_t o = begin; o < end; ++o) {
        float sum = 0.0f;
        for (int64_t lane = 0; lane < kLanes; ++lane) sum += s.bias[static_cast<size_t>((o - begin) * kLanes + lane)];
        db_[o] = sum;
      }
    }
  }

  void Finish(int64_t o) const {
    const int64_t plane = dy_.channels * padded_;
    for (int64_t c = 0; c < padded_; c += kLanes) {
      const float *from = sums_.get() + o * padded_ + c;
      Floats half[kIn][3];
      for (int64_t i = 0; i < kIn; ++i) {
        Floats line[kIn];
        for (int64_t j = 0; j < kIn; ++j) line[j] = Load(from + (i * kIn + j) * plane);
        rcnn::TransformWeightGradient(line, half[i]);
      }
      for (int64_t b = 0; b < 3; ++b) {
        const Floats in[kIn] = {half[0][b], half[1][b], half[2][b], half[3][b], half[4][b], half[5][b]};
        Floats column[3];
        rcnn::TransformWeightGradient(in, column);
        for (int64_t a = 0; a < 3; ++a) {
          for (int64_t lane = 0; lane < std::min(kLanes, x_.channels - c); ++lane) {
            dw_[((o * x_.channels + c + lane) * 3 + a) * 3 + b] = column[a][lane];
          }
        }
      }
    }
  }

  const Maps dy_, x_;
  float *dw_, *db_;
  const int64_t padded_;  // input channels, to whole vectors
  const std::vector<float> zeros_;
  Buffer sums_;  // [position][output channel][input channel]
};

Maps MakeMaps(const void *data, const void *gate, const int64_t *shape) {
  return Maps{static_cast<const float *>(data), static_cast<const float *>(gate), shape[0], shape[1], shape[2],
              shape[3]};
}

// x (N, C, H, W), weight (O, C, 3, 3), bias (O,) -> y (N, O, H, W)
int RunForward(int nparam, void **params, int64_t **shapes, bool relu) try {
  if (nparam != 4) return 1;
  const int threads = rcnn::NumThreads();
  const Maps x = MakeMaps(params[0], nullptr, shapes[0]);
  if (x.Tiles() == 0) return 0;
  const Weights weights(static_cast<const float *>(params[1]), shapes[1][0], shapes[1][1], false, threads);
  Forward(x, weights, static_cast<const float *>(params[2]), relu, static_cast<float *>(params[3])).Run(threads);
  return 0;
} catch (const std::exception &error) {
  std::fprintf(stderr, "Conv3x3Forward: %s\n", error.what());
  return 1;
}

// dy and y (N, O, H, W), weight (O, C, 3, 3) -> dx (N, C, H, W). y is read only where `relu`.
int RunInputGradient(int nparam, void **params, int64_t **shapes, bool relu) try {
  if (nparam != 4) return 1;
  const int threads = rcnn::NumThreads();
  const Maps dy = MakeMaps(params[0], relu ? params[1] : nullptr, shapes[0]);
  if (dy.Tiles() == 0) return 0;
  const Weights weights(static_cast<const float *>(params[2]), shapes[2][0], shapes[2][1], true, threads);
  Forward(dy, weights, nullptr, false, static_cast<float *>(params[3])).Run(threads);
  return 0;
} catch (const std::exception &error) {
  std::fprintf(stderr, "Conv3x3InputGradient: %s\n", error.what());
  return 1;
}

// dy and y (N, O, H, W), x (N, C, H, W) -> dweight (O, C, 3, 3), dbias (O,). y is read only where `relu`.
int RunWeightGradient(int nparam, void **params, int64_t **shapes, bool relu) try {
  if (nparam != 5) return 1;
  const Maps dy = MakeMaps(params[0], relu ? params[1] : nullptr, shapes[0]);
  const Maps x = MakeMaps(params[2], nullptr, shapes[2]);
  WeightGradient(dy, x, static_cast<float *>(params[3]), static_cast<float *>(params[4])).Run(rcnn::NumThreads());
  return 0;
} catch (const std::exception &error) {
  std::fprintf(stderr, "Conv3x3WeightGradient: %s\n", error.what());
  return 1;
}

}  // namespace

#define RCNN_OPERATOR(name, run, relu)                                                                   \
  extern "C" int name(int nparam, void **params, int *, int64_t **shapes, const char **, void *, void *) { \
    return run(nparam, params, shapes, relu);                                                            \
  }

RCNN_OPERATOR(Conv3x3Forward, RunForward, false)
RCNN_OPERATOR(Conv3x3ForwardReLU, RunForward, true)
RCNN_OPERATOR(Conv3x3InputGradient, RunInputGradient, false)
RCNN_OPERATOR(Conv3x3InputGradientReLU, RunInputGradient, true)
RCNN_OPERATOR(Conv3x3WeightGradient, RunWeightGradient, false)
RCNN_OPERATOR(Conv3x3WeightGradientReLU, RunWeightGradient, true)
