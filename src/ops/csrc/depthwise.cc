// Depthwise convolution: each channel by its own square filter of 3 or 5, stride 1 or 2, and its gradients, float32,
// NCHW, as ahead-of-time custom operators of MindSpore for the CPU; with ReLU or ReLU6 in the same pass.
//
// Memory bounds it, not arithmetic: the forward pass reads a map once for several rows of output, and one pass over the
// output's gradient gives those by the input, the filter and the bias. The order of every sum is the same whatever the
// batch and the number of threads.
#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "conv_operators.h"
#include "depthwise.h"
#include "parallel.h"
#include "simd.h"
#include "workspace.h"

namespace {

using rcnn::Broadcast;
using rcnn::EvenLanes;
using rcnn::Floats;
using rcnn::HighHalves;
using rcnn::kLanes;
using rcnn::Load;
using rcnn::LoadWithin;
using rcnn::LowHalves;
using rcnn::MulAdd;
using rcnn::OddLanes;
using rcnn::ShuffleBy;
using rcnn::Store;
using rcnn::StoreFirst;
using rcnn::Workspace;

enum Activation { kNone, kReLU, kReLU6 };

constexpr float kSix = 6.0f;
constexpr int64_t kBlockFloats = 4096;  // of a gradient's rows that are worked on at a time: a part of the L1 cache
constexpr int64_t kHalo = 2;            // rows of a gradient above and below a block that its input's rows may see

struct Sizes {
  int64_t batch, channels, height, width, out_height, out_width;
  int64_t stride, top, left;  // of the padding, what lies above and on the left
};

// Of maps (N, C, H, W) and outputs (N, C, h, w). `same`: padded as TensorFlow's mode of that name, by no more than is
// needed, and where that is odd, by one less above and on the left.
Sizes MakeSizes(const int64_t *in, const int64_t *out, int64_t kernel, int64_t stride, bool same) {
  auto before = [&](int64_t size, int64_t out_size) {
    return same ? std::max<int64_t>((out_size - 1) * stride + kernel - size, 0) / 2 : kernel / 2;
  };
  return Sizes{in[0], in[1], in[2], in[3], out[2], out[3], stride, before(in[2], out[2]), before(in[3], out[3])};
}

// A map's row; of width 0, as if it were all zeros, where it lies outside of the map.
struct Row {
  const float *data;
  int64_t width;
};

Row RowOf(const float *map, int64_t y, int64_t height, int64_t width) {
  return y >= 0 && y < height ? Row{map + y * width, width} : Row{map, 0};
}

// taps[k][lane] = row[from + k + lane * kStride]. kWhole: all of them lie within the row.
template <int64_t kKernel, int64_t kStride, bool kWhole>
RCNN_INLINE void LoadTaps(const Row &row, int64_t from, Floats taps[kKernel]) {
  auto load = [&](int64_t x) { return kWhole ? Load(row.data + x) : LoadWithin(row.data, x, row.width); };
  if constexpr (kStride == 1) {
#pragma GCC unroll 5
    for (int64_t k = 0; k < kKernel; ++k) taps[k] = load(from + k);
  } else {
#pragma GCC unroll 3
    for (int64_t k = 0; k < kKernel; k += 2) {
      const Floats low = load(from + k), high = load(from + k + kLanes);
      taps[k] = ShuffleBy<EvenLanes>(low, high);
      if (k + 1 < kKernel) taps[k + 1] = ShuffleBy<OddLanes>(low, high);
    }
  }
}

// Whether LoadTaps reads within a row of this width alone.
template <int64_t kKernel, int64_t kStride>
RCNN_INLINE bool Whole(int64_t from, int64_t width) {
  return from >= 0 && from + kKernel - 1 + kStride * kLanes <= width;
}

// A number that is none stays none.
template <Activation kActivation>
RCNN_INLINE Floats Activated(const Floats &v) {
  if constexpr (kActivation == kNone) return v;
  const Floats positive = v < 0.0f ? Floats{} : v;
  return kActivation == kReLU6 ? Floats(positive > kSix ? Broadcast(kSix) : positive) : positive;
}

// kRows rows of output. rows: those of the map that they see, one after the other, of which the first output begins to
// sum at -left.
template <int64_t kKernel, int64_t kStride, int64_t kRows, Activation kActivation, bool kPadded>
void Convolve(const Row *rows, int64_t left, const float *filter, float bias, float *out, int64_t out_width) {
  constexpr int64_t kSeen = (kRows - 1) * kStride + kKernel;
  Floats weights[kKernel * kKernel];
  for (int64_t i = 0; i < kKernel * kKernel; ++i) weights[i] = Broadcast(filter[i]);
  int64_t width = rows[0].width;
  for (int64_t r = 1; r < kSeen; ++r) width = std::min(width, rows[r].width);
  auto at = [&](int64_t x, auto whole) {
    Floats sums[kRows];
#pragma GCC unroll 4
    for (int64_t o = 0; o < kRows; ++o) sums[o] = Broadcast(bias);
#pragma GCC unroll 8
    for (int64_t r = 0; r < kSeen; ++r) {
      Floats taps[kKernel];
      LoadTaps<kKernel, kStride, decltype(whole)::value>(rows[r], x * kStride - left, taps);
#pragma GCC unroll 4
      for (int64_t o = 0; o < kRows; ++o) {
        const int64_t k = r - o * kStride;
        if (k < 0 || k >= kKernel) continue;
#pragma GCC unroll 5
        for (int64_t j = 0; j < kKernel; ++j) sums[o] = MulAdd(weights[k * kKernel + j], taps[j], sums[o]);
      }
    }
#pragma GCC unroll 4
    for (int64_t o = 0; o < kRows; ++o) {
      StoreFirst(out + o * out_width + x, Activated<kActivation>(sums[o]), out_width - x);
    }
  };
  for (int64_t x = 0; x < out_width; x += kLanes) {
    if (kPadded || Whole<kKernel, kStride>(x * kStride - left, width)) {
      at(x, std::true_type());
    } else {
      at(x, std::false_type());
    }
  }
}

// One channel's map -> its output.
template <int64_t kKernel, int64_t kStride, Activation kActivation>
void ConvolveMap(const Sizes &s, const float *map, const float *filter, float bias, float *out) {
  constexpr int64_t kRows = kKernel == 3 && kStride == 1 ? 4 : 2;
  constexpr int64_t kSeen = (kRows - 1) * kStride + kKernel;
  for (int64_t y = 0; y < s.out_height;) {
    const bool several = y + kRows <= s.out_height;
    std::array<Row, kSeen> rows;
    for (int64_t r = 0; r < (several ? kSeen : kKernel); ++r) {
      rows[static_cast<size_t>(r)] = RowOf(map, y * kStride - s.top + r, s.height, s.width);
    }
    float *here = out + y * s.out_width;
    if (several) {
      Convolve<kKernel, kStride, kRows, kActivation, false>(rows.data(), s.left, filter, bias, here, s.out_width);
    } else {
      Convolve<kKernel, kStride, 1, kActivation, false>(rows.data(), s.left, filter, bias, here, s.out_width);
    }
    y += several ? kRows : 1;
  }
}

double Sum(const Floats &v) {
  double sum = 0;
  for (int64_t i = 0; i < kLanes; ++i) sum += v[i];
  return sum;
}

// The gradients of one channel, in a room of its own: rows of the output's gradient, where the activation let it pass,
// with zeros around them.
template <int64_t kKernel, int64_t kStride, Activation kActivation>
class ChannelGradients {
 public:
  ChannelGradients(const Sizes &sizes, float *room) : s_(sizes), room_(room) {}

