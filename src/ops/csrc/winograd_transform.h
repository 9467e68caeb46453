// The transforms of Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray, 2015, arXiv:1509.09308), each along one
// axis, on vectors whose lanes are tiles or channels.
//
// The interpolation points are 0, a, -a, b, -b and infinity with a = 5/8 and b = 3/2 where that paper has 1 and 2:
// the same number of operations, and half the rounding error (its maximum, a sixth). Their powers are exact in float32.
#ifndef RCNN_OPS_WINOGRAD_TRANSFORM_H_
#define RCNN_OPS_WINOGRAD_TRANSFORM_H_

#include "simd.h"

namespace rcnn {

constexpr int64_t kOut = 4;                // outputs of a tile along an axis
constexpr int64_t kIn = 6;                 // inputs, and products
constexpr int64_t kPositions = kIn * kIn;  // products of a tile

constexpr float kA = 0.625f, kA2 = kA * kA, kA3 = kA2 * kA;
constexpr float kB = 1.5f, kB2 = kB * kB, kB3 = kB2 * kB;
// 1 / product of a point's distances from the others.
constexpr double kScale0 = 1.0 / (double(kA2) * kB2);
constexpr double kScaleA = 0.5 / (double(kA2) * (kA2 - kB2));
constexpr double kScaleB = 0.5 / (double(kB2) * (kB2 - kA2));

// 6 inputs -> 6: row i of the matrix holds the coefficients of the product of (x - point) over all points but i's.
struct InputTransform {
  static constexpr int64_t kFrom = kIn;
  static constexpr int64_t kReach = 1;  // cells before a tile's first output that it reads
  static RCNN_INLINE void Apply(const Floats d[kIn], Floats out[kIn]) {
    const Floats even_a = MulSub(kB2, d[2], d[4]), odd_a = MulSub(kB2, d[1], d[3]);
    const Floats even_b = MulSub(kA2, d[2], d[4]), odd_b = MulSub(kA2, d[1], d[3]);
    out[0] = MulAdd(kA2 * kB2, d[0], MulSub(kA2 + kB2, d[2], d[4]));
    out[1] = MulAdd(kA, odd_a, even_a);
    out[2] = MulSub(kA, odd_a, even_a);
    out[3] = MulAdd(kB, odd_b, even_b);
    out[4] = MulSub(kB, odd_b, even_b);
    out[5] = MulAdd(kA2 * kB2, d[1], MulSub(kA2 + kB2, d[3], d[5]));
  }
};

// 4 gradients of outputs -> 6: the transpose of TransformOutput.
struct GradientTransform {
  static constexpr int64_t kFrom = kOut;
  static constexpr int64_t kReach = 0;
  static RCNN_INLINE void Apply(const Floats d[kOut], Floats out[kIn]) {
    const Floats even_a = MulAdd(kA2, d[2], d[0]), odd_a = MulAdd(kA3, d[3], kA * d[1]);
    const Floats even_b = MulAdd(kB2, d[2], d[0]), odd_b = MulAdd(kB3, d[3], kB * d[1]);
    out[0] = d[0];
    out[1] = even_a + odd_a;
    out[2] = even_a - odd_a;
    out[3] = even_b + odd_b;
    out[4] = even_b - odd_b;
    out[5] = d[3];
  }
};

// 6 products -> 4 outputs: output i sums the products times the i-th powers of their points.
RCNN_INLINE void TransformOutput(const Floats m[kIn], Floats out[kOut]) {
  const Floats even_a = m[1] + m[2], odd_a = m[1] - m[2];
  const Floats even_b = m[3] + m[4], odd_b = m[3] - m[4];
  out[0] = m[0] + even_a + even_b;
  out[1] = MulAdd(kB, odd_b, kA * odd_a);
  out[2] = MulAdd(kB2, even_b, kA2 * even_a);
  out[3] = MulAdd(kB3, odd_b, MulAdd(kA3, odd_a, m[5]));
}

// 3 weights -> 6: their polynomial's values at the points, scaled.
RCNN_INLINE void TransformWeights(const Floats g[3], Floats out[kIn]) {
  const Floats even_a = MulAdd(float(kScaleA * kA2), g[2], float(kScaleA) * g[0]);
  const Floats even_b = MulAdd(float(kScaleB * kB2), g[2], float(kScaleB) * g[0]);
  const Floats odd_a = float(kScaleA * kA) * g[1], odd_b = float(kScaleB * kB) * g[1];
  out[0] = float(kScale0) * g[0];
  out[1] = even_a + odd_a;
  out[2] = even_a - odd_a;
  out[3] = even_b + odd_b;
  out[4] = even_b - odd_b;
  out[5] = g[2];
}

// 6 products' gradients -> 3 weights': the transpose of TransformWeights.
RCNN_INLINE void TransformWeightGradient(const Floats u[kIn], Floats out[3]) {
  const Floats even_a = u[1] + u[2], odd_a = u[1] - u[2];
  const Floats even_b = u[3] + u[4], odd_b = u[3] - u[4];
  out[0] = MulAdd(float(kScaleB), even_b, MulAdd(float(kScaleA), even_a, float(kScale0) * u[0]));
  out[1] = MulAdd(float(kScaleB * kB), odd_b, float(kScaleA * kA) * odd_a);
  out[2] = MulAdd(float(kScaleB * kB2), even_b, MulAdd(float(kScaleA * kA2), even_a, u[5]));
}

}  // namespace rcnn

#endif  // RCNN_OPS_WINOGRAD_TRANSFORM_H_
