#include "sidecar.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <numeric>

#include "branch.h"
#include "files.h"
#include "sidecar_reader.h"

namespace rcnn {

namespace {

constexpr int64_t kMostBytes = 8 << 20;  // of a sidecar; 65536 classes take a few MiB
// Bounds as in src/config/.
constexpr int64_t kLeastSide = 64, kMostSide = 1 << 14, kMostClasses = 1 << 16, kMostBoxes = 100000;
constexpr int64_t kMostStride = 1 << 13, kMostDivisor = 1 << 14, kMostInteger = (int64_t{1} << 31) - 1;
// Of a canvas: its largest maps, 256 channels at stride 4 or 64 bytes a pixel, stay below 2 GiB.
constexpr int64_t kMostPixels = (1 << 25) - 1;
constexpr double kLargest = 3e38;

const char kAgain[] = "; export the model again";

// Reads a sidecar's parts: those that the program goes by, and, for their form alone, those that it doesn't.
class PartsReader : public SidecarReader {
 public:
  PartsReader(const Json &json, Sidecar *out) : SidecarReader(json, out->path), json_(json), out_(out) {}

  void Read() {
    out_->has_checksum = !IsOld();
    out_->whole = IsWhole();
    out_->file_format = OneOf(json_, "file_format", {"MINDIR", "AIR", "ONNX"});
    if (out_->whole && out_->file_format == "ONNX") {
      throw UserError(out_->path +
                      ": an ONNX model runs in ONNX Runtime (eval_onnx.py); export MINDIR for this program");
    }
    ReadNetwork();
    ReadLevels();
    ReadCanvas();
    ReadImages();
    ReadBoxes();
    out_->branches = ReadBranches(*this, json_.Text("detector"));
    if (out_->whole) {
      out_->model = File(json_.At("files").At("model"));
      ReadInterface();
    } else {
      ReadSplit();
    }
    ReadComparison();
  }

 private:
  // The detector's kind and backbone, its classes.
  void ReadNetwork() {
    if (Says(json_, "mindspore")) json_.Text("mindspore");
    const std::string detector = OneOf(json_, "detector", DetectorNames());
    cascade_ = detector.rfind("cascade", 0) == 0;
    Demand(json_.Has("cascade") == cascade_, "cascade, and the detector " + detector);
    if (Says(json_, "backbone")) {
      const Json &backbone = json_.At("backbone");
      backbone.Text("type");
      for (const std::string &key : backbone.Keys()) backbone.At(key).DemandPlain();
    }
    for (const Json &name : json_.List("classes")) out_->classes.push_back(name.AsText());
    const auto count = static_cast<int64_t>(out_->classes.size());
    if (count < 2 || count > kMostClasses) {
      json_.At("classes").Wrong("a list of 2 to " + std::to_string(kMostClasses) + " names, the background's first");
    }
    Names sorted = out_->classes;
    std::sort(sorted.begin(), sorted.end());
    const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
    if (twice != sorted.end()) Demand(false, "two classes are called \"" + *twice + "\"");
  }

  // The pyramid's levels and their anchors.
  void ReadLevels() {
    const Json &rpn = json_.At("rpn");
    out_->strides = rpn.Integers("strides", 1, kMostStride);
    for (size_t l = 1; l < out_->strides.size(); ++l) {
      Demand(out_->strides[l] >= out_->strides[l - 1], "rpn.strides, none of which is less than the one before");
    }
    anchors_ = rpn.Numbers("scales", 0, 1e-3, 1e3).size();
    if (rpn.Has("sizes")) {
      const std::vector<Json> &sizes = rpn.List("sizes");
      Demand(sizes.size() == out_->strides.size(), "rpn.sizes, one list for each of rpn.strides");
      anchors_ = sizes[0].AsList().size();
      sized_ = "sizes";
      for (const Json &level : sizes) {
        Demand(level.AsNumbers(0, 1e-3, kLargest).size() == anchors_, "rpn.sizes, as many for each level");
      }
    }
    anchors_ *= rpn.Numbers("ratios", 0, 1e-3, 1e3).size();
    rpn.Bool("rounded");
    if (Says(rpn, "legacy")) OneOf(rpn, "legacy", {"", "caffe2", "mmdet1"});
    out_->grid_strides = Says(rpn, "grid_strides") && rpn.Bool("grid_strides");
    if (Says(rpn, "size_divisor")) out_->size_divisor = rpn.Integer("size_divisor", 1, kMostDivisor);
  }

