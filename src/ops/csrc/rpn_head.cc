// The region proposal network's head over all levels of a pyramid, without gradients: a 3x3 convolution with ReLU by
// Winograd's algorithm, and two 1x1 convolutions of what it gives, block by block of tiles. What lies between them,
// as large as the maps themselves, is never there as a whole.
//
// Its numbers are those of the convolutions one after the other: the same products in the same order.
#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <memory>
#include <vector>

#include "gemm_kernel.h"
#include "parallel.h"
#include "winograd.h"
#include "winograd_blocks.h"
#include "workspace.h"

namespace rcnn {

namespace {

using winograd::Blocks;
using winograd::Maps;
using winograd::Weights;

// One level: its maps x (images, channels, height, width), and where its numbers go: scores (images, height * width,
// scores), boxes (images, height * width, boxes); or as maps, scores (images, scores, height, width), boxes likewise.
struct Level {
  const float *x;
  int64_t height, width;
  float *scores, *boxes;
};

// The hidden convolution's bias; weights (scores, hidden) and (boxes, hidden), and biases.
struct Convolutions {
  int64_t scores, boxes;
  const float *hidden_bias, *score_weight, *score_bias, *box_weight, *box_bias;
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
  // hidden, channels: of the hidden convolution.
  Head(const std::vector<Level> &levels, bool as_maps, int64_t images, int64_t hidden, int64_t channels,
       const Convolutions &filters)
      : levels_(levels),
        as_maps_(as_maps),
        from_(filters),
        hidden_(hidden),
        outputs_(filters.scores + filters.boxes),
        tiles_(winograd::BlockTiles(hidden, channels)) {
    for (const Level &level : levels) {
      const Maps maps = {level.x, nullptr, images, channels, level.height, level.width};
      first_.push_back(tasks_);
      maps_.push_back(maps);
      blocks_.push_back(std::make_unique<Blocks>(maps, hidden, tiles_, filters.hidden_bias, true));
      tasks_ += Ceil(maps.Tiles(), tiles_);
    }
    workers_ = static_cast<int>(std::min<int64_t>(NumThreads(), tasks_));
    // one size of blocks for all levels
    const int64_t pixels = RoundUp(tiles_ * kTilePixels, kBlockColumns);
    rooms_ = {blocks_[0]->InputRoom(), blocks_[0]->ProductsRoom(), pixels * hidden, pixels * outputs_};
  }

  // Floats that Run takes of a workspace.
  int64_t Room() const {
    int64_t room = 0;
    for (const int64_t count : rooms_) room += Workspace::Padded(count);
    return Workspace::Padded(outputs_ * hidden_) + workers_ * room;
  }

  // weights: the hidden convolution's.
  void Run(const Weights &weights, Workspace *workspace) {
    const Filters filters(from_, hidden_, workspace->Take(outputs_ * hidden_));
    std::vector<std::unique_ptr<Scratch>> scratch;
    for (int i = 0; i < workers_; ++i) {
      scratch.push_back(std::make_unique<Scratch>());
      Scratch &s = *scratch.back();
      s.block.input = workspace->Take(rooms_[0]);
      s.block.products = workspace->Take(rooms_[1]);
      s.hidden = workspace->Take(rooms_[2]);
      s.outputs = workspace->Take(rooms_[3]);
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
    const int64_t line = RoundUp(tiles.Size() * kOut, kBlockColumns), channels = hidden_;
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
      const float *from = s.outputs + y * line + run.first * kOut;
      const float *boxes = from + from_.scores * kOut * line;
      if (as_maps_) {
        CopyRows(from, kOut * line, from_.scores, run, y, width, to, to.scores);
        CopyRows(boxes, kOut * line, from_.boxes, run, y, width, to, to.boxes);
        continue;
      }
      const int64_t place = (run.image * to.height + run.y + y) * to.width + run.x;
      Turn(from, kOut * line, from_.scores, width, to.scores + place * from_.scores);
      Turn(boxes, kOut * line, from_.boxes, width, to.boxes + place * from_.boxes);
    }
  }

  // A row of a run's tiles: [output][pixel] -> maps.
  static void CopyRows(const float *from, int64_t stride, int64_t outputs, const winograd::Run &run, int64_t y,
                       int64_t width, const Level &level, float *to) {
    for (int64_t o = 0; o < outputs; ++o) {
      const int64_t row = (run.image * outputs + o) * level.height + run.y + y;
      std::copy_n(from + o * stride, width, to + row * level.width + run.x);
    }
  }

  // [output][pixel] -> [pixel][output]
  static void Turn(const float *from, int64_t stride, int64_t outputs, int64_t pixels, float *to) {
    for (int64_t o = 0; o < outputs; ++o) {
      for (int64_t p = 0; p < pixels; ++p) to[p * outputs + o] = from[o * stride + p];
    }
  }

  const std::vector<Level> levels_;
  const bool as_maps_;
  const Convolutions from_;
  const int64_t hidden_, outputs_;
  const int64_t tiles_;           // of a block
  std::array<int64_t, 4> rooms_;  // of a worker's arrays
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
  const int64_t *hidden = shapes[first];
  Convolutions filters;
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
  Head head(levels, false, shapes[0][0], hidden[0], hidden[1], filters);
  const int64_t room = Weights::Room(hidden);
  Workspace workspace(room + head.Room());
  Weights weights(numbers(first), hidden[0], hidden[1], false, workspace.Take(room));
  weights.Make(NumThreads());
  head.Run(weights, &workspace);
}

}  // namespace

void Conv3x3::RunWithHead(const float *x, int64_t images, int64_t height, int64_t width, const float *bias,
                          const float *weight, const float *head_bias, int64_t outputs, float *y) const {
  const Weights &weights = filters_->weights;
  const Convolutions filters = {outputs, 0, bias, weight, head_bias, nullptr, nullptr};
  Head head({{x, height, width, y, nullptr}}, true, images, weights.rows(), weights.depth(), filters);
  Workspace workspace(head.Room());
  head.Run(weights, &workspace);
}

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
