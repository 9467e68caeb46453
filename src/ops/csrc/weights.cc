// What is done to weights, for MindSpore (ops.Custom, func_type='aot').
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <functional>
#include <numeric>

#include "conv_operators.h"
#include "parallel.h"

namespace {

// Floats: starting a thread takes as long as going through some 100,000.
constexpr int64_t kWorthThreads = 1 << 20;
constexpr int64_t kBlock = 1 << 16;

int64_t Count(const int64_t *shape, int ndims) {
  return std::accumulate(shape, shape + ndims, int64_t{1}, std::multiplies<int64_t>());
}

// weight (O, C, H, W), scale (O,) -> weight times its filter's scale
void Scale(void **params, int64_t **shapes, bool) {
  const float *weight = static_cast<const float *>(params[0]);
  const float *scale = static_cast<const float *>(params[1]);
  float *out = static_cast<float *>(params[2]);
  const int64_t filters = shapes[0][0], size = shapes[0][1] * shapes[0][2] * shapes[0][3];
  rcnn::ParallelFor(filters, filters * size < kWorthThreads ? 1 : rcnn::NumThreads(), [=](int64_t filter) {
    const float factor = scale[filter];
    for (int64_t i = filter * size; i < (filter + 1) * size; ++i) out[i] = weight[i] * factor;
  });
}

}  // namespace

RCNN_OPERATOR(ScaleFilters, Scale, 3, false)

// weight (...) -> a copy
extern "C" int CopyWeight(int nparam, void **params, int *ndims, int64_t **shapes, const char **, void *, void *) {
  if (nparam != 2) return 1;
  const float *weight = static_cast<const float *>(params[0]);
  std::copy_n(weight, Count(shapes[0], ndims[0]), static_cast<float *>(params[1]));
  return 0;
}

// weight (...) and moment (...), which it writes, gradient (...), rate, decay, momentum -> a number of no meaning
extern "C" int MomentumStep(int nparam, void **params, int *ndims, int64_t **shapes, const char **, void *,
                            void *) try {
  if (nparam != 7) return 1;
  float *weight = static_cast<float *>(params[0]), *moment = static_cast<float *>(params[1]);
  const float *gradient = static_cast<const float *>(params[2]);
  const float rate = *static_cast<const float *>(params[3]), decay = *static_cast<const float *>(params[4]);
  const float momentum = *static_cast<const float *>(params[5]);
  const int64_t count = Count(shapes[0], ndims[0]);
  const int threads = count < kWorthThreads ? 1 : rcnn::NumThreads();
  rcnn::ParallelFor((count + kBlock - 1) / kBlock, threads, [=](int64_t block) {
    const int64_t end = std::min(count, (block + 1) * kBlock);
    for (int64_t i = block * kBlock; i < end; ++i) {
      moment[i] = moment[i] * momentum + (weight[i] * decay + gradient[i]);
      weight[i] -= moment[i] * rate;
    }
  });
  *static_cast<float *>(params[6]) = 0.0f;
  return 0;
} catch (const std::exception &error) {
  std::fprintf(stderr, "MomentumStep: %s\n", error.what());
  return 1;
}
