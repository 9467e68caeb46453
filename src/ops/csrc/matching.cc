// Boxes against ground truth by IoU, as an ahead-of-time custom operator of MindSpore for the CPU.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <vector>

#include "parallel.h"

namespace {

constexpr int64_t kBlock = 1024;  // boxes a task: their coordinates and results stay in the L1 cache

struct Box {
  float x1, y1, x2, y2, area;
  int32_t index;
};

Box MakeBox(const float *from, int64_t index) {
  return Box{from[0], from[1], from[2], from[3], (from[2] - from[0]) * (from[3] - from[1]),
             static_cast<int32_t>(index)};
}

// Coordinate by coordinate, so that loops over boxes vectorise.
struct BoxBlock {
  alignas(64) float x1[kBlock], y1[kBlock], x2[kBlock], y2[kBlock], area[kBlock];

  void Read(const float *boxes, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      x1[i] = boxes[i * 4];
      y1[i] = boxes[i * 4 + 1];
      x2[i] = boxes[i * 4 + 2];
      y2[i] = boxes[i * 4 + 3];
    }
    for (int64_t i = 0; i < count; ++i) area[i] = (x2[i] - x1[i]) * (y2[i] - y1[i]);
  }
};

inline float Intersection(const BoxBlock &block, int64_t i, const Box &box) {
  const float width = std::max(0.0f, std::min(block.x2[i], box.x2) - std::max(block.x1[i], box.x1));
  const float height = std::max(0.0f, std::min(block.y2[i], box.y2) - std::max(block.y1[i], box.y1));
  return width * height;
}

// 0 where the union is empty. The order of the operations is part of the definition: equal boxes, equal numbers.
inline float IoU(const BoxBlock &block, int64_t i, const Box &box) {
  const float inter = Intersection(block, i, box);
  const float either = block.area[i] + box.area - inter;
  const float iou = inter / either;
  return either > 0.0f ? iou : 0.0f;
}

struct Image {
  const float *boxes;
  const bool *valid;
  std::vector<Box> gts, ignored;
  std::vector<float> block_best;  // (gts, blocks): best IoU of a gt within a block
};

}  // namespace

// boxes (N, 4) or (B, N, 4), box_valid (B, N), gt_boxes (B, G, 4), gt_valid (B, G), ignore_boxes (B, K, 4)
// -> max_iou (B, N), argmax (B, N), is_gt_best (B, N), max_iof (B, N)
extern "C" int MaxIoUMatch(int nparam, void **params, int *ndims, int64_t **shapes, const char **, void *,
                           void *) try {
  static_assert(sizeof(bool) == 1, "MindSpore's bool is one byte");
  if (nparam != 9) return 1;
  const int64_t batch = shapes[1][0], count = shapes[1][1], gt_count = shapes[2][1], ignore_count = shapes[4][1];
  const bool shared = ndims[0] == 2;
  const int64_t blocks = (count + kBlock - 1) / kBlock;
  float *max_iou = static_cast<float *>(params[5]);
  int32_t *argmax = static_cast<int32_t *>(params[6]);
  bool *is_gt_best = static_cast<bool *>(params[7]);
  float *max_iof = static_cast<float *>(params[8]);

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
    const bool *valid = image.valid + begin;
    BoxBlock block;
    block.Read(image.boxes + begin * 4, size);
    alignas(64) float best[kBlock], usable[kBlock];
    alignas(64) int32_t who[kBlock];
    for (int64_t i = 0; i < size; ++i) {
      usable[i] = valid[i] ? 1.0f : 0.0f;
      best[i] = 0.0f;
      who[i] = 0;
    }
    for (size_t g = 0; g < image.gts.size(); ++g) {
      const Box gt = image.gts[g];
      float top = 0.0f;
      const bool first = g == 0;
      for (int64_t i = 0; i < size; ++i) {
        const float iou = usable[i] > 0.0f ? IoU(block, i, gt) : 0.0f;
        const bool better = first || iou > best[i];
        who[i] = better ? gt.index : who[i];
        best[i] = better ? iou : best[i];
        top = iou > top ? iou : top;
      }
      image.block_best[g * static_cast<size_t>(blocks) + static_cast<size_t>(number)] = top;
    }
    for (int64_t i = 0; i < size; ++i) {
      max_iou[out + i] = best[i];
      argmax[out + i] = usable[i] > 0.0f ? who[i] : 0;
      is_gt_best[out + i] = false;
      best[i] = 0.0f;
    }
    for (const Box &box : image.ignored) {
      for (int64_t i = 0; i < size; ++i) {
        const float part = Intersection(block, i, box) / block.area[i];
        best[i] = part > best[i] && usable[i] > 0.0f && block.area[i] > 0.0f ? part : best[i];
      }
    }
    std::copy_n(best, size, max_iof + out);
  });

  // Only the few blocks that hold a gt's best box are looked at again; the same code gives the same numbers.
  rcnn::ParallelFor(batch * blocks, threads, [&](int64_t task) {
    const Image &image = images[static_cast<size_t>(task / blocks)];
    const int64_t number = task % blocks, begin = number * kBlock, size = std::min(kBlock, count - begin);
    const int64_t out = task / blocks * count + begin;
    BoxBlock block;
    bool read = false;
    for (size_t g = 0; g < image.gts.size(); ++g) {
      const float *tops = image.block_best.data() + g * static_cast<size_t>(blocks);
      const float top = *std::max_element(tops, tops + blocks);
      if (!(top > 0.0f) || tops[number] != top) continue;
      if (!read) block.Read(image.boxes + begin * 4, size);
      read = true;
      for (int64_t i = 0; i < size; ++i) {
        if (image.valid[begin + i] && IoU(block, i, image.gts[g]) == top) is_gt_best[out + i] = true;
      }
    }
  });
  return 0;
} catch (const std::exception &error) {
  std::fprintf(stderr, "MaxIoUMatch: %s\n", error.what());
  return 1;
}
