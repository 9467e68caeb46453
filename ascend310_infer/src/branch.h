// A branch: a head on what the box head finds, and all that the program's other parts don't know of it. A new one has a
// file of its own, and is named in branches.cc. Its part of an export is src/export/branches/'s.
#ifndef RCNN_INFER_BRANCH_H_
#define RCNN_INFER_BRANCH_H_

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "graph.h"
#include "reference.h"
#include "sidecar.h"
#include "times.h"

namespace rcnn {

class SidecarReader;

using Scale = std::array<float, 2>;

// An array that results hold of each detection.
struct Field {
  std::string name;
  std::string type;           // as NumPy has it: "u1", "f4"; little endian
  Shape shape;                // of one detection
  bool first_format = false;  // squares of bytes, which the results' first format has room for
};

// An output (N, D, shape) of the whole graph, float32.
struct Port {
  std::string name;
  Shape shape;
};

// One image's feature maps, to take RoIs from.
class Pyramid {
 public:
  virtual ~Pyramid() = default;
  // Features (boxes, channels, out_size, out_size) of boxes in pixels of the canvas.
  virtual void Align(const std::vector<Box> &boxes, const RoiSettings &roi, int64_t channels, float *to,
                     StageTimes *times) const = 0;
};

// The heads of a branch, loaded.
class BranchHeads {
 public:
  virtual ~BranchHeads() = default;
  // Values as the whole graph's output has them, of these boxes in pixels of the canvas, one or more.
  virtual std::vector<float> Run(const Pyramid &pyramid, const std::vector<Box> &boxes,
                                 const std::vector<int32_t> &labels, StageTimes *times) = 0;
  virtual size_t Stages() const = 0;  // one head, or one a stage of a cascade
  // The largest difference from what Python gave, as Difference has it, of the head of c.stage, which there is.
  virtual double Check(const ReferenceCase &c) = 0;
};

// What a sidecar says of a branch.
class Branch {
 public:
  virtual ~Branch() = default;
  virtual Port Output() const = 0;
  virtual Field Result() const = 0;
  virtual size_t Maps() const = 0;  // feature maps that its RoIs are taken from
  // Appends the result of a detection with these values; box: in pixels of the image file; scale: (x, y) pixels of the
  // canvas, where it was found, a pixel of the file.
  virtual void Encode(const float *values, const Box &box, const Scale &scale, std::vector<uint8_t> *to) const = 0;
  // What else a reader of results has to know: keys and values of JSON, without braces, or nothing.
  virtual std::string SummaryText() const { return ""; }
  // Of the split form, for a device; and in every way that there is, by name, to compare with Python. They use this
  // branch as long as they live. Throw UserError.
  virtual std::unique_ptr<BranchHeads> Load(const Device &device) const = 0;
  virtual std::vector<std::pair<std::string, std::unique_ptr<BranchHeads>>> LoadAll(const Device &device) const = 0;
};

// --- branches.cc

// Every detector's name; and those of every branch.
std::vector<std::string> DetectorNames();
std::vector<std::string> BranchNames();
// A detector's branches, in the order of its outputs, as its sidecar has them. Throws UserError, also for what a
// sidecar says of a branch that the detector hasn't.
std::vector<std::shared_ptr<const Branch>> ReadBranches(const SidecarReader &from, const std::string &detector);

// Calls part(boxes, first, count) for equal parts of `boxes`, of at most `most` each.
template <typename Part>
void InParts(const std::vector<Box> &boxes, size_t most, const Part &part) {
  const size_t parts = (boxes.size() + most - 1) / most, each = (boxes.size() + parts - 1) / parts;
  for (size_t first = 0; first < boxes.size(); first += each) {
    const size_t count = std::min(each, boxes.size() - first);
    part({boxes.begin() + static_cast<int64_t>(first), boxes.begin() + static_cast<int64_t>(first + count)},
         static_cast<int64_t>(first), static_cast<int64_t>(count));
  }
}

}  // namespace rcnn

#endif  // RCNN_INFER_BRANCH_H_
