// Compiled without contraction, as simd.h wants it.
#include "product.h"

#include <algorithm>
#include <atomic>

#include "../../../src/ops/csrc/parallel.h"
#include "../../../src/ops/csrc/workspace.h"
#include "tiles.h"

namespace rcnn {

namespace {

constexpr int64_t kDepth = 256;            // rows of a panel that are multiplied at a time: they stay in the L1 cache
constexpr int64_t kPanelFloats = 1 << 18;  // of a block's panels: half of an L2 cache
constexpr int64_t kMostColumns = 512;      // of a block
constexpr int64_t kDenseDepth = 512;  // as kDepth, of dense layers in tiles: a part of all rows stays in the L2 cache

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

// A block's sums in tiles: `rows` rows of it, a and b split.
void MultiplyInTiles(const Block &block, int64_t rows, const uint16_t *a, const uint16_t *b, float *sums) {
  for (int64_t r = 0; r < rows; ++r) {
    float *c = block.c + r * block.c_row;
    for (int64_t v = 0; v < kTileColumns; v += kLanes) {
      Floats start = {};
      if (!block.first) {
        start = LoadWithin(c, v, block.columns);
      } else {
        if (block.row_bias != nullptr) start = Broadcast(block.row_bias[r]);
        if (block.column_bias != nullptr) start = LoadWithin(block.column_bias, v, block.columns);
        if (block.other != nullptr) start += LoadWithin(block.other + r * block.c_row, v, block.columns);
      }
      Store(sums + r * kTileColumns + v, start);
    }
  }
  // the next block's place is the next columns'
  const Ahead ahead{block.c + kTileColumns, block.other == nullptr ? nullptr : block.other + kTileColumns, block.c_row};
  MultiplyTiles(block.depth, a, b, rows <= kTileRows / 2, ahead, sums);
  for (int64_t r = 0; r < rows; ++r) {
    float *c = block.c + r * block.c_row;
    for (int64_t v = 0; v < kTileColumns; v += kLanes) {
      Floats sum = Load(sums + r * kTileColumns + v);
      if (block.last) sum = Activate(block.activation, sum);
      if (v < block.columns) StoreFirst(c + v, sum, block.columns - v);
    }
  }
}

// Room for `count` of what is split, in floats.
int64_t SplitRoom(int64_t count) { return Workspace::Padded(Ceil(count, 2)); }

uint16_t *TakeSplit(Workspace *workspace, int64_t count) {
  return reinterpret_cast<uint16_t *>(workspace->Take(Ceil(count, 2)));
}

// How a product of rows is shared among threads.
struct Shares {
  int64_t width, blocks;  // columns at a time, and how often an image has as many
  int64_t part, parts;    // rows at a time, and how often
  int64_t tasks;
  int workers;
};

// fitting: columns at a time, at most; step: of rows.
Shares Share(int64_t images, int64_t rows, int64_t columns, int64_t fitting, int64_t step, int threads) {
  Shares out{};
  // smaller blocks where there are few columns, and parts of the rows where there are fewer blocks than threads
  const int64_t shared = RoundUp(Ceil(images * columns, 2 * int64_t{threads}), kBlockColumns);
  out.width = std::min(fitting, std::max(shared, kBlockColumns));
  out.blocks = Ceil(columns, out.width);
  const int64_t most = std::min(Ceil(threads, images * out.blocks), Ceil(rows, step));
  out.part = Ceil(Ceil(rows, step), most) * step;
  out.parts = Ceil(rows, out.part);
  out.tasks = images * out.blocks * out.parts;
  out.workers = static_cast<int>(std::min<int64_t>(threads, out.tasks));
  return out;
}

void MultiplyRowsInTiles(const PackedRows &weights, const Columns &from, int64_t images, int64_t columns,
                         const Finish &finish, float *to, int threads) {
  const int64_t rows = weights.Rows(), depth = weights.Depth(), panel = SplitSize(std::min(depth, kDepth));
  const Shares share = Share(images, rows, columns, kMostColumns, kTileRows, threads);
  const int64_t panels = share.width / kTileColumns, sums = kTileRows * kTileColumns;
  Workspace workspace(share.workers * (Workspace::Padded(kTileDepth * share.width) + SplitRoom(panels * panel) +
                                       SplitRoom(panel) + Workspace::Padded(sums)));
  struct Scratch {
    float *plain, *sums;
    uint16_t *a, *b;
  };
  std::vector<Scratch> scratch;
  for (int i = 0; i < share.workers; ++i) {
    scratch.push_back({workspace.Take(kTileDepth * share.width), workspace.Take(sums), TakeSplit(&workspace, panel),
                       TakeSplit(&workspace, panels * panel)});
  }
  std::atomic<int64_t> next{0};
  ParallelFor(share.workers, share.workers, [&](int64_t worker) {
    const Scratch &s = scratch[static_cast<size_t>(worker)];
    const TileThread thread;
    for (int64_t task = next.fetch_add(1); task < share.tasks; task = next.fetch_add(1)) {
      const int64_t block = task / share.parts, image = block / share.blocks;
      const int64_t first = block % share.blocks * share.width, count = std::min(share.width, columns - first);
      const int64_t begin = task % share.parts * share.part, end = std::min(begin + share.part, rows);
      for (int64_t d = 0; d < depth; d += kDepth) {
        const int64_t deep = std::min(kDepth, depth - d);
        for (int64_t step = 0; step < deep; step += kTileDepth) {
          const int64_t terms = std::min(kTileDepth, deep - step);
          from.Pack(image, first, count, {d + step, d + step + terms}, kTileDepth, s.plain);
          for (int64_t c = 0; c < count; c += kTileColumns) {
            SplitColumns(s.plain + c * kTileDepth, terms, s.b + c / kTileColumns * panel + SplitSize(step));
          }
        }
        for (int64_t row = begin; row < end; row += kTileRows) {
          const int64_t some = std::min(kTileRows, end - row);
          SplitRows(weights.Row(row) + d, depth, some, deep, s.a);
          for (int64_t c = 0; c < count; c += kTileColumns) {
            const int64_t place = (image * rows + row) * columns + first + c;
            const Block part = {deep,
                                nullptr,
                                nullptr,
                                to + place,
                                columns,
                                std::min(kTileColumns, count - c),
                                d == 0,
                                d + kDepth >= depth,
                                finish.bias == nullptr ? nullptr : finish.bias + row,
                                nullptr,
                                finish.other == nullptr ? nullptr : finish.other + place,
                                finish.activation};
            MultiplyInTiles(part, some, s.a, s.b + c / kTileColumns * panel, s.sums);
          }
        }
      }
    }
  });
}

void MultiplyColumnsInTiles(const float *x, int64_t rows, const PackedColumns &weights, const float *bias,
                            Activation activation, float *to, int threads) {
  const int64_t depth = weights.Depth(), columns = weights.Size(), panels = Ceil(columns, kTileColumns);
  const int64_t blocks = Ceil(rows, kTileRows), split = SplitSize(std::min(depth, kDenseDepth));
  const int64_t parts = std::min<int64_t>(panels, threads), sums = kTileRows * kTileColumns;
  Workspace workspace(SplitRoom(blocks * split) + parts * (SplitRoom(split) + Workspace::Padded(sums)));
  uint16_t *a = TakeSplit(&workspace, blocks * split);
  std::vector<uint16_t *> b;
  std::vector<float *> totals;
  for (int64_t i = 0; i < parts; ++i) {
    b.push_back(TakeSplit(&workspace, split));
    totals.push_back(workspace.Take(sums));
  }
  for (int64_t d = 0; d < depth; d += kDenseDepth) {
    const int64_t deep = std::min(kDenseDepth, depth - d);
    ParallelFor(blocks, threads, [&](int64_t block) {
      const int64_t row = block * kTileRows;
      SplitRows(x + row * depth + d, depth, std::min(kTileRows, rows - row), deep, a + block * split);
    });
    ParallelFor(parts, threads, [&](int64_t part) {
      const TileThread thread;
      const auto own = static_cast<size_t>(part);
      for (int64_t panel = panels * part / parts; panel < panels * (part + 1) / parts; ++panel) {
        const int64_t column = panel * kTileColumns;
        SplitColumns(weights.Panel(column) + d * kTileColumns, deep, b[own]);
        for (int64_t row = 0; row < rows; row += kTileRows) {
          const Block block = {deep,    nullptr,
                               nullptr, to + row * columns + column,
                               columns, std::min(kTileColumns, columns - column),
                               d == 0,  d + kDenseDepth >= depth,
                               nullptr, bias == nullptr ? nullptr : bias + column,
                               nullptr, activation};
          MultiplyInTiles(block, std::min(kTileRows, rows - row), a + row / kTileRows * split, b[own], totals[own]);
        }
      }
    });
  }
}

// In which the kernels' panels are a tile's columns.
bool UseTiles() { return kBlockColumns == kTileColumns && HasTiles(); }

}  // namespace

PackedRows::PackedRows(const float *values, int64_t rows, int64_t depth)
    : rows_(rows), depth_(depth), tiles_(UseTiles() && rows >= kTileRows), values_(TakeMemory(rows * depth)) {
  // of few rows, most of a tile would be empty
  if (tiles_) {
    std::copy_n(values, rows * depth, values_.get());
    return;
  }
  for (int64_t row = 0; row < rows; row += kBlockRows) {
    PackBlock(values + row * depth, depth, std::min(kBlockRows, rows - row), depth, values_.get() + row * depth);
  }
}

void MultiplyRows(const PackedRows &weights, const Columns &from, int64_t images, int64_t columns, const Finish &finish,
                  float *to, int threads) {
  const int64_t rows = weights.Rows(), depth = weights.Depth();
  if (images * columns * rows == 0) return;
  if (weights.ForTiles()) return MultiplyRowsInTiles(weights, from, images, columns, finish, to, threads);
  const int64_t fitting =
      std::clamp(kPanelFloats / std::max<int64_t>(depth, 1) / kBlockColumns, int64_t{1}, kMostColumns / kBlockColumns);
  const Shares share = Share(images, rows, columns, fitting * kBlockColumns, kBlockRows, threads);
  Workspace workspace(share.workers * Workspace::Padded(depth * share.width));
  std::vector<float *> panels;
  for (int i = 0; i < share.workers; ++i) panels.push_back(workspace.Take(depth * share.width));
  std::atomic<int64_t> next{0};
  ParallelFor(share.workers, share.workers, [&](int64_t worker) {
    float *b = panels[static_cast<size_t>(worker)];
    for (int64_t task = next.fetch_add(1); task < share.tasks; task = next.fetch_add(1)) {
      const int64_t block = task / share.parts, image = block / share.blocks;
      const int64_t first = block % share.blocks * share.width, count = std::min(share.width, columns - first);
      const int64_t begin = task % share.parts * share.part, end = std::min(begin + share.part, rows);
      from.Pack(image, first, count, {0, depth}, depth, b);
      for (int64_t d = 0; d < depth; d += kDepth) {
        const int64_t deep = std::min(kDepth, depth - d);
        for (int64_t row = begin; row < end; row += kBlockRows) {
          for (int64_t column = 0; column < count; column += kBlockColumns) {
            const int64_t place = (image * rows + row) * columns + first + column;
            const Block part = {deep,
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
            MultiplySome(std::min(kBlockRows, rows - row), part);
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
  if (UseTiles()) return MultiplyColumnsInTiles(x, rows, weights, bias, activation, to, threads);
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
