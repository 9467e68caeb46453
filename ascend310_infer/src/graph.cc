#include "graph.h"

#include <fcntl.h>
#include <malloc.h>
#include <unistd.h>

#include <cstdio>
#include <map>
#include <memory>

#include "files.h"
#include "include/api/model.h"

namespace rcnn {

namespace {

// Catches what the runtime says on standard error: its Status holds no reason.
class CaughtLog {
 public:
  CaughtLog() : log_(std::tmpfile()), saved_(dup(STDERR_FILENO)) {
    std::fflush(stderr);
    if (log_ != nullptr && saved_ >= 0) dup2(fileno(log_), STDERR_FILENO);
  }
  ~CaughtLog() {
    Stop();
    if (log_ != nullptr) std::fclose(log_);
  }

  // The first error that it told, without its place in the runtime's source: the later ones only pass it on.
  std::string Reason() {
    Stop();
    std::string first;
    if (log_ == nullptr) return first;
    std::rewind(log_);
    char line[4096];
    while (first.empty() && std::fgets(line, sizeof(line), log_) != nullptr) {
      const std::string text(line);
      if (text.find("[ERROR]") != std::string::npos || text.find("[CRITICAL]") != std::string::npos) first = text;
    }
    const size_t end = first.find_last_not_of("\r\n. ");
    first.resize(end == std::string::npos ? 0 : end + 1);
    const size_t place = first.rfind("] ");
    if (place != std::string::npos) first = first.substr(place + 2);
    return first.size() > 200 ? first.substr(0, 200) + "..." : first;
  }

 private:
  void Stop() {
    if (saved_ < 0) return;
    std::fflush(stderr);
    dup2(saved_, STDERR_FILENO);
    close(saved_);
    saved_ = -1;
  }

