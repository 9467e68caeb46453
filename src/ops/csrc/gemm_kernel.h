// The innermost product of small matrices: a block of the result stays in registers.
#ifndef RCNN_OPS_GEMM_KERNEL_H_
#define RCNN_OPS_GEMM_KERNEL_H_

#include <algorithm>
#include <cstdint>

#include "simd.h"

namespace rcnn {

// Rows and columns of the block: of AVX-512's 32 registers two hold b and one a, and the rest are sums; of AVX's 16
// likewise. Of NEON's 32 sixteen are sums, which hides a product's latency; GCC keeps a step's a in eight others, and
// with more rows would spill.
#if defined(__AVX512F__)
constexpr int64_t kBlockRows = 14;
#elif defined(__AVX__)
constexpr int64_t kBlockRows = 6;
#elif defined(__aarch64__)
constexpr int64_t kBlockRows = 8;
#else
constexpr int64_t kBlockRows = 4;
#endif
constexpr int64_t kBlockColumns = 2 * kLanes;

constexpr int64_t Ceil(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t RoundUp(int64_t a, int64_t b) { return Ceil(a, b) * b; }

// Whether a number is read and broadcast at once, wherever it lies. NEON takes four from one vector.
#if defined(__aarch64__)
constexpr bool kBroadcasts = false;
#else
constexpr bool kBroadcasts = true;
#endif

// c[r][j] (+)= sum over i < depth of a[r][i] * b[i][j], in the order of i: a sum's value depends on nothing else.
// a[r][i] is at a[r * a_row + i * a_depth], b[i][j] at b[i * kBlockColumns + j], c[r][j] at c[r * c_row + j].
template <int64_t kRows, int64_t kVectors>
__attribute__((noinline)) void MultiplyBlock(int64_t depth, const float *a, int64_t a_row, int64_t a_depth,
                                             const float *b, float *c, int64_t c_row, bool add) {
  Floats sums[kRows][kVectors];
#pragma GCC unroll 16
  for (int64_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int64_t v = 0; v < kVectors; ++v) sums[r][v] = add ? Load(c + r * c_row + v * kLanes) : Floats{};
  }
  // The next rows' places are brought near one at a time: they lie far apart, and a core has room for few numbers that
  // are under way.
  const float *const end = b + depth * kBlockColumns;
  const int64_t share = Ceil(depth, kRows) * kBlockColumns;
  for (int64_t row = 0; row < kRows; ++row) {
#pragma GCC unroll 2
    for (int64_t v = 0; v < kVectors; ++v) __builtin_prefetch(c + (kRows + row) * c_row + v * kLanes, 1, 3);
    const float *const stop = std::min(b + share, end);
#pragma GCC unroll 2
    while (b != stop) {
      Floats columns[kVectors];
#pragma GCC unroll 2
      for (int64_t v = 0; v < kVectors; ++v) columns[v] = Load(b + v * kLanes);
#pragma GCC unroll 16
      for (int64_t r = 0; r < kRows; ++r) {
        const Floats factor = Broadcast(a[r * a_row]);
#pragma GCC unroll 2
        for (int64_t v = 0; v < kVectors; ++v) sums[r][v] = MulAdd(factor, columns[v], sums[r][v]);
      }
      __builtin_prefetch(a + 48 * a_depth, 0, 3);
      a += a_depth;
      b += kBlockColumns;
    }
  }
#pragma GCC unroll 16
  for (int64_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int64_t v = 0; v < kVectors; ++v) Store(c + r * c_row + v * kLanes, sums[r][v]);
  }
}

// The same of any number of rows up to kBlockRows, and of columns.
template <int64_t kRows = kBlockRows>
void Multiply(int64_t rows, int64_t columns, int64_t depth, const float *a, int64_t a_row, int64_t a_depth,
              const float *b, float *c, int64_t c_row, bool add) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return Multiply<kRows - 1>(rows, columns, depth, a, a_row, a_depth, b, c, c_row, add);
  }
  if (columns > kLanes) {
    MultiplyBlock<kRows, 2>(depth, a, a_row, a_depth, b, c, c_row, add);
  } else {
    MultiplyBlock<kRows, 1>(depth, a, a_row, a_depth, b, c, c_row, add);
  }
}

// Rows of a matrix, `stride` apart, as the columns of a product's b: up to kBlockColumns rows, any number of columns.
inline void TurnBlock(const float *from, int64_t stride, int64_t rows, int64_t columns, float *to) {
  for (int64_t r = 0; r < rows; r += kLanes) {
    for (int64_t c = 0; c < columns; c += kLanes) {
      Floats block[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) block[i] = r + i < rows ? Load(from + (r + i) * stride + c) : Floats{};
      Transpose(block);
      for (int64_t i = 0; i < kLanes; ++i) Store(to + (c + i) * kBlockColumns + r, block[i]);
    }
  }
}

struct Range {
  int64_t begin, end;
  int64_t Size() const { return end - begin; }
};

}  // namespace rcnn

#endif  // RCNN_OPS_GEMM_KERNEL_H_
