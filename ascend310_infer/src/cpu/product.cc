// Compiled without contraction, as simd.h wants it.
#include "product.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>

#include "../../../src/ops/csrc/parallel.h"
#include "../../../src/ops/csrc/workspace.h"

namespace rcnn {

namespace {

constexpr int64_t kDepth = 256;  // rows of a panel that are multiplied at a time: they stay in the L1 cache
constexpr int64_t kPanelFloats = 1 << 18;         // of a block's panels: half of an L2 cache
constexpr int64_t kMostColumns = 512;             // of a block

// One block of the result, of `columns` columns.
struct Block {
  int64_t depth;
  const float *a, *b;
  float *c;
  int64_t c_row, columns;
  // of the sum's first and last part: it begins with the bias and `other`, and is activated at the end
  bool first, last;
  const float *row_bias, *column_bias;  // either may be null
  const float *other;                   // like c, which it may be; may be null
  Activation activation;
};

// a: [depth][row], of kRows rows.
template <int64_t kRows, int64_t kVectors>
__attribute__((noinline)) void MultiplyBlock(const Block &block) {
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
          const float *other = block.other + r * c_row;
          sums[r][v] += whole ? Load(other + v * kLanes) : LoadWithin(other, v * kLanes, block.columns);
        }
      }
    }
  }
  // the next block's place is the next columns': rows of it lie far apart
#pragma GCC unroll 16
  for (int64_t r = 0; r < kRows; ++r) {
    __builtin_prefetch(c + r * c_row + kBlockColumns, 1, 3);
    __builtin_prefetch(c + r * c_row + kBlockColumns + kBlockColumns / 2, 1, 3);
    if (block.first && block.other != nullptr && block.other != c) {
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
      const Floats factor = Broadcast(a[r]);
#pragma GCC unroll 2
      for (int64_t v = 0; v < kVectors; ++v) sums[r][v] = MulAdd(factor, columns[v], sums[r][v]);
    }
    __builtin_prefetch(a + 32 * kRows, 0, 3);
    a += kRows;
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

template <int64_t kRows = kBlockRows>
void MultiplySome(int64_t rows, const Block &block) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return MultiplySome<kRows - 1>(rows, block);
  }
  if (block.columns > kLanes) {
    MultiplyBlock<kRows, 2>(block);
  } else {
    MultiplyBlock<kRows, 1>(block);
  }
}

}  // namespace

void FreeMemory::operator()(float *p) const { std::free(p); }

Memory TakeMemory(int64_t count) {
  constexpr size_t kLine = 64, kHuge = 1 << 21;
  const size_t bytes = static_cast<size_t>(std::max<int64_t>(count, 1)) * sizeof(float);
  const size_t unit = bytes < 4 * kHuge ? kLine : kHuge, padded = (bytes + unit - 1) / unit * unit;
  Memory memory(static_cast<float *>(std::aligned_alloc(unit, padded)));
  if (memory == nullptr) throw std::bad_alloc();
  // rows of a map lie far apart: on small pages each needs an entry of its own in the table of pages
  if (unit == kHuge) madvise(memory.get(), padded, MADV_HUGEPAGE);
  return memory;
}

PackedRows::PackedRows(const float *values, int64_t rows, int64_t depth)
    : rows_(rows), depth_(depth), values_(TakeMemory(rows * depth)) {
  for (int64_t row = 0; row < rows; row += kBlockRows) {
    PackBlock(values + row * depth, depth, std::min(kBlockRows, rows - row), depth, values_.get() + row * depth);
  }
}

