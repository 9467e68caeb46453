#include "graph.h"

#include <map>
#include <memory>

#include "files.h"
#include "graph_session.h"

namespace rcnn {

std::string ShapeText(const Shape &shape) {
  std::string out = "(";
  for (const int64_t side : shape) out += (out.size() > 1 ? ", " : "") + std::to_string(side);
  return out + ")";
}

struct Graph::Session {
  std::unique_ptr<GraphSession> runtime;
  std::map<size_t, std::vector<char>> converted;  // outputs that the device gives in another type
};

#if !defined(RCNN_LITE)
std::unique_ptr<GraphSession> MakeLiteSession(const ModelFile &, const std::string &, const Device &device) {
  throw UserError(
      std::string(device.ascend ? "--device_type Ascend" : "--runtime lite") +
      ": this program is built without MindSpore Lite; build it with: bash ascend310_infer/build.sh --fetch");
}
#endif

Graph::Graph(const ModelFile &file, const std::string &format, const Device &device)
    : path_(file.path), session_(std::make_unique<Session>()) {
  const bool own = !device.ascend && !device.lite;
  session_->runtime = own ? MakeOwnSession(file, device) : MakeLiteSession(file, format, device);
}

Graph::~Graph() = default;

size_t Graph::Inputs() const { return session_->runtime->Inputs(); }

Shape Graph::InputShape(size_t i) const { return i < Inputs() ? session_->runtime->InputShape(i) : Shape(); }

bool Graph::TakesBytes() const { return Inputs() > 0 && session_->runtime->InputType(0) == Number::kByte; }

void Graph::SetShapes(const std::vector<Shape> &shapes) {
  if (shapes.size() != Inputs()) {
    throw UserError(path_ + ": takes " + std::to_string(Inputs()) + " inputs, not " + std::to_string(shapes.size()) +
                    "; not the model that its sidecar describes");
  }
  bool same = true;
  for (size_t i = 0; i < shapes.size(); ++i) same = same && InputShape(i) == shapes[i];
  if (!same) session_->runtime->Resize(shapes);
}

void *Graph::InputMemory(size_t i, Number type) {
  void *memory = i < Inputs() && session_->runtime->InputType(i) == type ? session_->runtime->Input(i) : nullptr;
  if (memory == nullptr) {
    throw UserError(path_ + ": input " + std::to_string(i) +
                    " is of another type; not the model that its sidecar"
                    " describes");
  }
  return memory;
}

void Graph::Run() { session_->runtime->Run(); }

void Graph::ExpectOutputs(size_t count) const {
  const size_t given = session_->runtime->Outputs();
  if (given != count) {
    throw UserError(path_ + ": gives " + std::to_string(given) + " outputs, not " + std::to_string(count) +
                    "; not the model that its sidecar describes");
  }
}

const void *Graph::OutputMemory(size_t i, const Shape &shape, Number type) {
  GraphSession &runtime = *session_->runtime;
  const Shape own = i < runtime.Outputs() ? runtime.OutputShape(i) : Shape();
  if (i >= runtime.Outputs() || own != shape) {
    throw UserError(path_ + ": output " + std::to_string(i) + " is " +
                    (i < runtime.Outputs() ? ShapeText(own) : "missing") + ", its sidecar means " + ShapeText(shape) +
                    "; model and sidecar disagree, export again");
  }
  const void *memory = runtime.Output(i);
  if (memory == nullptr) throw UserError(path_ + ": output " + std::to_string(i) + " is empty");
  const Number given = runtime.OutputType(i);
  if (given == type) return memory;
  size_t count = 1;
  for (const int64_t side : own) count *= static_cast<size_t>(side);
  std::vector<char> &converted = session_->converted[i];
  converted.resize(count * NumberSize(type));
  if (!ConvertNumbers(given, memory, count, type, converted.data())) {
    throw UserError(path_ + ": output " + std::to_string(i) +
                    " is of another type than its sidecar means; model and sidecar disagree, export again");
  }
  return converted.data();
}

}  // namespace rcnn
