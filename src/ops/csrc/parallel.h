// A small deterministic-by-construction parallel loop for the CPU operators. No MindSpore dependency.
//
// Every task owns its outputs, so which thread runs which task never changes a result.
#ifndef RCNN_OPS_PARALLEL_H_
#define RCNN_OPS_PARALLEL_H_

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <thread>
#include <utility>

#include "helpers.h"

namespace rcnn {

// Threads to use: the cores this process may run on, lowered by the environment's RCNN_NUM_THREADS. OMP_NUM_THREADS is
// left to the caller: MindSpore sets it to 1 for itself while it runs.
inline int NumThreads() {
  cpu_set_t set;
  const int cores =
      ProcessCores(&set) ? CPU_COUNT(&set) : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  const char *text = std::getenv("RCNN_NUM_THREADS");
  const int64_t wanted = text == nullptr ? 0 : std::strtol(text, nullptr, 10);
  return wanted > 0 ? static_cast<int>(std::min<int64_t>(cores, wanted)) : cores;
}

// Calls body(task) for every task in [0, tasks), in no given order, on up to `threads` threads.
// `body` must not throw once it runs on several threads: reserve memory before.
template <typename Body>
void ParallelFor(int64_t tasks, int threads, const Body &body) {
  threads = static_cast<int>(std::min<int64_t>(threads, tasks));
  if (threads <= 1) {
    for (int64_t task = 0; task < tasks; ++task) body(task);
    return;
  }
  std::atomic<int64_t> next{0};
  const auto work = [&]() {
    for (int64_t task = next.fetch_add(1); task < tasks; task = next.fetch_add(1)) body(task);
  };
  std::unique_ptr<Helpers> helpers = Helpers::Take();
  helpers->Run(threads - 1, [](const void *w) { (*static_cast<decltype(work) *>(w))(); }, &work);
  Helpers::GiveBack(std::move(helpers));
}

}  // namespace rcnn

#endif  // RCNN_OPS_PARALLEL_H_
