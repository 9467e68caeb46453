// Scratch memory for one call of an operator, kept for the next: fresh pages cost more than the work on a small map.
#ifndef RCNN_OPS_WORKSPACE_H_
#define RCNN_OPS_WORKSPACE_H_

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <utility>

namespace rcnn {

constexpr int64_t kCacheLine = 16;  // floats

struct FreeMemory {
  void operator()(float *p) const { std::free(p); }
};
// Floats at the start of a cache line.
using Memory = std::unique_ptr<float[], FreeMemory>;

// Room for `count` floats, of any content. Throws std::bad_alloc.
inline Memory TakeMemory(int64_t count) {
  constexpr size_t kLine = 64, kLargePage = 1 << 21;
  const size_t bytes = static_cast<size_t>(std::max<int64_t>(count, 1)) * sizeof(float);
  const size_t unit = bytes < 2 * kLargePage ? kLine : kLargePage, padded = (bytes + unit - 1) / unit * unit;
  Memory memory(static_cast<float *>(std::aligned_alloc(unit, padded)));
  if (memory == nullptr) throw std::bad_alloc();
  // what is read in turn lies far apart: on small pages there are more than the CPU remembers places of
  if (unit == kLargePage) madvise(memory.get(), padded, MADV_HUGEPAGE);
  return memory;
}

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
    block_.data = TakeMemory(count);
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
  struct Block {
    Memory data;
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
