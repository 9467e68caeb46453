// Max pooling of maps, for MindSpore's operators and for C++.
#ifndef RCNN_OPS_MAX_POOL_H_
#define RCNN_OPS_MAX_POOL_H_

#include <cstdint>

namespace rcnn {

// One axis: the map's cells, a window's, how far it moves, those before the first cell, and the places it has.
struct PoolAxis {
  int64_t size, kernel, stride, before, places;
};

// x (maps, down.size, across.size) -> y (maps, down.places, across.places), the largest number of each window; what is
// no number wins. outside: what lies around a map. y_map: from a map's first number in y to the next one's. threads: to
// use at most. Throws std::bad_alloc.
void MaxPool(const float *x, int64_t maps, const PoolAxis &down, const PoolAxis &across, float outside, float *y,
             int64_t y_map, int threads);

}  // namespace rcnn

#endif  // RCNN_OPS_MAX_POOL_H_
