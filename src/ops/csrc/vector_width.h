// How many floats one register holds. GCC and Clang compile wider vectors too, but through memory, and slowly.
#ifndef RCNN_OPS_VECTOR_WIDTH_H_
#define RCNN_OPS_VECTOR_WIDTH_H_

#include <cstdint>

namespace rcnn {

#if defined(__AVX512F__)
constexpr int64_t kLanes = 16;
#elif defined(__AVX__)
constexpr int64_t kLanes = 8;
#else
constexpr int64_t kLanes = 4;  // SSE, NEON
#endif

typedef float Floats __attribute__((vector_size(kLanes * 4)));
typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));

}  // namespace rcnn

#endif  // RCNN_OPS_VECTOR_WIDTH_H_
