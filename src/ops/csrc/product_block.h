// A block of a product (product.cc): its sums, by vectors or by tiles, begun with a bias or another map, and finished.
#ifndef RCNN_OPS_PRODUCT_BLOCK_H_
#define RCNN_OPS_PRODUCT_BLOCK_H_

#include <algorithm>
#include <cstdint>
#include <limits>

#include "gemm_kernel.h"
#include "product.h"
#include "tiles.h"

namespace rcnn {
namespace product_internal {

constexpr int64_t kDepth = 256;  // terms that are multiplied at a time: what a task has of them stays in the L2 cache
// From a row to the next one of a block of rows that isn't turned: not a power of two, as the cache holds few numbers
// that lie one apart.
constexpr int64_t kRowStride = kDepth + 16;

// v where `open` is positive, else 0.
RCNN_INLINE Floats Passed(const Floats &open, const Floats &v) { return open > 0.0f ? v : Floats{}; }

// One block of the result, of `columns` columns.
struct Block {
  int64_t depth;
  const float *a, *b;
  float *c;
  int64_t c_row, columns;
  int64_t next;  // from c to the block that comes next
  // of the sum's first and last part: it begins with the bias and `other`, and is activated at the end
  bool first, last;
  bool past;                            // the result goes past the caches
  const float *row_bias, *column_bias;  // either may be null
  const float *other;                   // may be c; may be null
  int64_t other_row;
  const float *positive;  // like c; may be null
  Activation activation;
};

// What the next block reads and writes is brought near, a row at a time: rows lie far apart, and a core has room for
// few numbers that are under way.
class BlockAhead {
 public:
  explicit BlockAhead(const Block &block)
      : c_(block.past ? nullptr : block.c + block.next),
        positive_(block.last && block.positive != nullptr ? block.positive + block.next : nullptr),
        other_(block.first && block.other != nullptr && block.other != block.c && block.other_row == block.c_row
                   ? block.other + block.next
                   : nullptr) {}

  RCNN_INLINE void FetchRow(int64_t place) const {
    if (c_ != nullptr) {
      __builtin_prefetch(c_ + place, 1, 3);
      __builtin_prefetch(c_ + place + kBlockColumns / 2, 1, 3);
    }
    if (positive_ != nullptr) Fetch(positive_ + place);
    if (other_ != nullptr) Fetch(other_ + place);
  }

 private:
  static RCNN_INLINE void Fetch(const float *from) {
    __builtin_prefetch(from, 0, 3);
    __builtin_prefetch(from + kBlockColumns / 2, 0, 3);
  }

  const float *c_, *positive_, *other_;
};

// What each row's sums begin with, where nothing is added to it; and where something is that it mustn't change, as it
// does a zero's sign.
constexpr float kZeros[kBlockRows] = {};
constexpr Floats kNothing = -Floats{};

// Where sums begin: with a number a row, and a row of others `stride` apart, or null.
struct Start {
  const float *shift, *from;  // shift: null where it is nothing
  int64_t stride;
};

inline Start StartOf(const Block &block) {
  if (!block.first) return {nullptr, block.c, block.c_row};
  if (block.column_bias != nullptr) return {nullptr, block.column_bias, 0};
  return {block.row_bias != nullptr ? block.row_bias : kZeros, block.other, block.other_row};
}

// A block's sums stay in registers: whatever isn't the same for all of them goes through memory, an edge's `room`.
template <int64_t kRows, int64_t kVectors>
RCNN_INLINE void BeginSums(const Block &block, bool whole, float *room, Floats (&sums)[kRows][kVectors]) {
  constexpr int64_t kWidth = kVectors * kLanes;
  Start start = StartOf(block);
  if (start.from != nullptr && !whole) {
    for (int64_t r = 0; r < kRows; ++r) {
      for (int64_t v = 0; v < kWidth; v += kLanes) {
        Store(room + r * kWidth + v, LoadWithin(start.from + r * start.stride, v, block.columns));
      }
    }
    start.from = room;
    start.stride = kWidth;
  }
#pragma GCC unroll 16
  for (int64_t r = 0; r < kRows; ++r) {
    const Floats shift = start.shift != nullptr ? Broadcast(start.shift[r]) : kNothing;
#pragma GCC unroll 2
    for (int64_t v = 0; v < kVectors; ++v) sums[r][v] = shift;
  }
  if (start.from == nullptr) return;
#pragma GCC unroll 16
  for (int64_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int64_t v = 0; v < kVectors; ++v) sums[r][v] += Load(start.from + r * start.stride + v * kLanes);
  }
}

template <int64_t kRows, int64_t kVectors>
RCNN_INLINE void StoreSums(const Floats (&sums)[kRows][kVectors], float *to, int64_t stride) {
#pragma GCC unroll 16
  for (int64_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int64_t v = 0; v < kVectors; ++v) Store(to + r * stride + v * kLanes, sums[r][v]);
  }
}