  void ReadCanvas() {
    const Json &canvas = json_.At("canvas");
    out_->width = canvas.Integer("width", kLeastSide, kMostSide);
    out_->height = canvas.Integer("height", kLeastSide, kMostSide);
    out_->batch_size = json_.Integer("batch_size", 1, 1024);
    const std::vector<int64_t> &strides = out_->strides;
    out_->canvas_step = Says(json_, "canvas_step") ? json_.Integer("canvas_step", 1, kMostStride) : strides.back();
    int64_t least = 1;
    bool is_step = false;
    for (size_t l = 0; l < strides.size() && least <= out_->canvas_step && !is_step; ++l) {
      least = std::lcm(least, strides[l]);
      is_step = least == out_->canvas_step;
    }
    Demand(is_step, "canvas_step " + std::to_string(out_->canvas_step) +
                        ", no least common multiple of the first of rpn.strides");
    Demand(out_->width % out_->canvas_step == 0 && out_->height % out_->canvas_step == 0,
           "the model's canvas, " + std::to_string(out_->width) + " x " + std::to_string(out_->height) +
               ", isn't in steps of " + std::to_string(out_->canvas_step));
    if (out_->width * out_->height > kMostPixels) {
      throw UserError(out_->path + ": the model's canvas, " + std::to_string(out_->width) + " x " +
                      std::to_string(out_->height) + ", has more than " + std::to_string(kMostPixels) + " pixels" +
                      kAgain + " for a smaller canvas");
    }
  }

  void ReadImages() {
    const std::string rounding = Convention(json_, "resize_rounding", {"nearest", "floor", "short_first"});
    out_->resize.rounding = rounding == "floor"         ? Rounding::kFloor
                            : rounding == "short_first" ? Rounding::kShortFirst
                                                        : Rounding::kNearest;
    const std::string filter = Convention(json_, "resize_filter", {"bilinear", "unrounded", "antialias"});
    out_->resize.filter = filter == "antialias"   ? Filter::kAntialias
                          : filter == "unrounded" ? Filter::kUnrounded
                                                  : Filter::kBilinear;
    const bool short_side = Convention(json_, "resize", {"canvas", "short_side"}) == "short_side";
    if (short_side) {
      out_->resize.short_side = json_.Integer("short_side", 1, kMostInteger);
      out_->resize.long_side = json_.Integer("long_side", 1, kMostInteger);
    }
    if (short_side && out_->width != out_->height) {
      if (!json_.Has("pair")) {
        throw UserError(out_->path +
                        ": names no model for pictures of the other orientation (pair); export both again");
      }
      out_->turned = File(json_.At("pair"));
    }
    out_->keep_ratio = json_.Bool("keep_ratio");
    out_->to_rgb = json_.Bool("to_rgb");
    const std::vector<double> mean = json_.Numbers("mean", 3, -kLargest, kLargest);
    const std::vector<double> std = json_.Numbers("std", 3, 1e-9, kLargest);
    std::copy(mean.begin(), mean.end(), out_->mean.begin());
    std::copy(std.begin(), std.end(), out_->std.begin());
  }

  static BoxCoder Coder(const Json &means, const Json &stds) {
    const std::vector<double> mean = means.AsNumbers(4, -1e3, 1e3), std = stds.AsNumbers(4, 1e-6, 1e3);
    BoxCoder coder;
    for (size_t i = 0; i < 4; ++i) {
      coder.means[i] = static_cast<float>(mean[i]);
      coder.stds[i] = static_cast<float>(std[i]);
    }
    return coder;
  }

  // Of all coders of `from`.
  void ReadClamp(const Json &from, BoxCoder *coder) const {
    // |ln(1e-9)|, the most that the config allows
    coder->max_log = static_cast<float>(from.Number("max_log", 0, 20.8));
    coder->min_log = Convention(from, "delta_clamp", {"upper", "both"}) == "both" ? -coder->max_log : -INFINITY;
  }

  static NmsSettings Nms(const Json &from) {
    return {from.Integer("nms_pre", 1, kMostBoxes), from.Integer("max_per_img", 1, kMostBoxes),
            static_cast<float>(from.Number("iou_threshold", 0, 1)),
            static_cast<float>(from.Number("min_bbox_size", 0, kLargest))};
  }

