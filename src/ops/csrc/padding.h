// Images at a batch's end that only fill it, as RoIs do in a batch of a fixed size: operators need no work for these.
//
// They are known by their numbers alone. So results are what they would be, but that a weight or map which isn't finite
// makes no NaN of a gradient of zeros.
#ifndef RCNN_OPS_PADDING_H_
#define RCNN_OPS_PADDING_H_

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "gemm_kernel.h"
#include "parallel.h"

namespace rcnn {

// How many images there are before copies of the last of these: all, where the last two differ. `floats`: an image's.
inline int64_t ImagesBeforeCopies(const float *data, int64_t images, int64_t floats) {
  const auto size = static_cast<size_t>(floats) * sizeof(float);
  while (size > 0 && images > 1 && std::memcmp(data + (images - 1) * floats, data + (images - 2) * floats, size) == 0)
    --images;
  return images;
}

// Makes images from `done` on copies of the one before.
inline void CopyLast(float *data, int64_t done, int64_t images, int64_t floats, int threads) {
  ParallelFor(images - done, threads,
              [=](int64_t i) { std::copy_n(data + (done - 1) * floats, floats, data + (done + i) * floats); });
}

// How many images there are before those whose gradient is zero everywhere.
inline int64_t ImagesBeforeZeros(const float *gradient, int64_t images, int64_t floats) {
  const auto zero = [=](const float *from) {
    for (int64_t i = 0; i < floats; i += kLanes) {
      const Floats v = LoadWithin(from, i, floats);
      const Ints other = v != 0.0f;  // NaN is
      int32_t any = 0;
      for (int64_t lane = 0; lane < kLanes; ++lane) any |= other[lane];
      if (any != 0) return false;
    }
    return true;
  };
  while (images > 0 && zero(gradient + (images - 1) * floats)) --images;
  return images;
}

}  // namespace rcnn

#endif  // RCNN_OPS_PADDING_H_
