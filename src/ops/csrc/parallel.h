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
#include <system_error>
#include <thread>
#include <vector>

namespace rcnn {

// Threads to use: the cores this process may run on, lowered by RCNN_NUM_THREADS, or else OMP_NUM_THREADS.
inline int NumThreads() {
  cpu_set_t set;
  CPU_ZERO(&set);
  int cores = 1;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) {
    cores = std::max(1, CPU_COUNT(&set));
  } else {
    cores = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  }
  for (const char *name : {"RCNN_NUM_THREADS", "OMP_NUM_THREADS"}) {
    const char *text = std::getenv(name);
    const int64_t wanted = text == nullptr ? 0 : std::strtol(text, nullptr, 10);
    if (wanted > 0) return static_cast<int>(std::min<int64_t>(cores, wanted));
  }
  return cores;
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
  auto work = [&]() {
    for (int64_t task = next.fetch_add(1); task < tasks; task = next.fetch_add(1)) body(task);
  };
  std::vector<std::thread> helpers;
  helpers.reserve(static_cast<size_t>(threads));
  try {
    for (int i = 1; i < threads; ++i) helpers.emplace_back(work);
  } catch (const std::system_error &) {
    // The system gives no more threads: those that started, and this one, do the work.
  }
  work();
  for (auto &helper : helpers) helper.join();
}

}  // namespace rcnn

#endif  // RCNN_OPS_PARALLEL_H_