  static int64_t RowFloats(const Sizes &s) { return Workspace::Padded(s.out_width + 4 * kLanes); }
  static int64_t BlockRows(const Sizes &s) { return std::clamp<int64_t>(kBlockFloats / s.out_width, 4, 64); }
  static int64_t Room(const Sizes &s) { return (BlockRows(s) + 2 * kHalo) * RowFloats(s); }

  void Begin() { std::fill(std::begin(sums_), std::end(sums_), 0.0); }

  // Adds an image's part of the filter's gradient, and writes dx.
  void Image(const float *dy, const float *y, const float *map, const float *filter, float *dx) {
    float turned[kKernel * kKernel];
    for (int64_t i = 0; i < kKernel * kKernel; ++i) turned[i] = filter[kKernel * kKernel - 1 - i];
    for (int64_t begin = 0; begin < s_.out_height; begin += BlockRows(s_)) {
      const int64_t end = std::min(begin + BlockRows(s_), s_.out_height);
      for (int64_t row = begin - kHalo; row < end + kHalo; ++row) Fill(dy, y, row, begin, end);
      for (int64_t k = 0; k < kKernel; k += kTogether) SumTaps(map, k, begin, end);
      const int64_t last = std::min(end * kStride, s_.height);
      if constexpr (kStride == 1) {
        SlideTurned(turned, begin, last, dx);
      } else {
        for (int64_t i = begin * kStride; i < last; ++i) {
          s_.left % 2 == 0 ? Spread<0>(filter, i, begin, dx) : Spread<1>(filter, i, begin, dx);
        }
      }
    }
  }

