#include "detector.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "../../src/ops/roi_align/csrc/roi_align.h"
#include "branch.h"
#include "files.h"
#include "reference.h"

namespace rcnn {

namespace {

// Pixels of the canvas a pixel of the file, (x, y).
Scale ScaleOf(const Prepared &image) {
  return {static_cast<float>(image.picture.width) / static_cast<float>(image.width),
          static_cast<float>(image.picture.height) / static_cast<float>(image.height)};
}

// In place, from canvas to file pixels.
void ToFilePixels(const Prepared &image, std::vector<Box> *boxes) {
  const Scale scale = ScaleOf(image);
  for (Box &box : *boxes) {
    for (size_t i = 0; i < 4; ++i) box[i] /= scale[i % 2];
  }
}

// NAME-upright.cfg of NAME.cfg, as src/export/sidecar.py's upright_path has it.
std::string UprightName(const std::string &path) {
  const size_t slash = path.rfind('/'), start = slash == std::string::npos ? 0 : slash + 1, dot = path.rfind('.');
  const size_t end = dot == std::string::npos || dot <= start ? path.size() : dot;
  return path.substr(0, end) + "-upright" + path.substr(end);
}

// The graph of each canvas. That of the other orientation is loaded when the first picture needs it, as a folder may
// hold none, and both take twice the memory. Then it stays, as pictures alternate.
class CanvasGraphs {
 public:
  // own: of the sidecar's canvas. Throws UserError, also where the other one's file can't be read.
  CanvasGraphs(const Sidecar &sidecar, const ModelFile &own, const Device &device)
      : sidecar_(sidecar), device_(device), upright_(sidecar.height > sidecar.width) {
    if (!device.aipp.empty() && sidecar.resize.filter == Filter::kUnrounded) {
      throw UserError(sidecar.path +
                      ": resize_filter is unrounded, and AIPP takes whole grey levels alone; run it without "
                      "--aipp_config, or export the model with --resize_filter bilinear");
    }
    if (sidecar.Turns()) {
      ReadChecked(sidecar.turned);
      if (!device.aipp.empty()) ReadFile(UprightName(device.aipp), "AIPP configuration");
    }
    Load(own, upright_);
  }

  Graph *For(const Canvas &canvas, StageTimes *times) {
    const bool upright = sidecar_.Turns() ? canvas.IsUpright() : upright_;
    if (graphs_[upright] == nullptr) {
      const Timed timed(times, "loading");
      Load(sidecar_.turned, upright);
    }
    return graphs_[upright].get();
  }

 private:
  void Load(const ModelFile &file, bool upright) {
    Device device = device_;
    if (!device.aipp.empty() && sidecar_.Turns() && upright) device.aipp = UprightName(device.aipp);
    graphs_[upright] = std::make_unique<Graph>(file, sidecar_.file_format, device);
  }

  const Sidecar sidecar_;
  const Device device_;
  const bool upright_;
  std::array<std::unique_ptr<Graph>, 2> graphs_;  // of lying and of upright pictures
};

// ---- the whole graph ------------------------------------------------------------------------------------

class WholeDetector : public Detector {
 public:
  WholeDetector(const Sidecar &sidecar, const Device &device)
      : sidecar_(sidecar), graphs_(sidecar, sidecar.model, device) {}

