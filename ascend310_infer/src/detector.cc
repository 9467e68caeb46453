#include "detector.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "../../src/ops/roi_align/csrc/roi_align.h"
#include "files.h"
#include "mask_head.h"
#include "reference.h"

namespace rcnn {

namespace {

// Adds the time until its end to a stage.
class Timed {
 public:
  Timed(StageTimes *times, const char *stage) : times_(times), stage_(stage), begin_(Clock::now()) {}
  ~Timed() { (*times_)[stage_] += std::chrono::duration<double, std::milli>(Clock::now() - begin_).count(); }

 private:
  using Clock = std::chrono::steady_clock;
  StageTimes *times_;
  const char *stage_;
  Clock::time_point begin_;
};

uint8_t Quantised(float probability) { return static_cast<uint8_t>(std::lrintf(255.0f * probability)); }

float Sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

// In place, from canvas to file pixels.
void ToFilePixels(const Prepared &image, std::vector<Box> *boxes) {
  const float scale_x = static_cast<float>(image.picture.width) / static_cast<float>(image.width);
  const float scale_y = static_cast<float>(image.picture.height) / static_cast<float>(image.height);
  for (Box &box : *boxes) {
    for (size_t i = 0; i < 4; ++i) box[i] /= i % 2 == 0 ? scale_x : scale_y;
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
    const int64_t most = sidecar_.max_per_img, cells = sidecar_.mask_size * sidecar_.mask_size;
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
    graph.ExpectOutputs(sidecar_.with_mask ? 5 : 4);
    const auto *boxes = graph.Output<float>(0, {batch, most, 4}), *scores = graph.Output<float>(1, {batch, most});
    const auto *labels = graph.Output<int32_t>(2, {batch, most});
    const auto *valid = graph.Output<uint8_t>(3, {batch, most});
    const float *masks =
        sidecar_.with_mask ? graph.Output<float>(4, {batch, most, sidecar_.mask_size, sidecar_.mask_size}) : nullptr;
    std::vector<Detections> out(images.size());
    for (size_t i = 0; i < images.size(); ++i) {
      for (int64_t d = static_cast<int64_t>(i) * most; d < static_cast<int64_t>(i + 1) * most; ++d) {
        if (valid[d] == 0) continue;
        out[i].boxes.push_back({boxes[4 * d], boxes[4 * d + 1], boxes[4 * d + 2], boxes[4 * d + 3]});
        out[i].scores.push_back(scores[d]);
        out[i].labels.push_back(labels[d]);
        for (int64_t c = 0; c < cells; ++c) out[i].masks.push_back(Quantised(masks[d * cells + c]));
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

// What the features' graph gave for the image on a canvas.
struct Maps {
  Graph *graph;
  Canvas canvas;
};

class SplitDetector : public Detector {
 public:
  SplitDetector(const Sidecar &sidecar, const Device &device) : sidecar_(sidecar), device_(device) {
    // the largest last: what the others' loading needed is free by then
    masks_ = MaskHeads(!device.ascend);
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
      out.push_back(DetectOne(image, {features, image.canvas}, times));
    }
    return out;
  }

  void SelfCheck() override;

 private:
  double CheckMaskHead(const ReferenceCase &c, MaskHead *head) const;

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

  size_t NumMaps() const { return std::max(sidecar_.roi.strides.size(), sidecar_.mask_roi.strides.size()); }

  // Of a level's map along a side of the canvas; a last level that is subsampled by 2 rounds up.
  int64_t Cells(int64_t side, size_t level) const {
    return (side + sidecar_.strides[level] - 1) / sidecar_.strides[level];
  }

  // Pixels between anchors (src/models/anchors.py's cell_steps).
  int64_t Step(int64_t side, size_t level) const {
    return sidecar_.grid_strides ? side / Cells(side, level) : sidecar_.strides[level];
  }

  const float *Map(const Maps &maps, size_t output, int64_t channels, size_t level) const {
    const auto &[height, width] = maps.canvas;
    return maps.graph->Output<float>(output, {1, channels, Cells(height, level), Cells(width, level)});
  }

  std::vector<Box> Proposals(const Maps &maps, const Bounds &bounds) const {
    const size_t levels = sidecar_.strides.size();
    const auto &[height, width] = maps.canvas;
    maps.graph->ExpectOutputs(NumMaps() + 2 * levels);
    std::vector<RpnLevel> inputs;
    for (size_t l = 0; l < levels; ++l) {
      const auto each = static_cast<int64_t>(sidecar_.base_anchors[l].size());
      inputs.push_back({Map(maps, NumMaps() + l, each, l), Map(maps, NumMaps() + levels + l, 4 * each, l),
                        Cells(height, l), Cells(width, l), Step(height, l), Step(width, l), &sidecar_.base_anchors[l]});
    }
    return MakeProposals(inputs, sidecar_.rpn_coder, sidecar_.rpn, {sidecar_.level_by_logits, sidecar_.nms_by_logits},
                         bounds);
  }

  std::vector<std::unique_ptr<MaskHead>> MaskHeads(bool on_host) const {
    std::vector<std::unique_ptr<MaskHead>> heads;
    for (size_t i = 0; i < sidecar_.masks.size(); ++i) {
      heads.push_back(on_host ? MakeHostMaskHead(sidecar_.mask_weights[i])
                              : MakeGraphMaskHead(sidecar_.masks[i], device_));
    }
    return heads;
  }

  // Calls part(boxes, first, count) for equal parts of `boxes`, of at most `most` each.
  template <typename Part>
  static void InParts(const std::vector<Box> &boxes, size_t most, const Part &part) {
    const size_t parts = (boxes.size() + most - 1) / most, each = (boxes.size() + parts - 1) / parts;
    for (size_t first = 0; first < boxes.size(); first += each) {
      const size_t count = std::min(each, boxes.size() - first);
      part({boxes.begin() + static_cast<int64_t>(first), boxes.begin() + static_cast<int64_t>(first + count)},
           static_cast<int64_t>(first), static_cast<int64_t>(count));
    }
  }

  // Features (boxes, channels, out_size, out_size) of these boxes.
  void Align(const Maps &from, const std::vector<Box> &boxes, const RoiSettings &roi, int64_t channels, float *to,
             StageTimes *times) const {
    const Timed timed(times, "roi_align");
    std::vector<float> rois;
    const float end = roi.last_pixel_end ? 1.0f : 0.0f;
    for (const Box &box : boxes) rois.insert(rois.end(), {0.0f, box[0], box[1], box[2] - end, box[3] - end});
    std::vector<RoIAlignLevel> levels;
    std::vector<const float *> maps;
    for (size_t l = 0; l < roi.strides.size(); ++l) {
      levels.push_back({Cells(from.canvas.height, l), Cells(from.canvas.width, l), roi.strides[l]});
      maps.push_back(Map(from, l, channels, l));
    }
    const std::string problem =
        RoIAlignForward({roi.out_size, roi.sampling_ratio, roi.aligned}, levels, maps, 1, channels, rois.data(),
                        RoiLevels(boxes, roi).data(), static_cast<int64_t>(boxes.size()), to);
    if (!problem.empty()) throw UserError(sidecar_.path + ": " + problem);
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
      Align(maps, part, sidecar_.roi, channels, head->Input<float>(0), times);
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
    if (!masks_.empty() && !out.boxes.empty()) PredictMasks(maps, &out, times);
    ToFilePixels(prepared, &out.boxes);
    return out;
  }

  void PredictMasks(const Maps &maps, Detections *out, StageTimes *times) {
    const auto count = static_cast<int64_t>(out->boxes.size()), classes = static_cast<int64_t>(sidecar_.classes.size());
    const int64_t cells = sidecar_.mask_size * sidecar_.mask_size;
    std::vector<float> total(static_cast<size_t>(count * cells), 0.0f);
    std::vector<float> logits(total.size());
    for (const auto &head : masks_) {
      InParts(out->boxes, head->MostRois(), [&](const std::vector<Box> &part, int64_t first, int64_t number) {
        const int64_t channels = head->Channels();
        Align(maps, part, sidecar_.mask_roi, channels, head->Input(number, sidecar_.mask_roi.out_size), times);
        const Timed timed(times, "mask_head");
        head->Run(out->labels.data() + first, classes, logits.data() + first * cells);
      });
      const Timed timed(times, "masks");
      for (size_t i = 0; i < total.size(); ++i) {
        total[i] += sidecar_.average_mask_probabilities ? Sigmoid(logits[i]) : logits[i];
      }
    }
    const Timed timed(times, "masks");
    const auto heads = static_cast<float>(masks_.size());
    out->masks.reserve(total.size());
    for (const float v : total) {
      out->masks.push_back(Quantised(sidecar_.average_mask_probabilities ? v / heads : Sigmoid(v / heads)));
    }
  }

  const Sidecar sidecar_;
  const Device device_;
  std::unique_ptr<CanvasGraphs> features_;
  std::vector<std::unique_ptr<Graph>> boxes_;
  std::vector<std::unique_ptr<MaskHead>> masks_;
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

double SplitDetector::CheckMaskHead(const ReferenceCase &c, MaskHead *head) const {
  const int64_t count = c.shape[0], side = c.shape.back(), cells = 4 * side * side;
  const auto classes = static_cast<int64_t>(sidecar_.classes.size()), most = static_cast<int64_t>(head->MostRois());
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
    for (int64_t r = first; r < first + number; ++r) labels.push_back(static_cast<int32_t>(r % classes));
    head->Run(labels.data(), classes, logits.data() + first * cells);
  }
  return Difference(c.outputs[0], logits.data());
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
  // both kinds, the one that this device doesn't use too
  const auto graphs = MaskHeads(false), hosts = MaskHeads(true);
  StageTimes times;
  for (const ReferenceCase &c : reference.cases) {
    const size_t stages = c.role == Role::kFeatures ? 1 : c.role == Role::kBox ? boxes_.size() : masks_.size();
    if (c.stage >= stages) throw UserError(sidecar_.reference.path + ": of another model; export the model again");
    if (c.role == Role::kFeatures) {
      for (const Canvas &canvas : CanvasesLike(c.shape)) {
        check("features", c, CheckGraph(c, features_->For(canvas, &times)));
      }
    } else if (c.role == Role::kBox) {
      check("box head", c, CheckGraph(c, boxes_[c.stage].get()));
    } else {
      check("mask head graph", c, CheckMaskHead(c, graphs[c.stage].get()));
      check("mask head", c, CheckMaskHead(c, hosts[c.stage].get()));
    }
  }
}

}  // namespace

std::unique_ptr<Detector> MakeDetector(const Sidecar &sidecar, const Device &device) {
  if (!sidecar.whole) return std::make_unique<SplitDetector>(sidecar, device);
  return std::make_unique<WholeDetector>(sidecar, device);
}

}  // namespace rcnn
