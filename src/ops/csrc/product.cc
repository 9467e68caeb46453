// Compiled without contraction, as simd.h wants it.
#include "product.h"

#include <algorithm>
#include <atomic>
#include <optional>
#include <vector>

#include "cache.h"
#include "left_block.h"
#include "parallel.h"
#include "product_block.h"
#include "tiles.h"
#include "workspace.h"

namespace rcnn {

namespace {

using namespace product_internal;

constexpr int64_t kMostPanels = 16;       // of a task
constexpr int64_t kMostPacked = 1 << 21;  // floats that a left matrix takes which is laid out once for all tasks
constexpr int64_t kSmall = 1 << 19;       // products that take less time than a thread's start

// In which the kernels' panels are a tile's columns.
bool UseTiles() { return kBlockColumns == kTileColumns && HasTiles(); }

// A product, and how it is shared among threads: a task has some panels of columns, counted through the images, and
// some of the rows.
class Product {
 public:
  Product(const Left &left, const Columns &right, const Extent &extent, const Finish &finish, float *to, int threads)
      : left_(left),
        right_(right),
        e_(extent),
        finish_(finish),
        to_(to),
        tiles_(extent.free_rows ? UseTiles() : OnTiles(extent.rows)),
        of_image_(Ceil(extent.columns, kBlockColumns)),
        panels_(extent.images * of_image_),
        // of vectors, panels that are visited in turn don't lie a power of two apart: the cache holds few such
        deepest_(std::min(RoundUp(extent.depth, kTileDepth), kDepth) + (tiles_ ? 0 : 1)),
        // A result that the caches don't hold until it is read. Of several parts of the depth, sums are read again.
        past_(extent.images * extent.rows * extent.columns * 4 > CoreCaches().third && extent.depth <= kDepth &&
              extent.summands == 1 && extent.columns % kLanes == 0 &&
              reinterpret_cast<uintptr_t>(to) % sizeof(Floats) == 0) {
    if (extent.rows * extent.depth * extent.summands < kSmall / std::max<int64_t>(panels_ * kBlockColumns, 1)) {
      threads = 1;
    }
    const int64_t step = tiles_ ? kTileRows : kBlockRows, row_blocks = Ceil(extent.rows, step);
    const int64_t fitting = CoreCaches().second / 2 / (kDepth * kBlockColumns * 4);
    const int64_t most = tiles_ ? kMostPanels : std::clamp<int64_t>(fitting, 4, kMostPanels);
    // Each task lays out its columns' panels, and, where the left matrix isn't laid out once for all, its rows: of the
    // ways to have enough tasks, that which lays out least.
    const int64_t wanted = threads;
    once_ = !tiles_ && panels_ >= 4 * most &&
            extent.summands * Ceil(extent.depth, kDepth) * row_blocks * kBlockFloats <= kMostPacked;
    int64_t least = std::numeric_limits<int64_t>::max();
    for (int64_t parts = 1; parts <= std::min(wanted, row_blocks); ++parts) {
      const int64_t widest = std::min(most, Ceil(panels_, Ceil(wanted, parts)));
      // as many tasks for each thread, of one width
      const int64_t width = Ceil(panels_, Ceil(RoundUp(Ceil(panels_, widest) * parts, threads), parts));
      const int64_t laid_out = (once_ ? 0 : Ceil(panels_, width) * extent.rows) + parts * panels_ * kBlockColumns;
      if (laid_out >= least) continue;
      least = laid_out;
      width_ = width;
      part_ = Ceil(row_blocks, parts) * step;
    }
    parts_ = Ceil(extent.rows, part_);
    tasks_ = Ceil(panels_, width_) * parts_;
    workers_ = static_cast<int>(std::min<int64_t>(threads, tasks_));
  }

