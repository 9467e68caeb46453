#include "sidecar.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "files.h"
#include "json.h"

namespace rcnn {

namespace {

constexpr int64_t kMostBytes = 8 << 20;  // of a sidecar; 65536 classes take a few MiB
// Bounds as in src/config/.
constexpr int64_t kLeastSide = 64, kMostSide = 1 << 14, kMostClasses = 1 << 16, kMostBoxes = 100000;
constexpr int64_t kMostStride = 1 << 13, kMostInteger = (int64_t{1} << 31) - 1;
constexpr double kLargest = 3e38;

const char kAgain[] = "; export the model again";

using Names = std::vector<std::string>;

// One of `known`, without asking whether it is there.
std::string OneOf(const Json &from, const std::string &key, const Names &known) {
  const std::string &said = from.Text(key);
  if (std::find(known.begin(), known.end(), said) != known.end()) return said;
  std::string names;
  for (const std::string &name : known) names += (names.empty() ? "" : ", ") + name;
  from.At(key).Wrong("one of " + names + ", but \"" + said + "\"");
}

// Reads a sidecar's parts: those that the program goes by, and, for their form alone, those that it doesn't.
class SidecarReader {
 public:
  SidecarReader(const Json &json, Sidecar *out) : json_(json), out_(out) {
    const size_t slash = out->path.rfind('/');
    folder_ = slash == std::string::npos ? "" : out->path.substr(0, slash + 1);
  }

  void Read() {
    old_ = json_.Integer("version", 1, 2) == 1;
    out_->has_checksum = !old_;
    out_->whole = OneOf(json_, "form", {"whole", "split"}) == "whole";
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
    ReadMasks();
    if (out_->whole) {
      out_->model = File(json_.At("files").At("model"));
      ReadInterface();
    } else {
      ReadSplit();
    }
    ReadComparison();
  }

 private:
  [[noreturn]] void Misfit(const std::string &what) const {
    throw UserError(out_->path + ": its parts don't fit together: " + what + kAgain);
  }
  void Demand(bool fits, const std::string &what) const {
    if (!fits) Misfit(what);
  }

  // Whether to read a key that older exports lack.
  bool Says(const Json &from, const std::string &key) const { return !old_ || from.Has(key); }

  // A convention by its name; older exports, which don't say it, did the first.
  std::string Convention(const Json &from, const std::string &key, const Names &known) const {
    return Says(from, key) ? OneOf(from, key, known) : known[0];
  }

