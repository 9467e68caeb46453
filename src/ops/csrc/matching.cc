// Boxes against ground truth by IoU, as an ahead-of-time custom operator of MindSpore for the CPU.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <limits>
#include <vector>

#include "parallel.h"
#include "vector_width.h"

namespace {

using rcnn::Floats;
using rcnn::Ints;
using rcnn::kLanes;

constexpr int64_t kBlock = 1024;  // boxes a task: their coordinates and results stay in the L1 cache

struct Box {
  float x1, y1, x2, y2, area;
  int32_t index;
};

Box MakeBox(const float *from, int64_t index) {
  return Box{
      from[0], from[1], from[2], from[3], (from[2] - from[0]) * (from[3] - from[1]), static_cast<int32_t>(index)};
}

// Boxes coordinate by coordinate; the rest of the last vectors are invalid boxes without area.
struct BoxBlock {
  static constexpr int64_t kVectors = kBlock / kLanes;
  union Column {
    Floats vectors[kVectors];
    float numbers[kBlock];
  };
  Column x1, y1, x2, y2, area;
  Ints valid[kVectors];            // -1 or 0
  float left, top, right, bottom;  // around all valid boxes

  void Read(const float *boxes, const bool *flags, int64_t count) {
    left = top = std::numeric_limits<float>::infinity();
    right = bottom = -left;
    for (int64_t i = 0; i < count; ++i) {
      x1.numbers[i] = boxes[i * 4];
      y1.numbers[i] = boxes[i * 4 + 1];
      x2.numbers[i] = boxes[i * 4 + 2];
      y2.numbers[i] = boxes[i * 4 + 3];
    }
    const int64_t padded = (count + kLanes - 1) / kLanes * kLanes;
    for (int64_t i = count; i < padded; ++i) x1.numbers[i] = y1.numbers[i] = x2.numbers[i] = y2.numbers[i] = 0.0f;
    const Floats infinite = Floats{} + left;
    Floats lefts = infinite, tops = infinite, rights = -infinite, bottoms = -infinite;
    for (int64_t v = 0; v < padded / kLanes; ++v) {
      for (int64_t i = 0; i < kLanes; ++i) {
        valid[v][i] = v * kLanes + i < count && flags[v * kLanes + i] ? -1 : 0;
      }
      area.vectors[v] = (x2.vectors[v] - x1.vectors[v]) * (y2.vectors[v] - y1.vectors[v]);
      // In this order, a coordinate that is not a number is left out.
      lefts = Min(valid[v] ? x1.vectors[v] : infinite, lefts);
      tops = Min(valid[v] ? y1.vectors[v] : infinite, tops);
      rights = Max(valid[v] ? x2.vectors[v] : -infinite, rights);
      bottoms = Max(valid[v] ? y2.vectors[v] : -infinite, bottoms);
    }
    for (int64_t i = 0; i < kLanes; ++i) {
      left = std::min(left, lefts[i]);
      top = std::min(top, tops[i]);
      right = std::max(right, rights[i]);
      bottom = std::max(bottom, bottoms[i]);
    }
  }

  static inline __attribute__((always_inline)) Floats Min(const Floats &a, const Floats &b) { return a < b ? a : b; }
  static inline __attribute__((always_inline)) Floats Max(const Floats &a, const Floats &b) { return a > b ? a : b; }

  // False only if no valid box overlaps `box`.
  bool MayOverlap(const Box &box) const {
    return !(box.x1 >= right || box.x2 <= left || box.y1 >= bottom || box.y2 <= top);
  }

  inline __attribute__((always_inline)) Floats Intersection(int64_t v, const Box &box) const {
    const Floats zero = {};
    const Floats width = Min(x2.vectors[v], zero + box.x2) - Max(x1.vectors[v], zero + box.x1);
    const Floats height = Min(y2.vectors[v], zero + box.y2) - Max(y1.vectors[v], zero + box.y1);
    return Max(width, zero) * Max(height, zero);
  }

  // 0 for invalid boxes and where the union is empty. The order of the operations is part of the definition.
  inline __attribute__((always_inline)) Floats IoU(int64_t v, const Box &box) const {
    const Floats zero = {};
    const Floats inter = Intersection(v, box);
    const Floats either = area.vectors[v] + box.area - inter;
    const Floats iou = inter / either;
    return (valid[v] & (either > zero)) ? iou : zero;
  }
};

struct Image {
  const float *boxes;
  const bool *valid;
  std::vector<Box> gts, ignored;
  std::vector<float> block_best;  // (gts, blocks): best IoU of a gt within a block
  std::vector<float> gt_best;     // (gts,): and within all
};

}  // namespace

