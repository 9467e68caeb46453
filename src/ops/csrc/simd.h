// What the convolution needs of vectors beyond arithmetic: products with a sum, loads and stores at an edge, shuffles.
//
// Compile without contraction (-ffp-contract=off): which products are fused with a sum is written out here, by MulAdd.
// Left to the compiler, two copies of one expression (a loop's body and its remainder, say) may round differently, and
// an image would have other numbers in a batch than alone.
#ifndef RCNN_OPS_SIMD_H_
#define RCNN_OPS_SIMD_H_

#if defined(__AVX__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "vector_width.h"

#define RCNN_INLINE inline __attribute__((always_inline))

namespace rcnn {

RCNN_INLINE Floats Load(const float *from) {
  Floats v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

RCNN_INLINE void Store(float *to, const Floats &v) { std::memcpy(to, &v, sizeof(v)); }

// The number in each lane. Minus zero, which unlike a sum with zero keeps a zero's sign, and costs nothing.
RCNN_INLINE Floats Broadcast(float number) { return number - Floats{}; }

// c + a * b and c - a * b: rounded once where the CPU fuses them, otherwise twice, but the same wherever they stand.
#if defined(__AVX512F__)
RCNN_INLINE Floats MulAdd(const Floats &a, const Floats &b, const Floats &c) {
  return Floats(_mm512_fmadd_ps(__m512(a), __m512(b), __m512(c)));
}
RCNN_INLINE Floats MulSub(const Floats &a, const Floats &b, const Floats &c) {
  return Floats(_mm512_fnmadd_ps(__m512(a), __m512(b), __m512(c)));
}
#elif defined(__AVX__) && defined(__FMA__)
RCNN_INLINE Floats MulAdd(const Floats &a, const Floats &b, const Floats &c) {
  return Floats(_mm256_fmadd_ps(__m256(a), __m256(b), __m256(c)));
}
RCNN_INLINE Floats MulSub(const Floats &a, const Floats &b, const Floats &c) {
  return Floats(_mm256_fnmadd_ps(__m256(a), __m256(b), __m256(c)));
}
#elif defined(__aarch64__)
RCNN_INLINE Floats MulAdd(const Floats &a, const Floats &b, const Floats &c) {
  return Floats(vfmaq_f32(float32x4_t(c), float32x4_t(a), float32x4_t(b)));
}
RCNN_INLINE Floats MulSub(const Floats &a, const Floats &b, const Floats &c) {
  return Floats(vfmsq_f32(float32x4_t(c), float32x4_t(a), float32x4_t(b)));
}
#else
RCNN_INLINE Floats MulAdd(const Floats &a, const Floats &b, const Floats &c) { return c + a * b; }
RCNN_INLINE Floats MulSub(const Floats &a, const Floats &b, const Floats &c) { return c - a * b; }
#endif
RCNN_INLINE Floats MulAdd(float a, const Floats &b, const Floats &c) { return MulAdd(Broadcast(a), b, c); }
RCNN_INLINE Floats MulSub(float a, const Floats &b, const Floats &c) { return MulSub(Broadcast(a), b, c); }

// row[x], row[x + 1], ..., with 0 for what lies outside of [0, width): nothing there is read.
RCNN_INLINE Floats LoadWithin(const float *row, int64_t x, int64_t width) {
  if (x >= 0 && x + kLanes <= width) return Load(row + x);
  const int64_t begin = std::clamp<int64_t>(-x, 0, kLanes), end = std::clamp<int64_t>(width - x, begin, kLanes);
#if defined(__AVX512F__)
  const __mmask16 mask = static_cast<__mmask16>(((1u << end) - 1u) & ~((1u << begin) - 1u));
  // The address as a number: a pointer before the row isn't one that C++ may form.
  const uintptr_t address = reinterpret_cast<uintptr_t>(row) + static_cast<uintptr_t>(x * 4);
  return reinterpret_cast<Floats>(_mm512_maskz_loadu_ps(mask, reinterpret_cast<const float *>(address)));
#elif defined(__AVX2__)
  const Ints lanes = {0, 1, 2, 3, 4, 5, 6, 7};
  const Ints mask = (lanes >= static_cast<int32_t>(begin)) & (lanes < static_cast<int32_t>(end));
  const uintptr_t address = reinterpret_cast<uintptr_t>(row) + static_cast<uintptr_t>(x * 4);
  return Floats(_mm256_maskload_ps(reinterpret_cast<const float *>(address), __m256i(mask)));
#else
  Floats v = {};
  for (int64_t i = begin; i < end; ++i) v[i] = row[x + i];
  return v;
#endif
}

// Stores past the caches, to the start of a vector in memory (kLanes floats): for what is larger than they are, which
// then needn't be read before it is written. EndStoresPast: before another thread reads it.
#if defined(__AVX512F__)
RCNN_INLINE void StorePast(float *to, const Floats &v) { _mm512_stream_ps(to, __m512(v)); }
#elif defined(__AVX__)
RCNN_INLINE void StorePast(float *to, const Floats &v) { _mm256_stream_ps(to, __m256(v)); }
#else
RCNN_INLINE void StorePast(float *to, const Floats &v) { Store(to, v); }
#endif
#if defined(__AVX__)
RCNN_INLINE void EndStoresPast() { _mm_sfence(); }
#else
RCNN_INLINE void EndStoresPast() {}
#endif

// Writes the first `count` lanes.
RCNN_INLINE void StoreFirst(float *to, const Floats &v, int64_t count) {
  if (count >= kLanes) {
    Store(to, v);
    return;
  }
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1u), reinterpret_cast<__m512>(v));
#elif defined(__AVX2__)
  const Ints mask = Ints{0, 1, 2, 3, 4, 5, 6, 7} < static_cast<int32_t>(count);
  _mm256_maskstore_ps(to, __m256i(mask), __m256(v));
#else
  for (int64_t i = 0; i < count; ++i) to[i] = v[i];
#endif
}

