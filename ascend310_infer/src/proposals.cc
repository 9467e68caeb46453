// Compiled without fused products and sums: the same numbers as in training, on every CPU.
#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>

#include "../../src/ops/csrc/nms.h"
#include "detector.h"

namespace rcnn {

namespace {

Box Decode(const float *deltas, int64_t step, const Box &reference, const BoxCoder &coder, const Bounds &bounds) {
  float d[4];
  for (int i = 0; i < 4; ++i) {
    d[i] = deltas[i * step] * coder.stds[static_cast<size_t>(i)] + coder.means[static_cast<size_t>(i)];
  }
  const float side_x = reference[2] - reference[0], side_y = reference[3] - reference[1];
  const float centre_x = d[0] * side_x + (reference[0] + 0.5f * side_x);
  const float centre_y = d[1] * side_y + (reference[1] + 0.5f * side_y);
  const auto clamped = [&coder](float v) { return std::max(std::min(v, coder.max_log), coder.min_log); };
  const float half_x = 0.5f * (std::exp(clamped(d[2])) * side_x);
  const float half_y = 0.5f * (std::exp(clamped(d[3])) * side_y);
  const auto width = static_cast<float>(bounds.width), height = static_cast<float>(bounds.height);
  const float pixel = bounds.plus_one ? 1.0f : 0.0f;
  const auto clip = [](float v, float least, float most) { return std::max(std::min(v, most), least); };
  return {clip(centre_x - half_x, 0.0f, width - pixel), clip(centre_y - half_y, 0.0f, height - pixel),
          clip(centre_x + half_x, pixel, width), clip(centre_y + half_y, pixel, height)};
}

float Sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

bool LargeEnough(const Box &box, float least) { return box[2] - box[0] >= least && box[3] - box[1] >= least; }

// Indices of the kept, best first. scores and groups as long as boxes, all of them valid.
std::vector<int32_t> Nms(const std::vector<Box> &boxes, const std::vector<float> &scores,
                         const std::vector<int32_t> &groups, const NmsSettings &settings) {
  const size_t most = static_cast<size_t>(settings.max_per_img);
  const std::vector<int32_t> one(groups.size(), 0);
  std::vector<int32_t> indices(most);
  const auto valid = std::make_unique<bool[]>(boxes.size());
  const auto kept = std::make_unique<bool[]>(most);
  std::fill_n(valid.get(), boxes.size(), true);
  Suppress(boxes.empty() ? nullptr : boxes[0].data(), scores.data(), (settings.across_groups ? one : groups).data(),
           valid.get(), static_cast<int64_t>(boxes.size()), settings.iou_threshold, settings.max_per_img,
           indices.data(), kept.get());
  indices.resize(static_cast<size_t>(std::count(kept.get(), kept.get() + most, true)));
  return indices;
}

// The places of the `most` largest values, largest first, equal ones in order; what is no number comes nowhere.
template <typename Value>
std::vector<int64_t> Largest(const std::vector<Value> &values, int64_t most) {
  std::vector<int64_t> order;
  order.reserve(values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    if (!std::isnan(values[i])) order.push_back(static_cast<int64_t>(i));
  }
  const auto before = [&values](int64_t a, int64_t b) {
    const Value va = values[static_cast<size_t>(a)], vb = values[static_cast<size_t>(b)];
    return va > vb || (va == vb && a < b);
  };
  const auto end = order.begin() + std::min<int64_t>(most, static_cast<int64_t>(order.size()));
  if (end != order.end()) std::nth_element(order.begin(), end, order.end(), before);
  order.erase(end, order.end());
  std::sort(order.begin(), order.end(), before);
  return order;
}

}  // namespace

std::vector<Box> MakeProposals(const std::vector<RpnLevel> &levels, const BoxCoder &coder, const NmsSettings &settings,
                               float score_thr, const Ranking &ranking, const Bounds &bounds) {
  std::vector<Box> boxes;
  std::vector<float> scores;
  std::vector<int32_t> groups;
  for (size_t l = 0; l < levels.size(); ++l) {
    const RpnLevel &level = levels[l];
    const auto each = static_cast<int64_t>(level.base_anchors->size());
    const int64_t rows = level.rows, columns = level.columns;
    const int64_t plane = level.height * level.width;
    std::vector<float> ranked;
    ranked.reserve(static_cast<size_t>(rows * columns * each));
    for (int64_t y = 0; y < rows; ++y) {
      for (int64_t x = 0; x < columns; ++x) {
        for (int64_t a = 0; a < each; ++a) {
          const float logit = level.logits[a * plane + y * level.width + x];
          ranked.push_back(ranking.level_by_logits ? logit : Sigmoid(logit));
        }
      }
    }
    for (const int64_t place : Largest(ranked, settings.nms_pre)) {
      const int64_t a = place % each, x = place / each % columns, y = place / each / columns;
      const Box &base = (*level.base_anchors)[static_cast<size_t>(a)];
      const auto left = static_cast<float>(x * level.across), top = static_cast<float>(y * level.down);
      const Box anchor = {left + base[0], top + base[1], left + base[2], top + base[3]};
      const float *delta = level.deltas + 4 * a * plane + y * level.width + x;
      const Box box = Decode(delta, plane, anchor, coder, bounds);
      if (!LargeEnough(box, settings.min_bbox_size)) continue;
      const float value = ranked[static_cast<size_t>(place)];
      if ((ranking.level_by_logits ? Sigmoid(value) : value) < score_thr) continue;
      boxes.push_back(box);
      scores.push_back(ranking.level_by_logits && !ranking.nms_by_logits ? Sigmoid(value) : value);
      groups.push_back(static_cast<int32_t>(l));
    }
  }
  std::vector<Box> out;
  for (const int32_t i : Nms(boxes, scores, groups, settings)) out.push_back(boxes[static_cast<size_t>(i)]);
  return out;
}

Detections MakeDetections(const std::vector<float> &scores, const float *deltas, bool class_agnostic, int64_t classes,
                          const std::vector<Box> &proposals, const BoxCoder &coder, const NmsSettings &settings,
                          float score_thr, const Bounds &bounds) {
  std::vector<float> pair_scores;
  std::vector<int64_t> pairs;
  for (size_t i = 0; i < scores.size(); ++i) {
    if (static_cast<int64_t>(i) % classes == 0 || !(scores[i] > score_thr)) continue;
    pairs.push_back(static_cast<int64_t>(i));
    pair_scores.push_back(scores[i]);
  }
  std::vector<Box> boxes;
  std::vector<float> kept_scores;
  std::vector<int32_t> labels;
  for (const int64_t place : Largest(pair_scores, settings.nms_pre)) {
    const int64_t pair = pairs[static_cast<size_t>(place)], row = pair / classes, label = pair % classes;
    const float *delta = deltas + (class_agnostic ? row * 4 : (row * classes + label) * 4);
    const Box box = Decode(delta, 1, proposals[static_cast<size_t>(row)], coder, bounds);
    if (!LargeEnough(box, settings.min_bbox_size)) continue;
    boxes.push_back(box);
    kept_scores.push_back(pair_scores[static_cast<size_t>(place)]);
    labels.push_back(static_cast<int32_t>(label));
  }
  Detections out;
  for (const int32_t index : Nms(boxes, kept_scores, labels, settings)) {
    const auto i = static_cast<size_t>(index);
    if (!HasArea(boxes[i])) continue;
    out.boxes.push_back(boxes[i]);
    out.scores.push_back(kept_scores[i]);
    out.labels.push_back(labels[i]);
  }
  return out;
}

std::vector<Box> RefineBoxes(const float *logits, const float *deltas, bool class_agnostic, int64_t classes,
                             const std::vector<Box> &boxes, const BoxCoder &coder, const Bounds &bounds) {
  std::vector<Box> out;
  out.reserve(boxes.size());
  for (size_t i = 0; i < boxes.size(); ++i) {
    const auto row = static_cast<int64_t>(i);
    const float *own = logits + row * classes;
    const int64_t label = std::max_element(own + 1, own + classes) - own;
    const float *delta = deltas + (class_agnostic ? row * 4 : (row * classes + label) * 4);
    out.push_back(Decode(delta, 1, boxes[i], coder, bounds));
  }
  return out;
}

void Softmax(const float *logits, int64_t rows, int64_t columns, float *probabilities) {
  for (int64_t r = 0; r < rows; ++r) {
    const float *from = logits + r * columns;
    float *to = probabilities + r * columns;
    const float most = *std::max_element(from, from + columns);
    float sum = 0;
    for (int64_t i = 0; i < columns; ++i) sum += to[i] = std::exp(from[i] - most);
    for (int64_t i = 0; i < columns; ++i) to[i] /= sum;
  }
}

std::vector<int32_t> RoiLevels(const std::vector<Box> &boxes, const RoiSettings &settings) {
  std::vector<int32_t> out;
  for (const Box &box : boxes) {
    const float side = std::sqrt((box[2] - box[0]) * (box[3] - box[1]));
    out.push_back(static_cast<int32_t>(std::count_if(settings.level_sides.begin(), settings.level_sides.end(),
                                                     [side](float least) { return side >= least; })));
  }
  return out;
}

}  // namespace rcnn
