// Runs the C++ operators over edge cases, on several threads, for the sanitizers. test_sanitizers.py compiles it with
// the operators' sources. It checks little itself: an error ends it, or makes a sanitizer end it.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

extern "C" {
int RoIAlignForward(int, void **, int *, int64_t **, const char **, void *, void *);
int RoIAlignBackward(int, void **, int *, int64_t **, const char **, void *, void *);
int RoIAlignBackwardAdd(int, void **, int *, int64_t **, const char **, void *, void *);
int BatchedNMS(int, void **, int *, int64_t **, const char **, void *, void *);
int MaxIoUMatch(int, void **, int *, int64_t **, const char **, void *, void *);
#define DECLARE(name) int name(int, void **, int *, int64_t **, const char **, void *, void *);
#define DECLARE_CONVOLUTION(kind)  \
  DECLARE(kind##Forward)           \
  DECLARE(kind##ForwardReLU)       \
  DECLARE(kind##InputGradient)     \
  DECLARE(kind##InputGradientReLU) \
  DECLARE(kind##WeightGradient)    \
  DECLARE(kind##WeightGradientReLU)
DECLARE_CONVOLUTION(Conv3x3)
DECLARE_CONVOLUTION(ConvStride2)
DECLARE_CONVOLUTION(Pointwise)
DECLARE_CONVOLUTION(PointwiseStride2)
DECLARE_CONVOLUTION(Dense)
DECLARE_CONVOLUTION(TransposedByTwo)
DECLARE(PointwiseForwardSumReLU)
DECLARE(PointwiseForwardEnlarged)
DECLARE(SumOfFour)
DECLARE(PointwiseInputGradientPassedReLU)
DECLARE(RPNHead)
DECLARE(MaxPool3x3)
DECLARE(MaxPool3x3Gradient)
DECLARE(MaxPool3x3Same)
DECLARE(MaxPool3x3SameGradient)
#define DECLARE_DEPTHWISE(kind) \
  DECLARE(kind##Forward)        \
  DECLARE(kind##ForwardReLU6)   \
  DECLARE(kind##Gradients)      \
  DECLARE(kind##GradientsReLU6)
DECLARE_DEPTHWISE(Depthwise)
DECLARE_DEPTHWISE(DepthwiseStride2)
DECLARE_DEPTHWISE(DepthwiseSameStride2)
}

namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Tensors of exactly the stated size, so that a step beyond one is seen.
class Arguments {
 public:
  template <typename T>
  T *Add(const std::vector<int64_t> &shape, const std::vector<T> &values) {
    int64_t size = 1;
    for (const int64_t d : shape) size *= d;
    if (!values.empty() && static_cast<int64_t>(values.size()) != size) Fail("a test tensor of the wrong size");
    std::unique_ptr<char[]> data(new char[static_cast<size_t>(size) * sizeof(T)]);
    if (!values.empty()) std::memcpy(data.get(), values.data(), values.size() * sizeof(T));
    T *pointer = reinterpret_cast<T *>(data.get());
    buffers_.push_back(std::move(data));
    shapes_.push_back(shape);
    return pointer;
  }

  int Call(int (*function)(int, void **, int *, int64_t **, const char **, void *, void *)) {
    std::vector<void *> params;
    std::vector<int> dimensions;
    std::vector<int64_t *> shapes;
    std::vector<const char *> dtypes(buffers_.size(), "");
    for (size_t i = 0; i < buffers_.size(); ++i) {
      params.push_back(buffers_[i].get());
      dimensions.push_back(static_cast<int>(shapes_[i].size()));
      shapes.push_back(shapes_[i].data());
    }
    return function(static_cast<int>(params.size()), params.data(), dimensions.data(), shapes.data(), dtypes.data(),
                    nullptr, nullptr);
  }

  [[noreturn]] static void Fail(const std::string &reason) {
    std::fprintf(stderr, "sanitize_main: %s\n", reason.c_str());
    std::exit(1);
  }

 private:
  std::vector<std::unique_ptr<char[]>> buffers_;
  std::vector<std::vector<int64_t>> shapes_;
};

thread_local std::mt19937 generator(0);

std::vector<float> Random(int64_t count, float low, float high) {
  std::uniform_real_distribution<float> uniform(low, high);
  std::vector<float> values(static_cast<size_t>(count));
  for (float &value : values) value = uniform(generator);
  return values;
}

std::vector<float> Boxes(int64_t count, float extent) {
  std::vector<float> boxes = Random(count * 4, -10.0f, extent);
  for (size_t i = 0; i + 4 <= boxes.size(); i += 4) {
    if (i % 5 != 0) {
      boxes[i + 2] = boxes[i] + std::fabs(boxes[i + 2]);
      boxes[i + 3] = boxes[i + 1] + std::fabs(boxes[i + 3]);
    }
  }
  return boxes;
}

void TestRoIAlign(int64_t batch, int64_t channels, int64_t height, int64_t width, int levels, int64_t output_size,
                  int sampling_ratio, bool aligned, int64_t count, int expected = 0, float bad_image = -1.0f) {
  constexpr int kMaxLevels = 5;
  std::vector<float> rois(static_cast<size_t>(count * 5));
  std::vector<int32_t> roi_levels(static_cast<size_t>(count));
  const std::vector<float> boxes = Boxes(count, static_cast<float>(width) * 4.0f);
  for (size_t k = 0; k < static_cast<size_t>(count); ++k) {
    rois[k * 5] = static_cast<float>(static_cast<int64_t>(k) % batch);
    for (size_t i = 0; i < 4; ++i) rois[k * 5 + 1 + i] = boxes[k * 4 + i];
    roi_levels[k] = static_cast<int32_t>(k % static_cast<size_t>(levels + 1)) - 1;
  }
  const float special[][4] = {{0, 0, 0, 0},         {-1e9f, -1e9f, 1e9f, 1e9f},     {kNaN, 0, 1, 1},
                              {0, 0, kInfinity, 1}, {-kInfinity, 0, 5, 5},          {1e30f, 1e30f, 2e30f, 2e30f},
                              {5, 5, 1, 1},         {-1e38f, -1e38f, 3e38f, 3e38f}, {0, 0, 1e6f, 3}};
  for (size_t k = 0; k < std::min<size_t>(static_cast<size_t>(count), 9); ++k) {
    for (size_t i = 0; i < 4; ++i) rois[k * 5 + 1 + i] = special[k][i];
    roi_levels[k] = 0;
  }
  if (bad_image >= 0.0f) rois[0] = bad_image;
  std::vector<float> config;
  for (int64_t row = 0; row < output_size; ++row) {
    for (const float value : {static_cast<float>(sampling_ratio), aligned ? 1.0f : 0.0f, static_cast<float>(levels),
                              4.0f, 8.0f, 16.0f, 32.0f, 64.0f}) {
      config.push_back(value);
    }
  }
  for (const char *pass : {"forward", "backward", "add"}) {
    const bool backward = pass == std::string("backward"), add = pass == std::string("add");
    Arguments arguments;
    const std::vector<int64_t> output_shape = {count, channels, output_size, output_size};
    const int64_t output_count = count * channels * output_size * output_size;
    if (backward) arguments.Add<float>(output_shape, Random(output_count, -1, 1));
    std::vector<std::vector<int64_t>> shapes;
    for (int level = 0; level < kMaxLevels; ++level) {
      std::vector<int64_t> shape = {1, 1, 1, 1};
      if (level < levels)
        shape = {batch, channels, std::max<int64_t>(1, height >> level), std::max<int64_t>(1, width >> level)};
      shapes.push_back(shape);
      arguments.Add<float>(shape, Random(shape[0] * shape[1] * shape[2] * shape[3], -1, 1));
    }
    arguments.Add<float>({count, 5}, rois);
    arguments.Add<int32_t>({count}, roi_levels);
    arguments.Add<float>({output_size, 3 + kMaxLevels}, config);
    if (backward) {
      for (const auto &shape : shapes) arguments.Add<float>(shape, {});
      if (arguments.Call(RoIAlignBackward) != expected) Arguments::Fail("RoIAlignBackward's status");
    } else if (add) {
      arguments.Add<float>(output_shape, Random(output_count, -1, 1));
      arguments.Add<float>({1}, {});
      if (arguments.Call(RoIAlignBackwardAdd) != expected) Arguments::Fail("RoIAlignBackwardAdd's status");
    } else {
      const float *output = arguments.Add<float>(output_shape, {});
      if (arguments.Call(RoIAlignForward) != expected) Arguments::Fail("RoIAlignForward's status");
      for (int64_t i = 0; expected == 0 && i < output_count; ++i) {
        if (!std::isfinite(output[i])) Arguments::Fail("an output that is not finite");
      }
    }
  }
}

void TestNMS(int64_t batch, int64_t count, int64_t most, int groups, bool bad) {
  Arguments arguments;
  std::vector<float> boxes = Boxes(batch * count, 100), scores = Random(batch * count, 0, 1);
  std::vector<int32_t> group(static_cast<size_t>(batch * count));
  std::vector<uint8_t> valid(static_cast<size_t>(batch * count));
  for (size_t i = 0; i < group.size(); ++i) {
    group[i] = static_cast<int32_t>(i % static_cast<size_t>(groups)) - 1;
    valid[i] = i % 7 != 0;
    if (bad && i % 3 == 0) scores[i] = kNaN;
    if (bad && i % 4 == 0) boxes[i * 4] = i % 8 == 0 ? kNaN : -kInfinity;
  }
  arguments.Add<float>({batch, count, 4}, boxes);
  arguments.Add<float>({batch, count}, scores);
  arguments.Add<int32_t>({batch, count}, group);
  arguments.Add<uint8_t>({batch, count}, valid);
  arguments.Add<float>({most}, std::vector<float>(static_cast<size_t>(most), 0.5f));
  arguments.Add<int32_t>({batch, most}, {});
  arguments.Add<uint8_t>({batch, most}, {});
  if (arguments.Call(BatchedNMS) != 0) Arguments::Fail("BatchedNMS's status");
}

void TestMatch(int64_t batch, int64_t count, int64_t gts, int64_t ignored, bool shared, bool bad) {
  Arguments arguments;
  std::vector<float> boxes = Boxes(shared ? count : batch * count, 300), gt_boxes = Boxes(batch * gts, 300);
  std::vector<uint8_t> box_valid(static_cast<size_t>(batch * count)), gt_valid(static_cast<size_t>(batch * gts));
  for (size_t i = 0; i < box_valid.size(); ++i) box_valid[i] = i % 5 != 0;
  for (size_t i = 0; i < gt_valid.size(); ++i) gt_valid[i] = i % 3 != 0;
  for (size_t i = 0; bad && i < boxes.size(); i += 6) boxes[i] = i % 12 == 0 ? kNaN : kInfinity;
  if (bad && !gt_boxes.empty()) gt_boxes[0] = kNaN;
  arguments.Add<float>(shared ? std::vector<int64_t>{count, 4} : std::vector<int64_t>{batch, count, 4}, boxes);
  arguments.Add<uint8_t>({batch, count}, box_valid);
  arguments.Add<float>({batch, gts, 4}, gt_boxes);
  arguments.Add<uint8_t>({batch, gts}, gt_valid);
  arguments.Add<float>({batch, ignored, 4}, Boxes(batch * ignored, 300));
  arguments.Add<float>({1}, {bad ? 0.3f : 0.0f});
  arguments.Add<float>({batch, count}, {});
  arguments.Add<int32_t>({batch, count}, {});
  arguments.Add<int32_t>({batch, count}, {});
  arguments.Add<float>({batch, count}, {});
  if (arguments.Call(MaxIoUMatch) != 0) Arguments::Fail("MaxIoUMatch's status");
}

struct Passes {
  int64_t kernel, stride;
  decltype(&Conv3x3Forward) forward, input_gradient, weight_gradient;
};

// x, weight and what the layer makes of it have these shapes.
void TestLayer(const Passes &passes, const std::vector<int64_t> &in, const std::vector<int64_t> &filters,
               const std::vector<int64_t> &out) {
  const auto size = [](const std::vector<int64_t> &shape) {
    int64_t count = 1;
    for (const int64_t d : shape) count *= d;
    return count;
  };
  const std::vector<float> y = Random(size(out), -1, 1), weight = Random(size(filters), -1, 1);
  std::vector<float> x = Random(size(in), -1, 1), dy = Random(size(out), -1, 1);
  if (in[0] > 2) {
    // the last image only fills the batch
    const int64_t seen = size(in) / in[0], made = size(out) / in[0];
    std::copy_n(x.end() - 2 * seen, seen, x.end() - seen);
    std::fill_n(dy.end() - made, made, 0.0f);
  }
  const int64_t outputs = out[1];
  Arguments forward, input, filter;
  forward.Add<float>(in, x);
  forward.Add<float>(filters, weight);
  forward.Add<float>({outputs}, Random(outputs, -1, 1));
  forward.Add<float>(out, {});
  if (forward.Call(passes.forward) != 0) Arguments::Fail("a layer's status");
  input.Add<float>(out, dy);
  input.Add<float>(out, y);
  input.Add<float>(filters, weight);
  input.Add<float>(in, x);
  input.Add<float>(in, {});
  if (input.Call(passes.input_gradient) != 0) Arguments::Fail("an input gradient's status");
  filter.Add<float>(out, dy);
  filter.Add<float>(out, y);
  filter.Add<float>(in, x);
  filter.Add<float>(filters, weight);
  filter.Add<float>(filters, {});
  filter.Add<float>({outputs}, {});
  if (filter.Call(passes.weight_gradient) != 0) Arguments::Fail("a weight gradient's status");
}

void TestConvolution(const Passes &passes, int64_t batch, int64_t inputs, int64_t outputs, int64_t height,
                     int64_t width) {
  const int64_t kernel = passes.kernel, stride = passes.stride;
  TestLayer(passes, {batch, inputs, height, width}, {outputs, inputs, kernel, kernel},
            {batch, outputs, (height + stride - 1) / stride, (width + stride - 1) / stride});
}

void TestSum(int64_t batch, int64_t inputs, int64_t outputs, int64_t height, int64_t width) {
  const std::vector<int64_t> out = {batch, outputs, height, width};
  const int64_t cells = batch * height * width;
  Arguments arguments;
  arguments.Add<float>({batch, inputs, height, width}, Random(cells * inputs, -1, 1));
  arguments.Add<float>({outputs, inputs, 1, 1}, Random(outputs * inputs, -1, 1));
  arguments.Add<float>({outputs}, Random(outputs, -1, 1));
  arguments.Add<float>(out, Random(cells * outputs, -1, 1));
  arguments.Add<float>(out, {});
  if (arguments.Call(PointwiseForwardSumReLU) != 0) Arguments::Fail("a sum's status");
}

void TestEnlarged(int64_t batch, int64_t inputs, int64_t outputs, int64_t height, int64_t width) {
  const int64_t cells = batch * height * width;
  const std::vector<int64_t> half = {batch, outputs, height / 2, width / 2}, out = {batch, outputs, height, width};
  Arguments forward, back;
  forward.Add<float>({batch, inputs, height, width}, Random(cells * inputs, -1, 1));
  forward.Add<float>({outputs, inputs, 1, 1}, Random(outputs * inputs, -1, 1));
  forward.Add<float>({outputs}, Random(outputs, -1, 1));
  forward.Add<float>(half, Random(cells / 4 * outputs, -1, 1));
  forward.Add<float>(out, {});
  if (forward.Call(PointwiseForwardEnlarged) != 0) Arguments::Fail("an enlarged sum's status");
  back.Add<float>(out, Random(cells * outputs, -1, 1));
  back.Add<float>(half, {});
  if (back.Call(SumOfFour) != 0) Arguments::Fail("a sum of four's status");
  const std::vector<int64_t> in = {batch, inputs, height, width};
  Arguments passed;
  passed.Add<float>(out, Random(cells * outputs, -1, 1));
  passed.Add<float>(out, Random(cells * outputs, -1, 1));
  passed.Add<float>({outputs, inputs, 1, 1}, Random(outputs * inputs, -1, 1));
  passed.Add<float>(in, Random(cells * inputs, -1, 1));
  passed.Add<float>(in, Random(cells * inputs, -1, 1));
  passed.Add<float>(in, {});
  if (passed.Call(PointwiseInputGradientPassedReLU) != 0) Arguments::Fail("a gradient's sum's status");
}

void TestRPNHead(int64_t batch, int64_t channels, int64_t hidden, int64_t anchors,
                 const std::vector<std::vector<int64_t>> &sizes) {
  Arguments arguments;
  for (const auto &size : sizes) {
    arguments.Add<float>({batch, channels, size[0], size[1]}, Random(batch * channels * size[0] * size[1], -1, 1));
  }
  arguments.Add<float>({hidden, channels, 3, 3}, Random(hidden * channels * 9, -1, 1));
  arguments.Add<float>({hidden}, Random(hidden, -1, 1));
  for (const int64_t outputs : {anchors, 4 * anchors}) {
    arguments.Add<float>({outputs, hidden, 1, 1}, Random(outputs * hidden, -1, 1));
    arguments.Add<float>({outputs}, Random(outputs, -1, 1));
  }
  for (const auto &size : sizes) arguments.Add<float>({batch, size[0] * size[1] * anchors}, {});
  for (const auto &size : sizes) arguments.Add<float>({batch, size[0] * size[1] * anchors, 4}, {});
  if (arguments.Call(RPNHead) != 0) Arguments::Fail("an RPN head's status");
}

void TestMaxPool(decltype(&MaxPool3x3) forward, decltype(&MaxPool3x3) gradient, int64_t batch, int64_t channels,
                 int64_t height, int64_t width) {
  const std::vector<int64_t> in = {batch, channels, height, width}, out = {batch, channels, height / 2, width / 2};
  const std::vector<float> x = Random(batch * channels * height * width, -1, 1);
  Arguments pooled, back;
  pooled.Add<float>(in, x);
  pooled.Add<float>(out, {});
  if (pooled.Call(forward) != 0) Arguments::Fail("a pool's status");
  back.Add<float>(out, Random(batch * channels * (height / 2) * (width / 2), -1, 1));
  back.Add<float>(in, x);
  back.Add<float>(in, {});
  if (back.Call(gradient) != 0) Arguments::Fail("a pool's gradient's status");
}

struct DepthwisePasses {
  int64_t stride;
  decltype(&DepthwiseForward) forward, gradients;
};

void TestDepthwise(const DepthwisePasses &passes, int64_t kernel, int64_t batch, int64_t channels, int64_t height,
                   int64_t width) {
  const int64_t stride = passes.stride;
  const std::vector<int64_t> in = {batch, channels, height, width}, filters = {channels, 1, kernel, kernel};
  const std::vector<int64_t> out = {batch, channels, (height + stride - 1) / stride, (width + stride - 1) / stride};
  const int64_t count = batch * channels * out[2] * out[3];
  const std::vector<float> x = Random(batch * channels * height * width, -1, 1);
  const std::vector<float> weight = Random(channels * kernel * kernel, -1, 1);
  Arguments forward, gradients;
  forward.Add<float>(in, x);
  forward.Add<float>(filters, weight);
  forward.Add<float>({channels}, Random(channels, -1, 1));
  forward.Add<float>(out, {});
  if (forward.Call(passes.forward) != 0) Arguments::Fail("a depthwise convolution's status");
  gradients.Add<float>(out, Random(count, -1, 1));
  gradients.Add<float>(out, Random(count, -1, 1));
  gradients.Add<float>(in, x);
  gradients.Add<float>(filters, weight);
  gradients.Add<float>(in, {});
  gradients.Add<float>(filters, {});
  gradients.Add<float>({channels}, {});
  if (gradients.Call(passes.gradients) != 0) Arguments::Fail("a depthwise convolution's gradients' status");
}

// Operators called by several threads at once, soon after one another and after a rest.
void TestAtOnce() {
  std::vector<std::thread> callers;
  for (int64_t caller = 0; caller < 6; ++caller) {
    callers.emplace_back([caller] {
      for (int i = 0; i < 20; ++i) {
        const Passes passes{3, 1, Conv3x3ForwardReLU, Conv3x3InputGradientReLU, Conv3x3WeightGradientReLU};
        TestConvolution(passes, 1, 3, 20, 9, 9 + caller);
        TestMaxPool(MaxPool3x3, MaxPool3x3Gradient, 1, 5, 8, 6);
        if (i % 5 == caller % 5) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
    });
  }
  for (std::thread &caller : callers) caller.join();
}

}  // namespace

int main() {
  for (const bool aligned : {false, true}) {
    for (const int sampling_ratio : {0, 2}) {
      TestRoIAlign(2, 3, 40, 56, 4, 7, sampling_ratio, aligned, 60);
      TestRoIAlign(1, 33, 64, 80, 1, 14, sampling_ratio, aligned, 20);
      TestRoIAlign(3, 1, 5, 3, 5, 3, sampling_ratio, aligned, 30);
      TestRoIAlign(1, 2, 1, 1, 1, 1, sampling_ratio, aligned, 12);
      TestRoIAlign(12, 1, 28, 28, 1, 28, sampling_ratio, aligned, 12);
      TestRoIAlign(2, 4, 16, 17, 2, 17, sampling_ratio, aligned, 0);
    }
  }
  TestRoIAlign(2, 3, 16, 16, 1, 7, 2, true, 4, 1, 2.0f);
  for (const bool bad : {false, true}) {
    TestNMS(3, 500, 100, 5, bad);
    TestNMS(1, 40, 64, 1, bad);
    TestNMS(2, 0, 3, 1, bad);
    TestMatch(2, 3000, 20, 4, true, bad);
    TestMatch(2, 1030, 1, 1, false, bad);
    TestMatch(1, 5, 0, 0, false, bad);
    TestMatch(2, 0, 3, 2, true, bad);
  }
  for (const Passes &passes : {
           Passes{3, 1, Conv3x3Forward, Conv3x3InputGradient, Conv3x3WeightGradient},
           Passes{3, 1, Conv3x3ForwardReLU, Conv3x3InputGradientReLU, Conv3x3WeightGradientReLU},
           Passes{7, 2, ConvStride2Forward, ConvStride2InputGradient, ConvStride2WeightGradient},
           Passes{3, 2, ConvStride2ForwardReLU, ConvStride2InputGradientReLU, ConvStride2WeightGradientReLU},
           Passes{1, 1, PointwiseForwardReLU, PointwiseInputGradientReLU, PointwiseWeightGradientReLU},
           Passes{1, 2, PointwiseStride2Forward, PointwiseStride2InputGradient, PointwiseStride2WeightGradient},
       }) {
    TestConvolution(passes, 1, 1, 1, 1, 1);
    TestConvolution(passes, 2, 17, 33, 9, 23);
    TestConvolution(passes, 3, 5, 15, 14, 14);
    TestConvolution(passes, 1, 3, 2, 1, 140);
    TestConvolution(passes, 1, 2, 3, 140, 1);
    TestConvolution(passes, 1, 260, 9, 4, 5);
    TestConvolution(passes, 1, 20, 17, 32, 64);
    TestConvolution(passes, 0, 3, 4, 5, 5);
  }
  const Passes dense = {0, 0, DenseForwardReLU, DenseInputGradientReLU, DenseWeightGradientReLU};
  const Passes up = {2, 2, TransposedByTwoForwardReLU, TransposedByTwoInputGradientReLU,
                     TransposedByTwoWeightGradientReLU};
  for (const int64_t rows : {1, 33, 0}) {
    TestLayer(dense, {rows, 300}, {37, 300}, {rows, 37});
    TestLayer(up, {rows, 9, 7, 9}, {9, 33, 2, 2}, {rows, 33, 14, 18});
    TestSum(rows, 40, 17, 5, 7);
  }
  for (const DepthwisePasses &passes : {
           DepthwisePasses{1, DepthwiseForward, DepthwiseGradients},
           DepthwisePasses{1, DepthwiseForwardReLU6, DepthwiseGradientsReLU6},
           DepthwisePasses{2, DepthwiseStride2Forward, DepthwiseStride2Gradients},
           DepthwisePasses{2, DepthwiseSameStride2ForwardReLU6, DepthwiseSameStride2GradientsReLU6},
       }) {
    for (const int64_t kernel : {3, 5}) {
      TestDepthwise(passes, kernel, 1, 1, 1, 1);
      TestDepthwise(passes, kernel, 2, 5, 9, 23);
      TestDepthwise(passes, kernel, 3, 2, 14, 14);
      TestDepthwise(passes, kernel, 1, 3, 1, 140);
      TestDepthwise(passes, kernel, 1, 2, 140, 1);
      TestDepthwise(passes, kernel, 1, 2, 6, 1100);
      TestDepthwise(passes, kernel, 0, 3, 5, 5);
    }
  }
  TestRPNHead(1, 1, 1, 1, {{1, 1}});
  TestRPNHead(2, 5, 7, 3, {{9, 14}, {5, 7}, {3, 4}});
  TestRPNHead(1, 16, 33, 2, {{40, 50}, {1, 3}});
  TestRPNHead(3, 8, 20, 9, {{2, 150}, {150, 1}});
  TestEnlarged(1, 3, 1, 2, 2);
  TestEnlarged(2, 40, 50, 6, 10);
  TestEnlarged(1, 300, 20, 4, 40);
  TestEnlarged(2, 20, 17, 18, 66);
  for (const auto &sides : {std::vector<int64_t>{2, 2}, {6, 140}, {46, 22}, {2, 34}}) {
    TestMaxPool(MaxPool3x3, MaxPool3x3Gradient, 2, 3, sides[0], sides[1]);
    TestMaxPool(MaxPool3x3Same, MaxPool3x3SameGradient, 1, 5, sides[0], sides[1]);
  }
  TestAtOnce();
  std::puts("done");
  return 0;
}
