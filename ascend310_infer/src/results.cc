#include "results.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <numeric>

#include "json.h"

namespace rcnn {

namespace {

template <typename T>
void Append(const T *values, size_t count, std::vector<uint8_t> *to) {
  static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "results are little endian");
  if (count == 0) return;
  const size_t old = to->size();
  to->resize(old + count * sizeof(T));
  std::memcpy(to->data() + old, values, count * sizeof(T));
}

void AppendText(std::string text, size_t size, std::vector<uint8_t> *to) {
  text.resize(size, '\0');
  Append(text.data(), size, to);
}

void AppendLayout(const Field &field, std::vector<uint8_t> *to) {
  AppendText(field.name, 16, to);
  AppendText(field.type, 4, to);
  std::vector<uint32_t> sides = {static_cast<uint32_t>(field.shape.size())};
  for (const int64_t side : field.shape) sides.push_back(static_cast<uint32_t>(side));
  Append(sides.data(), sides.size(), to);
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.empty() ? 0 : values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

std::string List(const std::vector<std::string> &texts) {
  std::string out = "[";
  for (const std::string &text : texts) out += (out.size() > 1 ? ", " : "") + Quoted(text);
  return out + "]";
}

}  // namespace

std::vector<uint8_t> PackResult(const Prepared &image, const Detections &detections, const std::vector<Field> &fields) {
  std::vector<uint8_t> out;
  const bool first = fields.empty() || (fields.size() == 1 && fields[0].first_format);
  const int64_t last = first && !fields.empty() ? fields[0].shape[0] : static_cast<int64_t>(fields.size());
  const uint32_t header[] = {static_cast<uint32_t>(image.height), static_cast<uint32_t>(image.width),
                             static_cast<uint32_t>(detections.boxes.size()), static_cast<uint32_t>(last)};
  Append(first ? "RCNNDET1" : "RCNNDET2", 8, &out);
  Append(header, 4, &out);
  for (size_t f = 0; !first && f < fields.size(); ++f) AppendLayout(fields[f], &out);
  Append(detections.boxes.data(), detections.boxes.size(), &out);
  Append(detections.scores.data(), detections.scores.size(), &out);
  Append(detections.labels.data(), detections.labels.size(), &out);
  for (const std::vector<uint8_t> &field : detections.fields) Append(field.data(), field.size(), &out);
  return out;
}

double PeakMemory() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.compare(0, 6, "VmHWM:") == 0) return std::strtod(line.c_str() + 6, nullptr) / 1024;
  }
  return 0;
}

std::string SummaryJson(const Summary &summary, const Sidecar &sidecar) {
  std::string out = "{\n \"format\": \"rcnn-mindspore results\",\n \"version\": 1,\n";
  out += " \"model\": " + Quoted(sidecar.path) + ",\n";
  out += " \"model_sha256\": " + Quoted(sidecar.whole ? sidecar.model.sha256 : sidecar.features.sha256) + ",\n";
  out += " \"device_type\": " + Quoted(summary.device) + ",\n \"threads\": " + std::to_string(summary.threads) + ",\n";
  out += " \"canvas\": {\"width\": " + std::to_string(sidecar.width) +
         ", \"height\": " + std::to_string(sidecar.height) +
         ", \"keep_ratio\": " + (sidecar.keep_ratio ? "true" : "false") + "},\n";
  out += " \"classes\": " + List(sidecar.classes) + ",\n";
  for (const auto &branch : sidecar.branches) {
    const std::string text = branch->SummaryText();
    if (!text.empty()) out += " " + text + ",\n";
  }
  out += " \"images\": " + List(summary.images) + ",\n \"unreadable\": [";
  for (size_t i = 0; i < summary.unreadable.size(); ++i) {
    out += std::string(i > 0 ? ", " : "") + "{\"name\": " + Quoted(summary.unreadable[i].first) +
           ", \"reason\": " + Quoted(summary.unreadable[i].second) + "}";
  }
  out += "],\n \"not_images\": " + List(summary.not_images) + ",\n";
  out += " \"load_s\": " + Decimals(summary.load_seconds) + ",\n \"run_s\": " + Decimals(summary.seconds) + ",\n";
  out += " \"images_per_s\": " +
         Decimals(summary.seconds > 0 ? static_cast<double>(summary.images.size()) / summary.seconds : 0) + ",\n";
  out += " \"peak_memory_mib\": " + Decimals(PeakMemory()) + ",\n \"median_ms\": {";
  for (size_t i = 0; i < summary.times.size(); ++i) {
    const auto &[stage, values] = summary.times[i];
    out += std::string(i > 0 ? ", " : "") + Quoted(stage) + ": " + Decimals(Median(values));
  }
  return out + "}\n}\n";
}

void PrintSummary(const Summary &summary) {
  std::printf("\n%-12s %10s %10s %6s\n", "stage", "median ms", "mean ms", "runs");
  for (const auto &[stage, values] : summary.times) {
    const double mean =
        std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(std::max<size_t>(values.size(), 1));
    std::printf("%-12s %10.1f %10.1f %6zu\n", stage.c_str(), Median(values), mean, values.size());
  }
  std::printf("\n%zu images in %.2f s, %.2f images/s; model loaded in %.2f s; peak memory %.0f MiB\n",
              summary.images.size(), summary.seconds,
              summary.seconds > 0 ? static_cast<double>(summary.images.size()) / summary.seconds : 0.0,
              summary.load_seconds, PeakMemory());
}

}  // namespace rcnn
