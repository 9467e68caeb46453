// Layers with weights: convolutions, transposed convolutions and dense layers.
#include <algorithm>
#include <cstring>
#include <numeric>

#include "../../../src/ops/csrc/depthwise.h"
#include "../../../src/ops/csrc/parallel.h"
#include "../../../src/ops/csrc/patches.h"
#include "../../../src/ops/csrc/transposed.h"
#include "../../../src/ops/csrc/winograd.h"
#include "../../../src/ops/csrc/workspace.h"
#include "layer.h"

namespace rcnn {

namespace {

// One axis of a convolution.
struct Axis {
  int64_t kernel, stride, before, after;
  bool same;  // padded by no more than the size of the output needs, which is the input's over the stride

  int64_t Before(int64_t size) const { return same ? Missing(size) / 2 : before; }
  int64_t Outputs(int64_t size) const {
    return same                             ? Ceil(size, stride)
           : size + before + after < kernel ? 0
                                            : (size + before + after - kernel) / stride + 1;
  }
  FilterAxis At(int64_t size) const { return {kernel, stride, Before(size), Outputs(size)}; }

 private:
  int64_t Missing(int64_t size) const {
    return std::max<int64_t>((Ceil(size, stride) - 1) * stride + kernel - size, 0);
  }
};

struct Geometry {
  Axis down, across;
  int64_t groups;
};

std::string Lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::tolower(c); });
  return text;
}

Geometry GeometryOf(const Operator &op, const FileTensor &weight) {
  const std::vector<int64_t> stride = op.Integers("stride"), pads = op.Integers("pad_list");
  const std::vector<int64_t> dilation = op.Integers("dilation");
  if (weight.shape.size() != 4 || stride.size() < 2) throw Unsuitable(op.type + " isn't one of maps");
  for (const int64_t d : dilation) {
    if (d != 1) throw Unsuitable(op.type + " is dilated");
  }
  const std::string format = op.Text("format");
  if (!format.empty() && format != "NCHW") throw Unsuitable(op.type + " has the layout " + format);
  Geometry out{};
  out.groups = op.Integer("group", 1);
  if (out.groups < 1 || out.groups > weight.shape[0]) throw Unsuitable(op.type + " has more groups than filters");
  out.down = {weight.shape[2], stride[stride.size() - 2], 0, 0, false};
  out.across = {weight.shape[3], stride.back(), 0, 0, false};
  const std::string mode = Lower(op.Text("pad_mode"));
  if (mode == "same") {
    out.down.same = out.across.same = true;
  } else if (mode == "pad") {
    if (pads.size() != 4) throw Unsuitable(op.type + " has no list of its padding");
    out.down.before = pads[0];
    out.down.after = pads[1];
    out.across.before = pads[2];
    out.across.after = pads[3];
  } else if (mode != "valid") {
    throw Unsuitable(op.type + " has the padding " + mode);
  }
  for (const Axis &axis : {out.down, out.across}) {
    if (axis.stride < 1 || axis.stride > 1024 || axis.kernel > 1024 || axis.before < 0 || axis.after < 0 ||
        axis.before >= axis.kernel || axis.after >= axis.kernel) {
      throw Unsuitable(op.type + " has a stride or padding that no convolution has");
    }
  }
  return out;
}

// What layers of maps share: sizes, bias and activation.
class MapLayer : public Layer {
 public:
  MapLayer(const Operator &op, const Geometry &geometry, int64_t inputs, int64_t outputs)
      : type_(op.type), geometry_(geometry), inputs_(inputs), outputs_(outputs), bias_(static_cast<size_t>(outputs)) {}

  Shape Resize(const std::vector<Shape> &inputs) override {
    const Shape &x = inputs[0];
    if (x.size() != 4 || x[1] != inputs_)
      throw Unsuitable(type_ + " takes maps of " + std::to_string(inputs_) + " channels");
    images_ = x[0];
    height_ = x[2];
    width_ = x[3];
    rows_ = geometry_.down.Outputs(height_);
    columns_ = geometry_.across.Outputs(width_);
    if (rows_ < 1 || columns_ < 1) throw Unsuitable(type_ + " takes larger maps");
    const Shape out = {images_, outputs_, rows_, columns_};
    Shape added = inputs.size() > 1 ? inputs[1] : out;
    if (enlarged_ && added.size() == 4) added = {added[0], added[1], 2 * added[2], 2 * added[3]};
    if (added != out) throw Unsuitable(type_ + " is added to a map of another size");
    return out;
  }