  void End(float *dfilter, float *dbias) const {
    for (int64_t i = 0; i < kKernel * kKernel; ++i) dfilter[i] = static_cast<float>(sums_[i]);
    *dbias = static_cast<float>(sums_[kKernel * kKernel]);
  }

 private:
  static constexpr int64_t kTogether = kKernel == 3 ? 3 : 1;  // rows of the filter whose sums fit into registers

  // Where the gradient's row begins; `begin` is the block's first.
  float *Kept(int64_t row, int64_t begin) const { return room_ + (row - begin + kHalo) * RowFloats(s_) + kLanes; }

  void Fill(const float *dy, const float *y, int64_t row, int64_t begin, int64_t end) {
    float *to = Kept(row, begin);
    std::fill(to - kLanes, to + RowFloats(s_) - kLanes, 0.0f);
    if (row < 0 || row >= s_.out_height) return;
    const float *from = dy + row * s_.out_width, *gate = y + row * s_.out_width;
    Floats sum = {};
    for (int64_t x = 0; x < s_.out_width; x += kLanes) {
      Floats g = LoadWithin(from, x, s_.out_width);
      if constexpr (kActivation != kNone) {
        const Floats open = LoadWithin(gate, x, s_.out_width);
        g = open > 0.0f ? g : Floats{};
        if constexpr (kActivation == kReLU6) g = open < kSix ? g : Floats{};
      }
      StoreFirst(to + x, g, s_.out_width - x);
      sum += g;
    }
    if (row >= begin && row < end) sums_[kKernel * kKernel] += Sum(sum);
  }

