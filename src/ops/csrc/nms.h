// Greedy non-maximum suppression within groups. No MindSpore dependency.
//
// Compile without fused products and sums (-ffp-contract=off): a box's IoU must be the same number in a vector loop, in
// that loop's remainder and on another CPU.
#ifndef RCNN_OPS_NMS_H_
#define RCNN_OPS_NMS_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <unordered_map>
#include <vector>

namespace rcnn {

namespace nms_internal {

// The kept boxes of one group, coordinate by coordinate: a candidate is compared with kBlock of them at a time.
struct Group {
  std::vector<float> x1, y1, x2, y2, area;
};

constexpr size_t kBlock = 32;

inline bool Suppressed(const Group &group, float x1, float y1, float x2, float y2, float area, float threshold) {
  const size_t size = group.area.size();
  const float *gx1 = group.x1.data(), *gy1 = group.y1.data(), *gx2 = group.x2.data(), *gy2 = group.y2.data();
  const float *garea = group.area.data();
  size_t i = 0;
  for (; i + kBlock <= size; i += kBlock) {
    int any = 0;
    for (size_t j = i; j < i + kBlock; ++j) {
      const float width = std::max(0.0f, std::min(x2, gx2[j]) - std::max(x1, gx1[j]));
      const float height = std::max(0.0f, std::min(y2, gy2[j]) - std::max(y1, gy1[j]));
      const float inter = width * height;
      any |= static_cast<int>(inter / (garea[j] + area - inter) > threshold);
    }
    if (any != 0) return true;
  }
  for (; i < size; ++i) {
    const float width = std::max(0.0f, std::min(x2, gx2[i]) - std::max(x1, gx1[i]));
    const float height = std::max(0.0f, std::min(y2, gy2[i]) - std::max(y1, gy1[i]));
    const float inter = width * height;
    if (inter / (garea[i] + area - inter) > threshold) return true;
  }
  return false;
}

}  // namespace nms_internal

// One image: boxes (count, 4), scores, groups and valid (count,); indices and kept (most,), best score first, zero past
// the last one kept.
inline void Suppress(const float *boxes, const float *scores, const int32_t *groups, const bool *valid, int64_t count,
                     float threshold, int64_t most, int32_t *indices, bool *kept) {
  std::vector<int32_t> order;
  order.reserve(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    // A score that is not a number has no place in the order, and would break the sort.
    if (valid[i] && !std::isnan(scores[i])) order.push_back(static_cast<int32_t>(i));
  }
  std::sort(order.begin(), order.end(),
            [scores](int32_t a, int32_t b) { return scores[a] > scores[b] || (scores[a] == scores[b] && a < b); });
  std::unordered_map<int32_t, size_t> places;
  std::vector<nms_internal::Group> kept_boxes;
  int64_t found = 0;
  for (const int32_t index : order) {
    if (found == most) break;
    const auto place = places.emplace(groups[index], kept_boxes.size());
    if (place.second) kept_boxes.emplace_back();
    nms_internal::Group &group = kept_boxes[place.first->second];
    const float *box = boxes + static_cast<int64_t>(index) * 4;
    const float area = (box[2] - box[0]) * (box[3] - box[1]);
    if (nms_internal::Suppressed(group, box[0], box[1], box[2], box[3], area, threshold)) continue;
    group.x1.push_back(box[0]);
    group.y1.push_back(box[1]);
    group.x2.push_back(box[2]);
    group.y2.push_back(box[3]);
    group.area.push_back(area);
    indices[found] = index;
    kept[found] = true;
    ++found;
  }
  std::fill(indices + found, indices + most, 0);
  std::fill(kept + found, kept + most, false);
}

}  // namespace rcnn

#endif  // RCNN_OPS_NMS_H_
