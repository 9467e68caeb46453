// Scratch memory for one call of an operator, kept for the next: fresh pages cost more than the work on a small map.
#ifndef RCNN_OPS_WORKSPACE_H_
#define RCNN_OPS_WORKSPACE_H_

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <utility>

namespace rcnn {

constexpr int64_t kCacheLine = 16;  // floats

class Workspace {
 public:
  // Room for arrays of `count` floats in all; each array is to be counted with Padded.
  explicit Workspace(int64_t count) {
    {
      const std::lock_guard<std::mutex> lock(Kept().mutex);
      std::swap(block_, Kept().block);
    }
    if (block_.size >= count) return;
    block_ = Block();
    const size_t size = static_cast<size_t>(Padded(count)) * sizeof(float);
    block_.data.reset(static_cast<float *>(std::aligned_alloc(64, size)));
    if (block_.data == nullptr) throw std::bad_alloc();
    block_.size = count;
  }

  // Keeps the larger of this block and one that another call has handed back meanwhile.
  ~Workspace() {
    const std::lock_guard<std::mutex> lock(Kept().mutex);
    if (Kept().block.size < block_.size) std::swap(block_, Kept().block);
  }

  Workspace(const Workspace &) = delete;
  Workspace &operator=(const Workspace &) = delete;

  static int64_t Padded(int64_t count) { return (count + kCacheLine - 1) / kCacheLine * kCacheLine; }

  // An array of `count` floats, at the start of a cache line, of any content.
  float *Take(int64_t count) {
    float *array = block_.data.get() + taken_;
    taken_ += Padded(count);
    if (taken_ > block_.size) throw std::bad_alloc();
    return array;
  }

 private:
  struct Free {
    void operator()(float *p) const { std::free(p); }
  };
  struct Block {
    std::unique_ptr<float[], Free> data;
    int64_t size = 0;
  };
  struct Shelf {
    std::mutex mutex;
    Block block;
  };

  static Shelf &Kept() {
    static Shelf shelf;
    return shelf;
  }

  Block block_;
  int64_t taken_ = 0;
};

}  // namespace rcnn

#endif  // RCNN_OPS_WORKSPACE_H_
