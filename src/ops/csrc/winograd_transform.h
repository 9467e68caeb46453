// The transforms of Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray, 2015, arXiv:1509.09308, section 4.3),
// each along one axis, on vectors whose lanes are tiles or channels.
#ifndef RCNN_OPS_WINOGRAD_TRANSFORM_H_
#define RCNN_OPS_WINOGRAD_TRANSFORM_H_

#include "simd.h"

namespace rcnn {

constexpr int64_t kOut = 4;                // outputs of a tile along an axis
constexpr int64_t kIn = 6;                 // inputs, and products
constexpr int64_t kPositions = kIn * kIn;  // products of a tile

// B^T of the paper: 6 inputs -> 6.
struct InputTransform {
  static constexpr int64_t kFrom = kIn;
  static constexpr int64_t kReach = 1;  // cells before a tile's first output that it reads
  static RCNN_INLINE void Apply(const Floats d[kIn], Floats out[kIn]) {
    const Floats a = d[4] - 4.0f * d[2], b = d[3] - 4.0f * d[1];
    const Floats c = d[4] - d[2], e = 2.0f * (d[3] - d[1]);
    out[0] = 4.0f * d[0] - 5.0f * d[2] + d[4];
    out[1] = a + b;
    out[2] = a - b;
    out[3] = c + e;
    out[4] = c - e;
    out[5] = 4.0f * d[1] - 5.0f * d[3] + d[5];
  }
};

// A, the transpose of the output's: 4 gradients -> 6.
struct GradientTransform {
  static constexpr int64_t kFrom = kOut;
  static constexpr int64_t kReach = 0;
  static RCNN_INLINE void Apply(const Floats d[kOut], Floats out[kIn]) {
    const Floats a = d[0] + d[2], b = d[1] + d[3];
    const Floats c = d[0] + 4.0f * d[2], e = 2.0f * d[1] + 8.0f * d[3];
    out[0] = d[0];
    out[1] = a + b;
    out[2] = a - b;
    out[3] = c + e;
    out[4] = c - e;
    out[5] = d[3];
  }
};

// A^T: 6 products -> 4 outputs.
RCNN_INLINE void TransformOutput(const Floats m[kIn], Floats out[kOut]) {
  const Floats a = m[1] + m[2], b = m[1] - m[2], c = m[3] + m[4], e = m[3] - m[4];
  out[0] = m[0] + a + c;
  out[1] = b + 2.0f * e;
  out[2] = a + 4.0f * c;
  out[3] = b + 8.0f * e + m[5];
}

// G: 3 weights -> 6.
RCNN_INLINE void TransformWeights(const Floats g[3], Floats out[kIn]) {
  const Floats a = (g[0] + g[2]) * (-1.0f / 6.0f), b = g[1] * (1.0f / 6.0f);
  const Floats c = g[0] * (1.0f / 24.0f) + g[2] * (1.0f / 6.0f), e = g[1] * (1.0f / 12.0f);
  out[0] = 0.25f * g[0];
  out[1] = a - b;
  out[2] = a + b;
  out[3] = c + e;
  out[4] = c - e;
  out[5] = g[2];
}

// G^T: 6 products -> 3 weights' gradients.
RCNN_INLINE void TransformWeightGradient(const Floats u[kIn], Floats out[3]) {
  const Floats a = u[1] + u[2], b = u[2] - u[1], c = u[3] + u[4], e = u[3] - u[4];
  out[0] = 0.25f * u[0] - a * (1.0f / 6.0f) + c * (1.0f / 24.0f);
  out[1] = b * (1.0f / 6.0f) + e * (1.0f / 12.0f);
  out[2] = (c - a) * (1.0f / 6.0f) + u[5];
}

}  // namespace rcnn

#endif  // RCNN_OPS_WINOGRAD_TRANSFORM_H_
