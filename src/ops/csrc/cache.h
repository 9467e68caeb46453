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
  int64_t first, second, third;  // bytes of the L1 data cache, of the L2 cache, and of the L3 cache, which cores share
};

// As the system tells, or, where it doesn't (many a virtual machine and 64-bit ARM), what most have. The environment's
// RCNN_CACHE_KIB=L1,L2 or L1,L2,L3 comes before both.
inline Caches CoreCaches() {
  static const Caches told = [] {
    Caches caches = {32 << 10, 512 << 10, 32 << 20};
#ifdef _SC_LEVEL1_DCACHE_SIZE
    if (const long bytes = sysconf(_SC_LEVEL1_DCACHE_SIZE); bytes > 0) caches.first = bytes;
    if (const long bytes = sysconf(_SC_LEVEL2_CACHE_SIZE); bytes > 0) caches.second = bytes;
#endif
    // the C library adds up the L3 caches of a socket
    if (std::FILE *file = std::fopen("/sys/devices/system/cpu/cpu0/cache/index3/size", "r")) {
      long kib;
      if (std::fscanf(file, "%ldK", &kib) == 1 && kib > 0) caches.third = kib << 10;
      std::fclose(file);
    }
    return caches;
  }();
  Caches caches = told;
  const char *text = std::getenv("RCNN_CACHE_KIB");
  long first, second, third;
  const int found = text == nullptr ? 0 : std::sscanf(text, "%ld,%ld,%ld", &first, &second, &third);
  if (found >= 2) caches = {first << 10, second << 10, found == 3 ? third << 10 : told.third};
  return {std::clamp<int64_t>(caches.first, 16 << 10, 256 << 10),
          std::clamp<int64_t>(caches.second, 128 << 10, 8 << 20), std::max<int64_t>(caches.third, 0)};
}

// `bytes` over the size of an element, in whole steps of `step`, within [least, most].
inline int64_t Fitting(int64_t bytes, int64_t size, int64_t step, int64_t least, int64_t most) {
  return std::clamp(bytes / std::max<int64_t>(size, 1) / step * step, least, most);
}

}  // namespace rcnn

#endif  // RCNN_OPS_CACHE_H_
