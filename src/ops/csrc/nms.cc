// Greedy non-maximum suppression within groups, as an ahead-of-time custom operator of MindSpore for the CPU.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <vector>

#include "nms.h"
#include "parallel.h"

// boxes (B, N, 4), scores (B, N), groups (B, N), valid (B, N), threshold (M,), all equal -> indices (B, M), kept (B, M)
extern "C" int BatchedNMS(int nparam, void **params, int *, int64_t **shapes, const char **, void *, void *) {
  static_assert(sizeof(bool) == 1, "MindSpore's bool is one byte");
  if (nparam != 7) return 1;
  const int64_t batch = shapes[1][0], count = shapes[1][1], most = shapes[5][1];
  if (most == 0) return 0;
  const float threshold = *static_cast<const float *>(params[4]);
  try {
    std::vector<char> failed(static_cast<size_t>(batch), 0);
    rcnn::ParallelFor(batch, rcnn::NumThreads(), [&](int64_t image) {
      try {
        rcnn::Suppress(static_cast<const float *>(params[0]) + image * count * 4,
                       static_cast<const float *>(params[1]) + image * count,
                       static_cast<const int32_t *>(params[2]) + image * count,
                       static_cast<const bool *>(params[3]) + image * count, count, threshold, most,
                       static_cast<int32_t *>(params[5]) + image * most, static_cast<bool *>(params[6]) + image * most);
      } catch (const std::exception &) {
        failed[static_cast<size_t>(image)] = 1;
      }
    });
    return std::find(failed.begin(), failed.end(), 1) == failed.end() ? 0 : 1;
  } catch (const std::exception &error) {
    std::fprintf(stderr, "BatchedNMS: %s\n", error.what());
    return 1;
  }
}
