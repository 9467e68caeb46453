// RoIAlign for GPUs: the operators of roi_align_cpu.cc with the same parameters, on device memory.
//
// Not run by this project's tests: MindSpore 2.8's GPU back end wants CUDA 11.6, and scripts/build_custom.sh only
// compiles this file where nvcc is. Rows with a bad level or image give zeros (the CPU operator reports them).
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>

#include "roi_align_geometry.h"

namespace {

constexpr int kMaxLevels = 5;
constexpr int kThreads = 256;

struct Level {
  float *map;  // features (read) or gradients (written)
  int64_t height, width;
  float scale;
};

struct Pyramid {
  Level levels[kMaxLevels];
  int count;
  int64_t batch, channels;
  int output_size, sampling_ratio;
  bool aligned;
};

// The axes of RoI k, or false for a row that samples nothing.
__device__ bool ReadRoI(const Pyramid &pyramid, const float *rois, const int32_t *levels, int64_t k, int *level,
                        int64_t *image, rcnn::RoIAxis *y, rcnn::RoIAxis *x) {
  *level = levels[k];
  if (*level < 0 || *level >= pyramid.count) return false;
  const float *roi = rois + k * 5;
  if (!(roi[0] >= 0.0f && roi[0] < static_cast<float>(pyramid.batch))) return false;
  *image = static_cast<int64_t>(roi[0]);
  const float scale = pyramid.levels[*level].scale;
  *x = rcnn::MakeRoIAxis(roi[1], roi[3], scale, pyramid.output_size, pyramid.sampling_ratio, pyramid.aligned);
  *y = rcnn::MakeRoIAxis(roi[2], roi[4], scale, pyramid.output_size, pyramid.sampling_ratio, pyramid.aligned);
  return x->grid > 0 && y->grid > 0;
}

// One thread an output number.
__global__ void Forward(Pyramid pyramid, const float *rois, const int32_t *levels, int64_t count, float *output) {
  const int out = pyramid.output_size;
  const int64_t total = count * pyramid.channels * out * out;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < total;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int bin_x = static_cast<int>(i % out), bin_y = static_cast<int>(i / out % out);
    const int64_t channel = i / (out * out) % pyramid.channels, k = i / (out * out) / pyramid.channels;
    int level;
    int64_t image;
    rcnn::RoIAxis y, x;
    float sum = 0.0f;
    if (ReadRoI(pyramid, rois, levels, k, &level, &image, &y, &x)) {
      const Level &map = pyramid.levels[level];
      const float *plane = map.map + (image * pyramid.channels + channel) * map.height * map.width;
      int64_t y_begin, y_end, x_begin, x_end;
      rcnn::SampleRange(y, bin_y, map.height, &y_begin, &y_end);
      rcnn::SampleRange(x, bin_x, map.width, &x_begin, &x_end);
      for (int64_t sy = y_begin; sy < y_end; ++sy) {
        rcnn::Tap row;
        if (!rcnn::MakeTap(rcnn::SamplePosition(y, bin_y, sy), map.height, &row)) continue;
        const float *low = plane + row.low * map.width, *high = plane + row.high * map.width;
        for (int64_t sx = x_begin; sx < x_end; ++sx) {
          rcnn::Tap column;
          if (!rcnn::MakeTap(rcnn::SamplePosition(x, bin_x, sx), map.width, &column)) continue;
          sum += row.weight_low * (column.weight_low * low[column.low] + column.weight_high * low[column.high]) +
                 row.weight_high * (column.weight_low * high[column.low] + column.weight_high * high[column.high]);
        }
      }
      sum *= rcnn::InverseCount(y, x);
    }
    output[i] = sum;
  }
}

// The weight of cell `cell` in bin `bin` of one axis: what all of the bin's samples leave on it.
__device__ float CellWeight(const rcnn::RoIAxis &axis, int bin, int64_t length, int64_t cell) {
  int64_t begin, end;
  rcnn::SampleRange(axis, bin, length, &begin, &end);
  float weight = 0.0f;
  for (int64_t sample = begin; sample < end; ++sample) {
    rcnn::Tap tap;
    if (!rcnn::MakeTap(rcnn::SamplePosition(axis, bin, sample), length, &tap)) continue;
    if (tap.low == cell) weight += tap.weight_low;
    if (tap.high == cell) weight += tap.weight_high;
  }
  return weight;
}

// The cells that an axis' samples can touch: [first, last].
__device__ void Window(const rcnn::RoIAxis &axis, int bins, int64_t length, int64_t *first, int64_t *last) {
  const float end = axis.start + axis.bin * static_cast<float>(bins);
  const float low = fminf(axis.start, end) - 1.0f, high = fmaxf(axis.start, end) + 2.0f;
  const float limit = static_cast<float>(length - 1);
  *first = static_cast<int64_t>(fminf(fmaxf(low, 0.0f), limit));
  *last = static_cast<int64_t>(fminf(fmaxf(high, 0.0f), limit));
}

