// Multi-level RoIAlign on the CPU, forward and backward, from NCHW float32 maps. No MindSpore dependency.
//
// He et al., "Mask R-CNN", 2017, section 3; the conventions (aligned or not, borders, adaptive sampling) are those
// of torchvision.ops.roi_align.
//
// Bilinear interpolation and the mean over a bin are both separable. So a RoI's output is Y * F * X', where F is the
// window of the map under the RoI and Y (output x rows) and X (output x columns) are sparse matrices that all
// channels share: a plan holds them once a RoI. A task is a few channels of one image on one level, whose planes stay
// in the L2 cache while the RoIs on them are visited. A task owns its output (or gradient) planes and visits RoIs in
// one fixed order: results are bit-identical for any number of threads.
#ifndef RCNN_ROI_ALIGN_H_
#define RCNN_ROI_ALIGN_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <tuple>
#include <vector>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include "../../csrc/cache.h"
#include "../../csrc/parallel.h"
#include "../../csrc/vector_width.h"
#include "roi_align_geometry.h"

namespace rcnn {

struct RoIAlignOptions {
  int output_size = 7;
  int sampling_ratio = 0;  // samples a bin and axis; 0: as many as the bin has cells, rounded up
  bool aligned = false;
};

// One level of the pyramid, (batch, channels, height, width). stride: canvas pixels a cell.
struct RoIAlignLevel {
  int64_t height = 0;
  int64_t width = 0;
  float stride = 1.0f;
};

namespace roi_align_internal {

constexpr int64_t kPad = 8;  // windows are widened to a multiple of this where the map has room

typedef float Floats8 __attribute__((vector_size(32)));  // for what a window leaves of a wider vector

// Vectors travel by pointer: those wider than the registers of the target have no fixed calling convention.
template <typename V>
inline __attribute__((always_inline)) void Load(const float *from, V *to) {
  std::memcpy(to, from, sizeof(V));
}
template <typename V>
inline __attribute__((always_inline)) void Store(const V &from, float *to) {
  std::memcpy(to, &from, sizeof(V));
}

struct RowTap {
  int32_t row;
  float weight;
};

struct PlannedRoI {
  int64_t index;        // row of the RoI and of the output
  int32_t group;        // level * batch + image
  int32_t left, width;  // window of columns; width is padded
  int32_t first_row;    // for the visiting order alone
  int32_t column_taps;  // taps an output column, padded with zero weights
  size_t row_begin;     // into row_ends: output_size ends of ranges of row_taps
  size_t row_taps;      // into row_taps
  size_t column_begin;  // into column_offsets and column_weights: [tap][output column]
};

struct Plan {
  std::vector<PlannedRoI> rois;  // sorted by group; RoIs that see nothing are left out
  std::vector<int64_t> groups;   // rois of group g: [groups[g], groups[g + 1])
  std::vector<int32_t> row_ends;
  std::vector<RowTap> row_taps;
  std::vector<int32_t> column_offsets;  // from the window's left
  std::vector<float> column_weights;
  int64_t max_width = 0;
  int64_t max_column_taps = 0;
};

// Adds a tap, merged with an equal cell. Samples move one way, so an equal cell is among the last few.
inline void AddTap(std::vector<RowTap> *taps, size_t begin, int64_t cell, float weight) {
  if (weight == 0.0f) return;
  const size_t size = taps->size();
  for (size_t i = size; i > begin && i + 4 > size; --i) {
    RowTap &tap = (*taps)[i - 1];
    if (tap.row == cell) {
      tap.weight += weight;
      return;
    }
  }
  taps->push_back(RowTap{static_cast<int32_t>(cell), weight});
}

inline void AddBin(const RoIAxis &axis, int bin, int64_t length, float factor, std::vector<RowTap> *taps,
                   size_t begin) {
  int64_t first, last;
  SampleRange(axis, bin, length, &first, &last);
  for (int64_t sample = first; sample < last; ++sample) {
    Tap tap;
    if (!MakeTap(SamplePosition(axis, bin, sample), length, &tap)) continue;
    AddTap(taps, begin, tap.low, tap.weight_low * factor);
    AddTap(taps, begin, tap.high, tap.weight_high * factor);
  }
}

// Returns an empty text, or what is wrong with the input.
inline std::string MakePlan(const RoIAlignOptions &options, const std::vector<RoIAlignLevel> &levels, int64_t batch,
                            const float *rois, const int32_t *roi_levels, int64_t count, Plan *plan) {
  const int out = options.output_size;
  plan->rois.reserve(static_cast<size_t>(count));
  plan->row_ends.reserve(static_cast<size_t>(count * out));
  plan->row_taps.reserve(static_cast<size_t>(count * out * 4));
  plan->column_offsets.reserve(static_cast<size_t>(count * out * 4));
  plan->column_weights.reserve(static_cast<size_t>(count * out * 4));
  std::vector<RowTap> columns;
  std::vector<size_t> column_ends(static_cast<size_t>(out));
  for (int64_t r = 0; r < count; ++r) {
    const int64_t level_index = roi_levels[r];
    if (level_index < 0) continue;  // padding
    const float *roi = rois + r * 5;
    if (level_index >= static_cast<int64_t>(levels.size())) {
      return "RoI " + std::to_string(r) + " wants level " + std::to_string(level_index) + " of " +
             std::to_string(levels.size());
    }
    if (!(roi[0] >= 0.0f && roi[0] < static_cast<float>(batch))) {
      return "RoI " + std::to_string(r) + " wants image " + std::to_string(roi[0]) + " of a batch of " +
             std::to_string(batch);
    }
    const RoIAlignLevel &level = levels[static_cast<size_t>(level_index)];
    const float scale = 1.0f / level.stride;
    const RoIAxis x = MakeRoIAxis(roi[1], roi[3], scale, out, options.sampling_ratio, options.aligned);
    const RoIAxis y = MakeRoIAxis(roi[2], roi[4], scale, out, options.sampling_ratio, options.aligned);
    if (x.grid <= 0 || y.grid <= 0) continue;
    const float factor = InverseCount(y, x);

    columns.clear();
    size_t most = 0;
    for (int bin = 0; bin < out; ++bin) {
      const size_t begin = columns.size();
      AddBin(x, bin, level.width, 1.0f, &columns, begin);
      column_ends[static_cast<size_t>(bin)] = columns.size();
      most = std::max(most, columns.size() - begin);
    }
    if (columns.empty()) continue;

    PlannedRoI planned{};
    planned.row_begin = plan->row_ends.size();
    planned.row_taps = plan->row_taps.size();
    planned.first_row = static_cast<int32_t>(level.height);
    for (int bin = 0; bin < out; ++bin) {
      AddBin(y, bin, level.height, factor, &plan->row_taps, plan->row_taps.size());
      plan->row_ends.push_back(static_cast<int32_t>(plan->row_taps.size() - planned.row_taps));
    }
    if (plan->row_taps.size() == planned.row_taps) {
      plan->row_ends.resize(planned.row_begin);
      continue;
    }
    for (size_t i = planned.row_taps; i < plan->row_taps.size(); ++i) {
      planned.first_row = std::min(planned.first_row, plan->row_taps[i].row);
    }

    int64_t left = level.width, right = -1;
    for (const RowTap &tap : columns) {
      left = std::min<int64_t>(left, tap.row);
      right = std::max<int64_t>(right, tap.row);
    }
    int64_t width = right - left + 1;
    const int64_t padded = (width + kPad - 1) / kPad * kPad;
    if (padded <= level.width) {
      left = std::min(left, level.width - padded);
      width = padded;
    }
    planned.index = r;
    planned.group = static_cast<int32_t>(level_index * batch + static_cast<int64_t>(roi[0]));
    planned.left = static_cast<int32_t>(left);
    planned.width = static_cast<int32_t>(width);
    planned.column_taps = static_cast<int32_t>(most);
    planned.column_begin = plan->column_offsets.size();
    plan->column_offsets.resize(planned.column_begin + most * static_cast<size_t>(out), 0);
    plan->column_weights.resize(planned.column_begin + most * static_cast<size_t>(out), 0.0f);
    size_t begin = 0;
    for (size_t bin = 0; bin < static_cast<size_t>(out); ++bin) {
      const size_t taps = column_ends[bin] - begin;
      for (size_t tap = 0; tap < most; ++tap) {
        const size_t slot = planned.column_begin + tap * static_cast<size_t>(out) + bin;
        if (taps == 0) continue;
        // A padded tap reads a cell that its bin reads anyway: 0 * infinity must not leak in from a neighbour.
        const RowTap &source = columns[begin + std::min(tap, taps - 1)];
        plan->column_offsets[slot] = source.row - planned.left;
        plan->column_weights[slot] = tap < taps ? source.weight : 0.0f;
      }
      begin = column_ends[bin];
    }
    plan->max_width = std::max(plan->max_width, width);
    plan->max_column_taps = std::max<int64_t>(plan->max_column_taps, static_cast<int64_t>(most));
    plan->rois.push_back(planned);
  }
  std::sort(plan->rois.begin(), plan->rois.end(), [](const PlannedRoI &a, const PlannedRoI &b) {
    return std::tie(a.group, a.first_row, a.index) < std::tie(b.group, b.first_row, b.index);
  });
  plan->groups.assign(levels.size() * static_cast<size_t>(batch) + 1, 0);
  for (const PlannedRoI &roi : plan->rois) ++plan->groups[static_cast<size_t>(roi.group) + 1];
  for (size_t g = 1; g < plan->groups.size(); ++g) plan->groups[g] += plan->groups[g - 1];
  return "";
}

// A few neighbouring channels of one image on one level.
struct Task {
  int64_t level, image, first_channel, channels, group;
};

inline std::vector<Task> MakeTasks(const std::vector<RoIAlignLevel> &levels, int64_t batch, int64_t channels) {
  std::vector<Task> tasks;
  for (size_t level = 0; level < levels.size(); ++level) {
    const int64_t plane = std::max<int64_t>(1, levels[level].height * levels[level].width * 4);
    // planes visited together: the rest of the L2 cache is the RoIs' and the crops'
    const int64_t block = Fitting(CoreCaches().second * 3 / 8, plane, 1, 4, 32);
    for (int64_t image = 0; image < batch; ++image) {
      for (int64_t channel = 0; channel < channels; channel += block) {
        const int64_t level_index = static_cast<int64_t>(level);
        tasks.push_back(
            Task{level_index, image, channel, std::min(block, channels - channel), level_index * batch + image});
      }
    }
  }
  return tasks;
}

// to[0..width) = weighted rows of the window. kTaps: their number where the compiler is to know it; 0: `count`.
template <typename V, int kTaps>
inline __attribute__((always_inline)) void CombineVectors(const float *window, int64_t stride, const RowTap *taps,
                                                          int64_t count, float *to) {
  V sum = {};
  for (int64_t t = 0; t < (kTaps > 0 ? kTaps : count); ++t) {
    V row;
    Load(window + taps[t].row * stride, &row);
    sum += row * taps[t].weight;
  }
  Store(sum, to);
}

template <int kTaps>
inline void CombineRows(const float *window, int64_t stride, const RowTap *taps, int64_t count, int64_t width,
                        float *to) {
  int64_t x = 0;
  for (; x + kLanes <= width; x += kLanes) CombineVectors<Floats, kTaps>(window + x, stride, taps, count, to + x);
  for (; kLanes > 8 && x + 8 <= width; x += 8) {
    CombineVectors<Floats8, kTaps>(window + x, stride, taps, count, to + x);
  }
  for (; x < width; ++x) {
    float sum = 0.0f;
    for (int64_t t = 0; t < count; ++t) sum += window[taps[t].row * stride + x] * taps[t].weight;
    to[x] = sum;
  }
}

inline void CombineRows(const float *window, int64_t stride, const RowTap *taps, int64_t count, int64_t width,
                        float *to) {
  // 2 x 2 samples touch 2 to 4 rows.
  if (count == 4) return CombineRows<4>(window, stride, taps, count, width, to);
  if (count == 3) return CombineRows<3>(window, stride, taps, count, width, to);
  if (count == 2) return CombineRows<2>(window, stride, taps, count, width, to);
  return CombineRows<0>(window, stride, taps, count, width, to);
}

// From (out, width) rows to (out, out) bins: each output column takes a few weighted cells of its row.
class ColumnStep {
 public:
  ColumnStep(int64_t out, const Plan &plan)
      : out_(out),
        plan_(plan),
        offsets_(static_cast<size_t>(std::max(out * out, kLanes) * plan.max_column_taps)),
        weights_(offsets_.size()) {}