void MultiplyRows(const PackedRows &weights, const Columns &from, int64_t images, int64_t columns, const Finish &finish,
                  float *to, int threads) {
  const int64_t rows = weights.Rows(), depth = weights.Depth(), blocks_of_rows = Ceil(rows, kBlockRows);
  if (images * columns * rows == 0) return;
  const int64_t fitting =
      std::clamp(kPanelFloats / std::max<int64_t>(depth, 1) / kBlockColumns, int64_t{1}, kMostColumns / kBlockColumns);
  // smaller blocks where there are few columns, and parts of the rows where there are fewer blocks than threads
  const int64_t shared = Ceil(Ceil(images * columns, 2 * int64_t{threads}), kBlockColumns);
  const int64_t width = std::min(fitting, std::max<int64_t>(shared, 1)) * kBlockColumns;
  const int64_t blocks = Ceil(columns, width);
  const int64_t parts = std::min(Ceil(threads, images * blocks), blocks_of_rows);
  const int64_t part = Ceil(blocks_of_rows, parts) * kBlockRows;
  const int64_t tasks = images * blocks * parts;
  const int workers = static_cast<int>(std::min<int64_t>(threads, tasks));
  Workspace workspace(workers * Workspace::Padded(depth * width));
  std::vector<float *> panels;
  for (int i = 0; i < workers; ++i) panels.push_back(workspace.Take(depth * width));
  std::atomic<int64_t> next{0};
  ParallelFor(workers, workers, [&](int64_t worker) {
    float *b = panels[static_cast<size_t>(worker)];
    for (int64_t task = next.fetch_add(1); task < tasks; task = next.fetch_add(1)) {
      const int64_t image = task / parts / blocks, first = task / parts % blocks * width;
      const int64_t count = std::min(width, columns - first);
      const int64_t begin = task % parts * part, end = std::min(begin + part, rows);
      if (begin >= end) continue;
      from.Pack(image, first, count, {0, depth}, depth, b);
      for (int64_t d = 0; d < depth; d += kDepth) {
        const int64_t deep = std::min(kDepth, depth - d);
        for (int64_t row = begin; row < end; row += kBlockRows) {
          for (int64_t column = 0; column < count; column += kBlockColumns) {
            const int64_t place = (image * rows + row) * columns + first + column;
            const Block block = {deep,
                                 weights.At(row, d),
                                 b + column * depth + d * kBlockColumns,
                                 to + place,
                                 columns,
                                 std::min(kBlockColumns, count - column),
                                 d == 0,
                                 d + kDepth >= depth,
                                 finish.bias == nullptr ? nullptr : finish.bias + row,
                                 nullptr,
                                 finish.other == nullptr ? nullptr : finish.other + place,
                                 finish.activation};
            MultiplySome(std::min(kBlockRows, rows - row), block);
          }
        }
      }
    }
  });
}

PackedColumns::PackedColumns(const float *values, int64_t columns, int64_t depth)
    : columns_(columns), depth_(depth), values_(TakeMemory(RoundUp(columns, kBlockColumns) * depth)) {
  for (int64_t column = 0; column < columns; column += kBlockColumns) {
    float *panel = values_.get() + column * depth;
    const int64_t count = std::min(kBlockColumns, columns - column);
    for (int64_t d = 0; d < depth; d += kLanes) {
      for (int64_t c = 0; c < kBlockColumns; c += kLanes) {
        Floats block[kLanes];
        for (int64_t i = 0; i < kLanes; ++i) {
          block[i] = c + i < count ? LoadWithin(values + (column + c + i) * depth, d, depth) : Floats{};
        }
        Transpose(block);
        for (int64_t i = 0; i < std::min(kLanes, depth - d); ++i) Store(panel + (d + i) * kBlockColumns + c, block[i]);
      }
    }
  }
}

void MultiplyColumns(const float *x, int64_t rows, const PackedColumns &weights, const float *bias,
                     Activation activation, float *to, int threads) {
  const int64_t depth = weights.Depth(), columns = weights.Size(), panels = Ceil(columns, kBlockColumns);
  if (rows * columns == 0) return;
  // each thread has some of the columns, and reads their weights once
  const int64_t parts = std::min<int64_t>(panels, threads), deepest = std::min(kDepth, depth);
  Workspace workspace(Workspace::Padded(rows * deepest));
  float *a = workspace.Take(rows * deepest);
  for (int64_t d = 0; d < depth; d += kDepth) {
    const int64_t deep = std::min(kDepth, depth - d);
    ParallelFor(Ceil(rows, kBlockRows), threads, [&](int64_t block) {
      const int64_t row = block * kBlockRows;
      PackBlock(x + row * depth + d, depth, std::min(kBlockRows, rows - row), deep, a + row * deep);
    });
    ParallelFor(parts, threads, [&](int64_t part) {
      for (int64_t panel = panels * part / parts; panel < panels * (part + 1) / parts; ++panel) {
        const int64_t column = panel * kBlockColumns;
        for (int64_t row = 0; row < rows; row += kBlockRows) {
          const Block block = {deep,
                               a + row * deep,
                               weights.Panel(column) + d * kBlockColumns,
                               to + row * columns + column,
                               columns,
                               std::min(kBlockColumns, columns - column),
                               d == 0,
                               d + kDepth >= depth,
                               nullptr,
                               bias == nullptr ? nullptr : bias + column,
                               nullptr,
                               activation};
          MultiplySome(std::min(kBlockRows, rows - row), block);
        }
      }
    });
  }
}

}  // namespace rcnn
