// One small file an image, and the summary of a run. postprocess.py reads both.
#ifndef RCNN_INFER_RESULTS_H_
#define RCNN_INFER_RESULTS_H_

#include <string>
#include <vector>

#include "branch.h"
#include "detector.h"
#include "sidecar.h"

namespace rcnn {

// Little endian: "RCNNDET1"; uint32 image height, width, detections N, mask size M (0: no masks); then N boxes (4 x
// float32, x1 y1 x2 y2 in pixels of the image file), N scores (float32), N labels (uint32), N masks (M x M bytes, 255
// for probability 1).
//
// What other branches give, it has no room for. With such: "RCNNDET2"; uint32 image height, width, N, number of fields;
// each field's name (16 bytes, zeros after it), type as NumPy has it ("u1", "f4"; 4 bytes, zeros after it), uint32
// number of dimensions, and each of them; then boxes, scores, labels as before, and each field's N arrays.
//
// fields: of `detections`, in order.
std::vector<uint8_t> PackResult(const Prepared &image, const Detections &detections, const std::vector<Field> &fields);

struct Summary {
  std::vector<std::string> images;                                 // with a result
  std::vector<std::pair<std::string, std::string>> unreadable;     // and why
  std::vector<std::string> not_images;                             // other files of the folder
  std::vector<std::string> folders;                                // in it, passed over
  std::vector<std::pair<std::string, std::vector<double>>> times;  // stage, milliseconds of each image or batch
  double seconds = 0, load_seconds = 0;
  int threads = 0;
  std::string device;
};

std::string SummaryJson(const Summary &summary, const Sidecar &sidecar);
void PrintSummary(const Summary &summary);

// Largest resident memory of this process so far, MiB.
double PeakMemory();

}  // namespace rcnn

#endif  // RCNN_INFER_RESULTS_H_
