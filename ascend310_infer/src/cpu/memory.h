// Memory for vectors and tiles.
#ifndef RCNN_INFER_CPU_MEMORY_H_
#define RCNN_INFER_CPU_MEMORY_H_

#include <cstdint>
#include <memory>

namespace rcnn {

struct FreeMemory {
  void operator()(float *p) const;
};
// Floats at the start of a cache line.
using Memory = std::unique_ptr<float[], FreeMemory>;
// Room for `count` floats, of any content. Throws std::bad_alloc.
Memory TakeMemory(int64_t count);

}  // namespace rcnn

#endif  // RCNN_INFER_CPU_MEMORY_H_