  void Set(const PlannedRoI &roi) {
    taps_ = roi.column_taps;
    width_ = roi.width;
    permute_ = kCanPermute && out_ <= kLanes && width_ <= 2 * kLanes;
    // Permuted, each row is on its own and has kLanes slots a tap, of which the last are not used.
    const int64_t rows = permute_ ? 1 : out_;
    const int64_t slots = permute_ ? kLanes : out_ * out_;
    for (int64_t tap = 0; tap < taps_; ++tap) {
      const int32_t *offsets = plan_.column_offsets.data() + roi.column_begin + tap * out_;
      const float *weights = plan_.column_weights.data() + roi.column_begin + tap * out_;
      for (int64_t row = 0; row < rows; ++row) {
        const int64_t slot = tap * slots + row * out_;
        for (int64_t x = 0; x < out_; ++x) {
          offsets_[static_cast<size_t>(slot + x)] = offsets[x] + static_cast<int32_t>(row * width_);
        }
        std::copy_n(weights, out_, weights_.data() + slot);
      }
    }
  }

  // `rows` is followed by 2 * kLanes floats that may be read.
  inline __attribute__((always_inline)) void Run(const float *rows, float *to) const {
    if (permute_) {
      if (taps_ == 4) return Permute<4>(rows, to);
      return Permute<0>(rows, to);
    }
    const int64_t bins = out_ * out_;
    for (int64_t bin = 0; bin < bins; ++bin) to[bin] = 0.0f;
    for (int64_t tap = 0; tap < taps_; ++tap) {
      const int32_t *offset = offsets_.data() + tap * bins;
      const float *weight = weights_.data() + tap * bins;
      for (int64_t bin = 0; bin < bins; ++bin) to[bin] += rows[offset[bin]] * weight[bin];
    }
  }

