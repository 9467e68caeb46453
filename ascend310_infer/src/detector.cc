#include "detector.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "../../src/ops/roi_align/csrc/roi_align.h"
#include "files.h"

namespace rcnn {

namespace {

// Adds the time until its end to a stage.
class Timed {
 public:
  Timed(StageTimes *times, const char *stage) : times_(times), stage_(stage), begin_(Clock::now()) {}
  ~Timed() {
    (*times_)[stage_] += std::chrono::duration<double, std::milli>(Clock::now() - begin_).count();
  }

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

// ---- the whole graph ------------------------------------------------------------------------------------

class WholeDetector : public Detector {
 public:
  WholeDetector(const Sidecar &sidecar, const Device &device)
      : sidecar_(sidecar), graph_(sidecar.model, sidecar.file_format, device) {}

  std::vector<Detections> Detect(const std::vector<Prepared> &images, StageTimes *times) override {
    const int64_t batch = sidecar_.batch_size, height = sidecar_.height, width = sidecar_.width;
    const int64_t most = sidecar_.max_per_img, cells = sidecar_.mask_size * sidecar_.mask_size;
    {
      const Timed timed(times, "normalise");
      if (graph_.TakesBytes()) {
        graph_.SetShapes({{batch, height, width, 3}, {batch, 4}});
        FillBytes(images);
      } else {
        graph_.SetShapes({{batch, 3, height, width}, {batch, 4}});
        for (size_t i = 0; i < images.size(); ++i) {
          Normalise(images[i].picture, sidecar_.mean, sidecar_.std, height, width,
                    graph_.Input<float>(0) + static_cast<int64_t>(i) * 3 * height * width);
        }
        // the last batch may have room left
        const auto used = static_cast<int64_t>(images.size());
        std::fill_n(graph_.Input<float>(0) + used * 3 * height * width, (batch - used) * 3 * height * width, 0.0f);
      }
      auto *sizes = graph_.Input<float>(1);
      std::fill_n(sizes, batch * 4, 1.0f);
      for (const Prepared &image : images) {
        for (const int64_t v : {image.picture.height, image.picture.width, image.height, image.width}) {
          *sizes++ = static_cast<float>(v);
        }
      }
    }
    {
      const Timed timed(times, "network");
      graph_.Run();
    }
    graph_.ExpectOutputs(sidecar_.with_mask ? 5 : 4);
    const auto *boxes = graph_.Output<float>(0, {batch, most, 4}), *scores = graph_.Output<float>(1, {batch, most});
    const auto *labels = graph_.Output<int32_t>(2, {batch, most});
    const auto *valid = graph_.Output<uint8_t>(3, {batch, most});
    const float *masks =
        sidecar_.with_mask ? graph_.Output<float>(4, {batch, most, sidecar_.mask_size, sidecar_.mask_size}) : nullptr;
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
  void FillBytes(const std::vector<Prepared> &images) {
    auto *to = graph_.Input<uint8_t>(0);
    for (int64_t i = 0; i < sidecar_.batch_size * sidecar_.height * sidecar_.width * 3; ++i) {
      to[i] = static_cast<uint8_t>(std::lrint(sidecar_.mean[static_cast<size_t>(i % 3)]));
    }
    for (const Prepared &image : images) {
      for (int64_t y = 0; y < image.picture.height; ++y) {
        std::memcpy(to + y * sidecar_.width * 3, image.picture.pixels.data() + y * image.picture.width * 3,
                    static_cast<size_t>(image.picture.width) * 3);
      }
      to += sidecar_.height * sidecar_.width * 3;
    }
  }

  const Sidecar sidecar_;
  Graph graph_;
};

// ---- the split form -------------------------------------------------------------------------------------

constexpr size_t kBoxesAtOnce = 512, kMasksAtOnce = 32;

class SplitDetector : public Detector {
 public:
  SplitDetector(const Sidecar &sidecar, const Device &device) : sidecar_(sidecar) {
    // the largest last: what the others' loading needed is free by then
    for (const ModelFile &file : sidecar.masks) masks_.push_back(std::make_unique<Graph>(file, "MINDIR", device));
    for (const ModelFile &file : sidecar.boxes) boxes_.push_back(std::make_unique<Graph>(file, "MINDIR", device));
    features_ = std::make_unique<Graph>(sidecar.features, "MINDIR", device);
    const Shape shape = features_->InputShape(0);
    if (features_->Inputs() != 1 || shape.size() != 4 || shape[1] != 3) {
      throw UserError(sidecar.features.path + ": takes " + ShapeText(shape) + ", not an image; model and sidecar"
                      " disagree, export again");
    }
  }