  bool AddBias(const FileTensor &bias) override {
    if (has_bias_ || activation_ != Activation::kNone || with_other_) return false;
    if (bias.count != bias_.size()) return false;
    bias_ = NumbersOf(bias);
    has_bias_ = true;
    return true;
  }

  bool Activate(Activation activation) override {
    if (activation_ != Activation::kNone || !Fuses(activation)) return false;
    activation_ = activation;
    return true;
  }

 protected:
  virtual bool Fuses(Activation activation) const = 0;

  const std::string type_;
  const Geometry geometry_;
  const int64_t inputs_, outputs_;
  std::vector<float> bias_;
  bool has_bias_ = false, with_other_ = false, enlarged_ = false;
  Activation activation_ = Activation::kNone;
  int64_t images_ = 0, height_ = 0, width_ = 0, rows_ = 0, columns_ = 0;
};

// Any convolution, as products of its filters with patches; of groups, one after the other.
class ProductLayer : public MapLayer {
 public:
  ProductLayer(const Operator &op, const Geometry &geometry, const FileTensor &weight)
      : MapLayer(op, geometry, weight.shape[1] * geometry.groups, weight.shape[0]),
        filters_(NumbersOf(weight)),
        depth_(weight.shape[1] * weight.shape[2] * weight.shape[3]) {}

  bool AddOther() override {
    if (with_other_ || activation_ != Activation::kNone || geometry_.groups > 1) return false;
    with_other_ = true;
    return true;
  }
  bool AddEnlarged() override {
    // what it reads is kept until then, in place of what it gives
    enlarged_ = inputs_ <= outputs_ && AddOther();
    return enlarged_;
  }

  void Run(const std::vector<const float *> &inputs, float *output, int threads) const override {
    const int64_t groups = geometry_.groups, each = outputs_ / groups, cells = rows_ * columns_;
    const FilterAxis down = geometry_.down.At(height_), across = geometry_.across.At(width_);
    for (int64_t g = 0; g < groups; ++g) {
      const SeenMaps maps{inputs[0], inputs_, height_, width_, g * (inputs_ / groups)};
      const Left filters{filters_.data() + g * each * depth_, depth_, 1};
      Finish finish;
      finish.row_bias = bias_.data() + g * each;
      finish.other = inputs.size() > 1 ? inputs[1] : nullptr;
      finish.enlarged_to = enlarged_ ? columns_ : 0;
      finish.activation = activation_;
      if (groups == 1) {
        MultiplyMatrices(filters, Patches(maps, down, across), {images_, each, cells, depth_}, finish, output, threads);
        continue;
      }
      for (int64_t n = 0; n < images_; ++n) {
        SeenMaps own = maps;
        own.data += n * inputs_ * height_ * width_;
        MultiplyMatrices(filters, Patches(own, down, across), {1, each, cells, depth_}, finish,
                         output + (n * outputs_ + g * each) * cells, threads);
      }
    }
  }

  // what is added is read where it is written
  bool InPlace(size_t input) const override { return input == 1 && !enlarged_; }

  bool HasRows() const override { return geometry_.groups == 1 && !with_other_; }
  void RunRows(const float *input, int64_t image, const Range &rows, float *output, int threads) const override {
    const SeenMaps maps{input + image * inputs_ * height_ * width_, inputs_, height_, width_};
    const FilterAxis down = geometry_.down.At(height_), across = geometry_.across.At(width_);
    Finish finish;
    finish.row_bias = bias_.data();
    finish.activation = activation_;
    MultiplyMatrices(Left{filters_.data(), depth_, 1}, Patches(maps, down, across, rows.begin * columns_),
                     {1, outputs_, rows.Size() * columns_, depth_}, finish, output, threads);
  }