  void Run() {
    const int64_t panel = kBlockColumns * deepest_, split = Ceil(SplitSize(deepest_), 2);
    // of vectors: panels, and a block of rows. Of tiles: those of one panel, for what isn't finite; panels of a step
    // in the room of a block of rows; both, split; and a block's sums.
    const int64_t plain = std::max(kTileDepth * kBlockColumns * width_, kTileRows * kDepth);
    const int64_t room = Workspace::Padded(tiles_ ? panel : panel * width_) +
                         Workspace::Padded(kBlockRows * kRowStride) +
                         (tiles_ ? Workspace::Padded(plain) + Workspace::Padded(split * width_) +
                                       Workspace::Padded(split) + Workspace::Padded(kTileRows * kTileColumns)
                                 : 0) +
                         kTileRows * kEnlargedRow;
    const int64_t row_blocks = once_ ? Ceil(e_.rows, kBlockRows) : 0;
    Workspace workspace(workers_ * room + Workspace::Padded(BlocksBefore(e_.summands, 0) * kBlockFloats));
    if (once_) packed_ = workspace.Take(BlocksBefore(e_.summands, 0) * kBlockFloats);
    std::vector<Scratch> scratch(static_cast<size_t>(workers_));
    for (Scratch &s : scratch) {
      s.panels = workspace.Take(tiles_ ? panel : panel * width_);
      s.rows = workspace.Take(kBlockRows * kRowStride);
      s.enlarged = workspace.Take(kTileRows * kEnlargedRow);
      if (!tiles_) continue;
      s.plain = workspace.Take(plain);
      s.b = reinterpret_cast<uint16_t *>(workspace.Take(split * width_));
      s.a = reinterpret_cast<uint16_t *>(workspace.Take(split));
      s.sums = workspace.Take(kTileRows * kTileColumns);
    }
    std::atomic<int64_t> next{0}, next_block{0}, done_blocks{0};
    ParallelFor(workers_, workers_, [&](int64_t worker) {
      const Scratch &s = scratch[static_cast<size_t>(worker)];
      for (int64_t b = next_block.fetch_add(1); b < row_blocks; b = next_block.fetch_add(1)) {
        PackRows(b * kBlockRows);
        done_blocks.fetch_add(1);
      }
      while (done_blocks.load() < row_blocks) sched_yield();
      std::optional<TileThread> thread;
      if (tiles_) thread.emplace();
      for (int64_t task = next.fetch_add(1); task < tasks_; task = next.fetch_add(1)) {
        const int64_t first = task / parts_ * width_, row = task % parts_ * part_;
        const Range panels = {first, std::min(first + width_, panels_)};
        const Range rows = {row, std::min(row + part_, e_.rows)};
        if (tiles_) {
          InTiles(s, panels, rows);
        } else {
          InVectors(s, panels, rows, left_.sums != nullptr && first == 0 && !once_);
        }
      }
      if (past_) EndStoresPast();
    });
  }

 private:
  static constexpr int64_t kEnlargedRow = 2 * kBlockColumns;

  struct Scratch {
    float *panels, *rows, *enlarged, *plain, *sums;
    uint16_t *a, *b;
  };

  static constexpr int64_t kBlockFloats = kBlockRows * kRowStride;

  // Where the left matrix is laid out once: blocks of it before those of a part of a summand's depth.
  int64_t BlocksBefore(int64_t summand, int64_t depth) const {
    return once_ ? (summand * Ceil(e_.depth, kDepth) + depth / kDepth) * Ceil(e_.rows, kBlockRows) : 0;
  }

  // Lays out a block of rows, of all summands.
  void PackRows(int64_t row) const {
    const int64_t rows = std::min(kBlockRows, e_.rows - row);
    for (int64_t summand = 0; summand < e_.summands; ++summand) {
      for (int64_t d = 0; d < e_.depth; d += kDepth) {
        const LeftBlock left(left_, summand, row, rows, {d, d + Terms(d)});
        left.Pack(packed_ + (BlocksBefore(summand, d) + row / kBlockRows) * kBlockFloats);
        if (left_.sums != nullptr) left.Sum(summand == 0 && d == 0, left_.sums + row);
      }
    }
  }

  int64_t Terms(int64_t begin) const { return std::min(kDepth, e_.depth - begin); }