  std::vector<Detections> Detect(const std::vector<Prepared> &images, StageTimes *times) override {
    const int64_t batch = sidecar_.batch_size, height = images[0].canvas.height, width = images[0].canvas.width;
    const int64_t most = sidecar_.max_per_img;
    const auto &branches = sidecar_.branches;
    Graph &graph = *graphs_.For(images[0].canvas, times);
    {
      const Timed timed(times, "normalise");
      if (graph.TakesBytes()) {
        graph.SetShapes({{batch, height, width, 3}, {batch, 4}});
        FillBytes(images, graph.Input<uint8_t>(0));
      } else {
        graph.SetShapes({{batch, 3, height, width}, {batch, 4}});
        for (size_t i = 0; i < images.size(); ++i) {
          Normalise(images[i].picture, sidecar_.mean, sidecar_.std, height, width,
                    graph.Input<float>(0) + static_cast<int64_t>(i) * 3 * height * width);
        }
        // the last batch may have room left
        const auto used = static_cast<int64_t>(images.size());
        std::fill_n(graph.Input<float>(0) + used * 3 * height * width, (batch - used) * 3 * height * width, 0.0f);
      }
      auto *sizes = graph.Input<float>(1);
      std::fill_n(sizes, batch * 4, 1.0f);
      for (const Prepared &image : images) {
        for (const int64_t v : {image.picture.height, image.picture.width, image.height, image.width}) {
          *sizes++ = static_cast<float>(v);
        }
      }
    }
    {
      const Timed timed(times, "network");
      graph.Run();
    }
    graph.ExpectOutputs(4 + branches.size());
    const auto *boxes = graph.Output<float>(0, {batch, most, 4}), *scores = graph.Output<float>(1, {batch, most});
    const auto *labels = graph.Output<int32_t>(2, {batch, most});
    const auto *valid = graph.Output<uint8_t>(3, {batch, most});
    std::vector<const float *> values;
    std::vector<int64_t> each;
    for (size_t b = 0; b < branches.size(); ++b) {
      Shape shape = {batch, most};
      each.push_back(1);
      for (const int64_t side : branches[b]->Output().shape) {
        shape.push_back(side);
        each.back() *= side;
      }
      values.push_back(graph.Output<float>(4 + b, shape));
    }
    std::vector<Detections> out(images.size());
    for (size_t i = 0; i < images.size(); ++i) {
      out[i].fields.resize(branches.size());
      for (int64_t d = static_cast<int64_t>(i) * most; d < static_cast<int64_t>(i + 1) * most; ++d) {
        const Box box = {boxes[4 * d], boxes[4 * d + 1], boxes[4 * d + 2], boxes[4 * d + 3]};
        if (valid[d] == 0 || !HasArea(box)) continue;
        out[i].boxes.push_back(box);
        out[i].scores.push_back(scores[d]);
        out[i].labels.push_back(labels[d]);
        for (size_t b = 0; b < branches.size(); ++b) {
          branches[b]->Encode(values[b] + d * each[b], out[i].boxes.back(), ScaleOf(images[i]), &out[i].fields[b]);
        }
      }
    }
    return out;
  }

  void SelfCheck() override {
    throw UserError(sidecar_.path + ": only models of the split form carry a reference to check against");
  }

 private:
  // For AIPP, which normalises on the chip: the padding holds the mean, so that it comes out as about zero.
  void FillBytes(const std::vector<Prepared> &images, uint8_t *to) const {
    const int64_t height = images[0].canvas.height, width = images[0].canvas.width;
    for (int64_t i = 0; i < sidecar_.batch_size * height * width * 3; ++i) {
      to[i] = static_cast<uint8_t>(std::lrint(sidecar_.mean[static_cast<size_t>(i % 3)]));
    }
    for (const Prepared &image : images) {
      for (int64_t y = 0; y < image.picture.height; ++y) {
        std::memcpy(to + y * width * 3, image.picture.pixels.data() + y * image.picture.width * 3,
                    static_cast<size_t>(image.picture.width) * 3);
      }
      to += height * width * 3;
    }
  }

  const Sidecar sidecar_;
  CanvasGraphs graphs_;
};

// ---- the split form -------------------------------------------------------------------------------------

constexpr size_t kBoxesAtOnce = 512;  // the network's memory grows with them, and they are no faster together

// Of a level's map along a side of the canvas; a last level that is subsampled by 2 rounds up.
int64_t Cells(const Sidecar &sidecar, int64_t side, size_t level) {
  return (side + sidecar.strides[level] - 1) / sidecar.strides[level];
}

// What the features' graph gave for the image on a canvas.
class Maps : public Pyramid {
 public:
  Maps(const Sidecar &sidecar, Graph *graph, const Canvas &canvas)
      : sidecar_(sidecar), graph_(graph), canvas_(canvas) {}

  const Canvas &Of() const { return canvas_; }
  void ExpectOutputs(size_t count) const { graph_->ExpectOutputs(count); }

  const float *Map(size_t output, int64_t channels, size_t level) const {
    const int64_t rows = Cells(sidecar_, canvas_.height, level), columns = Cells(sidecar_, canvas_.width, level);
    return graph_->Output<float>(output, {1, channels, rows, columns});
  }