  // Whether each output is a sum over the channels at its place, and no more.
  bool IsPlain() const {
    const auto one = [](const Axis &axis) {
      return axis.kernel == 1 && axis.stride == 1 && (axis.same || axis.before + axis.after == 0);
    };
    return one(geometry_.down) && one(geometry_.across) && geometry_.groups == 1 && !with_other_ &&
           activation_ == Activation::kNone;
  }
  int64_t Inputs() const { return inputs_; }
  int64_t Outputs() const { return outputs_; }
  const std::vector<float> &Filters() const { return filters_; }
  const std::vector<float> &Bias() const { return bias_; }

 private:
  bool Fuses(Activation) const override { return true; }

  const std::vector<float> filters_;
  const int64_t depth_;
};

// 3x3 of stride 1.
class WinogradLayer : public MapLayer {
 public:
  WinogradLayer(const Operator &op, const Geometry &geometry, const FileTensor &weight, SharedFilters *shared)
      : MapLayer(op, geometry, weight.shape[1], weight.shape[0]) {
    std::shared_ptr<const Conv3x3> &known = (*shared)[weight.data];
    if (known == nullptr) {
      known = std::make_shared<Conv3x3>(NumbersOf(weight).data(), weight.shape[0], weight.shape[1]);
    }
    filters_ = known;
  }

  // Lets 1x1 convolutions that alone read this one follow in the same pass, as one of all their outputs; false where
  // they can't, and nothing has changed then.
  bool AddHead(const std::vector<const ProductLayer *> &convolutions) {
    int64_t outputs = 0;
    for (const ProductLayer *convolution : convolutions) {
      if (!convolution->IsPlain() || convolution->Inputs() != outputs_) return false;
      outputs += convolution->Outputs();
    }
    // what they make of a block stays in the caches
    if (activation_ != Activation::kReLU || outputs > outputs_ / 4) return false;
    for (const ProductLayer *convolution : convolutions) {
      head_.insert(head_.end(), convolution->Filters().begin(), convolution->Filters().end());
      head_bias_.insert(head_bias_.end(), convolution->Bias().begin(), convolution->Bias().end());
    }
    return true;
  }

  Shape Resize(const std::vector<Shape> &inputs) override {
    Shape out = MapLayer::Resize(inputs);
    if (!head_.empty()) out[1] = static_cast<int64_t>(head_bias_.size());
    return out;
  }

  void Run(const std::vector<const float *> &inputs, float *output, int) const override {
    if (!head_.empty()) {
      filters_->RunWithHead(inputs[0], images_, height_, width_, bias_.data(), head_.data(), head_bias_.data(),
                            static_cast<int64_t>(head_bias_.size()), output);
      return;
    }
    filters_->Run(inputs[0], images_, height_, width_, bias_.data(), activation_ == Activation::kReLU, output);
  }

 private:
  bool Fuses(Activation activation) const override { return activation == Activation::kReLU; }

  std::shared_ptr<const Conv3x3> filters_;
  std::vector<float> head_, head_bias_;  // (head's outputs, outputs): of the 1x1 convolutions
};

// Each channel by its own filter.
class DepthwiseLayer : public MapLayer {
 public:
  DepthwiseLayer(const Operator &op, const Geometry &geometry, const FileTensor &weight)
      : MapLayer(op, geometry, weight.shape[0], weight.shape[0]),
        filters_(NumbersOf(weight)),
        has_operator_(geometry.down.kernel == geometry.across.kernel &&
                      (geometry.down.kernel == 3 || geometry.down.kernel == 5) &&
                      geometry.down.stride == geometry.across.stride &&
                      (geometry.down.stride == 1 || geometry.down.stride == 2)) {}

  void Run(const std::vector<const float *> &inputs, float *output, int threads) const override {
    if (DepthwiseOperator *run = OperatorOf()) {
      int64_t x[] = {images_, inputs_, height_, width_}, y[] = {images_, outputs_, rows_, columns_};
      int64_t weight[] = {outputs_, 1, geometry_.down.kernel, geometry_.across.kernel}, bias[] = {outputs_};
      int64_t *shapes[] = {x, weight, bias, y};
      // what it reads isn't written
      void *params[] = {const_cast<float *>(inputs[0]), const_cast<float *>(filters_.data()),
                        const_cast<float *>(bias_.data()), output};
      if (run(4, params, nullptr, shapes, nullptr, nullptr, nullptr) != 0) throw std::bad_alloc();
      return;
    }
    ParallelFor(images_ * outputs_, threads, [&](int64_t map) {
      Plain(inputs[0] + map * height_ * width_, map % outputs_, output + map * rows_ * columns_);
    });
  }