  // The filter's rows first, ..., first + kTogether - 1.
  void SumTaps(const float *map, int64_t first, int64_t begin, int64_t end) {
    Floats sums[kTogether][kKernel] = {};
    for (int64_t y = begin; y < end; ++y) {
      const float *g = Kept(y, begin);
      Row rows[kTogether];
      int64_t width = s_.width;
      for (int64_t k = 0; k < kTogether; ++k) {
        rows[k] = RowOf(map, y * kStride - s_.top + first + k, s_.height, s_.width);
        width = std::min(width, rows[k].width);
      }
      auto at = [&](int64_t x, auto whole) {
        const Floats here = Load(g + x);
#pragma GCC unroll 3
        for (int64_t k = 0; k < kTogether; ++k) {
          Floats taps[kKernel];
          LoadTaps<kKernel, kStride, decltype(whole)::value>(rows[k], x * kStride - s_.left, taps);
#pragma GCC unroll 5
          for (int64_t j = 0; j < kKernel; ++j) sums[k][j] = MulAdd(here, taps[j], sums[k][j]);
        }
      };
      for (int64_t x = 0; x < s_.out_width; x += kLanes) {
        if (Whole<kKernel, kStride>(x * kStride - s_.left, width)) {
          at(x, std::true_type());
        } else {
          at(x, std::false_type());
        }
      }
    }
    for (int64_t k = 0; k < kTogether; ++k) {
      for (int64_t j = 0; j < kKernel; ++j) sums_[(first + k) * kKernel + j] += Sum(sums[k][j]);
    }
  }

  // dx of stride 1: the gradient convolved with the turned filter.
  void SlideTurned(const float *turned, int64_t begin, int64_t end, float *dx) {
    constexpr int64_t kRows = kKernel == 3 ? 4 : 2, kSeen = kRows - 1 + kKernel;
    const int64_t above = kKernel - 1 - s_.top, left = kKernel - 1 - s_.left;
    for (int64_t i = begin; i < end;) {
      const bool several = i + kRows <= end;
      Row rows[kSeen];
      for (int64_t r = 0; r < (several ? kSeen : kKernel); ++r) rows[r] = Row{Kept(i - above + r, begin), 0};
      float *to = dx + i * s_.width;
      if (several) {
        Convolve<kKernel, 1, kRows, kNone, true>(rows, left, turned, 0.0f, to, s_.width);
      } else {
        Convolve<kKernel, 1, 1, kNone, true>(rows, left, turned, 0.0f, to, s_.width);
      }
      i += several ? kRows : 1;
    }
  }

  // dx's row i of stride 2: dx[i][j] sums gradients at ((i + top - k) / 2, (j + left - l) / 2), where those divide.
  template <int64_t kOdd>
  void Spread(const float *filter, int64_t i, int64_t begin, float *dx) {
    const float *rows[(kKernel + 1) / 2];
    Floats weights[(kKernel + 1) / 2][kKernel];
    int64_t count = 0;
    for (int64_t k = (i + s_.top) % 2; k < kKernel; k += 2, ++count) {
      rows[count] = Kept((i + s_.top - k) / 2, begin) + s_.left / 2;
      for (int64_t l = 0; l < kKernel; ++l) weights[count][l] = Broadcast(filter[k * kKernel + l]);
    }
    float *to = dx + i * s_.width;
    for (int64_t x = 0; 2 * x < s_.width; x += kLanes) {
      Floats sums[2] = {};
      for (int64_t r = 0; r < count; ++r) {
#pragma GCC unroll 5
        for (int64_t l = 0; l < kKernel; ++l) {
          const int64_t phase = (l + kOdd) % 2;
          sums[phase] = MulAdd(weights[r][l], Load(rows[r] + x + (phase + kOdd - l) / 2), sums[phase]);
        }
      }
      const int64_t rest = s_.width - 2 * x;
      StoreFirst(to + 2 * x, ShuffleBy<LowHalves>(sums[0], sums[1]), rest);
      if (rest > kLanes) StoreFirst(to + 2 * x + kLanes, ShuffleBy<HighHalves>(sums[0], sums[1]), rest - kLanes);
    }
  }