  void Align(const std::vector<Box> &boxes, const RoiSettings &roi, int64_t channels, float *to,
             StageTimes *times) const override {
    const Timed timed(times, "roi_align");
    std::vector<float> rois;
    const float end = roi.last_pixel_end ? 1.0f : 0.0f;
    for (const Box &box : boxes) rois.insert(rois.end(), {0.0f, box[0], box[1], box[2] - end, box[3] - end});
    std::vector<RoIAlignLevel> levels;
    std::vector<const float *> maps;
    for (size_t l = 0; l < roi.strides.size(); ++l) {
      levels.push_back({Cells(sidecar_, canvas_.height, l), Cells(sidecar_, canvas_.width, l), roi.strides[l]});
      maps.push_back(Map(l, channels, l));
    }
    const std::string problem =
        RoIAlignForward({roi.out_size, roi.sampling_ratio, roi.aligned}, levels, maps, 1, channels, rois.data(),
                        RoiLevels(boxes, roi).data(), static_cast<int64_t>(boxes.size()), to);
    if (!problem.empty()) throw UserError(sidecar_.path + ": " + problem);
  }

 private:
  const Sidecar &sidecar_;
  Graph *graph_;
  const Canvas canvas_;
};

class SplitDetector : public Detector {
 public:
  SplitDetector(const Sidecar &sidecar, const Device &device) : sidecar_(sidecar), device_(device) {
    // the largest last: what the others' loading needed is free by then
    for (const auto &branch : sidecar_.branches) heads_.push_back(branch->Load(device));
    for (const ModelFile &file : sidecar.boxes) boxes_.push_back(std::make_unique<Graph>(file, "MINDIR", device));
    features_ = std::make_unique<CanvasGraphs>(sidecar, sidecar.features, device);
    StageTimes times;
    CheckInput(features_->For({sidecar.height, sidecar.width}, &times), sidecar.features);
  }

  // Image by image: Lite 2.0 gives wrong numbers, without an error, for small maps of several images on several threads
  // (a level of 3 x 4 cells, 4 images, 2 threads: the last two). Together they would be no faster on a CPU.
  std::vector<Detections> Detect(const std::vector<Prepared> &images, StageTimes *times) override {
    std::vector<Detections> out;
    for (const Prepared &image : images) {
      const auto &[height, width] = image.canvas;
      Graph *features = features_->For(image.canvas, times);
      {
        const Timed timed(times, "normalise");
        CheckInput(features, IsOwn(image.canvas) ? sidecar_.features : sidecar_.turned);
        features->SetShapes({{1, 3, height, width}});
        Normalise(image.picture, sidecar_.mean, sidecar_.std, height, width, features->Input<float>(0));
      }
      {
        const Timed timed(times, "features");
        features->Run();
      }
      out.push_back(DetectOne(image, Maps(sidecar_, features, image.canvas), times));
    }
    return out;
  }

  void SelfCheck() override;

 private:
  static void CheckInput(Graph *features, const ModelFile &file) {
    const Shape shape = features->InputShape(0);
    if (features->Inputs() == 1 && shape.size() == 4 && shape[1] == 3) return;
    throw UserError(file.path + ": takes " + ShapeText(shape) +
                    ", not an image; model and sidecar disagree, export"
                    " again");
  }

  bool IsOwn(const Canvas &canvas) const { return canvas.height == sidecar_.height; }

  // The canvases of the graphs that a reference image is for: of its orientation, or a square one for each.
  std::vector<Canvas> CanvasesLike(const Shape &shape) const {
    const Canvas own{sidecar_.height, sidecar_.width}, other{sidecar_.width, sidecar_.height};
    if (!sidecar_.Turns()) return {own};
    if (shape.size() == 4 && shape[2] != shape[3]) return {sidecar_.CanvasOf(shape[2], shape[3])};
    return {own, other};
  }

  size_t NumMaps() const {
    size_t most = sidecar_.roi.strides.size();
    for (const auto &branch : sidecar_.branches) most = std::max(most, branch->Maps());
    return most;
  }

  // Pixels between anchors (src/models/anchors.py's cell_steps).
  int64_t Step(int64_t side, size_t level) const {
    return sidecar_.grid_strides ? side / Cells(sidecar_, side, level) : sidecar_.strides[level];
  }

