// How a convolution by Winograd's F(4x4, 3x3) goes: weights and blocks of tiles are transformed, multiplied and
// transformed back. See winograd.cc.
#ifndef RCNN_OPS_WINOGRAD_BLOCKS_H_
#define RCNN_OPS_WINOGRAD_BLOCKS_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cache.h"
#include "gemm_kernel.h"
#include "parallel.h"
#include "winograd.h"
#include "winograd_transform.h"
#include "workspace.h"

namespace rcnn::winograd {

// Tiles of a block: not so few that reading the weights, which each block does anew, takes longer than multiplying.
// More pay where the weights don't stay in the L2 cache from block to block, as many as leave a block's transform and
// products there.
constexpr int64_t kFewestTiles = 32, kTiles = 64;

inline int64_t BlockTiles(int64_t rows, int64_t depth) {
  const int64_t cache = CoreCaches().second;
  if (kPositions * rows * depth * 4 <= cache) return kFewestTiles;
  return Fitting(cache, kPositions * (rows + depth) * 4, kBlockColumns, kFewestTiles, kTiles);
}

// Channels multiplied at a time. Of a block their part may be a third larger than the L1 cache: reading it from the L2
// cache costs less than one more pass over the sums.
inline int64_t PartOfDepth() { return Fitting(CoreCaches().first * 4 / 3, kBlockColumns * 4, 64, 128, 1024); }

// Arrays of which one element each is written in turn must not lie a power of two apart: the cache holds few such.
inline int64_t Stride(int64_t count) { return Workspace::Padded(count) + kCacheLine; }

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
inline int64_t FindRuns(const Maps &maps, const Range &tiles, Run *runs) {
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
      rows.ahead = kAhead * maps.height * maps.width;
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
  // whose rows are fetched: those of channels lie far apart, where nothing else fetches ahead
  static constexpr int64_t kAhead = 1;

  struct Rows {
    const float *data[kFrom], *gate[kFrom];
    int64_t width, ahead;
  };

  template <bool kGated>
  static RCNN_INLINE void ReadColumns(const Rows &rows, int64_t x, Floats out[kIn]) {
    Floats in[kFrom];
#pragma GCC unroll 6
    for (int64_t r = 0; r < kFrom; ++r) {
      in[r] = LoadWithin(rows.data[r], x, rows.width);
      __builtin_prefetch(rows.data[r] + x + rows.ahead, 0, 3);
      if (kGated) __builtin_prefetch(rows.gate[r] + x + rows.ahead, 0, 3);
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
        Deinterleave(v);
        for (int64_t p = 0; p < 4; ++p) Store(tiles_[row][p] + tile, v[p]);
        if (kFrom > kOut) {
          Store(tiles_[row][kFrom - 2] + tile, ShuffleBy<ShiftedIn<0>>(v[0], columns[4][row]));
          Store(tiles_[row][kFrom - 1] + tile, ShuffleBy<ShiftedIn<1>>(v[1], columns[4][row]));
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
        const Floats four = ShuffleBy<Phases>(columns[0][row], columns[0][row]);
        for (int64_t p = 0; p < 4; ++p) StorePart(tiles_[row][p] + tile, four, p);
        if (kFrom > kOut) {
          const Floats ahead = ShuffleBy<PhasesAhead>(columns[0][row], columns[1][row]);
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
    ParallelFor(Ceil(rows_, kBlockRows), threads, [this](int64_t block) {
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
  // Depths whose weights are put together before they go where they belong, 36 places that lie far apart: whole cache
  // lines then, and past the caches.
  static constexpr int64_t kPieceDepths = kLanes;
  struct Piece {
    alignas(64) float at[kPositions][kPieceDepths * kBlockRows];  // [position][depth][row]
  };

  // g: the 9 weights of `count` filters at one depth, in the lanes. to: in the piece of the first position.
  static void Put(const Floats g[9], int64_t count, float *to) {
    Floats half[3][kIn], all[kIn];
    for (int64_t x = 0; x < 3; ++x) {
      const Floats column[3] = {g[x], g[3 + x], g[6 + x]};
      TransformWeights(column, half[x]);
    }
    for (int64_t i = 0; i < kIn; ++i) {
      const Floats line[3] = {half[0][i], half[1][i], half[2][i]};
      TransformWeights(line, all);
      for (int64_t j = 0; j < kIn; ++j) StoreFirst(to + (i * kIn + j) * kPieceDepths * kBlockRows, all[j], count);
    }
  }

  // Depths [begin, begin + depths) of a block's rows, to where they belong.
  void Place(const Piece &piece, int64_t row, int64_t begin, int64_t depths) {
    const int64_t floats = depths * BlockRows(row), place = row * depth_ + begin * BlockRows(row);
    const bool lines = floats % kCacheLine == 0 && place % kCacheLine == 0;
    for (int64_t p = 0; p < kPositions; ++p) {
      float *to = data_ + p * stride_ + place;
      if (!lines) {
        std::copy_n(piece.at[p], floats, to);
        continue;
      }
      for (int64_t i = 0; i < floats; i += kLanes) StorePast(to + i, Load(piece.at[p] + i));
    }
  }

  void MakePlain(int64_t row) {
    const int64_t length = depth_ * 9, count = BlockRows(row);
    Piece piece;
    Floats g[9 * kLanes];
    for (int64_t begin = 0; begin < depth_; begin += kPieceDepths) {
      const int64_t depths = std::min(kPieceDepths, depth_ - begin);
      for (int64_t first = 0; first < count; first += kLanes) {
        const float *filters = weight_ + (row + first) * length;
        for (int64_t part = 0; part < 9; ++part) {
          Floats *rows = g + part * kLanes;
          const int64_t from = begin * 9 + part * kLanes;
          for (int64_t r = 0; r < kLanes; ++r) {
            rows[r] = first + r < count && from < length ? LoadWithin(filters + r * length, from, length) : Floats{};
          }
          Transpose(rows);
        }
        for (int64_t d = 0; d < depths; ++d) Put(g + d * 9, count - first, piece.at[0] + d * count + first);
      }
      Place(piece, row, begin, depths);
    }
    EndStoresPast();
  }

  void MakeTurned(int64_t row) {
    const int64_t count = BlockRows(row), floats = count * 9;
    Piece piece;
    for (int64_t begin = 0; begin < depth_; begin += kPieceDepths) {
      const int64_t depths = std::min(kPieceDepths, depth_ - begin);
      for (int64_t d = 0; d < depths; ++d) {
        const float *filters = weight_ + ((begin + d) * rows_ + row) * 9;
        for (int64_t first = 0; first < count; first += kLanes) {
          Floats g[9];
          for (int64_t k = 0; k < 9; k += kLanes) {
            Floats rows[kLanes];
            for (int64_t r = 0; r < kLanes; ++r) {
              const int64_t from = (first + r) * 9 + k;
              rows[r] = from < floats ? LoadWithin(filters, from, floats) : Floats{};
            }
            Transpose(rows);
            for (int64_t i = 0; i < std::min(kLanes, 9 - k); ++i) g[8 - k - i] = rows[i];
          }
          Put(g, count - first, piece.at[0] + d * count + first);
        }
      }
      Place(piece, row, begin, depths);
    }
    EndStoresPast();
  }

  const float *weight_;
  const bool turned_;
  const int64_t rows_, depth_, stride_;
  float *data_;
};

// A convolution with transformed weights, block by block. bias may be null.
class Blocks {
 public:
  Blocks(const Maps &x, int64_t rows, int64_t tiles, const float *bias, bool relu)
      : x_(x),
        bias_(bias),
        relu_(relu),
        zeros_(static_cast<size_t>(x.width), 0.0f),
        part_(PartOfDepth()),
        tile_stride_(RoundUp(tiles, kBlockColumns)),
        input_stride_(Stride(x.channels * tile_stride_)),
        in_halves_(kPositions * input_stride_ * 4 > CoreCaches().second),
        products_(rows * kPositions * tile_stride_) {}

  // What a thread works with: rooms of InputRoom() and ProductsRoom() floats, and small ones.
  struct Scratch {
    float *input;     // [position, of a half or of all][columns of a product][channel][tile]
    float *products;  // [output channel][position][tile]
    int64_t run_count;
    winograd::Run runs[kTiles];
    Columns<InputTransform, kTiles> columns;
    alignas(64) float lines[kOut][kTiles * kOut];  // [row][column] of one channel's outputs, tile by tile
  };

  int64_t InputRoom() const { return kPositions / (in_halves_ ? 2 : 1) * input_stride_; }
  int64_t ProductsRoom() const { return products_; }

  // Calls write(row) for the output channels `rows` of the block, when s.lines holds that one's outputs.
  template <typename Write>
  void Run(const Weights &weights, Scratch &s, const Range &tiles, const Range &rows, const Write &write) const {
    s.run_count = FindRuns(x_, tiles, s.runs);
    if (in_halves_) {
      RunRows<0, kIn / 2>(weights, s, tiles.Size(), rows);
      RunRows<kIn / 2, kIn>(weights, s, tiles.Size(), rows);
    } else {
      RunRows<0, kIn>(weights, s, tiles.Size(), rows);
    }
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      TransformProducts(s, tiles.Size(), row);
      write(row);
    }
  }

 private:
  // The products of rows [kFirst, kLast) of the transform.
  template <int64_t kFirst, int64_t kLast>
  void RunRows(const Weights &weights, Scratch &s, int64_t tiles, const Range &rows) const {
    for (int64_t c = 0; c < x_.channels; ++c) TransformInput<kFirst, kLast>(s, tiles, c);
    for (int64_t p = kFirst * kIn; p < kLast * kIn; ++p) {
      MultiplyPosition(weights, s, s.input + (p - kFirst * kIn) * input_stride_, tiles, rows, p);
    }
  }

  // Rows [kFirst, kLast) of a channel's transform.
  template <int64_t kFirst, int64_t kLast>
  void TransformInput(Scratch &s, int64_t tiles, int64_t channel) const {
    s.columns.template Read<kFirst, kLast>(x_, s.runs, s.run_count, channel, zeros_.data());
    for (int64_t t = 0; t < tiles; t += kLanes) {
      float *to = s.input + (t / kBlockColumns * x_.channels + channel) * kBlockColumns + t % kBlockColumns;
      for (int64_t i = kFirst; i < kLast; ++i) {
        Floats in[kIn], out[kIn];
        for (int64_t j = 0; j < kIn; ++j) in[j] = Load(s.columns.At(i, j) + t);
        InputTransform::Apply(in, out);
        for (int64_t j = 0; j < kIn; ++j) Store(to + ((i - kFirst) * kIn + j) * input_stride_, out[j]);
      }
    }
  }

  // input: the position's, as in s.input
  void MultiplyPosition(const Weights &weights, const Scratch &s, const float *input, int64_t tiles, const Range &rows,
                        int64_t p) const {
    for (int64_t t = 0; t < tiles; t += kBlockColumns) {
      for (int64_t d = 0; d < x_.channels; d += part_) {
        const int64_t depth = std::min(part_, x_.channels - d);
        const float *b = input + t * x_.channels + d * kBlockColumns;
        for (int64_t row = rows.begin; row < rows.end; row += kBlockRows) {
          const int64_t count = weights.BlockRows(row);
          float *c = s.products + (row * kPositions + p) * tile_stride_ + t;
          Multiply(count, tiles - t, depth, weights.At(p, row, d), 1, count, b, c, kPositions * tile_stride_, d > 0);
        }
      }
    }
  }

  void TransformProducts(Scratch &s, int64_t tiles, int64_t row) const {
    const float *products = s.products + row * kPositions * tile_stride_;
    const Floats shift = Broadcast(bias_ == nullptr ? 0.0f : bias_[row]);
    for (int64_t t = 0; t < tiles; t += kLanes) {
      Floats half[kIn][kOut], out[kOut][kOut];
      for (int64_t i = 0; i < kIn; ++i) {
        Floats in[kIn];
        for (int64_t j = 0; j < kIn; ++j) in[j] = Load(products + (i * kIn + j) * tile_stride_ + t);
        TransformOutput(in, half[i]);
      }
      for (int64_t x = 0; x < kOut; ++x) {
        const Floats in[kIn] = {half[0][x], half[1][x], half[2][x], half[3][x], half[4][x], half[5][x]};
        Floats column[kOut];
        TransformOutput(in, column);
        for (int64_t y = 0; y < kOut; ++y) {
          const Floats v = column[y] + shift;
          // Written so that NaN stays NaN.
          out[y][x] = relu_ ? (v < 0.0f ? Floats{} : v) : v;
        }
      }
      for (int64_t y = 0; y < kOut; ++y) {
        Interleave(out[y]);
        for (int64_t x = 0; x < kOut; ++x) Store(s.lines[y] + t * kOut + x * kLanes, out[y][x]);
      }
    }
  }

  const Maps x_;
  const float *bias_;
  const bool relu_;
  const std::vector<float> zeros_;
  const int64_t part_, tile_stride_, input_stride_;
  // the input's transform is made and multiplied by half its rows: what was made is still in the L2 cache then
  const bool in_halves_;
  const int64_t products_;
};

}  // namespace rcnn::winograd

namespace rcnn {

struct Conv3x3::Filters {
  Filters(const float *weight, int64_t outputs, int64_t inputs)
      : shape{outputs, inputs, 3, 3},
        memory(TakeMemory(winograd::Weights::Room(shape))),
        weights(weight, outputs, inputs, false, memory.get()) {
    weights.Make(NumThreads());
  }

  const int64_t shape[4];
  const Memory memory;
  winograd::Weights weights;
};

}  // namespace rcnn

#endif  // RCNN_OPS_WINOGRAD_BLOCKS_H_
