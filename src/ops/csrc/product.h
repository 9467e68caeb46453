// Matrix products, and all that follows in the same pass: bias, a sum with another map, activation.
//
// A number's sum runs over the depth in parts of kDepth, each in order, whatever the number of threads or the size of
// what is computed beside it.
#ifndef RCNN_OPS_PRODUCT_H_
#define RCNN_OPS_PRODUCT_H_

#include <cstdint>
#include <limits>

#include "gemm_kernel.h"

namespace rcnn {

enum class Activation { kNone, kReLU, kReLU6, kHSwish };

// What is done with sums before they are stored. row_bias, column_bias: one a row or one a column of the result, or
// null; other: of the output's layout, and where it may lie, added, or null. enlarged_to: where it isn't 0, the
// output's rows are maps so wide, an even number, and other's are half as wide and high: each of its numbers is for 2
// x 2. positive: of the output's layout, or null; a number is 0 at last where that isn't positive.
struct Finish {
  const float *row_bias = nullptr;
  const float *column_bias = nullptr;
  const float *other = nullptr;
  int64_t enlarged_to = 0;
  const float *positive = nullptr;
  Activation activation = Activation::kNone;
};

// Numbers count as 0 where what lies at their place here isn't positive, or not less than `below`: the way back
// through ReLU and ReLU6 by their output.
struct Gate {
  const float *data = nullptr;  // null: all numbers pass
  float below = std::numeric_limits<float>::infinity();

  Gate At(int64_t place) const { return data == nullptr ? *this : Gate{data + place, below}; }
};

// Vectors of a row of numbers within [0, width), and 0 beyond, where the gate lets them pass.
RCNN_INLINE Floats LoadGated(const float *row, const Gate &gate, int64_t x, int64_t width) {
  const Floats v = LoadWithin(row, x, width);
  if (gate.data == nullptr) return v;
  const Floats open = LoadWithin(gate.data, x, width);
  const Floats passed = open > 0.0f ? v : Floats{};
  return open < gate.below ? passed : Floats{};
}

// The products' left matrix (rows x depth), where it lies.
struct Left {
  const float *data;
  int64_t row, depth;  // from a number to its neighbour, one of them 1
  int64_t image = 0;   // from one summand's matrix to the next one's
  Gate gate = {};
  float *sums = nullptr;  // (rows,): where the sums of the rows go, or null
};

// Where the right matrix comes from: of `images` matrices (depth x columns), blocks that are laid out when they are
// needed.
class Columns {
 public:
  virtual ~Columns() = default;
  // Rows `depth` of columns [first, first + count) of an image, as panels of kBlockColumns columns, one after the
  // other, of panel_depth rows each; what lies past the last column is of any content. first: a multiple of
  // kBlockColumns.
  virtual void Pack(int64_t image, int64_t first, int64_t count, const Range &depth, int64_t panel_depth,
                    float *to) const = 0;
};

struct Extent {
  int64_t images, rows, columns, depth;
  int64_t summands = 1;    // matrices of each side whose products are summed; more than one of one image alone
  bool free_rows = false;  // rows are of a batch, and a row is the same whatever their number
};

// Whether products of so many rows are computed by the matrix unit.
bool OnTiles(int64_t rows);

// to: (images, rows, columns) = left x columns of each image, finished; of several summands, their products' sum.
// threads: to use at most. Throws std::bad_alloc.
void MultiplyMatrices(const Left &left, const Columns &right, const Extent &extent, const Finish &finish, float *to,
                      int threads);

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

#endif  // RCNN_OPS_PRODUCT_H_