  // Cells of a canvas's side that begin in the picture's, or in what that is padded to (src/models/rpn.py).
  int64_t Taken(int64_t side, int64_t picture, size_t level) const {
    const int64_t block = sidecar_.size_divisor, padded = (picture + block - 1) / block * block;
    const int64_t step = Step(side, level);
    return std::min(Cells(sidecar_, side, level), (padded + step - 1) / step);
  }

  std::vector<Box> Proposals(const Maps &maps, const Bounds &bounds) const {
    const size_t levels = sidecar_.strides.size();
    const auto &[height, width] = maps.Of();
    maps.ExpectOutputs(NumMaps() + 2 * levels);
    std::vector<RpnLevel> inputs;
    for (size_t l = 0; l < levels; ++l) {
      const auto each = static_cast<int64_t>(sidecar_.base_anchors[l].size());
      inputs.push_back({maps.Map(NumMaps() + l, each, l), maps.Map(NumMaps() + levels + l, 4 * each, l),
                        Cells(sidecar_, height, l), Cells(sidecar_, width, l), Taken(height, bounds.height, l),
                        Taken(width, bounds.width, l), Step(height, l), Step(width, l), &sidecar_.base_anchors[l]});
    }
    return MakeProposals(inputs, sidecar_.rpn_coder, sidecar_.rpn, sidecar_.rpn_score_thr,
                         {sidecar_.level_by_logits, sidecar_.nms_by_logits}, bounds);
  }

  // A box head's logits and deltas of these boxes.
  void RunBoxHead(const Maps &maps, const std::vector<Box> &boxes, Graph *head, StageTimes *times, float *logits,
                  float *deltas) const {
    const auto classes = static_cast<int64_t>(sidecar_.classes.size());
    const int64_t numbers = sidecar_.class_agnostic ? 4 : 4 * classes;
    InParts(boxes, kBoxesAtOnce, [&](const std::vector<Box> &part, int64_t first, int64_t count) {
      const Shape wanted = head->InputShape(0);
      const int64_t channels = wanted.size() == 4 ? wanted[1] : 0, side = sidecar_.roi.out_size;
      head->SetShapes({{count, channels, side, side}});
      maps.Align(part, sidecar_.roi, channels, head->Input<float>(0), times);
      const Timed timed(times, "box_head");
      head->Run();
      head->ExpectOutputs(2);
      std::copy_n(head->Output<float>(0, {count, classes}), count * classes, logits + first * classes);
      std::copy_n(head->Output<float>(1, {count, numbers}), count * numbers, deltas + first * numbers);
    });
  }

  Detections DetectOne(const Prepared &prepared, const Maps &maps, StageTimes *times) {
    const Bounds bounds{prepared.picture.height, prepared.picture.width, sidecar_.box_plus_one};
    std::vector<Box> boxes;
    {
      const Timed timed(times, "proposals");
      boxes = Proposals(maps, bounds);
    }
    Detections out;
    out.fields.resize(heads_.size());
    if (boxes.empty()) return out;
    const auto classes = static_cast<int64_t>(sidecar_.classes.size()), count = static_cast<int64_t>(boxes.size());
    const int64_t numbers = sidecar_.class_agnostic ? 4 : 4 * classes;
    std::vector<float> logits(static_cast<size_t>(count * classes)), deltas(static_cast<size_t>(count * numbers));
    std::vector<float> total(logits.size(), 0.0f);
    for (size_t stage = 0; stage < boxes_.size(); ++stage) {
      RunBoxHead(maps, boxes, boxes_[stage].get(), times, logits.data(), deltas.data());
      const Timed timed(times, "detections");
      if (stage + 1 < boxes_.size()) {
        boxes = RefineBoxes(logits.data(), deltas.data(), sidecar_.class_agnostic, classes, boxes,
                            sidecar_.stages[stage], bounds);
      }
      if (sidecar_.average_probabilities) Softmax(logits.data(), count, classes, logits.data());
      for (size_t i = 0; i < total.size(); ++i) total[i] += logits[i];
    }
    {
      const Timed timed(times, "detections");
      for (float &v : total) v /= static_cast<float>(boxes_.size());
      if (!sidecar_.average_probabilities) Softmax(total.data(), count, classes, total.data());
      out = MakeDetections(total, deltas.data(), sidecar_.class_agnostic, classes, boxes, sidecar_.stages.back(),
                           sidecar_.rcnn, sidecar_.score_thr, bounds);
    }
    out.fields.resize(heads_.size());
    std::vector<std::vector<float>> values;
    for (size_t b = 0; b < heads_.size() && !out.boxes.empty(); ++b) {
      values.push_back(heads_[b]->Run(maps, out.boxes, out.labels, times));
    }
    ToFilePixels(prepared, &out.boxes);
    for (size_t b = 0; b < values.size(); ++b) Encode(values[b], b, ScaleOf(prepared), times, &out);
    return out;
  }