 private:
  bool Fuses(Activation activation) const override { return !has_operator_ || activation != Activation::kHSwish; }

  // That which pads as this does at the present size, or null.
  DepthwiseOperator *OperatorOf() const {
    if (!has_operator_) return nullptr;
    const int64_t kernel = geometry_.down.kernel, top = geometry_.down.Before(height_);
    const int64_t left = geometry_.across.Before(width_);
    const bool relu = activation_ == Activation::kReLU, relu6 = activation_ == Activation::kReLU6;
    if (geometry_.down.stride == 1) {
      if (top != kernel / 2 || left != kernel / 2) return nullptr;
      return relu ? DepthwiseForwardReLU : relu6 ? DepthwiseForwardReLU6 : DepthwiseForward;
    }
    if (top == kernel / 2 && left == kernel / 2) {
      return relu ? DepthwiseStride2ForwardReLU : relu6 ? DepthwiseStride2ForwardReLU6 : DepthwiseStride2Forward;
    }
    const Axis down{kernel, 2, 0, 0, true};
    if (top != down.Before(height_) || left != down.Before(width_)) return nullptr;
    return relu    ? DepthwiseSameStride2ForwardReLU
           : relu6 ? DepthwiseSameStride2ForwardReLU6
                   : DepthwiseSameStride2Forward;
  }

  void Plain(const float *map, int64_t channel, float *to) const {
    const Axis &down = geometry_.down, &across = geometry_.across;
    const float *filter = filters_.data() + channel * down.kernel * across.kernel;
    const int64_t top = down.Before(height_), left = across.Before(width_);
    for (int64_t y = 0; y < rows_; ++y) {
      for (int64_t x = 0; x < columns_; ++x) {
        float sum = bias_[static_cast<size_t>(channel)];
        for (int64_t i = 0; i < down.kernel; ++i) {
          const int64_t row = y * down.stride + i - top;
          for (int64_t j = 0; row >= 0 && row < height_ && j < across.kernel; ++j) {
            const int64_t column = x * across.stride + j - left;
            if (column >= 0 && column < width_) sum += filter[i * across.kernel + j] * map[row * width_ + column];
          }
        }
        to[y * columns_ + x] = rcnn::Activate(activation_, Broadcast(sum))[0];
      }
    }
  }

  const std::vector<float> filters_;
  const bool has_operator_;
};

// Some channels: a convolution of 1x1 whose every filter is a single 1, as grouped convolutions' parts are, or part of
// what a head gives.
class PickLayer : public Layer {
 public:
  PickLayer(int64_t inputs, std::vector<int64_t> channels) : inputs_(inputs), channels_(std::move(channels)) {}

  static std::vector<int64_t> Choice(const std::vector<float> &weight, int64_t outputs, int64_t inputs) {
    std::vector<int64_t> channels;
    for (int64_t o = 0; o < outputs; ++o) {
      const float *row = weight.data() + o * inputs;
      const int64_t one = std::find_if(row, row + inputs, [](float v) { return v != 0.0f; }) - row;
      if (one == inputs || row[one] != 1.0f) return {};
      if (std::any_of(row + one + 1, row + inputs, [](float v) { return v != 0.0f; })) return {};
      channels.push_back(one);
    }
    return channels;
  }

  Shape Resize(const std::vector<Shape> &inputs) override {
    const Shape &x = inputs[0];
    if (x.size() != 4 || x[1] != inputs_)
      throw Unsuitable("Conv2D takes maps of " + std::to_string(inputs_) + " channels");
    images_ = x[0];
    cells_ = x[2] * x[3];
    return {x[0], static_cast<int64_t>(channels_.size()), x[2], x[3]};
  }

  void Run(const std::vector<const float *> &inputs, float *output, int) const override {
    for (int64_t n = 0; n < images_; ++n) {
      for (const int64_t channel : channels_) {
        std::copy_n(inputs[0] + (n * inputs_ + channel) * cells_, cells_, output);
        output += cells_;
      }
    }
  }

 private:
  const int64_t inputs_;
  const std::vector<int64_t> channels_;
  int64_t images_ = 0, cells_ = 0;
};

