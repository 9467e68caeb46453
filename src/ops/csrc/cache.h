// How large a core's caches are: what is worked on at a time is cut to fit them. Results don't depend on it.
#ifndef RCNN_OPS_CACHE_H_
#define RCNN_OPS_CACHE_H_

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace rcnn {

struct Caches {
  int64_t first, second;  // bytes of the L1 data cache and of the L2 cache
};

// As the C library tells, or, where it doesn't (many a virtual machine and 64-bit ARM), what most have. The
// environment's RCNN_CACHE_KIB=L1,L2 comes before both.
inline Caches CoreCaches() {
  static const Caches told = [] {
    Caches caches = {0, 0};
#ifdef _SC_LEVEL1_DCACHE_SIZE
    caches = {sysconf(_SC_LEVEL1_DCACHE_SIZE), sysconf(_SC_LEVEL2_CACHE_SIZE)};
#endif
    return Caches{caches.first > 0 ? caches.first : 32 << 10, caches.second > 0 ? caches.second : 512 << 10};
  }();
  Caches caches = told;
  const char *text = std::getenv("RCNN_CACHE_KIB");
  long first, second;
  if (text != nullptr && std::sscanf(text, "%ld,%ld", &first, &second) == 2) caches = {first << 10, second << 10};
  return {std::clamp<int64_t>(caches.first, 16 << 10, 256 << 10),
          std::clamp<int64_t>(caches.second, 128 << 10, 8 << 20)};
}

// `bytes` over the size of an element, in whole steps of `step`, within [least, most].
inline int64_t Fitting(int64_t bytes, int64_t size, int64_t step, int64_t least, int64_t most) {
  return std::clamp(bytes / std::max<int64_t>(size, 1) / step * step, least, most);
}

}  // namespace rcnn

#endif  // RCNN_OPS_CACHE_H_
