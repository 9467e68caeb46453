// The region proposal network's head over all levels of a pyramid, without gradients: a 3x3 convolution with ReLU by
// Winograd's algorithm, and two 1x1 convolutions of what it gives, block by block of tiles. What lies between them,
// as large as the maps themselves, is never there as a whole.
//
// Its numbers are those of the convolutions one after the other: the same products in the same order.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <memory>
#include <vector>

#include "gemm_kernel.h"
#include "parallel.h"
#include "winograd_blocks.h"
#include "workspace.h"

namespace rcnn {

namespace {

using winograd::Blocks;
using winograd::Maps;
using winograd::Weights;

// One level: its maps x (images, channels, height, width), and where its numbers go, one place of the map after the
// other: scores (images, height * width, scores), boxes (images, height * width, boxes).
struct Level {
  const float *x;
  int64_t height, width;
  float *scores, *boxes;
};

// The hidden convolution's weight (hidden, channels, 3, 3) and bias; weights (scores, hidden) and (boxes, hidden), and
// biases.
struct Convolutions {
  int64_t hidden, scores, boxes;
  const float *hidden_weight, *hidden_bias, *score_weight, *score_bias, *box_weight, *box_bias;
};

constexpr int64_t kTilePixels = kOut * kOut;

// Both 1x1 convolutions as one. Their filters lie as the products read them: blocks of rows, [depth][row].
class Filters {
 public:
  Filters(const Convolutions &from, int64_t depth, float *room)
      : from_(from),
        rows_(from.scores + from.boxes),
        depth_(depth),
        step_(Ceil(rows_, Ceil(rows_, kBlockRows))),
        data_(room) {
    for (int64_t row = 0; row < rows_; ++row) {
      const float *filter =
          row < from.scores ? from.score_weight + row * depth : from.box_weight + (row - from.scores) * depth;
      const int64_t first = row / step_ * step_, count = BlockRows(first);
      for (int64_t d = 0; d < depth; ++d) data_[first * depth + d * count + row - first] = filter[d];
    }
  }

  // Of a block's panel (depth, kBlockColumns) -> to, rows `stride` apart.
  void Multiply(const float *panel, float *to, int64_t stride) const {
    for (int64_t row = 0; row < rows_; ++row) {
      const float bias = row < from_.scores ? from_.score_bias[row] : from_.box_bias[row - from_.scores];
      std::fill_n(to + row * stride, kBlockColumns, bias);
    }
    for (int64_t d = 0; d < depth_; d += kTerms) {
      for (int64_t row = 0; row < rows_; row += step_) {
        const int64_t count = BlockRows(row);
        rcnn::Multiply(count, kBlockColumns, std::min(kTerms, depth_ - d), data_ + row * depth_ + d * count, 1, count,
                       panel + d * kBlockColumns, to + row * stride, stride, true);
      }
    }
  }

 private:
  static constexpr int64_t kTerms = 256;  // so that a panel's part stays in the L1 cache for all rows

  int64_t BlockRows(int64_t row) const { return std::min(step_, rows_ - row); }

  const Convolutions &from_;
  const int64_t rows_, depth_, step_;
  float *data_;
};

class Head {
 public:
  Head(const std::vector<Level> &levels, int64_t images, int64_t channels, const Convolutions &filters)
      : levels_(levels),
        from_(filters),
        shape_{filters.hidden, channels, 3, 3},
        threads_(NumThreads()),
        tiles_(winograd::BlockTiles(filters.hidden, channels)) {
    for (const Level &level : levels) {
      const Maps maps = {level.x, nullptr, images, channels, level.height, level.width};
      first_.push_back(tasks_);
      maps_.push_back(maps);
      blocks_.push_back(std::make_unique<Blocks>(maps, filters.hidden, tiles_, filters.hidden_bias, true));
      tasks_ += Ceil(maps.Tiles(), tiles_);
    }
    workers_ = static_cast<int>(std::min<int64_t>(threads_, tasks_));
  }

  void Run() {
    if (tasks_ == 0) return;
    const int64_t outputs = from_.scores + from_.boxes, pixels = RoundUp(tiles_ * kTilePixels, kBlockColumns);
    // one size of blocks for all levels
    const int64_t rooms[] = {blocks_[0]->InputRoom(), blocks_[0]->ProductsRoom(), pixels * from_.hidden,
                             pixels * outputs};
    int64_t room = 0;
    for (const int64_t count : rooms) room += Workspace::Padded(count);
    Workspace workspace(Weights::Room(shape_) + Workspace::Padded(outputs * from_.hidden) + workers_ * room);
    Weights weights(from_.hidden_weight, shape_[0], shape_[1], false, workspace.Take(Weights::Room(shape_)));
    weights.Make(threads_);
    const Filters filters(from_, from_.hidden, workspace.Take(outputs * from_.hidden));
    std::vector<std::unique_ptr<Scratch>> scratch;
    for (int i = 0; i < workers_; ++i) {
      scratch.push_back(std::make_unique<Scratch>());
      Scratch &s = *scratch.back();
      s.block.input = workspace.Take(rooms[0]);
      s.block.products = workspace.Take(rooms[1]);
      s.hidden = workspace.Take(rooms[2]);
      s.outputs = workspace.Take(rooms[3]);
    }
    std::atomic<int64_t> next{0};
    ParallelFor(workers_, workers_, [&](int64_t worker) {
      for (int64_t task = next.fetch_add(1); task < tasks_; task = next.fetch_add(1)) {
        const auto after = std::upper_bound(first_.begin(), first_.end(), task);
        const auto level = static_cast<size_t>(after - first_.begin() - 1);
        const int64_t tile = (task - first_[level]) * tiles_;
        RunBlock(weights, filters, *scratch[static_cast<size_t>(worker)], level,
                 {tile, std::min(tile + tiles_, maps_[level].Tiles())});
      }
    });
  }

