#include "memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <new>

namespace rcnn {

void FreeMemory::operator()(float *p) const { std::free(p); }

Memory TakeMemory(int64_t count) {
  constexpr size_t kLine = 64, kHuge = 1 << 21;
  const size_t bytes = static_cast<size_t>(std::max<int64_t>(count, 1)) * sizeof(float);
  const size_t unit = bytes < 4 * kHuge ? kLine : kHuge, padded = (bytes + unit - 1) / unit * unit;
  Memory memory(static_cast<float *>(std::aligned_alloc(unit, padded)));
  if (memory == nullptr) throw std::bad_alloc();
  // rows of a map lie far apart: on small pages each needs an entry of its own in the table of pages
  if (unit == kHuge) madvise(memory.get(), padded, MADV_HUGEPAGE);
  return memory;
}

}  // namespace rcnn
