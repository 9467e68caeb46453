// Compiled without fused products and sums: the same numbers on every CPU.
#include "keypoints.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>

#include "files.h"

namespace rcnn {

namespace {

constexpr float kLongest = 1 << 15;     // side of a box; canvases have less
constexpr float kLargestLogit = 1e30f;  // whose sums are numbers
constexpr double kLargestShare = 1e12;  // results take numbers up to 1e15

// A pixel of an enlarged side: the four cells that it is made of.
struct Pixel {
  std::array<size_t, 4> cells;
  std::array<float, 4> weights;
};

// Keys' cubic convolution, a = -0.75, `t` cells behind the second of four.
std::array<float, 4> Weights(float t) {
  const float a = -0.75f, u = 1.0f - t;
  const auto near = [a](float d) { return ((a + 2.0f) * d - (a + 3.0f)) * d * d + 1.0f; };
  return {a * t * u * u, near(t), near(u), a * u * t * t};
}

// `side` cells enlarged to `length` pixels; beyond the outermost cells they repeat.
std::vector<Pixel> EnlargedSide(int64_t side, int64_t length) {
  std::vector<Pixel> out;
  const double step = static_cast<double>(side) / static_cast<double>(length);
  for (int64_t i = 0; i < length; ++i) {
    const double place = (static_cast<double>(i) + 0.5) * step - 0.5, second = std::floor(place);
    Pixel pixel{{}, Weights(static_cast<float>(place - second))};
    for (int64_t k = 0; k < 4; ++k) {
      const int64_t cell = static_cast<int64_t>(second) - 1 + k;
      pixel.cells[static_cast<size_t>(k)] = static_cast<size_t>(std::clamp<int64_t>(cell, 0, side - 1));
    }
    out.push_back(pixel);
  }
  return out;
}

float Sum(const std::array<float, 4> &weights, float a, float b, float c, float d) {
  return a * weights[0] + b * weights[1] + c * weights[2] + d * weights[3];
}

// The exponential of a value, as a share of those of a map, at most kLargestShare.
float Share(float value, const float *map, int64_t cells) {
  double total = 0;
  for (int64_t i = 0; i < cells; ++i) total += std::exp(static_cast<double>(map[i] - value));
  return static_cast<float>(std::min(1.0 / total, kLargestShare));
}

struct Peak {
  float value = -std::numeric_limits<float>::infinity();
  int64_t row = 0, column = 0;
};

// Enlarges one map after the other, of which no more than a row is there at a time.
class Enlarged {
 public:
  Enlarged(int64_t side, const std::vector<Pixel> &down, const std::vector<Pixel> &across)
      : side_(static_cast<size_t>(side)),
        down_(down),
        across_(across),
        wide_(side_ * across.size()),
        row_(across.size()),
        least_(side_),
        most_(side_),
        bounds_(down.size()),
        order_(down.size()) {}

  // The first largest value by rows; rows that can't hold it aren't made.
  Peak Largest(const float *map) {
    EnlargeAcross(map);
    for (size_t y = 0; y < down_.size(); ++y) bounds_[y] = Bound(down_[y]);
    std::iota(order_.begin(), order_.end(), size_t{0});
    std::sort(order_.begin(), order_.end(), [this](size_t a, size_t b) { return bounds_[a] > bounds_[b]; });
    Peak best;
    for (const size_t y : order_) {
      if (bounds_[y] < best.value) break;
      MakeRow(down_[y]);
      const auto most = std::max_element(row_.begin(), row_.end());
      const auto here = static_cast<int64_t>(y);
      if (*most > best.value || (*most == best.value && here < best.row)) best = {*most, here, most - row_.begin()};
    }
    return best;
  }

 private:
  void EnlargeAcross(const float *map) {
    for (size_t y = 0; y < side_; ++y) {
      const float *from = map + y * side_;
      float *to = Wide(y);
      for (size_t x = 0; x < across_.size(); ++x) {
        const auto &[cells, weights] = across_[x];
        to[x] = Sum(weights, from[cells[0]], from[cells[1]], from[cells[2]], from[cells[3]]);
      }
      const auto [least, most] = std::minmax_element(to, to + across_.size());
      least_[y] = *least;
      most_[y] = *most;
    }
  }

  float *Wide(size_t y) { return &wide_[y * row_.size()]; }

  void MakeRow(const Pixel &pixel) {
    const auto &[cells, weights] = pixel;
    const float *a = Wide(cells[0]), *b = Wide(cells[1]), *c = Wide(cells[2]), *d = Wide(cells[3]);
    for (size_t x = 0; x < row_.size(); ++x) row_[x] = Sum(weights, a[x], b[x], c[x], d[x]);
  }

  // What no value of a row is above: weights sum to 1, and the two outer ones are no less than -0.1875 together.
  float Bound(const Pixel &pixel) const {
    float least = most_[pixel.cells[0]], most = least;
    for (const size_t cell : pixel.cells) {
      least = std::min(least, least_[cell]);
      most = std::max(most, most_[cell]);
    }
    const float rounding = 1e-5f * std::max(std::abs(least), std::abs(most));
    return most + 0.1875f * (most - least) + rounding;
  }

  const size_t side_;
  const std::vector<Pixel> &down_, &across_;
  std::vector<float> wide_, row_;    // the map enlarged across alone, (side, width); a row of it all
  std::vector<float> least_, most_;  // of each row of the former
  std::vector<float> bounds_;
  std::vector<size_t> order_;
};

}  // namespace

std::vector<Keypoint> FindKeypoints(const float *maps, int64_t count, int64_t side, const Box &box,
                                    bool as_probability) {
  const float width = std::max(box[2] - box[0], 1.0f), height = std::max(box[3] - box[1], 1.0f);
  const auto is_fair = [](float v) { return std::abs(v) <= kLargestLogit; };
  const bool is_box = std::all_of(box.begin(), box.end(), is_fair) && width <= kLongest && height <= kLongest;
  if (!is_box || !std::all_of(maps, maps + count * side * side, is_fair)) {
    throw UserError("the model's detections are no numbers, or larger than any picture; did its training diverge?");
  }
  const auto columns = static_cast<int64_t>(std::ceil(width)), rows = static_cast<int64_t>(std::ceil(height));
  const int64_t cells = side * side;
  const float pixel_width = width / static_cast<float>(columns), pixel_height = height / static_cast<float>(rows);
  const std::vector<Pixel> down = EnlargedSide(side, rows), across = EnlargedSide(side, columns);
  Enlarged enlarged(side, down, across);
  std::vector<Keypoint> out;
  for (const float *map = maps; map < maps + count * cells; map += cells) {
    const Peak peak = enlarged.Largest(map);
    const float x = (static_cast<float>(peak.column) + 0.5f) * pixel_width + box[0];
    const float y = (static_cast<float>(peak.row) + 0.5f) * pixel_height + box[1];
    out.push_back({x, y, as_probability ? Share(peak.value, map, cells) : peak.value});
  }
  return out;
}

}  // namespace rcnn
