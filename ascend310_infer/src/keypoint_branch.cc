// Keypoints (Keypoint R-CNN).
#include <algorithm>
#include <cmath>
#include <cstring>

#include "branch.h"
#include "json.h"
#include "keypoints.h"
#include "sidecar_reader.h"

namespace rcnn {

namespace {

constexpr int64_t kTimes = 4;  // a heatmap's side, of the side of its RoI features
// Pixels of the canvas. Corners on its edge were whole numbers before they were divided and multiplied by a scale, and
// a side's fraction decides how far a map is enlarged.
constexpr float kNear = 1e-3f;
constexpr size_t kBoxesAtOnce = 32;  // the network's memory grows with them, and they are hardly faster together

class KeypointBranch : public Branch {
 public:
  explicit KeypointBranch(const SidecarReader &from) : roi_(from.Roi("keypoint_roi")) {
    const Json &about = from.All().At("keypoints");
    for (const Json &name : about.List("names")) names_.push_back(name.AsText());
    if (names_.empty()) about.At("names").Wrong("a list with anything in it");
    side_ = about.Integer("size", 4, 512);
    from.Demand(side_ == kTimes * roi_.out_size, "keypoints.size, and keypoint_roi.out_size");
    half_pixel_ = about.Bool("half_pixel");
    as_probability_ = SidecarReader::OneOf(about, "score", {"logit", "probability"}) == "probability";
    if (from.IsWhole()) return;
    const std::vector<ModelFile> graphs = from.Files("keypoint");
    from.Demand(graphs.size() == 1, "files.keypoint, one for each keypoint head");
    graph_ = graphs[0];
  }

  Port Output() const override { return {"heatmaps", {Count(), side_, side_}}; }
  Field Result() const override { return {"keypoint", "f4", {Count(), 3}}; }
  size_t Maps() const override { return roi_.strides.size(); }

  void Encode(const float *values, const Box &box, const Scale &scale, std::vector<uint8_t> *to) const override {
    Box found{};
    for (size_t i = 0; i < 4; ++i) {
      const float corner = box[i] * scale[i % 2], nearest = std::nearbyint(corner);
      found[i] = std::abs(corner - nearest) < kNear ? nearest : corner;
    }
    const float shift = half_pixel_ ? 0.5f : 0.0f;
    for (const Keypoint &point : FindKeypoints(values, Count(), side_, found, as_probability_)) {
      const float numbers[] = {point.x / scale[0] - shift, point.y / scale[1] - shift, point.score};
      uint8_t bytes[sizeof(numbers)];
      std::memcpy(bytes, numbers, sizeof(numbers));
      to->insert(to->end(), bytes, bytes + sizeof(bytes));
    }
  }

  std::string SummaryText() const override {
    std::string names;
    for (const std::string &name : names_) names += (names.empty() ? "" : ", ") + Quoted(name);
    return "\"keypoints\": {\"names\": [" + names + "]}";
  }

  std::unique_ptr<BranchHeads> Load(const Device &device) const override;

  std::vector<std::pair<std::string, std::unique_ptr<BranchHeads>>> LoadAll(const Device &device) const override {
    std::vector<std::pair<std::string, std::unique_ptr<BranchHeads>>> out;
    out.emplace_back("keypoint head", Load(device));
    return out;
  }

 private:
  friend class KeypointHeads;

  int64_t Count() const { return static_cast<int64_t>(names_.size()); }

  const RoiSettings roi_;
  std::vector<std::string> names_;
  int64_t side_ = 0;
  bool half_pixel_ = false, as_probability_ = false;
  ModelFile graph_;
};

// map (side, side) -> to (2 side, 2 side), bilinearly between the cells' centres; beyond the outermost they repeat.
void EnlargeTwice(const float *map, int64_t side, float *to) {
  const auto nearer = [](int64_t i) { return i / 2; };
  const auto farther = [side](int64_t i) { return std::clamp<int64_t>(i / 2 + (i % 2 == 0 ? -1 : 1), 0, side - 1); };
  for (int64_t y = 0; y < 2 * side; ++y) {
    const float *near = map + nearer(y) * side, *far = map + farther(y) * side;
    for (int64_t x = 0; x < 2 * side; ++x) {
      const float at = 0.75f * near[nearer(x)] + 0.25f * far[nearer(x)];
      const float beside = 0.75f * near[farther(x)] + 0.25f * far[farther(x)];
      to[y * 2 * side + x] = 0.75f * at + 0.25f * beside;
    }
  }
}

class KeypointHeads : public BranchHeads {
 public:
  KeypointHeads(const KeypointBranch &branch, const Device &device)
      : branch_(branch), graph_(branch.graph_, "MINDIR", device) {}

  std::vector<float> Run(const Pyramid &pyramid, const std::vector<Box> &boxes, const std::vector<int32_t> &,
                         StageTimes *times) override {
    const int64_t each = branch_.Count() * branch_.side_ * branch_.side_;
    std::vector<float> out(boxes.size() * static_cast<size_t>(each));
    InParts(boxes, kBoxesAtOnce, [&](const std::vector<Box> &part, int64_t first, int64_t count) {
      const int64_t side = branch_.roi_.out_size;
      graph_.SetShapes({{count, Channels(), side, side}});
      pyramid.Align(part, branch_.roi_, Channels(), graph_.Input<float>(0), times);
      const Timed timed(times, "keypoint_head");
      RunGraph(count, side, out.data() + first * each);
    });
    return out;
  }

  size_t Stages() const override { return 1; }

  double Check(const ReferenceCase &c) override {
    const int64_t count = c.shape[0], side = c.shape.back(), large = kTimes * side, maps = branch_.Count();
    if (c.shape != Shape{count, Channels(), side, side} || c.outputs.size() != 1 ||
        c.outputs[0].shape != Shape{count, maps, large, large}) {
      return INFINITY;
    }
    const std::vector<float> input = ReferenceInput(c);
    const int64_t each = c.shape[1] * side * side, most = kBoxesAtOnce;
    std::vector<float> out(static_cast<size_t>(count * maps * large * large));
    for (int64_t first = 0; first < count; first += most) {
      const int64_t number = std::min(most, count - first);
      graph_.SetShapes({{number, Channels(), side, side}});
      std::copy_n(input.data() + first * each, number * each, graph_.Input<float>(0));
      RunGraph(number, side, out.data() + first * maps * large * large);
    }
    return Difference(c.outputs[0], out.data());
  }

 private:
  int64_t Channels() const {
    const Shape wanted = graph_.InputShape(0);
    return wanted.size() == 4 ? wanted[1] : 0;
  }

  // From the features in the graph's input, (count, channels, side, side), the heatmaps.
  void RunGraph(int64_t count, int64_t side, float *to) {
    graph_.Run();
    graph_.ExpectOutputs(1);
    const int64_t maps = branch_.Count(), small = kTimes / 2 * side, cells = small * small;
    const float *from = graph_.Output<float>(0, {count, maps, small, small});
    for (int64_t m = 0; m < count * maps; ++m) EnlargeTwice(from + m * cells, small, to + 4 * m * cells);
  }

  const KeypointBranch &branch_;
  Graph graph_;
};

std::unique_ptr<BranchHeads> KeypointBranch::Load(const Device &device) const {
  return std::make_unique<KeypointHeads>(*this, device);
}

}  // namespace

std::shared_ptr<const Branch> ReadKeypoint(const SidecarReader &from, bool has) {
  return has ? std::make_shared<KeypointBranch>(from) : nullptr;
}

}  // namespace rcnn
