// The JSON beside an exported model (src/export/sidecar.py): how images are prepared and what its answers mean.
#ifndef RCNN_INFER_SIDECAR_H_
#define RCNN_INFER_SIDECAR_H_

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "image.h"

namespace rcnn {

using Box = std::array<float, 4>;  // x1 y1 x2 y2

struct ModelFile {
  std::string path, sha256;
  uint64_t bytes = 0;
};

// (dx, dy, dw, dh) * stds + means; dw and dh at most max_log, and at least min_log.
struct BoxCoder {
  std::array<float, 4> means{}, stds{};
  float max_log = 0, min_log = 0;
};

struct NmsSettings {
  int64_t nms_pre = 0, max_per_img = 0;
  float iou_threshold = 0, min_bbox_size = 0;
  bool across_groups = false;  // boxes suppress those of other levels, or classes, too
};

struct RoiSettings {
  int out_size = 0, sampling_ratio = 0;
  bool aligned = false;
  bool last_pixel_end = false;  // a RoI ends at its last pixel, x2 - 1
  std::vector<float> strides;
  std::vector<float> level_sides;  // the least square root of area of each level but the finest
};

class Branch;  // branch.h

struct Sidecar {
  std::string path, file_format;
  bool has_checksum = true;  // older exports have none, and aren't checked for damage
  bool whole = false;        // one graph; else the split form
  int64_t width = 0, height = 0, batch_size = 0;
  int64_t canvas_step = 0;  // what other canvases of the split form are multiples of
  ResizeRule resize;
  bool keep_ratio = true, to_rgb = true;
  bool box_plus_one = false;  // boxes are clipped as src/models/box_coder.py has it for the oldest R-CNNs
  std::array<double, 3> mean{}, std{};
  std::vector<std::string> classes;  // the first is the background
  int64_t max_per_img = 0;
  std::vector<std::shared_ptr<const Branch>> branches;  // in the order of their outputs

  // the model, or the split form's features, of the other orientation's pictures, on the canvas turned; no path: all
  // have one canvas
  ModelFile turned;

  ModelFile model;                // of the whole form
  ModelFile features, reference;  // the rest: of the split form
  std::vector<ModelFile> boxes;   // one, or one a stage
  std::vector<int64_t> strides;   // of the RPN's levels, none less than the one before
  bool grid_strides = false;      // anchors lie canvas side / map side apart, rounded down, not a stride
  int64_t size_divisor = 1;       // a picture's sides are rounded up to multiples of it, which anchors begin in
  bool level_by_logits = true;    // a level's best are those of the largest logits, else probabilities
  bool nms_by_logits = false;     // so does NMS rank proposals
  std::vector<std::vector<Box>> base_anchors;
  BoxCoder rpn_coder;
  NmsSettings rpn, rcnn;
  RoiSettings roi;
  std::vector<BoxCoder> stages;
  bool class_agnostic = false, average_probabilities = false;
  float score_thr = 0;
  float rpn_score_thr = 0;  // least objectness of a proposal

  bool Turns() const { return !turned.path.empty(); }
  // The canvas of a picture of this size.
  Canvas CanvasOf(int64_t picture_height, int64_t picture_width) const;
};

// `path`: the sidecar, or the model file that it lies beside. Throws UserError for one that is missing, damaged or
// changed, or whose parts don't fit each other.
Sidecar ReadSidecar(const std::string &path);

// The file's content, if it is the one that the sidecar describes. Throws UserError.
std::vector<uint8_t> ReadChecked(const ModelFile &file);

}  // namespace rcnn

#endif  // RCNN_INFER_SIDECAR_H_