// boxes (N, 4) or (B, N, 4), box_valid (B, N), gt_boxes (B, G, 4), gt_valid (B, G), ignore_boxes (B, K, 4),
// min_best_iou (1,) -> max_iou (B, N), argmax (B, N), best_of (B, N), max_iof (B, N)
extern "C" int MaxIoUMatch(int nparam, void **params, int *ndims, int64_t **shapes, const char **, void *, void *) try {
  static_assert(sizeof(bool) == 1, "MindSpore's bool is one byte");
  if (nparam != 10) return 1;
  const int64_t batch = shapes[1][0], count = shapes[1][1], gt_count = shapes[2][1], ignore_count = shapes[4][1];
  const bool shared = ndims[0] == 2;
  if (count == 0) return 0;
  const int64_t blocks = (count + kBlock - 1) / kBlock;
  const float min_best_iou = *static_cast<const float *>(params[5]);
  float *max_iou = static_cast<float *>(params[6]);
  int32_t *argmax = static_cast<int32_t *>(params[7]);
  int32_t *best_of = static_cast<int32_t *>(params[8]);
  float *max_iof = static_cast<float *>(params[9]);

  std::vector<Image> images(static_cast<size_t>(batch));
  for (int64_t b = 0; b < batch; ++b) {
    Image &image = images[static_cast<size_t>(b)];
    image.boxes = static_cast<const float *>(params[0]) + (shared ? 0 : b * count * 4);
    image.valid = static_cast<const bool *>(params[1]) + b * count;
    const float *gts = static_cast<const float *>(params[2]) + b * gt_count * 4;
    const bool *gt_valid = static_cast<const bool *>(params[3]) + b * gt_count;
    const float *ignored = static_cast<const float *>(params[4]) + b * ignore_count * 4;
    for (int64_t g = 0; g < gt_count; ++g) {
      if (gt_valid[g]) image.gts.push_back(MakeBox(gts + g * 4, g));
    }
    for (int64_t k = 0; k < ignore_count; ++k) {
      const float *box = ignored + k * 4;
      if (box[0] != 0.0f || box[1] != 0.0f || box[2] != 0.0f || box[3] != 0.0f) {
        image.ignored.push_back(MakeBox(box, k));
      }
    }
    image.block_best.assign(image.gts.size() * static_cast<size_t>(blocks), 0.0f);
  }
  const int threads = rcnn::NumThreads();

  rcnn::ParallelFor(batch * blocks, threads, [&](int64_t task) {
    Image &image = images[static_cast<size_t>(task / blocks)];
    const int64_t number = task % blocks, begin = number * kBlock, size = std::min(kBlock, count - begin);
    const int64_t out = task / blocks * count + begin;
    const int64_t vectors = (size + kLanes - 1) / kLanes;
    BoxBlock block;
    block.Read(image.boxes + begin * 4, image.valid + begin, size);
    Floats best[BoxBlock::kVectors] = {};
    Ints who[BoxBlock::kVectors];
    const int32_t first = image.gts.empty() ? 0 : image.gts[0].index;
    for (int64_t v = 0; v < vectors; ++v) who[v] = block.valid[v] & (Ints{} + first);
    for (size_t g = 0; g < image.gts.size(); ++g) {
      const Box gt = image.gts[g];
      if (!block.MayOverlap(gt)) continue;
      Floats top = {};
      for (int64_t v = 0; v < vectors; ++v) {
        const Floats iou = block.IoU(v, gt);
        const Ints better = iou > best[v];
        who[v] = better ? Ints{} + gt.index : who[v];
        best[v] = better ? iou : best[v];
        top = BoxBlock::Max(iou, top);
      }
      float highest = 0.0f;
      for (int64_t i = 0; i < kLanes; ++i) highest = std::max(highest, top[i]);
      image.block_best[g * static_cast<size_t>(blocks) + static_cast<size_t>(number)] = highest;
    }
    std::memcpy(max_iou + out, best, static_cast<size_t>(size) * sizeof(float));
    std::memcpy(argmax + out, who, static_cast<size_t>(size) * sizeof(int32_t));
    std::fill_n(best_of + out, size, -1);
    const Floats zero = {};
    std::fill_n(best, vectors, zero);
    for (const Box &box : image.ignored) {
      if (!block.MayOverlap(box)) continue;
      for (int64_t v = 0; v < vectors; ++v) {
        const Floats part = block.Intersection(v, box) / block.area.vectors[v];
        best[v] = (block.valid[v] & (block.area.vectors[v] > zero) & (part > best[v])) ? part : best[v];
      }
    }
    std::memcpy(max_iof + out, best, static_cast<size_t>(size) * sizeof(float));
  });

  for (Image &image : images) {
    for (size_t g = 0; g < image.gts.size(); ++g) {
      const auto tops = image.block_best.begin() + static_cast<int64_t>(g) * blocks;
      image.gt_best.push_back(*std::max_element(tops, tops + blocks));
    }
  }

  // Only the few blocks that hold a gt's best box are looked at again; the same code gives the same numbers.
  rcnn::ParallelFor(batch * blocks, threads, [&](int64_t task) {
    const Image &image = images[static_cast<size_t>(task / blocks)];
    const int64_t number = task % blocks, begin = number * kBlock, size = std::min(kBlock, count - begin);
    const int64_t out = task / blocks * count + begin;
    BoxBlock block;
    bool read = false;
    for (size_t g = 0; g < image.gts.size(); ++g) {
      const float *tops = image.block_best.data() + g * static_cast<size_t>(blocks);
      const float top = image.gt_best[g];
      if (!(top > 0.0f && top >= min_best_iou) || tops[number] != top) continue;
      if (!read) block.Read(image.boxes + begin * 4, image.valid + begin, size);
      read = true;
      for (int64_t v = 0; v < (size + kLanes - 1) / kLanes; ++v) {
        const Ints equal = block.IoU(v, image.gts[g]) == Floats{} + top;
        for (int64_t i = 0; i < std::min(kLanes, size - v * kLanes); ++i) {
          if (equal[i] != 0) best_of[out + v * kLanes + i] = image.gts[g].index;  // the last of several stays
        }
      }
    }
  });
  return 0;
} catch (const std::exception &error) {
  std::fprintf(stderr, "MaxIoUMatch: %s\n", error.what());
  return 1;
}