 private:
#ifdef __AVX512F__
  static constexpr bool kCanPermute = true;  // any 16 of 32 floats in one instruction

  // kTaps: taps known at compile time, kept in registers; 0: any number.
  template <int kTaps>
  void Permute(const float *rows, float *to) const {
    float result[kLanes * (kLanes + 1)];
    const int64_t taps = kTaps > 0 ? kTaps : taps_;
    Ints offsets[kTaps > 0 ? kTaps : 1];
    Floats weights[kTaps > 0 ? kTaps : 1];
    for (int tap = 0; tap < kTaps; ++tap) {
      std::memcpy(&offsets[tap], offsets_.data() + tap * kLanes, sizeof(Ints));
      Load(weights_.data() + tap * kLanes, &weights[tap]);
    }
    for (int64_t y = 0; y < out_; ++y) {
      Floats low, high, sum = {};
      Load(rows + y * width_, &low);
      Load(rows + y * width_ + kLanes, &high);
      for (int64_t tap = 0; tap < taps; ++tap) {
        if (kTaps == 0) {
          std::memcpy(&offsets[0], offsets_.data() + tap * kLanes, sizeof(Ints));
          Load(weights_.data() + tap * kLanes, &weights[0]);
        }
        const int64_t t = kTaps > 0 ? tap : 0;
        sum += Floats(_mm512_permutex2var_ps(__m512(low), __m512i(offsets[t]), __m512(high))) * weights[t];
      }
      Store(sum, result + y * out_);  // the lanes past `out` are the next row's, or the spare room
    }
    std::memcpy(to, result, static_cast<size_t>(out_ * out_) * sizeof(float));
  }
#else
  static constexpr bool kCanPermute = false;

