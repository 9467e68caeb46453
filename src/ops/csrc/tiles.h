// Matrix products of float32 on the matrix unit of newer x86-64 CPUs (AMX), several times as fast as on their vectors.
//
// It multiplies numbers of 8 significant bits (bfloat16) and sums in float32. Each float32 is the sum of three such,
// and of the nine products the six that aren't below its last bit are taken, so that a result is as near as in float32
// (Henry et al., 2019, arXiv:1904.06376).
#ifndef RCNN_OPS_TILES_H_
#define RCNN_OPS_TILES_H_

#include <cstdint>

namespace rcnn {

constexpr int64_t kTileRows = 32, kTileColumns = 32;  // of a result
constexpr int64_t kTileDepth = 32;                    // terms of a sum at a time
constexpr int64_t kPartsOfFloat = 3;

// Numbers of an operand's block of `depth` terms, rounded up to whole steps of kTileDepth.
constexpr int64_t SplitSize(int64_t depth) {
  return (depth + kTileDepth - 1) / kTileDepth * kTileDepth * kTileRows * kPartsOfFloat;
}

// Whether there is such a unit, and the system lets this process use it.
bool HasTiles();

// Up to kTileRows rows, `stride` apart, of `depth` terms, split.
void SplitRows(const float *from, int64_t stride, int64_t rows, int64_t depth, uint16_t *to);
// kTileColumns columns of `depth` terms, [term][column], split.
void SplitColumns(const float *from, int64_t depth, uint16_t *to);

// Lets the calling thread use the unit while it lives.
class TileThread {
 public:
  TileThread();
  ~TileThread();
  TileThread(const TileThread &) = delete;
  TileThread &operator=(const TileThread &) = delete;
};

// Where the next result will be, to be brought near meanwhile: of two arrays, whose rows are `stride` apart.
struct Ahead {
  const float *first, *second;  // the latter may be null
  int64_t stride;
};

// sums (kTileRows, kTileColumns) += a times b, both split, of `depth` terms. few_rows: of the first half of the rows
// alone.
void MultiplyTiles(int64_t depth, const uint16_t *a, const uint16_t *b, bool few_rows, const Ahead &ahead, float *sums);

}  // namespace rcnn

#endif  // RCNN_OPS_TILES_H_