template <size_t... kIndex>
RCNN_INLINE Floats Shuffle(const Floats &a, const Floats &b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, kIndex...);
#else
  return __builtin_shuffle(a, b, Ints{static_cast<int32_t>(kIndex)...});
#endif
}

// Lanes of a, then of b, chosen by a constexpr function of the lane.
template <typename Choice, size_t... kLane>
RCNN_INLINE Floats ShuffleBy(const Floats &a, const Floats &b, std::index_sequence<kLane...>) {
  return Shuffle<Choice::Of(kLane)...>(a, b);
}

template <typename Choice>
RCNN_INLINE Floats ShuffleBy(const Floats &a, const Floats &b) {
  return ShuffleBy<Choice>(a, b, std::make_index_sequence<static_cast<size_t>(kLanes)>());
}

struct EvenLanes {  // a0 a2 a4 ... b0 b2 ...
  static constexpr size_t Of(size_t lane) { return 2 * lane; }
};
struct OddLanes {  // a1 a3 ...
  static constexpr size_t Of(size_t lane) { return 2 * lane + 1; }
};
struct LowHalves {  // a0 b0 a1 b1 ...
  static constexpr size_t Of(size_t lane) { return lane / 2 + lane % 2 * kLanes; }
};
struct HighHalves {  // the same of the upper halves
  static constexpr size_t Of(size_t lane) { return kLanes / 2 + lane / 2 + lane % 2 * kLanes; }
};
template <size_t kExtra>
struct ShiftedIn {  // a1 a2 ... and b's lane kExtra
  static constexpr size_t Of(size_t lane) { return lane + 1 < kLanes ? lane + 1 : kLanes + kExtra; }
};
struct Phases {  // every fourth lane of a from 0, then from 1, 2, 3
  static constexpr size_t Of(size_t lane) { return lane % (kLanes / 4) * 4 + lane / (kLanes / 4); }
};
struct PhasesAhead {  // the same, four lanes further, b following a
  static constexpr size_t Of(size_t lane) { return Phases::Of(lane) + 4; }
};

// rows[i][j] -> rows[j][i].
RCNN_INLINE void Transpose(Floats rows[kLanes]) {
#pragma GCC unroll 8
  for (int64_t size = 1; size < kLanes; size *= 2) {
    Floats next[kLanes];
#pragma GCC unroll 16
    for (int64_t i = 0; i < kLanes / 2; ++i) {
      next[2 * i] = ShuffleBy<LowHalves>(rows[i], rows[i + kLanes / 2]);
      next[2 * i + 1] = ShuffleBy<HighHalves>(rows[i], rows[i + kLanes / 2]);
    }
#pragma GCC unroll 16
    for (int64_t i = 0; i < kLanes; ++i) rows[i] = next[i];
  }
}

// Four vectors of 4 * kLanes consecutive numbers -> number 4 i + p in lane i of v[p].
RCNN_INLINE void Deinterleave(Floats v[4]) {
  const Floats even0 = ShuffleBy<EvenLanes>(v[0], v[1]), even1 = ShuffleBy<EvenLanes>(v[2], v[3]);
  const Floats odd0 = ShuffleBy<OddLanes>(v[0], v[1]), odd1 = ShuffleBy<OddLanes>(v[2], v[3]);
  v[0] = ShuffleBy<EvenLanes>(even0, even1);
  v[1] = ShuffleBy<EvenLanes>(odd0, odd1);
  v[2] = ShuffleBy<OddLanes>(even0, even1);
  v[3] = ShuffleBy<OddLanes>(odd0, odd1);
}

// And back.
RCNN_INLINE void Interleave(Floats v[4]) {
  const Floats low02 = ShuffleBy<LowHalves>(v[0], v[2]), high02 = ShuffleBy<HighHalves>(v[0], v[2]);
  const Floats low13 = ShuffleBy<LowHalves>(v[1], v[3]), high13 = ShuffleBy<HighHalves>(v[1], v[3]);
  v[0] = ShuffleBy<LowHalves>(low02, low13);
  v[1] = ShuffleBy<HighHalves>(low02, low13);
  v[2] = ShuffleBy<LowHalves>(high02, high13);
  v[3] = ShuffleBy<HighHalves>(high02, high13);
}

}  // namespace rcnn

#endif  // RCNN_OPS_SIMD_H_