// Each cell f x f times.
class RepeatLayer : public Layer {
 public:
  RepeatLayer(int64_t down, int64_t across) : down_(down), across_(across) {}

  Shape Resize(const std::vector<Shape> &inputs) override {
    const Shape &x = inputs[0];
    if (x.size() != 4) throw Unsuitable("Conv2DTranspose takes maps");
    maps_ = x[0] * x[1];
    height_ = x[2];
    width_ = x[3];
    const Shape out = {x[0], x[1], x[2] * down_, x[3] * across_};
    if (inputs.size() > 1 && inputs[1] != out) throw Unsuitable("Conv2DTranspose is added to a map of another size");
    return out;
  }

  bool AddOther() override {
    if (with_other_) return false;
    with_other_ = true;
    return true;
  }
  bool InPlace(size_t input) const override { return input == 1; }
  bool Doubles() const override { return down_ == 2 && across_ == 2 && !with_other_; }

  void Run(const std::vector<const float *> &inputs, float *output, int threads) const override {
    const int64_t wide = width_ * across_;
    ParallelFor(maps_, threads, [&](int64_t map) {
      std::vector<float> line(static_cast<size_t>(wide));
      for (int64_t y = 0; y < height_; ++y) {
        const float *from = inputs[0] + (map * height_ + y) * width_;
        for (int64_t x = 0; x < width_; ++x) std::fill_n(line.data() + x * across_, across_, from[x]);
        for (int64_t i = 0; i < down_; ++i) {
          const int64_t row = ((map * height_ + y) * down_ + i) * wide;
          if (inputs.size() > 1) {
            const float *other = inputs[1] + row;
            for (int64_t x = 0; x < wide; ++x) output[row + x] = other[x] + line[static_cast<size_t>(x)];
          } else {
            std::copy_n(line.data(), wide, output + row);
          }
        }
      }
    });
  }

 private:
  const int64_t down_, across_;
  bool with_other_ = false;
  int64_t maps_ = 0, height_ = 0, width_ = 0;
};

// A transposed convolution: what each cell gives to the cells around it, then the sums of these in a fixed order.
class TransposedLayer : public MapLayer {
 public:
  TransposedLayer(const Operator &op, const Geometry &geometry, const FileTensor &weight)
      : MapLayer(op, geometry, weight.shape[0], weight.shape[1]), filters_(NumbersOf(weight)) {}

  Shape Resize(const std::vector<Shape> &inputs) override {
    const Shape &x = inputs[0];
    const Axis &down = geometry_.down, &across = geometry_.across;
    if (x.size() != 4 || x[1] != inputs_)
      throw Unsuitable(type_ + " takes maps of " + std::to_string(inputs_) + " channels");
    images_ = x[0];
    height_ = x[2];
    width_ = x[3];
    rows_ = (height_ - 1) * down.stride + down.kernel - down.before - down.after;
    columns_ = (width_ - 1) * across.stride + across.kernel - across.before - across.after;
    if (rows_ < 1 || columns_ < 1) throw Unsuitable(type_ + " takes larger maps");
    return {images_, outputs_, rows_, columns_};
  }

  void Run(const std::vector<const float *> &inputs, float *output, int threads) const override {
    const Axis &down = geometry_.down, &across = geometry_.across;
    const bool by_two = down.kernel == 2 && down.stride == 2 && down.before + down.after == 0 && across.kernel == 2 &&
                        across.stride == 2 && across.before + across.after == 0;
    if (by_two && (activation_ == Activation::kNone || activation_ == Activation::kReLU)) {
      const int64_t shape[] = {images_, inputs_, height_, width_};
      TransposedByTwo(inputs[0], shape, filters_.data(), outputs_, bias_.data(), activation_ == Activation::kReLU,
                      output, threads);
      return;
    }
    const int64_t filter = down.kernel * across.kernel, given_rows = outputs_ * filter;
    const int64_t cells = height_ * width_, of_image = given_rows * cells;
    // of some images at a time, so that it doesn't grow with them
    const int64_t most = std::max<int64_t>(1, kGivenFloats / of_image);
    const Memory given = TakeMemory(std::min(most, images_) * of_image);
    for (int64_t first = 0; first < images_; first += most) {
      const int64_t count = std::min(most, images_ - first);
      const Patches pixels(SeenMaps{inputs[0] + first * inputs_ * cells, inputs_, height_, width_});
      MultiplyMatrices(Left{filters_.data(), 1, given_rows}, pixels, {count, given_rows, cells, inputs_}, Finish(),
                       given.get(), threads);
      ParallelFor(count * outputs_, threads, [&](int64_t map) {
        Gather(given.get() + map * filter * cells, bias_[static_cast<size_t>(map % outputs_)],
               output + (first * outputs_ + map) * rows_ * columns_);
      });
    }
  }