  template <int kTaps>
  void Permute(const float *, float *) const {}
#endif

  const int64_t out_;
  const Plan &plan_;
  int64_t taps_ = 0, width_ = 0;
  bool permute_ = false;
  std::vector<int32_t> offsets_;
  std::vector<float> weights_;
};

// row[0..width) += from[0..width) * weight
inline void AddScaled(const float *from, float weight, int64_t width, float *row) {
  int64_t x = 0;
  for (; x + kLanes <= width; x += kLanes) {
    Floats a, b;
    Load(row + x, &a);
    Load(from + x, &b);
    a += b * weight;
    Store(a, row + x);
  }
  for (; kLanes > 8 && x + 8 <= width; x += 8) {
    Floats8 a, b;
    Load(row + x, &a);
    Load(from + x, &b);
    a += b * weight;
    Store(a, row + x);
  }
  for (; x < width; ++x) row[x] += from[x] * weight;
}

// to[0..width) = sum over columns c of gradient[c] * spread[c][0..width)
template <typename V>
inline void SpreadColumns(const float *gradient, const float *spread, int64_t columns, int64_t width, float *to) {
  V sum = {};
  for (int64_t c = 0; c < columns; ++c) {
    V row;
    Load(spread + c * width, &row);
    sum += row * gradient[c];
  }
  Store(sum, to);
}

inline void SpreadColumns(const float *gradient, const float *spread, int64_t columns, int64_t width, float *to) {
  int64_t x = 0;
  for (; x + kLanes <= width; x += kLanes) SpreadColumns<Floats>(gradient, spread + x, columns, width, to + x);
  for (; kLanes > 8 && x + 8 <= width; x += 8) {
    SpreadColumns<Floats8>(gradient, spread + x, columns, width, to + x);
  }
  for (; x < width; ++x) {
    float sum = 0.0f;
    for (int64_t c = 0; c < columns; ++c) sum += gradient[c] * spread[c * width + x];
    to[x] = sum;
  }
}

}  // namespace roi_align_internal

// output: (count, channels, out, out). features[l]: (batch, channels, height_l, width_l). rois: (count, 5) rows of
// image, x1, y1, x2, y2 in canvas pixels. roi_levels: (count,); a negative one gives zeros.
// Returns an empty text, or what is wrong with the input (then the output is not defined).
inline std::string RoIAlignForward(const RoIAlignOptions &options, const std::vector<RoIAlignLevel> &levels,
                                   const std::vector<const float *> &features, int64_t batch, int64_t channels,
                                   const float *rois, const int32_t *roi_levels, int64_t count, float *output) {
  namespace in = roi_align_internal;
  in::Plan plan;
  const std::string problem = in::MakePlan(options, levels, batch, rois, roi_levels, count, &plan);
  if (!problem.empty()) return problem;
  const int64_t out = options.output_size;
  const int64_t bins = out * out;
  if (plan.rois.size() < static_cast<size_t>(count)) {
    std::vector<bool> seen(static_cast<size_t>(count), false);
    for (const in::PlannedRoI &roi : plan.rois) seen[static_cast<size_t>(roi.index)] = true;
    for (int64_t r = 0; r < count; ++r) {
      if (!seen[static_cast<size_t>(r)]) std::fill_n(output + r * channels * bins, channels * bins, 0.0f);
    }
  }
  const std::vector<in::Task> tasks = in::MakeTasks(levels, batch, channels);
  ParallelFor(static_cast<int64_t>(tasks.size()), NumThreads(), [&](int64_t task_index) {
    const in::Task &task = tasks[static_cast<size_t>(task_index)];
    const int64_t begin = plan.groups[static_cast<size_t>(task.group)];
    const int64_t end = plan.groups[static_cast<size_t>(task.group) + 1];
    if (begin == end) return;
    const RoIAlignLevel &level = levels[static_cast<size_t>(task.level)];
    const int64_t plane = level.height * level.width;
    const float *source =
        features[static_cast<size_t>(task.level)] + (task.image * channels + task.first_channel) * plane;
    in::ColumnStep columns(out, plan);
    std::vector<float> rows(static_cast<size_t>(out * plan.max_width + 2 * kLanes));
    for (int64_t r = begin; r < end; ++r) {
      const in::PlannedRoI &roi = plan.rois[static_cast<size_t>(r)];
      const int32_t *row_ends = plan.row_ends.data() + roi.row_begin;
      const in::RowTap *row_taps = plan.row_taps.data() + roi.row_taps;
      columns.Set(roi);
      for (int64_t c = 0; c < task.channels; ++c) {
        const float *window = source + c * plane + roi.left;
        int64_t tap_begin = 0;
        for (int64_t y = 0; y < out; ++y) {
          const int64_t tap_end = row_ends[y];
          in::CombineRows(window, level.width, row_taps + tap_begin, tap_end - tap_begin, roi.width,
                          rows.data() + y * roi.width);
          tap_begin = tap_end;
        }
        columns.Run(rows.data(), output + (roi.index * channels + task.first_channel + c) * bins);
      }
    }
  });
  return "";
}

// gradients[l]: (batch, channels, height_l, width_l), overwritten, or with `adds` added to. output_gradient: (count,
// channels, out, out).
inline std::string RoIAlignBackward(const RoIAlignOptions &options, const std::vector<RoIAlignLevel> &levels,
                                    const std::vector<float *> &gradients, int64_t batch, int64_t channels,
                                    const float *rois, const int32_t *roi_levels, int64_t count,
                                    const float *output_gradient, bool adds = false) {
  namespace in = roi_align_internal;
  in::Plan plan;
  const std::string problem = in::MakePlan(options, levels, batch, rois, roi_levels, count, &plan);
  if (!problem.empty()) return problem;
  const int64_t out = options.output_size;
  const int64_t bins = out * out;
  const std::vector<in::Task> tasks = in::MakeTasks(levels, batch, channels);
  ParallelFor(static_cast<int64_t>(tasks.size()), NumThreads(), [&](int64_t task_index) {
    const in::Task &task = tasks[static_cast<size_t>(task_index)];
    const RoIAlignLevel &level = levels[static_cast<size_t>(task.level)];
    const int64_t plane = level.height * level.width;
    float *target = gradients[static_cast<size_t>(task.level)] + (task.image * channels + task.first_channel) * plane;
    if (!adds) std::fill_n(target, task.channels * plane, 0.0f);
    const int64_t begin = plan.groups[static_cast<size_t>(task.group)];
    const int64_t end = plan.groups[static_cast<size_t>(task.group) + 1];
    if (begin == end) return;
    std::vector<float> rows(static_cast<size_t>(plan.max_width));
    std::vector<float> spread(static_cast<size_t>(out * plan.max_width));
    for (int64_t r = begin; r < end; ++r) {
      const in::PlannedRoI &roi = plan.rois[static_cast<size_t>(r)];
      const int32_t *row_ends = plan.row_ends.data() + roi.row_begin;
      const in::RowTap *row_taps = plan.row_taps.data() + roi.row_taps;
      std::fill_n(spread.begin(), out * roi.width, 0.0f);
      for (int64_t tap = 0; tap < roi.column_taps; ++tap) {
        for (int64_t x = 0; x < out; ++x) {
          const size_t slot = roi.column_begin + static_cast<size_t>(tap * out + x);
          spread[static_cast<size_t>(x * roi.width + plan.column_offsets[slot])] += plan.column_weights[slot];
        }
      }
      for (int64_t c = 0; c < task.channels; ++c) {
        float *window = target + c * plane + roi.left;
        const float *from = output_gradient + (roi.index * channels + task.first_channel + c) * bins;
        int64_t tap = 0;
        for (int64_t y = 0; y < out; ++y) {
          if (tap == row_ends[y]) continue;
          in::SpreadColumns(from + y * out, spread.data(), out, roi.width, rows.data());
          for (; tap < row_ends[y]; ++tap) {
            in::AddScaled(rows.data(), row_taps[tap].weight, roi.width, window + row_taps[tap].row * level.width);
          }
        }
      }
    }
  });
  return "";
}

}  // namespace rcnn

#endif  // RCNN_ROI_ALIGN_H_