  std::vector<Detections> Detect(const std::vector<Prepared> &images, StageTimes *times) override {
    const int64_t batch = static_cast<int64_t>(images.size()), height = sidecar_.height, width = sidecar_.width;
    {
      const Timed timed(times, "normalise");
      features_->SetShapes({{batch, 3, height, width}});
      for (size_t i = 0; i < images.size(); ++i) {
        Normalise(images[i].picture, sidecar_.mean, sidecar_.std, height, width,
                  features_->Input<float>(0) + static_cast<int64_t>(i) * 3 * height * width);
      }
    }
    {
      const Timed timed(times, "features");
      features_->Run();
    }
    std::vector<Detections> out;
    for (int64_t i = 0; i < batch; ++i) out.push_back(DetectOne(batch, i, images[static_cast<size_t>(i)], times));
    return out;
  }

  void SelfCheck() override;

 private:
  size_t NumMaps() const { return std::max(sidecar_.roi.strides.size(), sidecar_.mask_roi.strides.size()); }

  const float *Map(int64_t batch, int64_t image, size_t output, int64_t channels, size_t level) {
    const int64_t h = sidecar_.height / sidecar_.strides[level], w = sidecar_.width / sidecar_.strides[level];
    return features_->Output<float>(output, {batch, channels, h, w}) + image * channels * h * w;
  }

  std::vector<Box> Proposals(int64_t batch, int64_t image, const Bounds &bounds) {
    const size_t levels = sidecar_.strides.size();
    features_->ExpectOutputs(NumMaps() + 2 * levels);
    std::vector<RpnLevel> inputs;
    for (size_t l = 0; l < levels; ++l) {
      const auto each = static_cast<int64_t>(sidecar_.base_anchors[l].size());
      inputs.push_back({Map(batch, image, NumMaps() + l, each, l),
                        Map(batch, image, NumMaps() + levels + l, 4 * each, l),
                        sidecar_.height / sidecar_.strides[l], sidecar_.width / sidecar_.strides[l],
                        sidecar_.strides[l], &sidecar_.base_anchors[l]});
    }
    return MakeProposals(inputs, sidecar_.rpn_coder, sidecar_.rpn, bounds);
  }

  // Writes boxes' features into the head's input and runs it, on at most `most` at a time: the network's memory grows
  // with them, and past some ten they are no faster together. take(first, count): fetches what it gave for these.
  template <typename Take>
  void RunHead(int64_t batch, int64_t image, const std::vector<Box> &boxes, const RoiSettings &roi, size_t most,
               Graph *head, const char *stage, StageTimes *times, const Take &take) {
    const size_t parts = (boxes.size() + most - 1) / most, each = (boxes.size() + parts - 1) / parts;
    for (size_t first = 0; first < boxes.size(); first += each) {
      const auto begin = boxes.begin() + static_cast<int64_t>(first);
      const size_t count = std::min(each, boxes.size() - first);
      RunHead(batch, image, std::vector<Box>(begin, begin + static_cast<int64_t>(count)), roi, head, stage, times);
      take(static_cast<int64_t>(first), static_cast<int64_t>(count));
    }
  }