  ModelFile File(const Json &entry) const {
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

  std::vector<ModelFile> Files(const Json &files, const std::string &key) const {
    std::vector<ModelFile> out;
    for (const Json &entry : files.List(key)) out.push_back(File(entry));
    return out;
  }

  // The detector's kind and backbone, its classes.
  void ReadNetwork() {
    if (Says(json_, "mindspore")) json_.Text("mindspore");
    const std::string detector =
        OneOf(json_, "detector", {"mask_rcnn", "faster_rcnn", "cascade_rcnn", "cascade_mask_rcnn"});
    out_->with_mask = json_.Bool("with_mask");
    const bool masks = detector == "mask_rcnn" || detector == "cascade_mask_rcnn";
    Demand(out_->with_mask == masks, "with_mask, and the detector " + detector);
    cascade_ = detector == "cascade_rcnn" || detector == "cascade_mask_rcnn";
    Demand(json_.Has("cascade") == cascade_, "cascade, and the detector " + detector);
    if (Says(json_, "backbone")) {
      const Json &backbone = json_.At("backbone");
      const std::string type = OneOf(backbone, "type", {"resnet", "resnext", "mobilenet_v1"});
      if (type == "mobilenet_v1") {
        backbone.Number("width_multiplier", 0.05, 8);
      } else {
        backbone.Integer("depth", 50, 152), backbone.Bool("stride_in_1x1");
      }
      if (type == "resnext") backbone.Integer("groups", 1, 256), backbone.Integer("base_width", 1, 256);
    }
    for (const Json &name : json_.List("classes")) out_->classes.push_back(name.AsText());
    const auto count = static_cast<int64_t>(out_->classes.size());
    if (count < 2 || count > kMostClasses) {
      json_.At("classes").Wrong("a list of 2 to " + std::to_string(kMostClasses) + " names, the background's first");
    }
    Names sorted = out_->classes;
    std::sort(sorted.begin(), sorted.end());
    const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
    if (twice != sorted.end()) Misfit("two classes are called \"" + *twice + "\"");
  }

  // The pyramid's levels and their anchors.
  void ReadLevels() {
    const Json &rpn = json_.At("rpn");
    out_->strides = rpn.Integers("strides", 1, kMostStride);
    for (size_t l = 1; l < out_->strides.size(); ++l) {
      Demand(out_->strides[l] == 2 * out_->strides[l - 1], "rpn.strides, each of which is twice the one before");
    }
    anchors_ = rpn.Numbers("scales", 0, 1e-3, 1e3).size() * rpn.Numbers("ratios", 0, 1e-3, 1e3).size();
    rpn.Bool("rounded");
    if (Says(rpn, "legacy")) OneOf(rpn, "legacy", {"", "caffe2", "mmdet1"});
    out_->grid_strides = Says(rpn, "grid_strides") && rpn.Bool("grid_strides");
  }

  void ReadCanvas() {
    const Json &canvas = json_.At("canvas");
    out_->width = canvas.Integer("width", kLeastSide, kMostSide);
    out_->height = canvas.Integer("height", kLeastSide, kMostSide);
    out_->batch_size = json_.Integer("batch_size", 1, 1024);
    const std::vector<int64_t> &strides = out_->strides;
    out_->canvas_step = Says(json_, "canvas_step") ? json_.Integer("canvas_step", 1, kMostStride) : strides.back();
    Demand(std::find(strides.begin(), strides.end(), out_->canvas_step) != strides.end(),
           "canvas_step " + std::to_string(out_->canvas_step) + ", which is none of rpn.strides");
    Demand(out_->width % out_->canvas_step == 0 && out_->height % out_->canvas_step == 0,
           "the model's canvas, " + std::to_string(out_->width) + " x " + std::to_string(out_->height) +
               ", isn't in steps of " + std::to_string(out_->canvas_step));
  }

  void ReadImages() {
    const std::string rounding = Convention(json_, "resize_rounding", {"nearest", "floor", "short_first"});
    out_->resize.rounding = rounding == "floor"         ? Rounding::kFloor
                            : rounding == "short_first" ? Rounding::kShortFirst
                                                        : Rounding::kNearest;
    out_->resize.antialias = Convention(json_, "resize_filter", {"bilinear", "antialias"}) == "antialias";
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

  RoiSettings Roi(const std::string &name) const {
    const Json &from = json_.At(name);
    RoiSettings roi;
    roi.out_size = static_cast<int>(from.Integer("out_size", 1, 128));
    roi.sampling_ratio = static_cast<int>(from.Integer("sampling_ratio", 0, 32));
    if (Says(from, "trained_sampling_ratio")) from.Integer("trained_sampling_ratio", 0, 32);
    roi.aligned = from.Bool("aligned");
    roi.last_pixel_end = Says(from, "last_pixel_end") && from.Bool("last_pixel_end");
    const std::vector<int64_t> strides = from.Integers("strides", 1, kMostStride);
    Demand(strides.size() <= out_->strides.size() && std::equal(strides.begin(), strides.end(), out_->strides.begin()),
           name + ".strides, which aren't the first of rpn.strides");
    for (const int64_t stride : strides) roi.strides.push_back(static_cast<float>(stride));
    roi.finest_scale = static_cast<float>(from.Number("finest_scale", 1, kLargest));
    return roi;
  }

  void ReadBoxes() {
    const Json &rpn = json_.At("rpn"), &rcnn = json_.At("rcnn");
    out_->rpn_coder = Coder(rpn.At("means"), rpn.At("stds"));
    ReadClamp(rpn, &out_->rpn_coder);
    const std::string rank_by = Convention(rpn, "rank_by", {"logits_first", "logits", "probabilities"});
    out_->level_by_logits = rank_by != "probabilities";
    out_->nms_by_logits = rank_by == "logits";
    out_->rpn = Nms(rpn);
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
      const Names averaged = {"logits", "probabilities"};
      out_->average_probabilities = OneOf(cascade, "average_scores", averaged) == "probabilities";
      out_->average_mask_probabilities = OneOf(cascade, "average_masks", averaged) == "probabilities";
      mask_heads_ = cascade.Integer("mask_heads", 0, 100);
      Demand(mask_heads_ == static_cast<int64_t>(stages) || mask_heads_ == (out_->with_mask ? 1 : 0),
             "cascade.mask_heads, and its stages");
      Demand((mask_heads_ > 0) == out_->with_mask, "cascade.mask_heads, and with_mask");
    }
    for (BoxCoder &coder : out_->stages) ReadClamp(rcnn, &coder);
  }

  void ReadMasks() {
    for (const char *part : {"mask_roi", "mask_paste"}) {
      Demand(json_.Has(part) == out_->with_mask, std::string(part) + ", and with_mask");
    }
    if (!out_->with_mask) return;
    if (!cascade_) mask_heads_ = 1;
    out_->mask_roi = Roi("mask_roi");
    const Json &paste = json_.At("mask_paste");
    out_->mask_size = paste.Integer("size", 2, 256);
    out_->mask_convention = OneOf(paste, "convention", {"torchvision", "grid"});
    out_->mask_threshold = paste.Number("threshold", 0, 1);
    Demand(out_->mask_size == 2 * out_->mask_roi.out_size, "mask_paste.size, and mask_roi.out_size");
  }

  // The whole graph's inputs and outputs, which are what the rest says.
  void ReadInterface() const {
    const int64_t n = out_->batch_size, d = out_->max_per_img, side = out_->mask_size;
    CheckPorts("inputs", {{"image", {n, 3, out_->height, out_->width}, "float32"}, {"image_shape", {n, 4}, "float32"}});
    std::vector<Port> outputs = {{"boxes", {n, d, 4}, "float32"},
                                 {"scores", {n, d}, "float32"},
                                 {"labels", {n, d}, "int32"},
                                 {"valid", {n, d}, "bool"}};
    if (out_->with_mask) outputs.push_back({"masks", {n, d, side, side}, "float32"});
    CheckPorts("outputs", outputs);
  }

  struct Port {
    std::string name;
    std::vector<int64_t> shape;
    std::string type;
  };

  void CheckPorts(const std::string &key, const std::vector<Port> &wanted) const {
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
    out_->boxes = Files(files, "box");
    out_->masks = Files(files, "mask");
    out_->mask_weights = Files(files, "mask_weights");
    Demand(out_->boxes.size() == out_->stages.size(), "files.box, one for each stage");
    const auto heads = static_cast<size_t>(mask_heads_);
    Demand(out_->masks.size() == heads && out_->mask_weights.size() == heads,
           "files.mask and files.mask_weights, one for each mask head");
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
      Demand(anchors.size() == anchors_, "base_anchors, as many a level as rpn.scales times rpn.ratios");
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
    for (const char *key : {"max_error", "max_score_error", "max_mask_error"}) {
      if (from.Has(key)) from.Number(key, 0, kLargest);
    }
  }

  const Json &json_;
  Sidecar *out_;
  std::string folder_;
  bool old_ = false, cascade_ = false;
  size_t anchors_ = 0;  // of a cell of a level
  int64_t mask_heads_ = 0;
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
  SidecarReader(json, &out).Read();
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
