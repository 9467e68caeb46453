// The mask head: RoI features to mask logits, as a graph, or by our own C++ on a CPU.
#ifndef RCNN_INFER_MASK_HEAD_H_
#define RCNN_INFER_MASK_HEAD_H_

#include <cstdint>
#include <memory>

#include "sidecar.h"

namespace rcnn {

struct Device;  // graph.h

class MaskHead {
 public:
  virtual ~MaskHead() = default;
  virtual size_t MostRois() const = 0;  // to be given at once
  virtual int64_t Channels() const = 0;
  // Room for features (count, channels, side, side), valid until the next call.
  virtual float *Input(int64_t count, int64_t side) = 0;
  // From these features the logits (count, 2 side, 2 side) of each RoI's own class, of `classes`.
  virtual void Run(const int32_t *labels, int64_t classes, float *logits) = 0;
};

// NAME_mask*.mindir. Throws UserError.
std::unique_ptr<MaskHead> MakeGraphMaskHead(const ModelFile &file, const Device &device);

// NAME_mask*.bin, src/export/mask_weights.py's file. On a CPU more than twice as fast as MindSpore Lite: the 3x3
// convolutions are those of training (src/ops/csrc/winograd.cc), and of the last layer only the filter of each RoI's
// own class is applied. Throws UserError.
std::unique_ptr<MaskHead> MakeHostMaskHead(const ModelFile &file);

}  // namespace rcnn

#endif  // RCNN_INFER_MASK_HEAD_H_