// Activates the sums and puts them where they belong.
template <int64_t kRows, int64_t kVectors>
RCNN_INLINE void FinishSums(const Block &block, bool whole, float *room, Floats (&sums)[kRows][kVectors]) {
  constexpr int64_t kWidth = kVectors * kLanes;
  const Activation activation = block.last ? block.activation : Activation::kNone;
  const float *positive = block.last ? block.positive : nullptr;
  if (activation == Activation::kReLU || activation == Activation::kReLU6) {
    const Floats most = Broadcast(activation == Activation::kReLU6 ? 6.0f : std::numeric_limits<float>::infinity());
#pragma GCC unroll 16
    for (int64_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int64_t v = 0; v < kVectors; ++v) {
        const Floats open = sums[r][v] < 0.0f ? Floats{} : sums[r][v];
        sums[r][v] = open > most ? most : open;
      }
    }
  }
  // an edge's, and an activation whose division, once for each sum, would be much code
  if (!whole || activation == Activation::kHSwish) {
    StoreSums(sums, room, kWidth);
    for (int64_t r = 0; r < kRows; ++r) {
      const int64_t row = r * block.c_row;
      for (int64_t v = 0; v < block.columns; v += kLanes) {
        Floats sum = Load(room + r * kWidth + v);
        if (activation == Activation::kHSwish) sum = Activate(activation, sum);
        if (positive != nullptr) sum = Passed(LoadWithin(positive + row, v, block.columns), sum);
        StoreFirst(block.c + row + v, sum, block.columns - v);
      }
    }
    return;
  }
  if (positive != nullptr) {
#pragma GCC unroll 16
    for (int64_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int64_t v = 0; v < kVectors; ++v) {
        sums[r][v] = Passed(Load(positive + r * block.c_row + v * kLanes), sums[r][v]);
      }
    }
  }
  if (!block.past) return StoreSums(sums, block.c, block.c_row);
#pragma GCC unroll 16
  for (int64_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int64_t v = 0; v < kVectors; ++v) StorePast(block.c + r * block.c_row + v * kLanes, sums[r][v]);
  }
}

// a: [depth][row], of kRows rows, or kAcross: [row][depth], kRowStride apart.
template <int64_t kRows, int64_t kVectors, bool kAcross>
__attribute__((noinline)) void MultiplyBlock(const Block &block) {
  constexpr int64_t kRow = kAcross ? kRowStride : 1, kTerm = kAcross ? 1 : kRows, kWidth = kVectors * kLanes;
  alignas(64) float room[kRows * kWidth];
  Floats sums[kRows][kVectors];
  const bool whole = block.columns == kWidth;
  BeginSums(block, whole, room, sums);
  const BlockAhead ahead(block);
  const float *a = block.a, *b = block.b, *const end = b + block.depth * kBlockColumns;
  const int64_t share = Ceil(block.depth, kRows) * kBlockColumns;
  for (int64_t row = 0; row < kRows; ++row) {
    ahead.FetchRow(row * block.c_row);
    const float *const stop = std::min(b + share, end);
#pragma GCC unroll 2
    while (b != stop) {
      Floats columns[kVectors];
#pragma GCC unroll 2
      for (int64_t v = 0; v < kVectors; ++v) columns[v] = Load(b + v * kLanes);
#pragma GCC unroll 16
      for (int64_t r = 0; r < kRows; ++r) {
        const Floats factor = Broadcast(a[r * kRow]);
#pragma GCC unroll 2
        for (int64_t v = 0; v < kVectors; ++v) sums[r][v] = MulAdd(factor, columns[v], sums[r][v]);
      }
      if (!kAcross) __builtin_prefetch(a + 32 * kRows, 0, 3);
      a += kTerm;
      b += kBlockColumns;
    }
  }
  FinishSums(block, whole, room, sums);
}

template <bool kAcross, int64_t kRows = kBlockRows>
void MultiplySome(int64_t rows, const Block &block) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return MultiplySome<kAcross, kRows - 1>(rows, block);
  }
  if (block.columns > kLanes) {
    MultiplyBlock<kRows, 2, kAcross>(block);
  } else {
    MultiplyBlock<kRows, 1, kAcross>(block);
  }
}

// A block's sums in tiles: `rows` rows of it, a and b split. Returns whether all of them are finite.
inline bool MultiplyInTiles(const Block &block, int64_t rows, const uint16_t *a, const uint16_t *b, float *sums) {
  for (int64_t r = 0; r < rows; ++r) {
    float *c = block.c + r * block.c_row;
    for (int64_t v = 0; v < kTileColumns; v += kLanes) {
      Floats start = {};
      if (!block.first) {
        start = LoadWithin(c, v, block.columns);
      } else {
        if (block.row_bias != nullptr) start = Broadcast(block.row_bias[r]);
        if (block.column_bias != nullptr) start = LoadWithin(block.column_bias, v, block.columns);
        if (block.other != nullptr) start += LoadWithin(block.other + r * block.other_row, v, block.columns);
      }
      Store(sums + r * kTileColumns + v, start);
    }
  }
  // the next block's place is the next columns'
  const bool along = block.other != nullptr && block.other_row == block.c_row;
  const Ahead ahead{block.c + kTileColumns, along ? block.other + kTileColumns : nullptr, block.c_row};
  MultiplyTiles(block.depth, a, b, rows <= kTileRows / 2, ahead, sums);
  Floats none = {};
  for (int64_t r = 0; r < rows; ++r) {
    float *c = block.c + r * block.c_row;
    for (int64_t v = 0; v < block.columns; v += kLanes) {
      // those beyond the last column may be anything
      const Floats sum = LoadWithin(sums + r * kTileColumns, v, block.columns);
      none += sum - sum;
      Floats end = block.last ? Activate(block.activation, sum) : sum;
      if (block.last && block.positive != nullptr) {
        end = Passed(LoadWithin(block.positive + r * block.c_row, v, block.columns), end);
      }
      StoreFirst(c + v, end, block.columns - v);
    }
  }
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    if (none[lane] != 0.0f) return false;
  }
  return true;
}

}  // namespace product_internal
}  // namespace rcnn

#endif  // RCNN_OPS_PRODUCT_BLOCK_H_
