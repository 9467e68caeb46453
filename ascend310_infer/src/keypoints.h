// Keypoints of heatmaps over a box, as Mask R-CNN's: each map enlarged to the box, and its largest value's place.
#ifndef RCNN_INFER_KEYPOINTS_H_
#define RCNN_INFER_KEYPOINTS_H_

#include <cstdint>
#include <vector>

#include "sidecar.h"

namespace rcnn {

struct Keypoint {
  float x, y, score;
};

// Places in the pixels of `box`. maps: logits (count, side, side) over the box. Each is enlarged, bicubically
// (a = -0.75), to the box's size in whole pixels, rounded up, at least 1; of equal largest values the first by rows
// counts. score: that value, or, as_probability, its share of the exponentials of the map as it came, as Detectron2 has
// it, a little above 1 at most. src/evaluation/keypoints.py finds the same. Throws UserError for a box, or logits, that
// are no numbers.
std::vector<Keypoint> FindKeypoints(const float *maps, int64_t count, int64_t side, const Box &box,
                                    bool as_probability);

}  // namespace rcnn

#endif  // RCNN_INFER_KEYPOINTS_H_