// One block a plane (level, image, channel), which visits the RoIs in order and adds each one's gradient cell by
// cell: no atomics, so the same sum in the same order every time.
__global__ void Backward(Pyramid pyramid, const float *rois, const int32_t *levels, int64_t count,
                         const float *output_gradient) {
  const int out = pyramid.output_size;
  const int64_t planes = pyramid.count * pyramid.batch * pyramid.channels;
  for (int64_t p = blockIdx.x; p < planes; p += gridDim.x) {
    const int64_t channel = p % pyramid.channels, own_image = p / pyramid.channels % pyramid.batch;
    const int own_level = static_cast<int>(p / pyramid.channels / pyramid.batch);
    const Level &map = pyramid.levels[own_level];
    float *plane = map.map + (own_image * pyramid.channels + channel) * map.height * map.width;
    for (int64_t i = threadIdx.x; i < map.height * map.width; i += blockDim.x) plane[i] = 0.0f;
    __syncthreads();
    for (int64_t k = 0; k < count; ++k) {
      int level;
      int64_t image;
      rcnn::RoIAxis y, x;
      // The same answer in every thread of the block, so that the barrier below is met by all or none.
      if (!ReadRoI(pyramid, rois, levels, k, &level, &image, &y, &x) || level != own_level || image != own_image) {
        continue;
      }
      const float *gradient = output_gradient + (k * pyramid.channels + channel) * out * out;
      const float factor = rcnn::InverseCount(y, x);
      int64_t top, bottom, left, right;
      Window(y, out, map.height, &top, &bottom);
      Window(x, out, map.width, &left, &right);
      const int64_t width = right - left + 1, cells = width * (bottom - top + 1);
      for (int64_t i = threadIdx.x; i < cells; i += blockDim.x) {
        const int64_t row = top + i / width, column = left + i % width;
        float sum = 0.0f;
        for (int bin_y = 0; bin_y < out; ++bin_y) {
          const float weight_y = CellWeight(y, bin_y, map.height, row);
          if (weight_y == 0.0f) continue;
          float line = 0.0f;
          for (int bin_x = 0; bin_x < out; ++bin_x) {
            line += CellWeight(x, bin_x, map.width, column) * gradient[bin_y * out + bin_x];
          }
          sum += weight_y * line;
        }
        plane[row * map.width + column] += sum * factor;
      }
      __syncthreads();
    }
  }
}

bool Read(int first, int maps, void **params, int64_t **shapes, cudaStream_t stream, Pyramid *pyramid) {
  float config[3 + kMaxLevels];
  const int config_at = first + kMaxLevels + 2;
  if (shapes[config_at][1] != 3 + kMaxLevels) return false;
  if (cudaMemcpyAsync(config, params[config_at], sizeof(config), cudaMemcpyDeviceToHost, stream) != cudaSuccess ||
      cudaStreamSynchronize(stream) != cudaSuccess) {
    return false;
  }
  pyramid->output_size = static_cast<int>(shapes[config_at][0]);
  pyramid->sampling_ratio = static_cast<int>(config[0]);
  pyramid->aligned = config[1] != 0.0f;
  pyramid->count = static_cast<int>(config[2]);
  if (pyramid->count < 1 || pyramid->count > kMaxLevels || pyramid->output_size < 1) return false;
  pyramid->batch = shapes[first][0];
  pyramid->channels = shapes[first][1];
  for (int level = 0; level < pyramid->count; ++level) {
    const int64_t *shape = shapes[first + level];
    pyramid->levels[level] =
        Level{static_cast<float *>(params[maps + level]), shape[2], shape[3], 1.0f / config[3 + level]};
  }
  return true;
}

int Report(bool read) {
  if (!read) {
    std::fprintf(stderr, "RoIAlign: bad parameters\n");
    return 1;
  }
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return 0;
  std::fprintf(stderr, "RoIAlign: %s\n", cudaGetErrorString(error));
  return 1;
}

}  // namespace

extern "C" int RoIAlignForward(int nparam, void **params, int *, int64_t **shapes, const char **, void *stream,
                               void *) {
  cudaStream_t queue = static_cast<cudaStream_t>(stream);
  Pyramid pyramid;
  if (nparam != kMaxLevels + 4 || !Read(0, 0, params, shapes, queue, &pyramid)) return Report(false);
  const int64_t count = shapes[kMaxLevels][0];
  const int64_t total = count * pyramid.channels * pyramid.output_size * pyramid.output_size;
  if (total == 0) return 0;
  const int64_t blocks = (total + kThreads - 1) / kThreads;
  Forward<<<static_cast<unsigned>(blocks < 65535 ? blocks : 65535), kThreads, 0, queue>>>(
      pyramid, static_cast<const float *>(params[kMaxLevels]), static_cast<const int32_t *>(params[kMaxLevels + 1]),
      count, static_cast<float *>(params[nparam - 1]));
  return Report(true);
}

extern "C" int RoIAlignBackward(int nparam, void **params, int *, int64_t **shapes, const char **, void *stream,
                                void *) {
  cudaStream_t queue = static_cast<cudaStream_t>(stream);
  Pyramid pyramid;
  if (nparam != 2 * kMaxLevels + 4 || !Read(1, kMaxLevels + 4, params, shapes, queue, &pyramid)) return Report(false);
  for (int level = pyramid.count; level < kMaxLevels; ++level) {
    const int64_t *shape = shapes[kMaxLevels + 4 + level];
    const size_t bytes = static_cast<size_t>(shape[0] * shape[1] * shape[2] * shape[3]) * sizeof(float);
    if (cudaMemsetAsync(params[kMaxLevels + 4 + level], 0, bytes, queue) != cudaSuccess) return Report(true);
  }
  const int64_t planes = pyramid.count * pyramid.batch * pyramid.channels;
  if (planes == 0) return 0;
  Backward<<<static_cast<unsigned>(planes < 65535 ? planes : 65535), kThreads, 0, queue>>>(
      pyramid, static_cast<const float *>(params[1 + kMaxLevels]), static_cast<const int32_t *>(params[2 + kMaxLevels]),
      shapes[1 + kMaxLevels][0], static_cast<const float *>(params[0]));
  return Report(true);
}
