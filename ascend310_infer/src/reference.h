// What a model's parts gave in Python (src/export/reference.py's file), to compare with.
#ifndef RCNN_INFER_REFERENCE_H_
#define RCNN_INFER_REFERENCE_H_

#include <cstdint>
#include <vector>

#include "graph.h"
#include "sidecar.h"

namespace rcnn {

// Roles; a detector's second branch is one more than its first, ...
constexpr uint32_t kFeatures = 0, kBox = 1, kFirstBranch = 2;

// Elements 0, step, 2 step, ... of an output.
struct Samples {
  Shape shape;
  float largest;  // absolute value of the whole output
  int64_t step;
  std::vector<float> values;
};

struct ReferenceCase {
  uint32_t role, stage;
  uint64_t seed;
  float scale;
  Shape shape;  // of the input, not empty
  std::vector<Samples> outputs;
};

struct Reference {
  float tolerance;
  std::vector<ReferenceCase> cases;
};

// Throws UserError.
Reference ReadReference(const ModelFile &file);

std::vector<float> ReferenceInput(const ReferenceCase &reference);

// The largest difference, as a share of the output's largest value; infinite where `values`, of the output's shape, are
// no numbers.
double Difference(const Samples &wanted, const float *values);

}  // namespace rcnn

#endif  // RCNN_INFER_REFERENCE_H_