  void RunHead(int64_t batch, int64_t image, const std::vector<Box> &boxes, const RoiSettings &roi, Graph *head,
               const char *stage, StageTimes *times) {
    const Shape wanted = head->InputShape(0);
    const int64_t channels = wanted.size() == 4 ? wanted[1] : 0;
    const auto count = static_cast<int64_t>(boxes.size());
    {
      const Timed timed(times, "roi_align");
      head->SetShapes({{count, channels, roi.out_size, roi.out_size}});
      std::vector<float> rois;
      const float end = roi.last_pixel_end ? 1.0f : 0.0f;
      for (const Box &box : boxes) rois.insert(rois.end(), {0.0f, box[0], box[1], box[2] - end, box[3] - end});
      std::vector<RoIAlignLevel> levels;
      std::vector<const float *> maps;
      for (size_t l = 0; l < roi.strides.size(); ++l) {
        levels.push_back({sidecar_.height / sidecar_.strides[l], sidecar_.width / sidecar_.strides[l], roi.strides[l]});
        maps.push_back(Map(batch, image, l, channels, l));
      }
      const std::string problem =
          RoIAlignForward({roi.out_size, roi.sampling_ratio, roi.aligned}, levels, maps, 1, channels, rois.data(),
                          RoiLevels(boxes, roi).data(), count, head->Input<float>(0));
      if (!problem.empty()) throw UserError(sidecar_.path + ": " + problem);
    }
    const Timed timed(times, stage);
    head->Run();
  }

  Detections DetectOne(int64_t batch, int64_t image, const Prepared &prepared, StageTimes *times) {
    const Bounds bounds{prepared.picture.height, prepared.picture.width, sidecar_.box_plus_one};
    std::vector<Box> boxes;
    {
      const Timed timed(times, "proposals");
      boxes = Proposals(batch, image, bounds);
    }
    Detections out;
    if (boxes.empty()) return out;
    const auto classes = static_cast<int64_t>(sidecar_.classes.size()), count = static_cast<int64_t>(boxes.size());
    const int64_t numbers = sidecar_.class_agnostic ? 4 : 4 * classes;
    std::vector<float> logits(static_cast<size_t>(count * classes)), deltas(static_cast<size_t>(count * numbers));
    std::vector<float> total(logits.size(), 0.0f);
    for (size_t stage = 0; stage < boxes_.size(); ++stage) {
      Graph *head = boxes_[stage].get();
      RunHead(batch, image, boxes, sidecar_.roi, kBoxesAtOnce, head, "box_head", times,
              [&](int64_t first, int64_t taken) {
                head->ExpectOutputs(2);
                std::copy_n(head->Output<float>(0, {taken, classes}), taken * classes, logits.data() + first * classes);
                std::copy_n(head->Output<float>(1, {taken, numbers}), taken * numbers, deltas.data() + first * numbers);
              });
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
    if (!masks_.empty() && !out.boxes.empty()) Masks(batch, image, &out, times);
    ToFilePixels(prepared, &out.boxes);
    return out;
  }

  void Masks(int64_t batch, int64_t image, Detections *out, StageTimes *times) {
    const auto count = static_cast<int64_t>(out->boxes.size()), classes = static_cast<int64_t>(sidecar_.classes.size());
    const int64_t side = sidecar_.mask_size, cells = side * side;
    std::vector<float> total(static_cast<size_t>(count * cells), 0.0f);
    for (const auto &head : masks_) {
      const auto take = [&](int64_t first, int64_t taken) {
        const Timed timed(times, "masks");
        head->ExpectOutputs(1);
        const float *logits = head->Output<float>(0, {taken, classes, side, side});
        for (int64_t d = 0; d < taken; ++d) {
          const float *own = logits + (d * classes + out->labels[static_cast<size_t>(first + d)]) * cells;
          float *to = total.data() + (first + d) * cells;
          for (int64_t c = 0; c < cells; ++c) to[c] += sidecar_.average_mask_probabilities ? Sigmoid(own[c]) : own[c];
        }
      };
      RunHead(batch, image, out->boxes, sidecar_.mask_roi, kMasksAtOnce, head.get(), "mask_head", times, take);
    }
    const Timed timed(times, "masks");
    const auto heads = static_cast<float>(masks_.size());
    out->masks.reserve(total.size());
    for (const float v : total) {
      out->masks.push_back(Quantised(sidecar_.average_mask_probabilities ? v / heads : Sigmoid(v / heads)));
    }
  }

  const Sidecar sidecar_;
  std::unique_ptr<Graph> features_;
  std::vector<std::unique_ptr<Graph>> boxes_, masks_;
};

// ---- comparison with Python -----------------------------------------------------------------------------

// Reads src/export/reference.py's file.
class ReferenceReader {
 public:
  explicit ReferenceReader(const ModelFile &file) : path_(file.path), bytes_(ReadChecked(file)) {
    if (bytes_.size() < 8 || std::memcmp(bytes_.data(), "RCNNREF1", 8) != 0) Fail();
    at_ = 8;
  }

