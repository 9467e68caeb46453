// Where RoIAlign samples (He et al., "Mask R-CNN", 2017, section 3).
//
// Bilinear interpolation is separable, so everything here is about one axis.
#ifndef RCNN_ROI_ALIGN_GEOMETRY_H_
#define RCNN_ROI_ALIGN_GEOMETRY_H_

#include <cmath>
#include <cstdint>

namespace rcnn {

// A product that no compiler fuses with a following sum: positions, and above all the rounding up of the adaptive
// number of samples, must not depend on the instruction set.
inline float Product(float a, float b) {
  volatile float product = a * b;
  return product;
}

// One axis of a RoI in cells of its feature map: bins of size `bin` from `start`, `grid` samples a bin.
struct RoIAxis {
  float start;
  float bin;
  int64_t grid;
};

inline RoIAxis MakeRoIAxis(float low, float high, float scale, int output_size, int sampling_ratio, bool aligned) {
  const float shift = aligned ? 0.5f : 0.0f;
  RoIAxis axis{Product(low, scale) - shift, 0.0f, 0};
  float size = Product(high, scale) - shift - axis.start;
  // Boxes that are not finite numbers sample nothing; the mean of no samples is 0.
  if (!(size - size == 0.0f) || !(axis.start - axis.start == 0.0f)) return axis;
  if (!aligned && size < 1.0f) size = 1.0f;
  axis.bin = size / static_cast<float>(output_size);
  if (sampling_ratio > 0) {
    axis.grid = sampling_ratio;
  } else {
    const float wanted = ceilf(axis.bin);
    axis.grid = wanted > 0.0f ? static_cast<int64_t>(wanted < 1e9f ? wanted : 1e9f) : 0;
  }
  return axis;
}

// The two cells that a sample lies between. false: it lies outside of [-1, length] and counts as 0.
struct Tap {
  int64_t low, high;
  float weight_low, weight_high;
};

inline float SamplePosition(const RoIAxis &axis, int bin, int64_t sample) {
  return axis.start + Product(static_cast<float>(bin), axis.bin) +
         Product(static_cast<float>(sample) + 0.5f, axis.bin) / static_cast<float>(axis.grid);
}

inline bool MakeTap(float position, int64_t length, Tap *tap) {
  if (!(position >= -1.0f && position <= static_cast<float>(length))) return false;
  if (position <= 0.0f) position = 0.0f;
  int64_t low = static_cast<int64_t>(position);
  int64_t high = low + 1;
  if (low >= length - 1) {
    low = high = length - 1;
    position = static_cast<float>(low);
  }
  const float fraction = position - static_cast<float>(low);
  *tap = Tap{low, high, 1.0f - fraction, fraction};
  return true;
}

// The samples of a bin that can lie inside of [-1, length]: the rest of a huge RoI is not walked through.
inline void SampleRange(const RoIAxis &axis, int bin, int64_t length, int64_t *begin, int64_t *end) {
  *begin = 0;
  *end = axis.grid;
  if (axis.grid <= 64 || axis.bin <= 0.0f) return;
  const double step = static_cast<double>(axis.bin) / static_cast<double>(axis.grid);
  const double first = static_cast<double>(axis.start) + static_cast<double>(bin) * static_cast<double>(axis.bin);
  // Two cells of slack: float32 positions round, and MakeTap decides on each sample anyway. Beyond 2^23 cells
  // float32 has no fractions left, and such a RoI has no meaning on a feature map.
  const double low = (-3.0 - first) / step - 1.0;
  const double high = (static_cast<double>(length) + 3.0 - first) / step + 1.0;
  const double limit = static_cast<double>(axis.grid);
  *begin = static_cast<int64_t>(low < 0.0 ? 0.0 : (low > limit ? limit : low));
  *end = static_cast<int64_t>(high < 0.0 ? 0.0 : (high > limit ? limit : high));
}

// 1 / (number of samples a bin), the divisor of the mean.
inline float InverseCount(const RoIAxis &y, const RoIAxis &x) {
  const double count = static_cast<double>(y.grid) * static_cast<double>(x.grid);
  return static_cast<float>(1.0 / (count > 1.0 ? count : 1.0));
}

}  // namespace rcnn

#endif  // RCNN_ROI_ALIGN_GEOMETRY_H_
