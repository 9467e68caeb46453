// In place of graph.cc, for tests that read sidecars and run nothing: they need no MindSpore Lite.
#include "../../ascend310_infer/src/graph.h"

#include "../../ascend310_infer/src/files.h"

namespace rcnn {

struct Graph::Session {};

Graph::Graph(const ModelFile &file, const std::string &, const Device &) : path_(file.path) {
  throw UserError(path_ + ": no runtime in this test");
}

Graph::~Graph() = default;
void Graph::SetShapes(const std::vector<Shape> &) {}
Shape Graph::InputShape(size_t) const { return {}; }
size_t Graph::Inputs() const { return 0; }
bool Graph::TakesBytes() const { return false; }
void Graph::Run() {}
void Graph::ExpectOutputs(size_t) const {}
void *Graph::InputMemory(size_t, Number) { return nullptr; }
const void *Graph::OutputMemory(size_t, const Shape &, Number) { return nullptr; }

}  // namespace rcnn
