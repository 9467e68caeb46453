// Threads that help with loops, kept from one loop to the next: to start one takes longer than a small map's work.
#ifndef RCNN_OPS_HELPERS_H_
#define RCNN_OPS_HELPERS_H_

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>

namespace rcnn {

// The cores that this process may run on. Not those of the calling thread: MindSpore pins its own to one core each.
inline bool ProcessCores(cpu_set_t *set) {
  CPU_ZERO(set);
  return sched_getaffinity(getpid(), sizeof(*set), set) == 0 && CPU_COUNT(set) > 0;
}

// A team of threads that one loop at a time is given to.
class Helpers {
 public:
  // One that is free, of this process: after a fork a child has none.
  static std::unique_ptr<Helpers> Take() {
    for (std::atomic<Helpers *> &place : Shelf()) {
      std::unique_ptr<Helpers> helpers(place.exchange(nullptr));
      if (helpers == nullptr) continue;
      if (helpers->process_ == getpid()) return helpers;
      helpers.release();  // whose threads are the parent's
    }
    return std::make_unique<Helpers>();
  }

  // To be taken again.
  static void GiveBack(std::unique_ptr<Helpers> helpers) {
    for (std::atomic<Helpers *> &place : Shelf()) {
      Helpers *none = nullptr;
      if (place.compare_exchange_strong(none, helpers.get())) {
        helpers.release();
        return;
      }
    }
  }

  Helpers() : process_(getpid()), state_(std::make_shared<State>()) {}
  ~Helpers() {
    const std::lock_guard<std::mutex> lock(state_->mutex);
    state_->stop = true;
    state_->wake.notify_all();
  }
  Helpers(const Helpers &) = delete;
  Helpers &operator=(const Helpers &) = delete;

  // Calls call(work) here and on up to `count` other threads. Returns when all calls have; those that hadn't begun when
  // this thread's ended aren't made.
  void Run(int count, void (*call)(const void *), const void *work) {
    Grow(count);
    State &s = *state_;
    s.call = call;
    s.work = work;
    s.places.store(static_cast<uint64_t>(count));
    if (s.asleep.load() > 0) {
      const std::lock_guard<std::mutex> lock(s.mutex);
      s.wake.notify_all();
    }
    call(work);
    s.places.fetch_and(~kOpen);
    if (Soon([&s]() { return s.places.load() == 0; })) return;
    std::unique_lock<std::mutex> lock(s.mutex);
    s.waiting = true;
    s.ended.wait(lock, [&s]() { return s.places.load() == 0; });
    s.waiting = false;
  }

 private:
  // Most loops begin sooner after the one before.
  static constexpr std::chrono::microseconds kMoment{50};
  static constexpr uint64_t kTaken = uint64_t{1} << 32, kOpen = kTaken - 1;

  struct State {
    std::mutex mutex;
    std::condition_variable wake, ended;
    // in the current loop: open ones, and kTaken for each taken one
    std::atomic<uint64_t> places{0};
    std::atomic<int> asleep{0};
    std::atomic<bool> waiting{false}, stop{false};
    void (*call)(const void *) = nullptr;
    const void *work = nullptr;

    bool Open() const { return (places.load() & kOpen) != 0; }

    bool Join() {
      uint64_t seen = places.load();
      while ((seen & kOpen) != 0) {
        if (places.compare_exchange_weak(seen, seen - 1 + kTaken)) return true;
      }
      return false;
    }

    void Leave() {
      places.fetch_sub(kTaken);
      if (!waiting.load()) return;
      const std::lock_guard<std::mutex> lock(mutex);
      ended.notify_one();
    }
  };

  static std::atomic<Helpers *> (&Shelf())[4] {
    static std::atomic<Helpers *> shelf[4];
    return shelf;
  }

  // Whether `happened` within a moment, for which a thread stays awake, as waking one takes as long.
  template <typename Condition>
  static bool Soon(const Condition &happened) {
    const auto end = std::chrono::steady_clock::now() + kMoment;
    do {
      if (happened()) return true;
      sched_yield();
    } while (std::chrono::steady_clock::now() < end);
    return happened();
  }

  static void Help(const std::shared_ptr<State> &state) {
    State &s = *state;
    cpu_set_t cores;
    if (ProcessCores(&cores)) sched_setaffinity(0, sizeof(cores), &cores);
    while (!s.stop) {
      if (!Soon([&s]() { return s.Open(); })) {
        std::unique_lock<std::mutex> lock(s.mutex);
        s.asleep.fetch_add(1);
        s.wake.wait(lock, [&s]() { return s.Open() || s.stop; });
        s.asleep.fetch_sub(1);
      }
      if (!s.Join()) continue;
      s.call(s.work);
      s.Leave();
    }
  }

  // Where the system gives no more threads, those that there are help.
  void Grow(int count) {
    if (threads_ >= count) return;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
      for (; threads_ < count; ++threads_) std::thread([state = state_]() { Help(state); }).detach();
    } catch (const std::system_error &) {
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  const pid_t process_;
  const std::shared_ptr<State> state_;
  int threads_ = 0;
};

}  // namespace rcnn

#endif  // RCNN_OPS_HELPERS_H_
