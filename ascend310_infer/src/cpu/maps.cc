// Layers without weights: pooling, padding, sums and products of maps, and what moves numbers.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "../../../src/ops/csrc/max_pool.h"
#include "../../../src/ops/csrc/parallel.h"
#include "../../../src/ops/csrc/workspace.h"
#include "layer.h"

namespace rcnn {

namespace {

constexpr int64_t kPart = 1 << 14;  // numbers that a thread works on at a time

// Calls part(begin, end) for parts of [0, count).
template <typename Part>
void InPieces(int64_t count, int threads, const Part &part) {
  ParallelFor(Ceil(count, kPart), threads, [&](int64_t i) { part(i * kPart, std::min((i + 1) * kPart, count)); });
}

// Of zeros, around maps.
struct Frame {
  int64_t top = 0, bottom = 0, left = 0, right = 0;
};

class PadLayer : public Layer {
 public:
  explicit PadLayer(const Operator &op) {
    const std::vector<int64_t> all = op.Integers("paddings");
    if (all.size() != 8 || std::any_of(all.begin(), all.begin() + 4, [](int64_t p) { return p != 0; })) {
      throw Unsuitable("Pad isn't one of maps");
    }
    if (std::any_of(all.begin(), all.end(), [](int64_t p) { return p < 0 || p > 64; })) {
      throw Unsuitable("Pad takes away, or adds too much");
    }
    frame_ = {all[4], all[5], all[6], all[7]};
  }

  const Frame &Zeros() const { return frame_; }

  Shape Resize(const std::vector<Shape> &inputs) override {
    const Shape &x = inputs[0];
    if (x.size() != 4) throw Unsuitable("Pad takes maps");
    from_ = x;
    return {x[0], x[1], x[2] + frame_.top + frame_.bottom, x[3] + frame_.left + frame_.right};
  }

  void Run(const std::vector<const float *> &inputs, float *output, int threads) const override {
    const int64_t height = from_[2], width = from_[3], wide = width + frame_.left + frame_.right;
    const int64_t high = height + frame_.top + frame_.bottom;
    ParallelFor(from_[0] * from_[1], threads, [&](int64_t map) {
      float *to = output + map * high * wide;
      std::fill_n(to, high * wide, 0.0f);
      for (int64_t y = 0; y < height; ++y) {
        std::copy_n(inputs[0] + (map * height + y) * width, width, to + (y + frame_.top) * wide + frame_.left);
      }
    });
  }

 private:
  Frame frame_;
  Shape from_;
};

class MaxPoolLayer : public Layer {
 public:
  explicit MaxPoolLayer(const Operator &op) {
    const std::vector<int64_t> kernel = op.Integers("kernel_size"), stride = op.Integers("strides");
    std::string mode = op.Text("pad_mode");
    std::transform(mode.begin(), mode.end(), mode.begin(), [](unsigned char c) { return std::tolower(c); });
    same_ = mode == "same";
    if (kernel.size() != 4 || stride.size() != 4 || (mode != "valid" && !same_)) {
      throw Unsuitable("MaxPool isn't one of maps, padded as valid or same");
    }
    for (size_t i = 0; i < 2; ++i) {
      kernel_[i] = kernel[2 + i];
      stride_[i] = stride[2 + i];
      if (kernel_[i] < 1 || stride_[i] < 1 || kernel_[i] > 1024 || stride_[i] > 1024) {
        throw Unsuitable("MaxPool has a size that no pool has");
      }
    }
  }

  // Pools maps with these zeros around them; false where that can't be.
  bool AddZeros(const Frame &zeros) {
    if (same_) return false;
    zeros_ = zeros;
    has_zeros_ = true;
    return true;
  }

  // Pools maps that this layer makes.
  bool AddMaker(std::unique_ptr<Layer> *maker) {
    // every window meets the map, so that each band has rows
    const bool meets = std::max(zeros_.top, zeros_.bottom) < kernel_[0];
    if (maker_ != nullptr || !(*maker)->HasRows() || kernel_[0] > 2 * stride_[0] || !meets) return false;
    maker_ = std::move(*maker);
    return true;
  }