  void Pack(int64_t summand, const Range &panels, const Range &depth, int64_t panel_depth, float *to) const {
    for (int64_t panel = panels.begin; panel < panels.end;) {
      const int64_t image = panel / of_image_, column = panel % of_image_ * kBlockColumns;
      const int64_t run = std::min(of_image_ - panel % of_image_, panels.end - panel);
      right_.Pack(image + summand, column, std::min(run * kBlockColumns, e_.columns - column), depth, panel_depth, to);
      to += run * panel_depth * kBlockColumns;
      panel += run;
    }
  }

  // Where a panel is: its image, and its first column there.
  struct Spot {
    int64_t image, column;
  };
  Spot SpotOf(int64_t panel) const { return {panel / of_image_, panel % of_image_ * kBlockColumns}; }
  Spot After(const Spot &spot) const {
    const int64_t column = spot.column + kBlockColumns;
    return column < e_.columns ? Spot{spot.image, column} : Spot{spot.image + 1, 0};
  }
  // From the result's first number to that of a row.
  int64_t Place(const Spot &spot, int64_t row) const { return (spot.image * e_.rows + row) * e_.columns + spot.column; }

  // Where a panel's block of rows goes, and how its sums begin and end. room: for what is enlarged.
  Block BlockAt(const Spot &spot, int64_t row, int64_t rows, int64_t summand, int64_t depth, float *room) const {
    const auto [image, column] = spot;
    const int64_t place = Place(spot, row);
    Block block{};
    block.depth = Terms(depth);
    block.c = to_ + place;
    block.c_row = e_.columns;
    block.columns = std::min(kBlockColumns, e_.columns - column);
    block.first = summand == 0 && depth == 0;
    block.last = summand == e_.summands - 1 && depth + kDepth >= e_.depth;
    block.past = past_;
    block.row_bias = finish_.row_bias == nullptr ? nullptr : finish_.row_bias + row;
    block.column_bias = finish_.column_bias == nullptr ? nullptr : finish_.column_bias + column;
    block.positive = finish_.positive == nullptr ? nullptr : finish_.positive + place;
    block.activation = finish_.activation;
    if (finish_.other == nullptr || !block.first) return block;
    if (finish_.enlarged_to == 0) {
      block.other = finish_.other + place;
      block.other_row = e_.columns;
      return block;
    }
    for (int64_t r = 0; r < rows; ++r) {
      Enlarge((image * e_.rows + row + r) * (e_.columns / 4), column, block.columns, room + r * kEnlargedRow);
    }
    block.other = room;
    block.other_row = kEnlargedRow;
    return block;
  }

  // Columns [column, column + count) of a map, whose numbers begin at `map`, each of which is for 2 x 2. Up to a
  // block's columns more are written, of any content.
  void Enlarge(int64_t map, int64_t column, int64_t count, float *to) const {
    const int64_t width = finish_.enlarged_to, half = width / 2;
    for (const int64_t end = column + count; column < end;) {
      const int64_t y = column / width, x = column % width, run = std::min(width - x, end - column);
      const float *from = finish_.other + map + y / 2 * half;
      for (int64_t i = 0; i < run; i += 2 * kLanes) {
        const Floats v = LoadWithin(from, (x + i) / 2, half);
        Store(to + i, ShuffleBy<LowHalves>(v, v));
        Store(to + i + kLanes, ShuffleBy<HighHalves>(v, v));
      }
      to += run;
      column += run;
    }
  }

  // The next block of rows is fetched while this one meets its panels, a share with each: every so many rows of it.
  static void FetchShare(const float *block, int64_t share, int64_t shares, int64_t terms) {
    for (int64_t row = share; row < kBlockRows; row += shares) {
      for (int64_t d = 0; d < terms; d += kCacheLine) __builtin_prefetch(block + row * kRowStride + d, 0, 2);
    }
  }

