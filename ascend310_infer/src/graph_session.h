// What runs a graph: MindSpore Lite, or the program's own runtime on a CPU.
#ifndef RCNN_INFER_GRAPH_SESSION_H_
#define RCNN_INFER_GRAPH_SESSION_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "graph.h"

namespace rcnn {

// Inputs and outputs are counted from 0, and an index is one of these. All calls may throw UserError.
class GraphSession {
 public:
  virtual ~GraphSession() = default;
  virtual size_t Inputs() const = 0;
  virtual Shape InputShape(size_t i) const = 0;
  virtual Number InputType(size_t i) const = 0;
  virtual void *Input(size_t i) = 0;  // valid until Resize
  virtual void Resize(const std::vector<Shape> &shapes) = 0;
  virtual void Run() = 0;
  // Of the last Run; none before it and after Resize.
  virtual size_t Outputs() const = 0;
  virtual Shape OutputShape(size_t i) const = 0;
  virtual Number OutputType(size_t i) const = 0;
  virtual const void *Output(size_t i) = 0;
};

// graph_lite.cc
std::unique_ptr<GraphSession> MakeLiteSession(const ModelFile &file, const std::string &format, const Device &device);
// cpu/session.cc; MINDIR of the split form alone.
std::unique_ptr<GraphSession> MakeOwnSession(const ModelFile &file, const Device &device);

}  // namespace rcnn

#endif  // RCNN_INFER_GRAPH_SESSION_H_