  Shape Resize(const std::vector<Shape> &inputs) override {
    const Shape x = maker_ == nullptr ? inputs[0] : maker_->Resize(inputs);
    if (x.size() != 4) throw Unsuitable("MaxPool takes maps");
    from_ = x;
    to_ = x;
    const int64_t zeros[] = {zeros_.top + zeros_.bottom, zeros_.left + zeros_.right};
    for (size_t i = 0; i < 2; ++i) {
      const int64_t size = x[2 + i] + zeros[i];
      to_[2 + i] = same_ ? Ceil(size, stride_[i]) : size < kernel_[i] ? 0 : (size - kernel_[i]) / stride_[i] + 1;
      if (to_[2 + i] < 1) throw Unsuitable("MaxPool takes larger maps");
      before_[i] = i == 0 ? zeros_.top : zeros_.left;
      if (same_) before_[i] = std::max<int64_t>((to_[2 + i] - 1) * stride_[i] + kernel_[i] - size, 0) / 2;
    }
    if (maker_ == nullptr) return to_;
    const int64_t fitting = (kBand / (x[1] * x[3]) - kernel_[0]) / stride_[0] + 1;
    band_places_ = std::clamp<int64_t>(fitting, 1, to_[2]);
    band_ = TakeMemory(x[1] * x[3] * ((band_places_ - 1) * stride_[0] + kernel_[0]));
    return to_;
  }

  void Run(const std::vector<const float *> &inputs, float *output, int threads) const override {
    const float outside = has_zeros_ ? 0.0f : -std::numeric_limits<float>::infinity();
    const int64_t map = to_[2] * to_[3];
    if (maker_ == nullptr) {
      MaxPool(inputs[0], from_[0] * from_[1], Axis(0), Axis(1), outside, output, map, threads);
      return;
    }
    for (int64_t image = 0; image < from_[0]; ++image) {
      for (int64_t place = 0; place < to_[2]; place += band_places_) {
        const int64_t places = std::min(band_places_, to_[2] - place), first = place * stride_[0] - before_[0];
        const Range rows = {std::max<int64_t>(first, 0),
                            std::min(first + (places - 1) * stride_[0] + kernel_[0], from_[2])};
        maker_->RunRows(inputs[0], image, rows, band_.get(), threads);
        const PoolAxis down = {rows.Size(), kernel_[0], stride_[0], rows.begin - first, places};
        MaxPool(band_.get(), from_[1], down, Axis(1), outside, output + image * from_[1] * map + place * to_[3], map,
                threads);
      }
    }
  }

 private:
  static constexpr int64_t kBand = 1 << 20;  // numbers that are made before they are pooled: the caches hold them

  PoolAxis Axis(size_t i) const { return {from_[2 + i], kernel_[i], stride_[i], before_[i], to_[2 + i]}; }

  int64_t kernel_[2] = {}, stride_[2] = {}, before_[2] = {};
  bool same_ = false, has_zeros_ = false;
  Frame zeros_;
  Shape from_, to_;
  std::unique_ptr<Layer> maker_;
  int64_t band_places_ = 0;
  Memory band_;
};

// A function of each number.
class EachLayer : public Layer {
 public:
  explicit EachLayer(const std::string &type) : type_(type), activation_(ActivationOf(type)) {}

  Shape Resize(const std::vector<Shape> &inputs) override {
    count_ = CountOf(inputs[0]);
    return inputs[0];
  }
  bool InPlace(size_t) const override { return true; }

  void Run(const std::vector<const float *> &inputs, float *output, int threads) const override {
    const float *from = inputs[0];
    InPieces(count_, threads, [&](int64_t begin, int64_t end) {
      if (activation_ == Activation::kNone) {
        if (type_ == "Sqrt")
          std::transform(from + begin, from + end, output + begin, [](float v) { return std::sqrt(v); });
        if (type_ == "Sigmoid") {
          std::transform(from + begin, from + end, output + begin,
                         [](float v) { return 1.0f / (1.0f + std::exp(-v)); });
        }
        return;
      }
      for (int64_t i = begin; i < end; i += kLanes) {
        StoreFirst(output + i, rcnn::Activate(activation_, LoadWithin(from, i, end)), end - i);
      }
    });
  }