  template <typename T>
  T Next() {
    T value;
    if (bytes_.size() - at_ < sizeof(T)) Fail();
    std::memcpy(&value, bytes_.data() + at_, sizeof(T));
    at_ += sizeof(T);
    return value;
  }

  Shape NextShape() {
    Shape shape(std::min<uint32_t>(Next<uint32_t>(), 8));
    for (int64_t &side : shape) side = Next<uint32_t>();
    return shape;
  }

  [[noreturn]] void Fail() const {
    throw UserError(path_ + ": not a reference of this version; export the model again");
  }

 private:
  std::string path_;
  std::vector<uint8_t> bytes_;
  size_t at_ = 0;
};

int64_t Elements(const Shape &shape) {
  int64_t count = 1;
  for (const int64_t side : shape) count *= side;
  return count;
}

// src/export/reference.py's `uniform`.
void FillUniform(uint64_t seed, float scale, int64_t count, float *to) {
  for (int64_t i = 0; i < count; ++i) {
    uint64_t x = (static_cast<uint64_t>(i) + 1) * 0x9E3779B97F4A7C15u + seed;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    x ^= x >> 31;
    to[i] = (static_cast<float>(x >> 40) * 0x1p-23f - 1.0f) * scale;
  }
}

void SplitDetector::SelfCheck() {
  ReferenceReader reader(sidecar_.reference);
  const auto tolerance = reader.Next<float>();
  const char *names[] = {"features", "box head", "mask head"};
  const auto cases = reader.Next<uint32_t>();
  for (uint32_t c = 0; c < cases; ++c) {
    const auto role = reader.Next<uint32_t>(), stage = reader.Next<uint32_t>();
    const auto seed = reader.Next<uint64_t>();
    const auto scale = reader.Next<float>();
    const Shape shape = reader.NextShape();
    const auto &heads = role == 1 ? boxes_ : masks_;
    if (role > 2 || stage >= (role == 0 ? 1 : heads.size())) reader.Fail();
    Graph *graph = role == 0 ? features_.get() : heads[stage].get();
    graph->SetShapes({shape});
    FillUniform(seed, scale, Elements(shape), graph->Input<float>(0));
    graph->Run();
    const auto outputs = reader.Next<uint32_t>();
    graph->ExpectOutputs(outputs);
    double worst = 0;
    for (uint32_t o = 0; o < outputs; ++o) {
      const Shape given = reader.NextShape();
      const auto most = reader.Next<float>();
      const auto step = reader.Next<uint32_t>(), samples = reader.Next<uint32_t>();
      const float *values = graph->Output<float>(o, given);
      for (uint32_t s = 0; s < samples; ++s) {
        const int64_t place = std::min<int64_t>(int64_t{s} * step, Elements(given) - 1);
        const double wanted = reader.Next<float>();
        const double difference = std::abs(static_cast<double>(values[place]) - wanted);
        // written so that what is no number counts as wrong
        if (!(difference <= worst * static_cast<double>(most))) {
          worst = std::isfinite(difference) && most > 0 ? difference / static_cast<double>(most) : INFINITY;
        }
      }
    }
    std::printf("%-9s %u, input %-22s largest difference %.1e of the largest value\n", names[role], stage,
                ShapeText(shape).c_str(), worst);
    if (!(worst <= static_cast<double>(tolerance))) {
      throw UserError(sidecar_.path + ": the " + names[role] + " on input " + ShapeText(shape) +
                      " doesn't give what it gave in Python; export again, with another release of MindSpore Lite");
    }
  }
}

}  // namespace

std::unique_ptr<Detector> MakeDetector(const Sidecar &sidecar, const Device &device) {
  if (!sidecar.whole) return std::make_unique<SplitDetector>(sidecar, device);
  return std::make_unique<WholeDetector>(sidecar, device);
}

}  // namespace rcnn
