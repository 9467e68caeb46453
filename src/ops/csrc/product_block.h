// A block of a product (product.cc): its sums, by vectors or by tiles, begun with a bias or another map, and finished.
#ifndef RCNN_OPS_PRODUCT_BLOCK_H_
#define RCNN_OPS_PRODUCT_BLOCK_H_

#include <algorithm>
#include <cstdint>

#include "gemm_kernel.h"
#include "product.h"
#include "tiles.h"

namespace rcnn {
namespace product_internal {

constexpr int64_t kDepth = 256;  // terms that are multiplied at a time: their part of a panel stays in the L1 cache
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
  // of the sum's first and last part: it begins with the bias and `other`, and is activated at the end
  bool first, last;
  bool past;                            // the result goes past the caches
  const float *row_bias, *column_bias;  // either may be null
  const float *other;                   // may be c; may be null
  int64_t other_row;
  const float *positive;  // like c; may be null
  Activation activation;
};

// a: [depth][row], of kRows rows, or kAcross: [row][depth], kRowStride apart.
template <int64_t kRows, int64_t kVectors, bool kAcross>
__attribute__((noinline)) void MultiplyBlock(const Block &block) {
  constexpr int64_t kRow = kAcross ? kRowStride : 1, kTerm = kAcross ? 1 : kRows;
  Floats sums[kRows][kVectors];
  const float *a = block.a, *b = block.b;
  float *c = block.c;
  const int64_t c_row = block.c_row;
  const bool whole = block.columns == kVectors * kLanes;
  if (!block.first) {
#pragma GCC unroll 16
    for (int64_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int64_t v = 0; v < kVectors; ++v) {
        sums[r][v] = whole ? Load(c + r * c_row + v * kLanes) : LoadWithin(c + r * c_row, v * kLanes, block.columns);
      }
    }
  } else if (block.column_bias != nullptr) {
#pragma GCC unroll 16
    for (int64_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int64_t v = 0; v < kVectors; ++v) sums[r][v] = LoadWithin(block.column_bias, v * kLanes, block.columns);
    }
  } else {
#pragma GCC unroll 16
    for (int64_t r = 0; r < kRows; ++r) {
      const Floats start = block.row_bias != nullptr ? Broadcast(block.row_bias[r]) : Floats{};
#pragma GCC unroll 2
      for (int64_t v = 0; v < kVectors; ++v) sums[r][v] = start;
    }
    // here, as it may lie where the sums go
    if (block.other != nullptr) {
#pragma GCC unroll 16
      for (int64_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
        for (int64_t v = 0; v < kVectors; ++v) {
          const float *other = block.other + r * block.other_row;
          sums[r][v] += whole ? Load(other + v * kLanes) : LoadWithin(other, v * kLanes, block.columns);
        }
      }
    }
  }
  // the next block's place is the next columns': rows of it lie far apart
#pragma GCC unroll 16
  for (int64_t r = 0; r < kRows; ++r) {
    if (!block.past) {
      __builtin_prefetch(c + r * c_row + kBlockColumns, 1, 3);
      __builtin_prefetch(c + r * c_row + kBlockColumns + kBlockColumns / 2, 1, 3);
    }
    if (block.last && block.positive != nullptr) {
      __builtin_prefetch(block.positive + r * c_row + kBlockColumns, 0, 3);
      __builtin_prefetch(block.positive + r * c_row + kBlockColumns + kBlockColumns / 2, 0, 3);
    }
    if (block.first && block.other != nullptr && block.other != c && block.other_row == c_row) {
      __builtin_prefetch(block.other + r * c_row + kBlockColumns, 0, 3);
      __builtin_prefetch(block.other + r * c_row + kBlockColumns + kBlockColumns / 2, 0, 3);
    }
  }
  for (int64_t i = 0; i < block.depth; ++i) {
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
  if (block.last && block.activation == Activation::kReLU) {
#pragma GCC unroll 16
    for (int64_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int64_t v = 0; v < kVectors; ++v) sums[r][v] = Activate(Activation::kReLU, sums[r][v]);
    }
  } else if (block.last && block.activation != Activation::kNone) {
    for (int64_t r = 0; r < kRows; ++r) {
      for (int64_t v = 0; v < kVectors; ++v) sums[r][v] = Activate(block.activation, sums[r][v]);
    }
  }
  if (block.last && block.positive != nullptr) {
#pragma GCC unroll 16
    for (int64_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int64_t v = 0; v < kVectors; ++v) {
        const float *open = block.positive + r * c_row;
        sums[r][v] = Passed(whole ? Load(open + v * kLanes) : LoadWithin(open, v * kLanes, block.columns), sums[r][v]);
      }
    }
  }
  if (whole && block.past) {
#pragma GCC unroll 16
    for (int64_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int64_t v = 0; v < kVectors; ++v) StorePast(c + r * c_row + v * kLanes, sums[r][v]);
    }
    return;
  }
  if (whole) {
#pragma GCC unroll 16
    for (int64_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int64_t v = 0; v < kVectors; ++v) Store(c + r * c_row + v * kLanes, sums[r][v]);
    }
    return;
  }
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t v = 0; v < kVectors; ++v) {
      StoreFirst(c + r * c_row + v * kLanes, sums[r][v], std::max<int64_t>(block.columns - v * kLanes, 0));
    }
  }
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