 private:
  const std::string type_;
  const Activation activation_;
  int64_t count_ = 0;
};

enum class Sum { kAdd, kSub, kMul, kDiv, kMax, kMin };

RCNN_INLINE Floats Apply(Sum sum, const Floats &a, const Floats &b) {
  switch (sum) {
    case Sum::kAdd:
      return a + b;
    case Sum::kSub:
      return a - b;
    case Sum::kMul:
      return a * b;
    case Sum::kDiv:
      return a / b;
    case Sum::kMax:
      return a > b ? a : b;
    default:
      return a < b ? a : b;
  }
}

// Of two arrays, either repeated along axes where it has one.
class PairLayer : public Layer {
 public:
  PairLayer(const std::string &type, Sum sum) : type_(type), sum_(sum) {}

  Shape Resize(const std::vector<Shape> &inputs) override {
    if (inputs.size() != 2) throw Unsuitable(type_ + " takes two inputs");
    const size_t rank = std::max(inputs[0].size(), inputs[1].size());
    Shape all[2], out(rank);
    for (size_t k = 0; k < 2; ++k) {
      all[k] = Shape(rank - inputs[k].size(), 1);
      all[k].insert(all[k].end(), inputs[k].begin(), inputs[k].end());
    }
    // axes that behave alike are one
    sides_.clear();
    std::vector<bool> repeated[2];
    for (size_t i = 0; i < rank; ++i) {
      const int64_t a = all[0][i], b = all[1][i];
      if (a != b && a != 1 && b != 1) throw Unsuitable(type_ + " takes shapes that fit together");
      out[i] = std::max(a, b);
      if (out[i] == 1) continue;
      const bool now[] = {a == 1, b == 1};
      if (!sides_.empty() && repeated[0].back() == now[0] && repeated[1].back() == now[1]) {
        sides_.back() *= out[i];
        continue;
      }
      sides_.push_back(out[i]);
      for (size_t k = 0; k < 2; ++k) repeated[k].push_back(now[k]);
    }
    if (sides_.empty()) {
      sides_ = {1};
      for (auto &r : repeated) r = {false};
    }
    for (size_t k = 0; k < 2; ++k) {
      steps_[k].assign(sides_.size(), 0);
      int64_t step = 1;
      for (size_t i = sides_.size(); i-- > 0;) {
        if (repeated[k][i]) continue;
        steps_[k][i] = step;
        step *= sides_[i];
      }
      same_[k] = inputs[k] == out;
    }
    return out;
  }

  bool InPlace(size_t input) const override { return same_[input]; }

  bool Activate(Activation activation) override {
    if (activation_ != Activation::kNone) return false;
    activation_ = activation;
    return true;
  }

  void Run(const std::vector<const float *> &inputs, float *output, int threads) const override {
    const int64_t length = sides_.back(), rows = CountOf(sides_) / length, pieces = Ceil(length, kPart);
    ParallelFor(rows * pieces, threads, [&](int64_t task) {
      const int64_t row = task / pieces, begin = task % pieces * kPart, end = std::min(begin + kPart, length);
      const float *from[2] = {inputs[0], inputs[1]};
      int64_t rest = row;
      for (size_t i = sides_.size() - 1; i-- > 0; rest /= sides_[i]) {
        for (size_t k = 0; k < 2; ++k) from[k] += rest % sides_[i] * steps_[k][i];
      }
      float *to = output + row * length;
      for (int64_t x = begin; x < end; x += kLanes) {
        Floats v[2];
        for (size_t k = 0; k < 2; ++k) {
          v[k] = steps_[k].back() == 0 ? Broadcast(from[k][0]) : LoadWithin(from[k], x, end);
        }
        StoreFirst(to + x, rcnn::Activate(activation_, Apply(sum_, v[0], v[1])), end - x);
      }
    });
  }