 private:
  static constexpr int64_t kGivenFloats = 1 << 22;

  bool Fuses(Activation) const override { return true; }

  // given: [row of the filter][column][cell] of one map.
  void Gather(const float *given, float bias, float *to) const {
    const Axis &down = geometry_.down, &across = geometry_.across;
    std::fill_n(to, rows_ * columns_, bias);
    for (int64_t i = 0; i < down.kernel; ++i) {
      for (int64_t j = 0; j < across.kernel; ++j, given += height_ * width_) {
        for (int64_t y = 0; y < height_; ++y) {
          const int64_t row = y * down.stride + i - down.before;
          if (row < 0 || row >= rows_) continue;
          for (int64_t x = 0; x < width_; ++x) {
            const int64_t column = x * across.stride + j - across.before;
            if (column >= 0 && column < columns_) to[row * columns_ + column] += given[y * width_ + x];
          }
        }
      }
    }
    if (activation_ == Activation::kNone) return;
    for (int64_t i = 0; i < rows_ * columns_; i += kLanes) {
      StoreFirst(to + i, rcnn::Activate(activation_, LoadWithin(to, i, rows_ * columns_)), rows_ * columns_ - i);
    }
  }

  const std::vector<float> filters_;  // (inputs, outputs, k, k)
};

class DenseLayer : public Layer {
 public:
  // weight: (outputs, inputs).
  DenseLayer(std::vector<float> weight, int64_t outputs, int64_t inputs)
      : weight_(std::move(weight)), outputs_(outputs), inputs_(inputs), bias_(static_cast<size_t>(outputs)) {}

  Shape Resize(const std::vector<Shape> &inputs) override {
    if (inputs[0].size() != 2 || inputs[0][1] != inputs_) {
      throw Unsuitable("MatMul takes rows of " + std::to_string(inputs_) + " numbers");
    }
    rows_ = inputs[0][0];
    return {rows_, outputs_};
  }

  void Run(const std::vector<const float *> &inputs, float *output, int threads) const override {
    Finish finish;
    finish.column_bias = bias_.data();
    finish.activation = activation_;
    const TurnedPatches weight(SeenMaps{weight_.data(), outputs_, 1, inputs_});
    MultiplyMatrices(Left{inputs[0], inputs_, 1}, weight, {1, rows_, outputs_, inputs_, 1, true}, finish, output,
                     threads);
  }

  bool AddBias(const FileTensor &bias) override {
    if (has_bias_ || activation_ != Activation::kNone || bias.count != bias_.size()) return false;
    bias_ = NumbersOf(bias);
    has_bias_ = true;
    return true;
  }

  bool Activate(Activation activation) override {
    if (activation_ != Activation::kNone) return false;
    activation_ = activation;
    return true;
  }

 private:
  const std::vector<float> weight_;
  const int64_t outputs_, inputs_;
  std::vector<float> bias_;
  bool has_bias_ = false;
  Activation activation_ = Activation::kNone;
  int64_t rows_ = 0;
};

}  // namespace

int64_t CountOf(const Shape &shape) {
  constexpr int64_t kMost = int64_t{1} << 40;
  int64_t count = 1;
  for (const int64_t side : shape) {
    if (side < 0 || (side > 0 && count > kMost / side)) throw Unsuitable("an array is larger than any memory");
    count *= side;
  }
  return count;
}

std::vector<float> NumbersOf(const FileTensor &tensor) {
  std::vector<float> out(tensor.count);
  if (tensor.count != 0) std::memcpy(out.data(), tensor.data, tensor.count * sizeof(float));
  return out;
}

