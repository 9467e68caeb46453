#include "sidecar.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "files.h"
#include "json.h"

namespace rcnn {

namespace {

constexpr int64_t kMost = 1 << 20;  // of anything that is counted; keeps damaged numbers from asking for all memory

template <size_t N>
std::array<float, N> Numbers(const Json &from, const std::string &key) {
  const std::vector<float> list = from.Floats(key, N);
  std::array<float, N> out{};
  std::copy(list.begin(), list.end(), out.begin());
  return out;
}

ModelFile File(const Json &entry, const std::string &folder) {
  const std::string &name = entry.Text("name");
  if (name.empty() || name.find('/') != std::string::npos) {
    throw UserError(folder + name + ": a sidecar names files of its own folder; export the model again");
  }
  return {folder + name, entry.Text("sha256"), static_cast<uint64_t>(entry.Integer("bytes", 0, int64_t{1} << 50))};
}

std::vector<ModelFile> Files(const Json &files, const std::string &key, const std::string &folder) {
  std::vector<ModelFile> out;
  for (const Json &entry : files.List(key)) out.push_back(File(entry, folder));
  return out;
}

NmsSettings Nms(const Json &from) {
  return {from.Integer("nms_pre", 1, kMost), from.Integer("max_per_img", 1, kMost),
          static_cast<float>(from.Number("iou_threshold")), static_cast<float>(from.Number("min_bbox_size"))};
}

RoiSettings Roi(const Json &from) {
  RoiSettings roi;
  roi.out_size = static_cast<int>(from.Integer("out_size", 1, 1024));
  roi.sampling_ratio = static_cast<int>(from.Integer("sampling_ratio", 0, 1024));
  roi.aligned = from.Bool("aligned");
  roi.last_pixel_end = from.Bool("last_pixel_end");
  for (const int64_t stride : from.Integers("strides", 1, kMost)) roi.strides.push_back(static_cast<float>(stride));
  roi.finest_scale = static_cast<float>(from.Number("finest_scale"));
  return roi;
}

// A convention by its name; older exports, which don't say it, did the first.
std::string Convention(const Json &from, const std::string &key, const std::vector<std::string> &known) {
  const std::string said = from.Has(key) ? from.Text(key) : known[0];
  if (std::find(known.begin(), known.end(), said) == known.end()) {
    throw UserError("the sidecar's " + key + " is \"" + said + "\", which this program doesn't know; build it anew");
  }
  return said;
}

void ReadClamp(const Json &from, BoxCoder *coder) {
  coder->max_log = static_cast<float>(from.Number("max_log"));
  coder->min_log = Convention(from, "delta_clamp", {"upper", "both"}) == "both" ? -coder->max_log : -INFINITY;
}

BoxCoder Coder(const Json &from) {
  BoxCoder coder{Numbers<4>(from, "means"), Numbers<4>(from, "stds")};
  ReadClamp(from, &coder);
  return coder;
}

// Of a cascade: means and stds are lists of one stage each.
std::vector<BoxCoder> StageCoders(const Json &rcnn) {
  const std::vector<Json> &means = rcnn.List("means"), &stds = rcnn.List("stds");
  std::vector<BoxCoder> out;
  for (size_t i = 0; i < std::min(means.size(), stds.size()); ++i) {
    BoxCoder coder;
    ReadClamp(rcnn, &coder);
    const std::vector<Json> &mean = means[i].AsList(), &std = stds[i].AsList();
    for (size_t k = 0; k < 4 && k < std::min(mean.size(), std.size()); ++k) {
      coder.means[k] = static_cast<float>(mean[k].AsNumber());
      coder.stds[k] = static_cast<float>(std[k].AsNumber());
    }
    out.push_back(coder);
  }
  return out;
}

void ReadSplit(const Json &json, const std::string &folder, Sidecar *out) {
  const Json &files = json.At("files"), &rpn = json.At("rpn"), &rcnn = json.At("rcnn");
  out->features = File(files.At("features"), folder);
  out->boxes = Files(files, "box", folder);
  out->masks = Files(files, "mask", folder);
  out->mask_weights = Files(files, "mask_weights", folder);
  out->reference = File(json.At("reference").At("file"), folder);
  out->strides = rpn.Integers("strides", 1, kMost);
  for (const Json &level : json.List("base_anchors")) {
    std::vector<Box> anchors;
    for (const Json &row : level.AsList()) {
      Box box{};
      const std::vector<Json> &numbers = row.AsList();
      for (size_t i = 0; i < 4 && i < numbers.size(); ++i) box[i] = static_cast<float>(numbers[i].AsNumber());
      anchors.push_back(box);
    }
    out->base_anchors.push_back(anchors);
  }
  if (out->strides.empty()) throw UserError(out->path + ": names no strides; export the model again");
  out->canvas_step = json.Has("canvas_step") ? json.Integer("canvas_step", 1, kMost) : out->strides.back();
  out->rpn_coder = Coder(rpn);
  out->grid_strides = rpn.Has("grid_strides") && rpn.Bool("grid_strides");
  const std::string rank_by = Convention(rpn, "rank_by", {"logits_first", "logits", "probabilities"});
  out->level_by_logits = rank_by != "probabilities";
  out->nms_by_logits = rank_by == "logits";
  out->rpn = Nms(rpn);
  out->rcnn = Nms(rcnn);
  out->score_thr = static_cast<float>(rcnn.Number("score_thr"));
  out->rcnn.across_groups = rcnn.Has("agnostic_nms") && rcnn.Bool("agnostic_nms");
  out->class_agnostic = rcnn.Bool("reg_class_agnostic");
  out->box_plus_one = json.Bool("box_plus_one");
  if (json.Has("cascade")) {
    const Json &cascade = json.At("cascade");
    out->stages = StageCoders(rcnn);
    out->average_probabilities = cascade.Text("average_scores") == "probabilities";
    out->average_mask_probabilities = cascade.Text("average_masks") == "probabilities";
  } else {
    out->stages = {Coder(rcnn)};
  }
  out->roi = Roi(json.At("roi"));
  if (out->with_mask) out->mask_roi = Roi(json.At("mask_roi"));

  const size_t levels = out->strides.size();
  bool sound = out->base_anchors.size() == levels && out->roi.strides.size() <= levels &&
               out->mask_roi.strides.size() <= levels && !out->boxes.empty() &&
               out->boxes.size() == out->stages.size() && out->masks.empty() != out->with_mask &&
               out->mask_weights.size() == out->masks.size() &&
               (!out->with_mask || out->mask_size == 2 * out->mask_roi.out_size);
  for (const auto &anchors : out->base_anchors) sound = sound && !anchors.empty();
  if (!sound) throw UserError(out->path + ": its parts don't fit together; export the model again");
}

void ReadResize(const Json &json, Sidecar *out) {
  const std::string rounding = Convention(json, "resize_rounding", {"nearest", "floor", "short_first"});
  out->resize.rounding = rounding == "floor"         ? Rounding::kFloor
                         : rounding == "short_first" ? Rounding::kShortFirst
                                                     : Rounding::kNearest;
  out->resize.antialias = Convention(json, "resize_filter", {"bilinear", "antialias"}) == "antialias";
  if (Convention(json, "resize", {"canvas", "short_side"}) == "canvas") return;
  out->resize.short_side = json.Integer("short_side", 1, kMost);
  out->resize.long_side = json.Integer("long_side", 1, kMost);
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
  const std::vector<uint8_t> bytes = ReadFile(out.path, "model's sidecar");
  const Json json = Json::Parse(std::string(bytes.begin(), bytes.end()), out.path);
  if (!json.Has("format") || json.Text("format") != "rcnn-mindspore") {
    throw UserError(out.path + ": not the sidecar of an exported model");
  }
  if (json.Number("version") != 1) {
    throw UserError(out.path + ": of another version than 1, which this program reads; export the model again");
  }
  const size_t slash = out.path.rfind('/');
  const std::string folder = slash == std::string::npos ? "" : out.path.substr(0, slash + 1);
  const std::string &form = json.Text("form");
  out.whole = form == "whole";
  if (!out.whole && form != "split") throw UserError(out.path + ": form \"" + form + "\" is neither whole nor split");
  out.file_format = json.Text("file_format");
  out.width = json.At("canvas").Integer("width", 1, kMost);
  out.height = json.At("canvas").Integer("height", 1, kMost);
  out.batch_size = json.Integer("batch_size", 1, kMost);
  ReadResize(json, &out);
  if (out.resize.short_side > 0 && out.width != out.height) {
    if (!json.Has("pair")) {
      throw UserError(out.path + ": names no model for pictures of the other orientation (pair); export both again");
    }
    out.turned = File(json.At("pair"), folder);
  }
  out.keep_ratio = json.Bool("keep_ratio");
  out.to_rgb = json.Bool("to_rgb");
  const std::vector<Json> &mean = json.List("mean"), &std = json.List("std");
  if (mean.size() != 3 || std.size() != 3) throw UserError(out.path + ": mean and std need 3 numbers each");
  for (size_t i = 0; i < 3; ++i) out.mean[i] = mean[i].AsNumber(), out.std[i] = std[i].AsNumber();
  for (const Json &name : json.List("classes")) out.classes.push_back(name.AsText());
  if (out.classes.size() < 2) throw UserError(out.path + ": names no classes; export the model again");
  out.with_mask = json.Bool("with_mask");
  out.max_per_img = json.At("rcnn").Integer("max_per_img", 1, kMost);
  if (out.with_mask) {
    const Json &paste = json.At("mask_paste");
    out.mask_size = paste.Integer("size", 1, 1024);
    out.mask_convention = paste.Text("convention");
    out.mask_threshold = paste.Number("threshold");
  }
  if (out.whole) {
    if (out.file_format == "ONNX") {
      throw UserError(out.path + ": an ONNX model runs in ONNX Runtime (eval_onnx.py); export MINDIR for this program");
    }
    out.model = File(json.At("files").At("model"), folder);
  } else {
    ReadSplit(json, folder, &out);
  }
  const int64_t last = out.strides.empty() ? 1 : out.strides.back();
  out.canvas_step = json.Has("canvas_step") ? json.Integer("canvas_step", 1, kMost) : last;
  return out;
}

std::vector<uint8_t> ReadChecked(const ModelFile &file) {
  std::vector<uint8_t> data = ReadFile(file.path, "model");
  if (data.size() != file.bytes) {
    throw UserError(file.path + ": " + std::to_string(data.size()) + " bytes, its sidecar says " +
                    std::to_string(file.bytes) + " (truncated, or of another export); export it again");
  }
  if (Sha256(data.data(), data.size()) != file.sha256) {
    throw UserError(file.path + ": not the model that its sidecar describes (checksum); export it again");
  }
  return data;
}

}  // namespace rcnn