  void ReadBoxes() {
    const Json &rpn = json_.At("rpn"), &rcnn = json_.At("rcnn");
    out_->rpn_coder = Coder(rpn.At("means"), rpn.At("stds"));
    ReadClamp(rpn, &out_->rpn_coder);
    const std::string rank_by = Convention(rpn, "rank_by", {"logits_first", "logits", "probabilities"});
    out_->level_by_logits = rank_by != "probabilities";
    out_->nms_by_logits = rank_by == "logits";
    out_->rpn = Nms(rpn);
    if (rpn.Has("score_thr")) out_->rpn_score_thr = static_cast<float>(rpn.Number("score_thr", 0, 1));
    out_->rcnn = Nms(rcnn);
    out_->max_per_img = out_->rcnn.max_per_img;
    out_->score_thr = static_cast<float>(rcnn.Number("score_thr", 0, 1));
    out_->rcnn.across_groups = Says(rcnn, "agnostic_nms") && rcnn.Bool("agnostic_nms");
    out_->class_agnostic = rcnn.Bool("reg_class_agnostic");
    out_->box_plus_one = Says(json_, "box_plus_one") && json_.Bool("box_plus_one");
    out_->roi = Roi("roi");
    if (!cascade_) {
      out_->stages = {Coder(rcnn.At("means"), rcnn.At("stds"))};
    } else {
      const std::vector<Json> &means = rcnn.List("means"), &stds = rcnn.List("stds");
      for (size_t i = 0; i < std::min(means.size(), stds.size()); ++i) {
        out_->stages.push_back(Coder(means[i], stds[i]));
      }
      const Json &cascade = json_.At("cascade");
      const auto stages = static_cast<size_t>(cascade.Integer("stages", 1, 100));
      Demand(means.size() == stages && stds.size() == stages, "cascade.stages, rcnn.means and rcnn.stds");
      out_->average_probabilities = OneOf(cascade, "average_scores", {"logits", "probabilities"}) == "probabilities";
    }
    for (BoxCoder &coder : out_->stages) ReadClamp(rcnn, &coder);
  }

  // The whole graph's inputs and outputs, which are what the rest says.
  void ReadInterface() const {
    const int64_t n = out_->batch_size, d = out_->max_per_img;
    CheckPorts("inputs", {{"image", {n, 3, out_->height, out_->width}, "float32"}, {"image_shape", {n, 4}, "float32"}});
    std::vector<Expected> outputs = {{"boxes", {n, d, 4}, "float32"},
                                     {"scores", {n, d}, "float32"},
                                     {"labels", {n, d}, "int32"},
                                     {"valid", {n, d}, "bool"}};
    for (const auto &branch : out_->branches) {
      const Port port = branch->Output();
      Shape shape = {n, d};
      shape.insert(shape.end(), port.shape.begin(), port.shape.end());
      outputs.push_back({port.name, shape, "float32"});
    }
    CheckPorts("outputs", outputs);
  }

  struct Expected {
    std::string name;
    Shape shape;
    std::string type;
  };

  void CheckPorts(const std::string &key, const std::vector<Expected> &wanted) const {
    if (!Says(json_, key)) return;
    const std::vector<Json> &ports = json_.List(key);
    Demand(ports.size() == wanted.size(), "the number of its " + key);
    for (size_t i = 0; i < ports.size(); ++i) {
      ports[i].Text("meaning");
      Demand(ports[i].Text("name") == wanted[i].name && ports[i].Text("dtype") == wanted[i].type &&
                 ports[i].Integers("shape", 1, kMostInteger) == wanted[i].shape,
             key + "[" + std::to_string(i) + "], which isn't " + wanted[i].name + " of the shape that the rest says");
    }
  }

  void ReadSplit() {
    Demand(out_->file_format == "MINDIR", "form split, and file_format " + out_->file_format);
    const Json &files = json_.At("files");
    out_->features = File(files.At("features"));
    out_->boxes = Files("box");
    Demand(out_->boxes.size() == out_->stages.size(), "files.box, one for each stage");
    const int64_t version = json_.Integer("mindir_version", 1, 3);
    if (version == 2) json_.At("mindir_version").Wrong("1 or 3");
    for (const Json &level : json_.List("base_anchors")) {
      std::vector<Box> anchors;
      for (const Json &row : level.AsList()) {
        const std::vector<double> sides = row.AsNumbers(4, -1e9, 1e9);
        if (!(sides[0] <= sides[2] && sides[1] <= sides[3])) row.Wrong("a box x1 y1 x2 y2");
        Box box{};
        for (size_t i = 0; i < 4; ++i) box[i] = static_cast<float>(sides[i]);
        anchors.push_back(box);
      }
      Demand(anchors.size() == anchors_,
             "base_anchors, as many a level as rpn." + std::string(sized_) + " times rpn.ratios");
      out_->base_anchors.push_back(anchors);
    }
    Demand(out_->base_anchors.size() == out_->strides.size(), "base_anchors, one list for each of rpn.strides");
  }