  const Sizes s_;
  float *room_;
  double sums_[kKernel * kKernel + 1];
};

// Calls f(kernel), an integral constant.
template <typename Function>
void ForKernel(int64_t kernel, const Function &f) {
  if (kernel == 3) {
    f(std::integral_constant<int64_t, 3>());
  } else {
    f(std::integral_constant<int64_t, 5>());
  }
}

// x (N, C, H, W), weight (C, 1, k, k), bias (C,) -> y (N, C, h, w)
template <int64_t kStride, Activation kActivation>
void Forward(void **params, int64_t **shapes, bool same) {
  const int64_t kernel = shapes[1][2];
  const Sizes s = MakeSizes(shapes[0], shapes[3], kernel, kStride, same);
  const auto *x = static_cast<const float *>(params[0]), *weight = static_cast<const float *>(params[1]);
  const auto *bias = static_cast<const float *>(params[2]);
  auto *y = static_cast<float *>(params[3]);
  ForKernel(kernel, [&](auto k) {
    rcnn::ParallelFor(s.batch * s.channels, rcnn::NumThreads(), [&](int64_t map) {
      const int64_t c = map % s.channels;
      ConvolveMap<decltype(k)::value, kStride, kActivation>(
          s, x + map * s.height * s.width, weight + c * kernel * kernel, bias[c], y + map * s.out_height * s.out_width);
    });
  });
}

// dy and y (N, C, h, w), x (N, C, H, W), weight (C, 1, k, k) -> dx like x, dweight like weight, dbias (C,). y is read
// only for an activation.
template <int64_t kStride, Activation kActivation>
void Gradients(void **params, int64_t **shapes, bool same) {
  const int64_t kernel = shapes[3][2];
  const Sizes s = MakeSizes(shapes[2], shapes[0], kernel, kStride, same);
  const auto *dy = static_cast<const float *>(params[0]), *y = static_cast<const float *>(params[1]);
  const auto *x = static_cast<const float *>(params[2]), *weight = static_cast<const float *>(params[3]);
  auto *dx = static_cast<float *>(params[4]), *dweight = static_cast<float *>(params[5]);
  auto *dbias = static_cast<float *>(params[6]);
  const int threads = static_cast<int>(std::min<int64_t>(rcnn::NumThreads(), s.channels));
  const int64_t in = s.height * s.width, out = s.out_height * s.out_width;
  ForKernel(kernel, [&](auto k) {
    using Channel = ChannelGradients<decltype(k)::value, kStride, kActivation>;
    const int64_t room = Workspace::Padded(Channel::Room(s));
    Workspace workspace(room * threads);
    float *rooms = workspace.Take(room * threads);
    std::atomic<int64_t> next{0};
    rcnn::ParallelFor(threads, threads, [&](int64_t worker) {
      Channel channel(s, rooms + worker * room);
      for (int64_t c = next.fetch_add(1); c < s.channels; c = next.fetch_add(1)) {
        channel.Begin();
        for (int64_t n = 0; n < s.batch; ++n) {
          const int64_t map = n * s.channels + c;
          channel.Image(dy + map * out, y + map * out, x + map * in, weight + c * kernel * kernel, dx + map * in);
        }
        channel.End(dweight + c * kernel * kernel, dbias + c);
      }
    });
  });
}

}  // namespace

// A name for each stride: where operators have one name and inputs of one size, MindSpore takes the results' size from
// whichever came first.
#define RCNN_DEPTHWISE(name, stride, same)                                \
  RCNN_OPERATOR(name##Forward, (Forward<stride, kNone>), 4, same)         \
  RCNN_OPERATOR(name##ForwardReLU, (Forward<stride, kReLU>), 4, same)     \
  RCNN_OPERATOR(name##ForwardReLU6, (Forward<stride, kReLU6>), 4, same)   \
  RCNN_OPERATOR(name##Gradients, (Gradients<stride, kNone>), 7, same)     \
  RCNN_OPERATOR(name##GradientsReLU, (Gradients<stride, kReLU>), 7, same) \
  RCNN_OPERATOR(name##GradientsReLU6, (Gradients<stride, kReLU6>), 7, same)

RCNN_DEPTHWISE(Depthwise, 1, false)
RCNN_DEPTHWISE(DepthwiseStride2, 2, false)
RCNN_DEPTHWISE(DepthwiseSameStride2, 2, true)