  // Branch b's values to its field.
  void Encode(const std::vector<float> &values, size_t b, const Scale &scale, StageTimes *times,
              Detections *out) const {
    const Branch &branch = *sidecar_.branches[b];
    const Timed timed(times, branch.Output().name);
    const size_t each = values.size() / out->boxes.size();
    for (size_t d = 0; d < out->boxes.size(); ++d) {
      branch.Encode(&values[d * each], out->boxes[d], scale, &out->fields[b]);
    }
  }

  const Sidecar sidecar_;
  const Device device_;
  std::unique_ptr<CanvasGraphs> features_;
  std::vector<std::unique_ptr<Graph>> boxes_;
  std::vector<std::unique_ptr<BranchHeads>> heads_;  // of each of the sidecar's branches
};

// ---- comparison with Python -----------------------------------------------------------------------------

double CheckGraph(const ReferenceCase &c, Graph *graph) {
  graph->SetShapes({c.shape});
  const std::vector<float> input = ReferenceInput(c);
  std::copy(input.begin(), input.end(), graph->Input<float>(0));
  graph->Run();
  graph->ExpectOutputs(c.outputs.size());
  double worst = 0;
  for (size_t o = 0; o < c.outputs.size(); ++o) {
    worst = std::max(worst, Difference(c.outputs[o], graph->Output<float>(o, c.outputs[o].shape)));
  }
  return worst;
}

void SplitDetector::SelfCheck() {
  const Reference reference = ReadReference(sidecar_.reference);
  const auto check = [&](const char *name, const ReferenceCase &c, double worst) {
    std::printf("%-15s %u, input %-22s largest difference %.1e of the largest value\n", name, c.stage,
                ShapeText(c.shape).c_str(), worst);
    if (!(worst <= static_cast<double>(reference.tolerance))) {
      throw UserError(sidecar_.path + ": the " + name + " on input " + ShapeText(c.shape) +
                      " doesn't give what it gave in Python; export again, with another release of MindSpore Lite");
    }
  };
  // every kind, those that this device doesn't use too
  std::vector<std::vector<std::pair<std::string, std::unique_ptr<BranchHeads>>>> kinds;
  for (const auto &branch : sidecar_.branches) kinds.push_back(branch->LoadAll(device_));
  const auto demand_stage = [&](const ReferenceCase &c, size_t stages) {
    if (c.stage >= stages) throw UserError(sidecar_.reference.path + ": of another model; export the model again");
  };
  StageTimes times;
  for (const ReferenceCase &c : reference.cases) {
    if (c.role == kFeatures) {
      demand_stage(c, 1);
      for (const Canvas &canvas : CanvasesLike(c.shape)) {
        check("features", c, CheckGraph(c, features_->For(canvas, &times)));
      }
    } else if (c.role == kBox) {
      demand_stage(c, boxes_.size());
      check("box head", c, CheckGraph(c, boxes_[c.stage].get()));
    } else {
      const size_t b = c.role - kFirstBranch;
      demand_stage(c, b < kinds.size() ? heads_[b]->Stages() : 0);
      for (const auto &[name, heads] : kinds[b]) check(name.c_str(), c, heads->Check(c));
    }
  }
}

}  // namespace

std::unique_ptr<Detector> MakeDetector(const Sidecar &sidecar, const Device &device) {
  if (!sidecar.whole) return std::make_unique<SplitDetector>(sidecar, device);
  return std::make_unique<WholeDetector>(sidecar, device);
}

}  // namespace rcnn