std::unique_ptr<Layer> MakeConvolution(const Operator &op, const FileTensor &weight, SharedFilters *shared) {
  const Geometry geometry = GeometryOf(op, weight);
  const int64_t outputs = weight.shape[0], groups = geometry.groups;
  if (outputs % groups != 0) throw Unsuitable(op.type + " has groups that its filters don't fit");
  const Axis &down = geometry.down, &across = geometry.across;
  if (groups > 1 && groups == outputs && weight.shape[1] == 1) {
    return std::make_unique<DepthwiseLayer>(op, geometry, weight);
  }
  const bool plain = groups == 1 && down.stride == 1 && across.stride == 1;
  const auto pads = [](const Axis &axis, int64_t by) { return axis.same || (axis.before == by && axis.after == by); };
  if (plain && down.kernel == 3 && across.kernel == 3 && pads(down, 1) && pads(across, 1)) {
    return std::make_unique<WinogradLayer>(op, geometry, weight, shared);
  }
  if (plain && down.kernel == 1 && across.kernel == 1 && pads(down, 0) && pads(across, 0)) {
    std::vector<int64_t> channels = PickLayer::Choice(NumbersOf(weight), outputs, weight.shape[1]);
    if (!channels.empty()) return std::make_unique<PickLayer>(weight.shape[1], std::move(channels));
  }
  return std::make_unique<ProductLayer>(op, geometry, weight);
}

std::vector<std::unique_ptr<Layer>> FuseHead(Layer *hidden, const std::vector<Layer *> &readers) {
  auto *winograd = dynamic_cast<WinogradLayer *>(hidden);
  std::vector<const ProductLayer *> convolutions;
  int64_t outputs = 0;
  for (const Layer *reader : readers) {
    convolutions.push_back(dynamic_cast<const ProductLayer *>(reader));
    if (convolutions.back() == nullptr) return {};
    outputs += convolutions.back()->Outputs();
  }
  if (winograd == nullptr || !winograd->AddHead(convolutions)) return {};
  std::vector<std::unique_ptr<Layer>> parts;
  int64_t first = 0;
  for (const ProductLayer *convolution : convolutions) {
    std::vector<int64_t> channels(static_cast<size_t>(convolution->Outputs()));
    std::iota(channels.begin(), channels.end(), first);
    first += convolution->Outputs();
    parts.push_back(std::make_unique<PickLayer>(outputs, std::move(channels)));
  }
  return parts;
}

std::unique_ptr<Layer> MakeTransposedConvolution(const Operator &op, const FileTensor &weight) {
  const Geometry geometry = GeometryOf(op, weight);
  const Axis &down = geometry.down, &across = geometry.across;
  const bool apart = down.kernel == down.stride && across.kernel == across.stride && down.before + down.after == 0 &&
                     across.before + across.after == 0;
  const std::vector<float> numbers = NumbersOf(weight);
  const bool ones = std::all_of(numbers.begin(), numbers.end(), [](float v) { return v == 1.0f; });
  // of ones, each channel by itself: the cells are copied
  if (apart && ones && weight.shape[1] == 1 && geometry.groups == weight.shape[0]) {
    return std::make_unique<RepeatLayer>(down.kernel, across.kernel);
  }
  if (geometry.groups != 1) throw Unsuitable(op.type + " has groups");
  if (down.same || across.same) throw Unsuitable(op.type + " has the padding same");
  return std::make_unique<TransposedLayer>(op, geometry, weight);
}

std::unique_ptr<Layer> MakeDense(const Operator &op, const FileTensor &weight) {
  if (weight.shape.size() != 2 || op.Integer("transpose_a", 0) != 0) throw Unsuitable(op.type + " isn't a dense layer");
  std::vector<float> numbers = NumbersOf(weight);
  if (op.Integer("transpose_b", 0) != 0) {
    return std::make_unique<DenseLayer>(std::move(numbers), weight.shape[0], weight.shape[1]);
  }
  const int64_t inputs = weight.shape[0], outputs = weight.shape[1];
  std::vector<float> turned(numbers.size());
  for (int64_t i = 0; i < inputs; ++i) {
    for (int64_t o = 0; o < outputs; ++o)
      turned[static_cast<size_t>(o * inputs + i)] = numbers[static_cast<size_t>(i * outputs + o)];
  }
  return std::make_unique<DenseLayer>(std::move(turned), outputs, inputs);
}

}  // namespace rcnn
