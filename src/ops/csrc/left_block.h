// Blocks of a product's left matrix (product.cc), laid out as its kernels read them. Compiled without contraction, as
// simd.h wants it.
#ifndef RCNN_OPS_LEFT_BLOCK_H_
#define RCNN_OPS_LEFT_BLOCK_H_

#include <algorithm>
#include <cstdint>

#include "product.h"
#include "product_block.h"
#include "tiles.h"

namespace rcnn {
namespace product_internal {

RCNN_INLINE float Total(const Floats &v) {
  float total = 0.0f;
  for (int64_t lane = 0; lane < kLanes; ++lane) total += v[lane];
  return total;
}

// Rows [row, row + rows) of the left matrix of a summand, `depth` of their terms.
class LeftBlock {
 public:
  // ahead: from a number to that of the block which comes next, to be brought near meanwhile.
  LeftBlock(const Left &left, int64_t image, int64_t row, int64_t rows, const Range &depth, int64_t ahead = 0)
      : left_(left), rows_(rows), depth_(depth.Size()), ahead_(ahead) {
    const int64_t place = image * left.image + row * left.row + depth.begin * left.depth;
    data_ = left.data + place;
    gate_ = left.gate.At(place);
  }

  // Whether the kernels read them as they lie, [row][term], and not turned, [term][row].
  bool Across() const { return kBroadcasts && left_.depth == 1; }

  // As the kernels read them.
  void Pack(float *to) const {
    if (Across()) {
      for (int64_t r = 0; r < rows_; ++r) {
        const int64_t next = r * left_.row + ahead_;
        for (int64_t d = 0; d < depth_; d += kLanes) {
          Store(to + r * kRowStride + d, Along(r, d));
          __builtin_prefetch(data_ + next + d, 0, 2);
          if (gate_.data != nullptr) __builtin_prefetch(gate_.data + next + d, 0, 2);
        }
      }
      return;
    }
    if (left_.depth != 1) {
      for (int64_t d = 0; d < depth_; ++d, to += rows_) {
        const int64_t place = d * left_.depth;
        for (int64_t r = 0; r < rows_; r += kLanes) {
          StoreFirst(to + r, LoadGated(data_ + place, gate_.At(place), r, rows_), rows_ - r);
        }
      }
      return;
    }
    for (int64_t first = 0; first < rows_; first += kLanes) {
      for (int64_t d = 0; d < depth_; d += kLanes) {
        Floats block[kLanes];
        for (int64_t r = 0; r < kLanes; ++r) block[r] = first + r < rows_ ? Along(first + r, d) : Floats{};
        Transpose(block);
        for (int64_t i = 0; i < std::min(kLanes, depth_ - d); ++i) {
          StoreFirst(to + (d + i) * rows_ + first, block[i], rows_ - first);
        }
      }
    }
  }

  // Split, for tiles. room: of kTileRows * kDepth.
  void Split(float *room, uint16_t *to) const {
    if (left_.depth == 1 && gate_.data == nullptr) return SplitRows(data_, left_.row, rows_, depth_, to);
    for (int64_t d = 0; d < depth_; d += kLanes) {
      for (int64_t first = 0; first < rows_; first += kLanes) {
        Floats block[kLanes];
        for (int64_t i = 0; i < kLanes; ++i) block[i] = left_.depth == 1 ? Row(first + i, d) : Term(d + i, first);
        if (left_.depth != 1) Transpose(block);
        for (int64_t i = 0; i < kLanes; ++i) Store(room + (first + i) * kDepth + d, block[i]);
      }
    }
    SplitRows(room, kDepth, rows_, depth_, to);
  }

  // Adds what the terms of each row sum up to, or begins with it.
  void Sum(bool first, float *to) const {
    for (int64_t r = 0; r < rows_; r += left_.depth == 1 ? 1 : kLanes) {
      Floats sum = {};
      if (left_.depth == 1) {
        for (int64_t d = 0; d < depth_; d += kLanes) sum += Along(r, d);
        to[r] = (first ? 0.0f : to[r]) + Total(sum);
        continue;
      }
      for (int64_t d = 0; d < depth_; ++d) sum += Term(d, r);
      StoreFirst(to + r, first ? sum : LoadWithin(to, r, rows_) + sum, rows_ - r);
    }
  }

 private:
  // kLanes terms of a row, and kLanes rows of a term.
  Floats Along(int64_t row, int64_t term) const {
    return LoadGated(data_ + row * left_.row, gate_.At(row * left_.row), term, depth_);
  }
  Floats Row(int64_t row, int64_t term) const { return row < rows_ ? Along(row, term) : Floats{}; }
  Floats Term(int64_t term, int64_t row) const {
    if (term >= depth_) return Floats{};
    return LoadGated(data_ + term * left_.depth, gate_.At(term * left_.depth), row, rows_);
  }

  const Left &left_;
  const int64_t rows_, depth_, ahead_;
  const float *data_;
  Gate gate_;
};

}  // namespace product_internal
}  // namespace rcnn

#endif  // RCNN_OPS_LEFT_BLOCK_H_
