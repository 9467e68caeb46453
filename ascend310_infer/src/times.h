// How long the stages of the work took.
#ifndef RCNN_INFER_TIMES_H_
#define RCNN_INFER_TIMES_H_

#include <algorithm>
#include <chrono>
#include <string>
#include <utility>
#include <vector>

namespace rcnn {

// Milliseconds by stage of the work, in the order in which the stages ended first.
using StageTimes = std::vector<std::pair<std::string, double>>;

// Adds the time until its end to a stage.
class Timed {
 public:
  Timed(StageTimes *times, std::string stage) : times_(times), stage_(std::move(stage)), begin_(Clock::now()) {}
  ~Timed() {
    auto found = std::find_if(times_->begin(), times_->end(), [&](const auto &entry) { return entry.first == stage_; });
    if (found == times_->end()) found = times_->insert(times_->end(), {stage_, 0.0});
    found->second += std::chrono::duration<double, std::milli>(Clock::now() - begin_).count();
  }
  Timed(const Timed &) = delete;
  Timed &operator=(const Timed &) = delete;

 private:
  using Clock = std::chrono::steady_clock;
  StageTimes *times_;
  const std::string stage_;
  Clock::time_point begin_;
};

}  // namespace rcnn

#endif  // RCNN_INFER_TIMES_H_
