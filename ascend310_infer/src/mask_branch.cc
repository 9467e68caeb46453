// Masks (Mask R-CNN).
#include <algorithm>
#include <cmath>

#include "branch.h"
#include "mask_head.h"
#include "sidecar_reader.h"

namespace rcnn {

namespace {

float Sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

class MaskBranch : public Branch {
 public:
  explicit MaskBranch(const SidecarReader &from) : roi_(from.Roi("mask_roi")) {
    const Json &all = from.All(), &paste = all.At("mask_paste");
    side_ = paste.Integer("size", 2, 256);
    convention_ = SidecarReader::OneOf(paste, "convention", {"torchvision", "grid"});
    threshold_ = paste.Number("threshold", 0, 1);
    from.Demand(side_ == 2 * roi_.out_size, "mask_paste.size, and mask_roi.out_size");
    if (from.Stages() > 0) average_probabilities_ = all.At("cascade").Text("average_masks") == "probabilities";
    classes_ = static_cast<int64_t>(all.List("classes").size());
    if (from.IsWhole()) return;
    graphs_ = from.Files("mask");
    weights_ = from.Files("mask_weights");
  }

  Port Output() const override { return {"masks", {side_, side_}}; }
  Field Result() const override { return {"mask", "u1", {side_, side_}, true}; }
  size_t Maps() const override { return roi_.strides.size(); }

  void Encode(const float *values, const Box &, const Scale &, std::vector<uint8_t> *to) const override {
    for (int64_t c = 0; c < side_ * side_; ++c) to->push_back(static_cast<uint8_t>(std::lrintf(255.0f * values[c])));
  }

  std::string SummaryText() const override {
    return "\"mask_paste\": {\"convention\": " + Quoted(convention_) + ", \"threshold\": " + Decimals(threshold_) + "}";
  }

  std::unique_ptr<BranchHeads> Load(const Device &device) const override { return Heads(!device.ascend, device); }

  std::vector<std::pair<std::string, std::unique_ptr<BranchHeads>>> LoadAll(const Device &device) const override {
    std::vector<std::pair<std::string, std::unique_ptr<BranchHeads>>> out;
    out.emplace_back("mask head graph", Heads(false, device));
    out.emplace_back("mask head", Heads(true, device));
    return out;
  }

 private:
  friend class MaskHeads;

  std::unique_ptr<BranchHeads> Heads(bool on_host, const Device &device) const;

  const RoiSettings roi_;
  int64_t side_ = 0, classes_ = 0;
  std::string convention_;
  double threshold_ = 0;
  bool average_probabilities_ = false;
  std::vector<ModelFile> graphs_, weights_;
};

class MaskHeads : public BranchHeads {
 public:
  MaskHeads(const MaskBranch &branch, std::vector<std::unique_ptr<MaskHead>> heads)
      : branch_(branch), heads_(std::move(heads)) {}

  std::vector<float> Run(const Pyramid &pyramid, const std::vector<Box> &boxes, const std::vector<int32_t> &labels,
                         StageTimes *times) override {
    const int64_t cells = branch_.side_ * branch_.side_;
    std::vector<float> total(boxes.size() * static_cast<size_t>(cells), 0.0f);
    std::vector<float> logits(total.size());
    for (const auto &head : heads_) {
      InParts(boxes, head->MostRois(), [&](const std::vector<Box> &part, int64_t first, int64_t number) {
        const int64_t channels = head->Channels();
        pyramid.Align(part, branch_.roi_, channels, head->Input(number, branch_.roi_.out_size), times);
        const Timed timed(times, "mask_head");
        head->Run(labels.data() + first, branch_.classes_, logits.data() + first * cells);
      });
      const Timed timed(times, "masks");
      for (size_t i = 0; i < total.size(); ++i) {
        total[i] += branch_.average_probabilities_ ? Sigmoid(logits[i]) : logits[i];
      }
    }
    const Timed timed(times, "masks");
    const auto heads = static_cast<float>(heads_.size());
    for (float &v : total) v = branch_.average_probabilities_ ? v / heads : Sigmoid(v / heads);
    return total;
  }

  size_t Stages() const override { return heads_.size(); }

  double Check(const ReferenceCase &c) override {
    MaskHead *head = heads_[c.stage].get();
    const int64_t count = c.shape[0], side = c.shape.back(), cells = 4 * side * side;
    const auto most = static_cast<int64_t>(head->MostRois());
    if (c.shape != Shape{count, head->Channels(), side, side} || c.outputs.size() != 1 ||
        c.outputs[0].shape != Shape{count, 2 * side, 2 * side}) {
      return INFINITY;
    }
    const std::vector<float> input = ReferenceInput(c);
    const int64_t each = c.shape[1] * side * side;
    std::vector<float> logits(static_cast<size_t>(count * cells));
    for (int64_t first = 0; first < count; first += most) {
      const int64_t number = std::min(most, count - first);
      std::copy_n(input.data() + first * each, number * each, head->Input(number, side));
      std::vector<int32_t> labels;
      for (int64_t r = first; r < first + number; ++r) labels.push_back(static_cast<int32_t>(r % branch_.classes_));
      head->Run(labels.data(), branch_.classes_, logits.data() + first * cells);
    }
    return Difference(c.outputs[0], logits.data());
  }

 private:
  const MaskBranch &branch_;
  const std::vector<std::unique_ptr<MaskHead>> heads_;
};

std::unique_ptr<BranchHeads> MaskBranch::Heads(bool on_host, const Device &device) const {
  std::vector<std::unique_ptr<MaskHead>> heads;
  for (size_t i = 0; i < graphs_.size(); ++i) {
    // heads with group norm come without weights for the host's own
    const bool own = on_host && i < weights_.size();
    heads.push_back(own ? MakeHostMaskHead(weights_[i]) : MakeGraphMaskHead(graphs_[i], device));
  }
  return std::make_unique<MaskHeads>(*this, std::move(heads));
}

}  // namespace

// Sidecars of every detector say whether there are masks.
std::shared_ptr<const Branch> ReadMask(const SidecarReader &from, bool has) {
  const Json &all = from.All();
  from.Demand(all.Bool("with_mask") == has, "with_mask, and the detector");
  for (const char *part : {"mask_roi", "mask_paste"}) {
    from.Demand(all.Has(part) == has, std::string(part) + ", and with_mask");
  }
  int64_t heads = has ? 1 : 0;
  if (const int64_t stages = from.Stages(); stages > 0) {
    const Json &cascade = all.At("cascade");
    SidecarReader::OneOf(cascade, "average_masks", {"logits", "probabilities"});
    heads = cascade.Integer("mask_heads", 0, 100);
    from.Demand(has ? heads == 1 || heads == stages : heads == 0, "cascade.mask_heads, stages and with_mask");
  }
  if (!from.IsWhole()) {
    for (const char *files : {"mask", "mask_weights"}) {
      const auto count = static_cast<int64_t>(from.Files(files).size());
      from.Demand(count == heads || (count == 0 && std::string(files) == "mask_weights"),
                  "files." + std::string(files) + ", one for each mask head");
    }
  }
  return has ? std::make_shared<MaskBranch>(from) : nullptr;
}

}  // namespace rcnn
