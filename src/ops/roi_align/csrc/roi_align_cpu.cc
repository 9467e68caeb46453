// MindSpore's face of the CPU RoIAlign: two ahead-of-time custom operators (ops.Custom, func_type='aot').
//
// Both have kMaxLevels feature maps (levels that a model lacks are tiny placeholders), rois (K, 5), levels (K,) and
// a float32 config (output size, 3 + kMaxLevels) of equal rows: sampling ratio, aligned, number of levels, strides.
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "roi_align.h"

namespace {

constexpr int kMaxLevels = 5;

struct Problem {
  rcnn::RoIAlignOptions options;
  std::vector<rcnn::RoIAlignLevel> levels;
  int64_t batch = 0, channels = 0, count = 0;
  const float *rois = nullptr;
  const int32_t *roi_levels = nullptr;
};

// `first`: position of the first feature map, or its gradient, among the parameters; `rois`: that of rois.
bool Read(int first, int rois, void **params, int64_t **shapes, Problem *problem) {
  const float *config = static_cast<const float *>(params[rois + 2]);
  problem->options.output_size = static_cast<int>(shapes[rois + 2][0]);
  if (problem->options.output_size < 1 || shapes[rois + 2][1] != 3 + kMaxLevels) return false;
  problem->options.sampling_ratio = static_cast<int>(config[0]);
  problem->options.aligned = config[1] != 0.0f;
  const int levels = static_cast<int>(config[2]);
  if (levels < 1 || levels > kMaxLevels) return false;
  problem->batch = shapes[first][0];
  problem->channels = shapes[first][1];
  for (int level = 0; level < levels; ++level) {
    const int64_t *shape = shapes[first + level];
    if (shape[0] != problem->batch || shape[1] != problem->channels) return false;
    problem->levels.push_back(rcnn::RoIAlignLevel{shape[2], shape[3], config[3 + level]});
  }
  problem->rois = static_cast<const float *>(params[rois]);
  problem->roi_levels = static_cast<const int32_t *>(params[rois + 1]);
  problem->count = shapes[rois][0];
  return true;
}

int Report(const std::string &problem) {
  if (problem.empty()) return 0;
  std::fprintf(stderr, "RoIAlign: %s\n", problem.c_str());
  return 1;
}

}  // namespace

// 5 features, rois, levels, config -> output
extern "C" int RoIAlignForward(int nparam, void **params, int *, int64_t **shapes, const char **, void *, void *) try {
  Problem problem;
  if (nparam != kMaxLevels + 4 || !Read(0, kMaxLevels, params, shapes, &problem)) return Report("bad parameters");
  std::vector<const float *> features;
  for (size_t level = 0; level < problem.levels.size(); ++level) {
    features.push_back(static_cast<const float *>(params[level]));
  }
  return Report(rcnn::RoIAlignForward(problem.options, problem.levels, features, problem.batch, problem.channels,
                                      problem.rois, problem.roi_levels, problem.count,
                                      static_cast<float *>(params[nparam - 1])));
} catch (const std::exception &error) {
  return Report(error.what());
}

// Output gradient at `output`, 5 arrays at `arrays`, then rois, levels, config; last 5 feature gradients. With `sum`
// the arrays are the features' other gradients, which are added, else read for nothing.
static int Backward(int output, int arrays, int nparam, void **params, int64_t **shapes, bool sum) {
  const int rois = arrays + kMaxLevels, results = kMaxLevels + 4;
  Problem problem;
  if (nparam != results + kMaxLevels || !Read(results, rois, params, shapes, &problem)) {
    return Report("bad parameters");
  }
  std::vector<float *> gradients;
  std::vector<const float *> others;
  for (int level = 0; level < kMaxLevels; ++level) {
    float *gradient = static_cast<float *>(params[results + level]);
    if (level < static_cast<int>(problem.levels.size())) {
      gradients.push_back(gradient);
      if (sum) others.push_back(static_cast<const float *>(params[arrays + level]));
    } else {
      const int64_t *shape = shapes[results + level];
      std::fill_n(gradient, shape[0] * shape[1] * shape[2] * shape[3], 0.0f);
    }
  }
  return Report(rcnn::RoIAlignBackward(problem.options, problem.levels, gradients, problem.batch, problem.channels,
                                       problem.rois, problem.roi_levels, problem.count,
                                       static_cast<const float *>(params[output]), others));
}

// output gradient, 5 arrays of the features' sides, rois, levels, config -> 5 feature gradients
extern "C" int RoIAlignBackward(int nparam, void **params, int *, int64_t **shapes, const char **, void *, void *) try {
  return Backward(0, 1, nparam, params, shapes, false);
} catch (const std::exception &error) {
  return Report(error.what());
}

// 5 other gradients, rois, levels, config, output gradient -> 5 sums of gradients
extern "C" int RoIAlignBackwardSum(int nparam, void **params, int *, int64_t **shapes, const char **, void *,
                                   void *) try {
  return Backward(kMaxLevels + 3, 0, nparam, params, shapes, true);
} catch (const std::exception &error) {
  return Report(error.what());
}
