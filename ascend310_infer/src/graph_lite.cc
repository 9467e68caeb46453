#include <fcntl.h>
#include <malloc.h>
#include <unistd.h>

#include <cstdio>
#include <memory>

#include "files.h"
#include "graph_session.h"
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

class LiteSession : public GraphSession {
 public:
  LiteSession(const ModelFile &file, const std::string &format, const Device &device) : path_(file.path) {
    mindspore::ModelType type = mindspore::kMindIR;
    if (format == "AIR") type = mindspore::kAIR;
    CaughtLog log;
    mindspore::Status status;
    {
      const std::vector<uint8_t> bytes = ReadChecked(file);
      status = model_.Build(bytes.data(), bytes.size(), type, MakeContext(device));
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
    inputs_ = model_.GetInputs();
    // loading leaves the file's parsed form behind
    malloc_trim(0);
  }

  size_t Inputs() const override { return inputs_.size(); }
  Shape InputShape(size_t i) const override { return inputs_[i].Shape(); }
  Number InputType(size_t i) const override { return TypeOf(inputs_[i]); }
  void *Input(size_t i) override { return inputs_[i].MutableData(); }

  void Resize(const std::vector<Shape> &shapes) override {
    CaughtLog log;
    if (model_.Resize(inputs_, shapes) != mindspore::kSuccess) {
      throw UserError(path_ + ": can't take input " + ShapeText(shapes[0]) + Because(log.Reason()));
    }
    inputs_ = model_.GetInputs();
    outputs_.clear();
  }

  void Run() override {
    CaughtLog log;
    outputs_.clear();
    if (model_.Predict(inputs_, &outputs_) != mindspore::kSuccess) {
      const std::string input = inputs_.empty() ? "" : " on an input " + ShapeText(inputs_[0].Shape());
      throw UserError(path_ + ": MindSpore Lite can't run it" + input + Because(log.Reason()) +
                      "; a smaller canvas takes less memory");
    }
  }

  size_t Outputs() const override { return outputs_.size(); }
  Shape OutputShape(size_t i) const override { return outputs_[i].Shape(); }
  Number OutputType(size_t i) const override { return TypeOf(outputs_[i]); }
  const void *Output(size_t i) override { return outputs_[i].MutableData(); }

 private:
  const std::string path_;
  mindspore::Model model_;
  std::vector<mindspore::MSTensor> inputs_, outputs_;
};

}  // namespace

std::unique_ptr<GraphSession> MakeLiteSession(const ModelFile &file, const std::string &format, const Device &device) {
  return std::make_unique<LiteSession>(file, format, device);
}

}  // namespace rcnn