  std::FILE *log_;
  int saved_;
};

std::shared_ptr<mindspore::Context> MakeContext(const Device &device) {
  auto context = std::make_shared<mindspore::Context>();
  context->SetThreadNum(device.threads);
  if (device.ascend) {
    auto ascend = std::make_shared<mindspore::AscendDeviceInfo>();
    ascend->SetDeviceID(static_cast<uint32_t>(device.id));
    // else float16 wherever there is a kernel: coordinates of large canvases in whole pixels
    ascend->SetPrecisionMode("preferred_fp32");
    if (!device.aipp.empty()) ascend->SetInsertOpConfigPath(device.aipp);
    context->MutableDeviceInfo().push_back(ascend);
  } else {
    context->MutableDeviceInfo().push_back(std::make_shared<mindspore::CPUDeviceInfo>());
  }
  return context;
}

Number TypeOf(const mindspore::MSTensor &tensor) {
  switch (tensor.DataType()) {
    case mindspore::DataType::kNumberTypeBool:
    case mindspore::DataType::kNumberTypeUInt8:
    case mindspore::DataType::kNumberTypeInt8:
      return Number::kByte;
    case mindspore::DataType::kNumberTypeInt32:
      return Number::kInt32;
    case mindspore::DataType::kNumberTypeInt64:
      return Number::kInt64;
    case mindspore::DataType::kNumberTypeFloat16:
      return Number::kFloat16;
    case mindspore::DataType::kNumberTypeFloat32:
      return Number::kFloat32;
    default:
      return Number::kOther;
  }
}

std::string Because(const std::string &reason) { return reason.empty() ? "" : " (" + reason + ")"; }

}  // namespace

std::string ShapeText(const Shape &shape) {
  std::string out = "(";
  for (const int64_t side : shape) out += (out.size() > 1 ? ", " : "") + std::to_string(side);
  return out + ")";
}

struct Graph::Session {
  mindspore::Model model;
  std::vector<mindspore::MSTensor> inputs, outputs;
  std::map<size_t, std::vector<char>> converted;  // outputs that the device gives in another type
};

Graph::Graph(const ModelFile &file, const std::string &format, const Device &device)
    : path_(file.path), session_(std::make_unique<Session>()) {
  mindspore::ModelType type = mindspore::kMindIR;
  if (format == "AIR") type = mindspore::kAIR;
  CaughtLog log;
  mindspore::Status status;
  {
    const std::vector<uint8_t> bytes = ReadChecked(file);
    status = session_->model.Build(bytes.data(), bytes.size(), type, MakeContext(device));
  }
  if (status != mindspore::kSuccess) {
    const std::string reason = Because(log.Reason());
    if (device.ascend) {
      throw UserError("device_type Ascend: device " + std::to_string(device.id) + " can't run " + path_ + reason +
                      "; install the Ascend driver, CANN and MindSpore Lite for Ascend, or give --device_type CPU and"
                      " a model of the split form");
    }
    throw UserError(path_ + ": MindSpore Lite can't build it for the CPU" + reason +
                    ", whose RoIAlign and NMS it lacks; export with --split, or give --device_type Ascend");
  }
  session_->inputs = session_->model.GetInputs();
  // loading leaves the file's parsed form behind
  malloc_trim(0);
}

Graph::~Graph() = default;

size_t Graph::Inputs() const { return session_->inputs.size(); }

Shape Graph::InputShape(size_t i) const { return i < session_->inputs.size() ? session_->inputs[i].Shape() : Shape(); }

bool Graph::TakesBytes() const {
  return !session_->inputs.empty() && session_->inputs[0].DataType() == mindspore::DataType::kNumberTypeUInt8;
}

void Graph::SetShapes(const std::vector<Shape> &shapes) {
  if (shapes.size() != session_->inputs.size()) {
    throw UserError(path_ + ": takes " + std::to_string(session_->inputs.size()) + " inputs, not " +
                    std::to_string(shapes.size()) + "; not the model that its sidecar describes");
  }
  bool same = true;
  for (size_t i = 0; i < shapes.size(); ++i) same = same && session_->inputs[i].Shape() == shapes[i];
  if (same) return;
  CaughtLog log;
  if (session_->model.Resize(session_->inputs, shapes) != mindspore::kSuccess) {
    throw UserError(path_ + ": can't take input " + ShapeText(shapes[0]) + Because(log.Reason()));
  }
  session_->inputs = session_->model.GetInputs();
  session_->outputs.clear();
}

void *Graph::InputMemory(size_t i, Number type) {
  void *memory = i < session_->inputs.size() ? session_->inputs[i].MutableData() : nullptr;
  if (memory == nullptr || TypeOf(session_->inputs[i]) != type) {
    throw UserError(path_ + ": input " + std::to_string(i) +
                    " is of another type; not the model that its sidecar"
                    " describes");
  }
  return memory;
}

void Graph::Run() {
  CaughtLog log;
  session_->outputs.clear();
  if (session_->model.Predict(session_->inputs, &session_->outputs) != mindspore::kSuccess) {
    const std::string input = session_->inputs.empty() ? "" : " on an input " + ShapeText(session_->inputs[0].Shape());
    throw UserError(path_ + ": MindSpore Lite can't run it" + input + Because(log.Reason()) +
                    "; a smaller canvas takes less memory");
  }
}

void Graph::ExpectOutputs(size_t count) const {
  if (session_->outputs.size() != count) {
    throw UserError(path_ + ": gives " + std::to_string(session_->outputs.size()) + " outputs, not " +
                    std::to_string(count) + "; not the model that its sidecar describes");
  }
}

const void *Graph::OutputMemory(size_t i, const Shape &shape, Number type) {
  if (i >= session_->outputs.size() || session_->outputs[i].Shape() != shape) {
    throw UserError(path_ + ": output " + std::to_string(i) + " is " +
                    (i < session_->outputs.size() ? ShapeText(session_->outputs[i].Shape()) : "missing") +
                    ", its sidecar means " + ShapeText(shape) + "; model and sidecar disagree, export again");
  }
  const void *memory = session_->outputs[i].MutableData();
  if (memory == nullptr) throw UserError(path_ + ": output " + std::to_string(i) + " is empty");
  const Number given = TypeOf(session_->outputs[i]);
  if (given == type) return memory;
  const size_t count = static_cast<size_t>(session_->outputs[i].ElementNum());
  std::vector<char> &converted = session_->converted[i];
  converted.resize(count * NumberSize(type));
  if (!ConvertNumbers(given, memory, count, type, converted.data())) {
    throw UserError(path_ + ": output " + std::to_string(i) +
                    " is of another type than its sidecar means; model and sidecar disagree, export again");
  }
  return converted.data();
}

}  // namespace rcnn