 private:
  const std::string type_;
  const Sum sum_;
  Activation activation_ = Activation::kNone;
  Shape sides_;
  std::vector<int64_t> steps_[2];
  bool same_[2] = {};
};

// Sums or means over neighbouring axes.
class ReduceLayer : public Layer {
 public:
  ReduceLayer(const Operator &op, std::vector<int64_t> axes)
      : type_(op.type),
        mean_(op.type == "ReduceMean"),
        keep_(op.Integer("keep_dims", 0) != 0),
        axes_(std::move(axes)) {}

  Shape Resize(const std::vector<Shape> &inputs) override {
    const Shape &x = inputs[0];
    const auto rank = static_cast<int64_t>(x.size());
    std::vector<int64_t> axes = axes_;
    for (int64_t &axis : axes) {
      if (axis < 0) axis += rank;
      if (axis < 0 || axis >= rank) throw Unsuitable(type_ + " sums over an axis that there isn't");
    }
    std::sort(axes.begin(), axes.end());
    for (size_t i = 1; i < axes.size(); ++i) {
      if (axes[i] != axes[i - 1] + 1) throw Unsuitable(type_ + " sums over axes that aren't neighbours");
    }
    if (axes.empty()) throw Unsuitable(type_ + " doesn't say over which axes");
    outer_ = reduced_ = inner_ = 1;
    Shape out;
    for (int64_t i = 0; i < rank; ++i) {
      const int64_t side = x[static_cast<size_t>(i)];
      const bool within = i >= axes.front() && i <= axes.back();
      (within ? reduced_ : i < axes.front() ? outer_ : inner_) *= side;
      if (!within) out.push_back(side);
      if (within && keep_) out.push_back(1);
    }
    return out;
  }

  void Run(const std::vector<const float *> &inputs, float *output, int threads) const override {
    const double divisor = mean_ ? static_cast<double>(reduced_) : 1.0;
    ParallelFor(outer_, threads, [&](int64_t o) {
      const float *from = inputs[0] + o * reduced_ * inner_;
      float *to = output + o * inner_;
      if (inner_ == 1) {
        to[0] = static_cast<float>(SumOf(from, reduced_) / divisor);
        return;
      }
      for (int64_t i = 0; i < inner_; ++i) {
        double sum = 0;
        for (int64_t r = 0; r < reduced_; ++r) sum += static_cast<double>(from[r * inner_ + i]);
        to[i] = static_cast<float>(sum / divisor);
      }
    });
  }

 private:
  static double SumOf(const float *from, int64_t count) {
    constexpr int64_t kAtOnce = 256 * kLanes;
    double total = 0;
    for (int64_t begin = 0; begin < count; begin += kAtOnce) {
      const int64_t end = std::min(begin + kAtOnce, count);
      Floats sums = {};
      for (int64_t i = begin; i < end; i += kLanes) sums += LoadWithin(from, i, end);
      for (int64_t lane = 0; lane < kLanes; ++lane) total += static_cast<double>(sums[lane]);
    }
    return total;
  }

  const std::string type_;
  const bool mean_, keep_;
  const std::vector<int64_t> axes_;
  int64_t outer_ = 1, reduced_ = 1, inner_ = 1;
};

class ConcatLayer : public Layer {
 public:
  explicit ConcatLayer(const Operator &op) : axis_(op.Integer("axis", 0)) {}

  Shape Resize(const std::vector<Shape> &inputs) override {
    Shape out = inputs[0];
    const auto rank = static_cast<int64_t>(out.size());
    const int64_t axis = axis_ < 0 ? axis_ + rank : axis_;
    if (axis < 0 || axis >= rank) throw Unsuitable("Concat joins along an axis that there isn't");
    outer_ = CountOf(Shape(out.begin(), out.begin() + axis));
    lengths_.clear();
    int64_t total = 0;
    for (const Shape &x : inputs) {
      Shape others = x, wanted = out;
      if (x.size() != out.size()) throw Unsuitable("Concat takes arrays that fit together");
      others[static_cast<size_t>(axis)] = wanted[static_cast<size_t>(axis)] = 0;
      if (others != wanted) throw Unsuitable("Concat takes arrays that fit together");
      total += x[static_cast<size_t>(axis)];
      lengths_.push_back(CountOf(x) / outer_);
    }
    out[static_cast<size_t>(axis)] = total;
    return out;
  }

