// Compiled without contraction: what is left of a number when its first bits are gone is exact.
#include "tiles.h"

#if defined(__AMX_BF16__) && defined(__AVX512BW__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

namespace rcnn {

namespace {

constexpr int64_t kLine = 32;                         // numbers of a tile's row
constexpr int64_t kTile = 16 * kLine;                 // of a tile
constexpr int64_t kStep = 2 * kPartsOfFloat * kTile;  // of a step of an operand: [part][tile]

// Three numbers of 8 significant bits each whose sum is v, in the upper halves of their words.
inline void Split(__m512 v, __m512i parts[kPartsOfFloat]) {
  const __m512i mask = _mm512_set1_epi32(static_cast<int>(0xFFFF0000u));
  for (int64_t p = 0; p < kPartsOfFloat; ++p) {
    parts[p] = _mm512_and_si512(_mm512_castps_si512(v), mask);
    v = _mm512_sub_ps(v, _mm512_castsi512_ps(parts[p]));
  }
}

}  // namespace

bool HasTiles() {
  constexpr int64_t kAsk = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool has = __builtin_cpu_supports("avx512bw") && syscall(SYS_arch_prctl, kAsk, kTileData) == 0;
  return has;
}

void SplitRows(const float *from, int64_t stride, int64_t rows, int64_t depth, uint16_t *to) {
  // the upper halves of 32 words
  alignas(64) uint16_t places[kLine];
  for (int64_t i = 0; i < kLine; ++i) places[i] = static_cast<uint16_t>(2 * i + 1);
  const __m512i upper = _mm512_load_si512(places);
  for (int64_t d = 0; d < depth; d += kTileDepth, to += kStep) {
    const int64_t left = std::min(kTileDepth, depth - d);
    const auto low = static_cast<__mmask16>((1u << std::min<int64_t>(left, 16)) - 1u);
    const auto high = static_cast<__mmask16>((1u << std::max<int64_t>(left - 16, 0)) - 1u);
    for (int64_t row = 0; row < kTileRows; ++row) {
      __m512i first[kPartsOfFloat] = {}, second[kPartsOfFloat] = {};
      if (row < rows) {
        Split(_mm512_maskz_loadu_ps(low, from + row * stride + d), first);
        Split(_mm512_maskz_loadu_ps(high, high == 0 ? from : from + row * stride + d + 16), second);
      }
      for (int64_t p = 0; p < kPartsOfFloat; ++p) {
        uint16_t *line = to + (2 * p + row / 16) * kTile + row % 16 * kLine;
        _mm512_store_si512(line, _mm512_permutex2var_epi16(first[p], upper, second[p]));
      }
    }
  }
}

void SplitColumns(const float *from, int64_t depth, uint16_t *to) {
  for (int64_t d = 0; d < depth; d += kTileDepth, to += kStep) {
    for (int64_t pair = 0; pair < kTileDepth / 2; ++pair) {
      for (int64_t half = 0; half < 2; ++half) {
        __m512i parts[2][kPartsOfFloat] = {};
        for (int64_t i = 0; i < 2; ++i) {
          const int64_t term = d + 2 * pair + i;
          if (term < depth) Split(_mm512_loadu_ps(from + term * kTileColumns + 16 * half), parts[i]);
        }
        for (int64_t p = 0; p < kPartsOfFloat; ++p) {
          // a column's two terms lie beside each other
          const __m512i both = _mm512_or_si512(_mm512_maskz_srli_epi32(0xFFFF, parts[0][p], 16), parts[1][p]);
          _mm512_store_si512(to + (2 * p + half) * kTile + pair * kLine, both);
        }
      }
    }
  }
}

TileThread::TileThread() {
  struct {
    uint8_t palette = 1, start = 0, unused[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
  } config;
  static_assert(sizeof(config) == 64, "as the CPU reads it");
  std::fill_n(config.bytes, 8, uint16_t{64});
  std::fill_n(config.rows, 8, uint8_t{16});
  // GCC takes the instruction to read a pointer's size of it alone
  __asm__ volatile("" : : "r"(&config) : "memory");
  _tile_loadconfig(&config);
}

TileThread::~TileThread() { _tile_release(); }

// Tiles 0 to 3 are sums, 4 and 5 of a, 6 and 7 of b.
void MultiplyTiles(int64_t depth, const uint16_t *a, const uint16_t *b, bool few_rows, const Ahead &ahead,
                   float *sums) {
  constexpr int64_t kRow = kTileColumns * sizeof(float);
  // parts of a and b whose products are taken, the smallest first; each pair reads but one of them anew
  static constexpr int kPairs[6][2] = {{2, 0}, {1, 0}, {1, 1}, {0, 1}, {0, 2}, {0, 0}};
  const int64_t steps = (depth + kTileDepth - 1) / kTileDepth;
  _tile_loadd(0, sums, kRow);
  _tile_loadd(1, sums + 16, kRow);
  if (few_rows) {
    for (int64_t s = 0; s < steps; ++s, a += kStep, b += kStep) {
#pragma GCC unroll 6
      for (int i = 0; i < 6; ++i) {
        if (i == 0 || kPairs[i][0] != kPairs[i - 1][0]) _tile_loadd(4, a + 2 * kPairs[i][0] * kTile, 64);
        if (i == 0 || kPairs[i][1] != kPairs[i - 1][1]) {
          _tile_loadd(6, b + 2 * kPairs[i][1] * kTile, 64);
          _tile_loadd(7, b + (2 * kPairs[i][1] + 1) * kTile, 64);
        }
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
      }
    }
    _tile_stored(0, sums, kRow);
    _tile_stored(1, sums + 16, kRow);
    return;
  }
  float *lower = sums + 16 * kTileColumns;
  _tile_loadd(2, lower, kRow);
  _tile_loadd(3, lower + 16, kRow);
  int64_t row = 0;
  for (int64_t s = 0; s < steps; ++s, a += kStep, b += kStep) {
    for (; row < kTileRows * (s + 1) / steps; ++row) {
      const float *first = ahead.first + row * ahead.stride, *second = ahead.second + row * ahead.stride;
      _mm_prefetch(first, _MM_HINT_T0);
      _mm_prefetch(first + 16, _MM_HINT_T0);
      if (ahead.second == nullptr) continue;
      _mm_prefetch(second, _MM_HINT_T0);
      _mm_prefetch(second + 16, _MM_HINT_T0);
    }
#pragma GCC unroll 6
    for (int i = 0; i < 6; ++i) {
      if (i == 0 || kPairs[i][0] != kPairs[i - 1][0]) {
        _tile_loadd(4, a + 2 * kPairs[i][0] * kTile, 64);
        _tile_loadd(5, a + (2 * kPairs[i][0] + 1) * kTile, 64);
      }
      if (i == 0 || kPairs[i][1] != kPairs[i - 1][1]) {
        _tile_loadd(6, b + 2 * kPairs[i][1] * kTile, 64);
        _tile_loadd(7, b + (2 * kPairs[i][1] + 1) * kTile, 64);
      }
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, sums, kRow);
  _tile_stored(1, sums + 16, kRow);
  _tile_stored(2, lower, kRow);
  _tile_stored(3, lower + 16, kRow);
}

}  // namespace rcnn

#else

namespace rcnn {

bool HasTiles() { return false; }
void SplitRows(const float *, int64_t, int64_t, int64_t, uint16_t *) {}
void SplitColumns(const float *, int64_t, uint16_t *) {}
TileThread::TileThread() = default;
TileThread::~TileThread() = default;
void MultiplyTiles(int64_t, const uint16_t *, const uint16_t *, bool, const Ahead &, float *) {}

}  // namespace rcnn

#endif