  void InVectors(const Scratch &s, const Range &panels, const Range &rows, bool sum) const {
    const Spot first = SpotOf(panels.begin);
    for (int64_t summand = 0; summand < e_.summands; ++summand) {
      for (int64_t d = 0; d < e_.depth; d += kDepth) {
        const Range terms = {d, d + Terms(d)};
        Pack(summand, panels, terms, deepest_, s.panels);
        for (int64_t row = rows.begin; row < rows.end; row += kBlockRows) {
          const int64_t some = std::min(kBlockRows, rows.end - row);
          const bool last = row + some == rows.end;
          const int64_t ahead = last ? (rows.begin - row) * left_.row + kDepth : kBlockRows * left_.row;
          const LeftBlock left(left_, summand, row, some, terms, ahead);
          const float *block_rows = s.rows;
          if (once_) {
            block_rows = packed_ + (BlocksBefore(summand, d) + row / kBlockRows) * kBlockFloats;
          } else {
            left.Pack(s.rows);
            if (sum) left.Sum(summand == 0 && d == 0, left_.sums + row);
          }
          Spot spot = first;
          for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
            if (once_) FetchShare(block_rows + kBlockFloats, panel - panels.begin, panels.Size(), terms.Size());
            Block block = BlockAt(spot, row, some, summand, d, s.enlarged);
            const Spot after = After(spot);
            const bool same_rows = panel + 1 < panels.end;
            block.next = Place(same_rows ? after : first, same_rows ? row : row + some) - Place(spot, row);
            block.a = block_rows;
            block.b = s.panels + (panel - panels.begin) * deepest_ * kBlockColumns;
            left.Across() ? MultiplySome<true>(some, block) : MultiplySome<false>(some, block);
            spot = after;
          }
        }
      }
    }
  }

  void InTiles(const Scratch &s, const Range &panels, const Range &rows) const {
    const int64_t split = SplitSize(deepest_);
    for (int64_t summand = 0; summand < e_.summands; ++summand) {
      for (int64_t d = 0; d < e_.depth; d += kDepth) {
        const Range terms = {d, d + Terms(d)};
        for (int64_t step = d; step < terms.end; step += kTileDepth) {
          const Range some = {step, std::min(step + kTileDepth, terms.end)};
          Pack(summand, panels, some, kTileDepth, s.plain);
          for (int64_t p = 0; p < panels.Size(); ++p) {
            SplitColumns(s.plain + p * kTileDepth * kTileColumns, some.Size(), s.b + p * split + SplitSize(step - d));
          }
        }
        for (int64_t row = rows.begin; row < rows.end; row += kTileRows) {
          const int64_t some = std::min(kTileRows, rows.end - row);
          const LeftBlock left(left_, summand, row, some, terms);
          left.Split(s.plain, s.a);
          if (left_.sums != nullptr && panels.begin == 0) left.Sum(summand == 0 && d == 0, left_.sums + row);
          for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
            const Block block = BlockAt(SpotOf(panel), row, some, summand, d, s.enlarged);
            const bool finite = MultiplyInTiles(block, some, s.a, s.b + (panel - panels.begin) * split, s.sums);
            // A number that isn't finite has no parts: vectors say what its sums are. What lay where they are is gone.
            if (block.last && !finite && finish_.other != to_) {
              InVectors(s, {panel, panel + 1}, {row, row + some}, false);
            }
          }
        }
      }
    }
  }

  const Left left_;
  const Columns &right_;
  const Extent e_;
  const Finish finish_;
  float *to_;
  const bool tiles_;
  const int64_t of_image_, panels_, deepest_;
  const bool past_;
  bool once_ = false;        // the left matrix is laid out once, for all tasks
  float *packed_ = nullptr;  // where: [summand][part of the depth][block of rows]
  int64_t width_ = 1, part_ = 1, parts_ = 1, tasks_ = 0;
  int workers_ = 1;
};

}  // namespace

// of few rows, most of a tile would be empty
bool OnTiles(int64_t rows) { return UseTiles() && rows >= kTileRows; }

void MultiplyMatrices(const Left &left, const Columns &right, const Extent &extent, const Finish &finish, float *to,
                      int threads) {
  if (extent.images * extent.rows * extent.columns == 0) return;
  if (extent.depth * extent.summands == 0) {
    std::fill_n(to, extent.images * extent.rows * extent.columns, 0.0f);
    if (left.sums != nullptr) std::fill_n(left.sums, extent.rows, 0.0f);
    return;
  }
  Product(left, right, extent, finish, to, threads).Run();
}

}  // namespace rcnn