  void Run(const std::vector<const float *> &inputs, float *output, int) const override {
    for (int64_t o = 0; o < outer_; ++o) {
      for (size_t i = 0; i < inputs.size(); ++i) {
        output = std::copy_n(inputs[i] + o * lengths_[i], lengths_[i], output);
      }
    }
  }

 private:
  const int64_t axis_;
  int64_t outer_ = 1;
  std::vector<int64_t> lengths_;
};

class ReshapeLayer : public Layer {
 public:
  explicit ReshapeLayer(Shape shape) : shape_(std::move(shape)) {}

  Shape Resize(const std::vector<Shape> &inputs) override {
    count_ = CountOf(inputs[0]);
    Shape out = shape_;
    const auto open = std::find(out.begin(), out.end(), -1);
    if (open != out.end()) {
      *open = 1;
      const int64_t known = CountOf(out);
      *open = known < 1 ? 0 : count_ / known;
    }
    if (std::any_of(out.begin(), out.end(), [](int64_t side) { return side < 0; }) || CountOf(out) != count_) {
      throw Unsuitable("Reshape is to a shape of another size");
    }
    return out;
  }
  bool InPlace(size_t) const override { return true; }

  void Run(const std::vector<const float *> &inputs, float *output, int) const override {
    if (inputs[0] != output) std::copy_n(inputs[0], count_, output);
  }

 private:
  const Shape shape_;
  int64_t count_ = 0;
};

}  // namespace

Activation ActivationOf(const std::string &type) {
  if (type == "ReLU") return Activation::kReLU;
  if (type == "ReLU6") return Activation::kReLU6;
  return type == "HSwish" ? Activation::kHSwish : Activation::kNone;
}

std::unique_ptr<Layer> MakeLayer(const Operator &op, const std::vector<int64_t> &list) {
  static const std::map<std::string, Sum> kPairs = {
      {"Add", Sum::kAdd},     {"Sub", Sum::kSub},     {"Mul", Sum::kMul},    {"Div", Sum::kDiv},
      {"RealDiv", Sum::kDiv}, {"Maximum", Sum::kMax}, {"Minimum", Sum::kMin}};
  const auto pair = kPairs.find(op.type);
  if (pair != kPairs.end()) return std::make_unique<PairLayer>(op.type, pair->second);
  if (ActivationOf(op.type) != Activation::kNone || op.type == "Sqrt" || op.type == "Sigmoid") {
    return std::make_unique<EachLayer>(op.type);
  }
  if (op.type == "MaxPool") return std::make_unique<MaxPoolLayer>(op);
  if (op.type == "Pad") return std::make_unique<PadLayer>(op);
  if (op.type == "ReduceSum" || op.type == "ReduceMean") return std::make_unique<ReduceLayer>(op, list);
  if (op.type == "Concat") return std::make_unique<ConcatLayer>(op);
  if (op.type == "Reshape") return std::make_unique<ReshapeLayer>(list);
  return nullptr;
}

bool PadByPool(const Layer &pad, Layer *pool) {
  const auto *zeros = dynamic_cast<const PadLayer *>(&pad);
  auto *into = dynamic_cast<MaxPoolLayer *>(pool);
  return zeros != nullptr && into != nullptr && into->AddZeros(zeros->Zeros());
}

bool FeedPool(std::unique_ptr<Layer> *maker, Layer *pool) {
  auto *into = dynamic_cast<MaxPoolLayer *>(pool);
  return into != nullptr && into->AddMaker(maker);
}

}  // namespace rcnn