  // How the export was compared with the detector.
  void ReadComparison() {
    if (!out_->whole) {
      const Json &reference = json_.At("reference");
      out_->reference = File(reference.At("file"));
      reference.Number("tolerance", 0, 1), reference.Bool("compared");
      return;
    }
    if (!json_.Has("reference")) return;
    const Json &reference = json_.At("reference");
    if (reference.Has("seed")) reference.Integer("seed", 0, kMostInteger);
    ReadAgreement(reference);
    if (reference.Has("adaptive_sampling")) ReadAgreement(reference.At("adaptive_sampling"));
  }

  static void ReadAgreement(const Json &from) {
    for (const char *key : {"detections", "matched"}) {
      if (from.Has(key)) from.Integer(key, 0, kMostInteger);
    }
    std::vector<std::string> keys = {"max_error", "max_score_error"};
    for (const std::string &name : BranchNames()) keys.push_back("max_" + name + "_error");
    for (const std::string &key : keys) {
      if (from.Has(key)) from.Number(key, 0, kLargest);
    }
  }

  const Json &json_;
  Sidecar *out_;
  bool cascade_ = false;
  size_t anchors_ = 0;            // of a cell of a level
  const char *sized_ = "scales";  // by which key
};

// src/export/sidecar.py's: of the file with zeros for the checksum's own digits.
void CheckChecksum(const std::string &digits, std::string text, const std::string &path) {
  const std::string begin = "\"checksum\": \"";
  const size_t at = text.find(begin + digits + '"');
  if (digits.size() == 64 && at != std::string::npos) {
    text.replace(at + begin.size(), digits.size(), digits.size(), '0');
    if (Sha256(reinterpret_cast<const uint8_t *>(text.data()), text.size()) == digits) return;
  }
  throw UserError(path +
                  ": changed or damaged since its export (checksum); export the model again, with the options"
                  " that it is to have");
}

bool Exists(const std::string &path) { return access(path.c_str(), F_OK) == 0; }

bool EndsWith(const std::string &text, const std::string &end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

std::string FindSidecar(const std::string &path) {
  if (EndsWith(path, ".json")) return path;
  if (Exists(path + ".json")) return path + ".json";
  // the split form's NAME.mindir stands for NAME.json; and so does NAME_features.mindir
  std::string stem = EndsWith(path, ".mindir") ? path.substr(0, path.size() - 7) : path;
  if (EndsWith(stem, "_features")) stem.resize(stem.size() - 9);
  if (stem != path && Exists(stem + ".json")) return stem + ".json";
  if (!Exists(path)) throw UserError(path + ": no such model");
  throw UserError(path + ": has no sidecar " + path + ".json, which export.py writes with it");
}

}  // namespace

SidecarReader::SidecarReader(const Json &json, const std::string &path) : json_(json), path_(path) {
  const size_t slash = path.rfind('/');
  folder_ = slash == std::string::npos ? "" : path.substr(0, slash + 1);
  old_ = json_.Integer("version", 1, 2) == 1;
  whole_ = OneOf(json_, "form", {"whole", "split"}) == "whole";
}

void SidecarReader::Demand(bool fits, const std::string &what) const {
  if (!fits) throw UserError(path_ + ": its parts don't fit together: " + what + kAgain);
}

std::string SidecarReader::OneOf(const Json &from, const std::string &key, const Names &known) {
  const std::string &said = from.Text(key);
  if (std::find(known.begin(), known.end(), said) != known.end()) return said;
  std::string names;
  for (const std::string &name : known) names += (names.empty() ? "" : ", ") + name;
  from.At(key).Wrong("one of " + names + ", but \"" + said + "\"");
}

ModelFile SidecarReader::File(const Json &entry) const {
  const std::string &name = entry.Text("name"), &sum = entry.Text("sha256");
  if (name.empty() || name == "." || name == ".." || name.find('/') != std::string::npos ||
      name.find('\0') != std::string::npos) {
    entry.At("name").Wrong("the name of a file of the sidecar's own folder, but \"" + name + "\"");
  }
  if (sum.size() != 64 || sum.find_first_not_of("0123456789abcdef") != std::string::npos) {
    entry.At("sha256").Wrong("64 hexadecimal digits");
  }
  return {folder_ + name, sum, static_cast<uint64_t>(entry.Integer("bytes", 1, int64_t{1} << 50))};
}

std::vector<ModelFile> SidecarReader::Files(const std::string &name) const {
  std::vector<ModelFile> out;
  for (const Json &entry : json_.At("files").List(name)) out.push_back(File(entry));
  return out;
}

namespace {

// Where levels begin by torchvision's rule, in float32: level k at the least side of which log2(side / (4 finest)) + 4
// + 1e-6 - 2 reaches k.
std::vector<float> TorchvisionLevels(float finest, size_t levels) {
  std::vector<float> out;
  for (size_t k = 1; k < levels; ++k) {
    float side = std::ldexp(finest, static_cast<int>(k)) * 0.99999f;
    while (4.0f + static_cast<float>(std::log2(static_cast<double>(side / (4.0f * finest)))) + 1e-6f - 2.0f <
           static_cast<float>(k)) {
      side = std::nextafter(side, std::numeric_limits<float>::infinity());
    }
    out.push_back(side);
  }
  return out;
}

}  // namespace

RoiSettings SidecarReader::Roi(const std::string &name) const {
  const Json &from = json_.At(name);
  RoiSettings roi;
  roi.out_size = static_cast<int>(from.Integer("out_size", 1, 128));
  roi.sampling_ratio = static_cast<int>(from.Integer("sampling_ratio", 0, 32));
  if (Says(from, "trained_sampling_ratio")) from.Integer("trained_sampling_ratio", 0, 32);
  roi.aligned = from.Bool("aligned");
  roi.last_pixel_end = Says(from, "last_pixel_end") && from.Bool("last_pixel_end");
  const std::vector<int64_t> strides = from.Integers("strides", 1, kMostStride);
  const std::vector<int64_t> levels = json_.At("rpn").Integers("strides", 1, kMostStride);
  Demand(strides.size() <= levels.size() && std::equal(strides.begin(), strides.end(), levels.begin()),
         name + ".strides, which aren't the first of rpn.strides");
  for (const int64_t stride : strides) roi.strides.push_back(static_cast<float>(stride));
  const auto finest = static_cast<float>(from.Number("finest_scale", 1, kLargest));
  if (from.Has("level_sides")) {
    for (const double side : from.Numbers("level_sides", std::max<size_t>(strides.size(), 1) - 1, 1, kLargest)) {
      roi.level_sides.push_back(static_cast<float>(side));
    }
    Demand(std::is_sorted(roi.level_sides.begin(), roi.level_sides.end()), name + ".level_sides, which fall");
  } else {
    roi.level_sides = TorchvisionLevels(finest, strides.size());
  }
  return roi;
}

int64_t SidecarReader::Stages() const {
  return json_.Has("cascade") ? json_.At("cascade").Integer("stages", 1, 100) : 0;
}

Canvas Sidecar::CanvasOf(int64_t picture_height, int64_t picture_width) const {
  const bool own = !Turns() || (picture_height > picture_width) == (height > width);
  return own ? Canvas{height, width} : Canvas{width, height};
}

Sidecar ReadSidecar(const std::string &path) {
  Sidecar out;
  out.path = FindSidecar(path);
  const std::vector<uint8_t> bytes = ReadFile(out.path, "model's sidecar", kMostBytes);
  const std::string text(bytes.begin(), bytes.end());
  const Json json = Json::Parse(text, out.path);
  if (!json.Has("format") || !json.At("format").IsText() || json.Text("format") != "rcnn-mindspore") {
    throw UserError(out.path + ": not the sidecar of an exported model");
  }
  const double version = json.At("version").AsNumber();
  if (version != 1 && version != 2) {
    throw UserError(out.path + ": of another version than 1 and 2, which this program reads; export the model again");
  }
  PartsReader(json, &out).Read();
  const std::string checksum = out.has_checksum ? json.Text("checksum") : "";
  json.DemandAllRead();
  if (out.has_checksum) CheckChecksum(checksum, text, out.path);
  return out;
}

std::vector<uint8_t> ReadChecked(const ModelFile &file) {
  // a foreign file may be of any size
  std::error_code unknown;
  const uint64_t size = std::filesystem::file_size(file.path, unknown);
  if (!unknown && size != file.bytes) {
    throw UserError(file.path + ": " + std::to_string(size) + " bytes, its sidecar says " + std::to_string(file.bytes) +
                    " (truncated, or of another export); export it again");
  }
  const std::vector<uint8_t> data = ReadFile(file.path, "model");
  if (Sha256(data.data(), data.size()) != file.sha256) {
    throw UserError(file.path + ": not the model that its sidecar describes (checksum); export it again");
  }
  return data;
}

}  // namespace rcnn