 private:
  struct Scratch {
    Blocks::Scratch block;
    float *hidden;   // panels of kBlockColumns pixels: [panel][channel][pixel]
    float *outputs;  // [output][pixel]; pixels: [row of a tile][tile][column]
  };

  void RunBlock(const Weights &weights, const Filters &filters, Scratch &s, size_t level, const Range &tiles) const {
    const int64_t line = RoundUp(tiles.Size() * kOut, kBlockColumns), channels = from_.hidden;
    blocks_[level]->Run(weights, s.block, tiles, {0, channels}, [&](int64_t channel) {
      for (int64_t y = 0; y < kOut; ++y) {
        for (int64_t x = 0; x < line; x += kLanes) {
          const int64_t panel = (y * line + x) / kBlockColumns;
          Store(s.hidden + (panel * channels + channel) * kBlockColumns + x % kBlockColumns,
                Load(s.block.lines[y] + x));
        }
      }
    });
    const int64_t pixels = kOut * line;
    for (int64_t p = 0; p < pixels; p += kBlockColumns) {
      filters.Multiply(s.hidden + p * channels, s.outputs + p, pixels);
    }
    for (int64_t i = 0; i < s.block.run_count; ++i) Write(s, level, s.block.runs[i], line);
  }

  void Write(const Scratch &s, size_t level, const winograd::Run &run, int64_t line) const {
    const Level &to = levels_[level];
    const int64_t width = std::min(run.count * kOut, to.width - run.x);
    for (int64_t y = 0; y < std::min(kOut, to.height - run.y); ++y) {
      const int64_t place = (run.image * to.height + run.y + y) * to.width + run.x;
      const float *from = s.outputs + y * line + run.first * kOut;
      Turn(from, kOut * line, from_.scores, width, to.scores + place * from_.scores);
      Turn(from + from_.scores * kOut * line, kOut * line, from_.boxes, width, to.boxes + place * from_.boxes);
    }
  }

  // [output][pixel] -> [pixel][output]
  static void Turn(const float *from, int64_t stride, int64_t outputs, int64_t pixels, float *to) {
    for (int64_t o = 0; o < outputs; ++o) {
      for (int64_t p = 0; p < pixels; ++p) to[p * outputs + o] = from[o * stride + p];
    }
  }

  const std::vector<Level> &levels_;
  const Convolutions from_;
  const int64_t shape_[4];
  const int threads_;
  const int64_t tiles_;  // of a block
  std::vector<Maps> maps_;
  std::vector<std::unique_ptr<Blocks>> blocks_;
  std::vector<int64_t> first_;  // of each level's blocks, in the tasks' numbering
  int64_t tasks_ = 0;
  int workers_ = 1;
};

constexpr int kShared = 6;  // inputs that all levels have

// The maps of each level (N, C, H, W), finest first; weight (O, C, 3, 3) and bias of the hidden convolution; weight
// (A, O, 1, 1) and bias of the scores; weight (D, O, 1, 1) and bias of the boxes -> the scores of each level
// (N, H * W * A), then the boxes of each (N, H * W * D / 4, 4).
void RunHead(void **params, int64_t **shapes, size_t count) {
  const auto numbers = [&](size_t i) { return static_cast<const float *>(params[i]); };
  const size_t first = count, outputs = count + kShared;
  Convolutions filters;
  filters.hidden = shapes[first][0];
  filters.hidden_weight = numbers(first);
  filters.hidden_bias = numbers(first + 1);
  filters.scores = shapes[first + 2][0];
  filters.score_weight = numbers(first + 2);
  filters.score_bias = numbers(first + 3);
  filters.boxes = shapes[first + 4][0];
  filters.box_weight = numbers(first + 4);
  filters.box_bias = numbers(first + 5);
  std::vector<Level> levels;
  for (size_t i = 0; i < count; ++i) {
    levels.push_back({numbers(i), shapes[i][2], shapes[i][3], static_cast<float *>(params[outputs + i]),
                      static_cast<float *>(params[outputs + count + i])});
  }
  Head(levels, shapes[0][0], shapes[0][1], filters).Run();
}

}  // namespace

}  // namespace rcnn

extern "C" int RPNHead(int nparam, void **params, int *, int64_t **shapes, const char **, void *, void *) try {
  const int count = (nparam - rcnn::kShared) / 3;
  if (count < 1 || nparam != 3 * count + rcnn::kShared) return 1;
  rcnn::RunHead(params, shapes, static_cast<size_t>(count));
  return 0;
} catch (const std::exception &error) {
  std::fprintf(stderr, "RPNHead: %s\n", error.what());
  return 1;
}
