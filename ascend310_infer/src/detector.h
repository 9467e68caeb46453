// From prepared images to detections, in either form of the model.
#ifndef RCNN_INFER_DETECTOR_H_
#define RCNN_INFER_DETECTOR_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "graph.h"
#include "image.h"
#include "sidecar.h"
#include "times.h"

namespace rcnn {

// Of one image, best score first.
struct Detections {
  std::vector<Box> boxes;  // pixels of the image file
  std::vector<float> scores;
  std::vector<int32_t> labels;               // indices into the sidecar's classes
  std::vector<std::vector<uint8_t>> fields;  // of each of the sidecar's branches, as its Result says
};

class Detector {
 public:
  virtual ~Detector() = default;
  // One result for each image, at most `batch` of them.
  virtual std::vector<Detections> Detect(const std::vector<Prepared> &images, StageTimes *times) = 0;
  // Compares every graph with what Python gave for the same input; prints the differences. Throws UserError where one
  // is too large.
  virtual void SelfCheck() = 0;
};

// Canvas of width x height and batches of up to `batch`, which the whole form must have been exported for. Loads the
// model. Throws UserError.
std::unique_ptr<Detector> MakeDetector(const Sidecar &sidecar, const Device &device);

// --- the split form's work between its graphs (proposals.cc) --------------------------------------------

// One level of the RPN's outputs for one image.
struct RpnLevel {
  const float *logits, *deltas;  // (A, height, width), (4 A, height, width)
  int64_t height, width;
  int64_t rows, columns;  // of those, the first whose anchors take part
  int64_t down, across;   // pixels between anchors
  const std::vector<Box> *base_anchors;
};

// What proposals are ranked by, logits or probabilities: in each level, and in NMS.
struct Ranking {
  bool level_by_logits, nms_by_logits;
};

// What boxes are clipped to: the picture's part of the canvas.
struct Bounds {
  int64_t height, width;
  bool plus_one;  // see Sidecar::box_plus_one
};

// Whether it has some of the picture: a detection without is left out, as src/evaluation/paste.py does.
inline bool HasArea(const Box &box) { return !(box[2] <= box[0] || box[3] <= box[1]); }

// src/models/proposals.py
// score_thr: proposals of a lower probability are none.
std::vector<Box> MakeProposals(const std::vector<RpnLevel> &levels, const BoxCoder &coder, const NmsSettings &settings,
                               float score_thr, const Ranking &ranking, const Bounds &bounds);

// src/models/bbox_head.py's Detections. scores: (N, classes) probabilities; deltas: (N, 4 classes) or (N, 4). Boxes in
// canvas pixels.
Detections MakeDetections(const std::vector<float> &scores, const float *deltas, bool class_agnostic, int64_t classes,
                          const std::vector<Box> &proposals, const BoxCoder &coder, const NmsSettings &settings,
                          float score_thr, const Bounds &bounds);

// The boxes that the next stage of a cascade classifies.
std::vector<Box> RefineBoxes(const float *logits, const float *deltas, bool class_agnostic, int64_t classes,
                             const std::vector<Box> &boxes, const BoxCoder &coder, const Bounds &bounds);

// (rows, columns) logits to probabilities, row by row.
void Softmax(const float *logits, int64_t rows, int64_t columns, float *probabilities);

// FPN's level of each box (src/models/roi_extractor.py).
std::vector<int32_t> RoiLevels(const std::vector<Box> &boxes, const RoiSettings &settings);

}  // namespace rcnn

#endif  // RCNN_INFER_DETECTOR_H_
