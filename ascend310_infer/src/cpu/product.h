// Matrix products of a network's fixed weights with what flows through it, and all that follows in the same pass: bias,
// a sum with another map, activation.
//
// A number's sum runs over the depth in parts of kDepth, each in order, whatever the number of threads or the size of
// what is computed beside it.
#ifndef RCNN_INFER_CPU_PRODUCT_H_
#define RCNN_INFER_CPU_PRODUCT_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "../../../src/ops/csrc/gemm_kernel.h"
#include "memory.h"

namespace rcnn {

enum class Activation { kNone, kReLU, kReLU6, kHSwish };

// What is done with sums before they are stored. bias: one a row, or null; other: of the output's layout, and where it
// may lie, added, or null.
struct Finish {
  const float *bias = nullptr;
  const float *other = nullptr;
  Activation activation = Activation::kNone;
};

// Where the products' right matrix comes from: of `images` matrices (depth x columns), blocks that are laid out when
// they are needed.
class Columns {
 public:
  virtual ~Columns() = default;
  // Rows `depth` of columns [first, first + count) of an image, as panels of kBlockColumns columns, one after the
  // other, of panel_depth rows each; what lies past the last column is of any content.
  virtual void Pack(int64_t image, int64_t first, int64_t count, const Range &depth, int64_t panel_depth,
                    float *to) const = 0;
};

// A left matrix (rows x depth), laid out for the products: in blocks of rows, or for tiles as it comes.
class PackedRows {
 public:
  // values: rows x depth, row by row.
  PackedRows(const float *values, int64_t rows, int64_t depth);

  int64_t Rows() const { return rows_; }
  bool ForTiles() const { return tiles_; }
  int64_t Depth() const { return depth_; }
  // Of those that come for tiles, a row.
  const float *Row(int64_t row) const { return values_.get() + row * depth_; }
  // The block of rows that begins at `row`, a multiple of kBlockRows, from `depth` on.
  const float *At(int64_t row, int64_t depth) const {
    return values_.get() + row * depth_ + depth * std::min(kBlockRows, rows_ - row);
  }

 private:
  const int64_t rows_, depth_;
  const bool tiles_;
  Memory values_;
};

// to: (images, rows, columns) = weights x columns of each image, finished. threads: to use at most.
void MultiplyRows(const PackedRows &weights, const Columns &from, int64_t images, int64_t columns, const Finish &finish,
                  float *to, int threads);

// A right matrix (depth x columns), laid out: the weights of dense layers.
class PackedColumns {
 public:
  // values: columns x depth, row by row.
  PackedColumns(const float *values, int64_t columns, int64_t depth);

  int64_t Size() const { return columns_; }
  int64_t Depth() const { return depth_; }
  const float *Panel(int64_t column) const { return values_.get() + column * depth_; }

 private:
  const int64_t columns_, depth_;
  Memory values_;
};

// to: (rows, columns) = x (rows, depth) times the weights, + bias (columns,) unless that is null, activated.
void MultiplyColumns(const float *x, int64_t rows, const PackedColumns &weights, const float *bias,
                     Activation activation, float *to, int threads);

// What an activation makes of numbers; one that is none stays none.
RCNN_INLINE Floats Activate(Activation activation, const Floats &v) {
  if (activation == Activation::kNone) return v;
  if (activation == Activation::kHSwish) {
    const Floats shifted = v + 3.0f;
    const Floats positive = shifted < 0.0f ? Floats{} : shifted;
    return v * (positive > 6.0f ? Broadcast(6.0f) : positive) / 6.0f;
  }
  const Floats positive = v < 0.0f ? Floats{} : v;
  return activation == Activation::kReLU6 ? Floats(positive > 6.0f ? Broadcast(6.0f) : positive) : positive;
}

}  // namespace rcnn

#endif  // RCNN_INFER_CPU_PRODUCT_H_
