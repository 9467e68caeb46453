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

// Output gradient at `output`; rois, levels and config from `rois` on; the feature gradients from `results` on.
static int Backward(int output, int rois, int results, void **params, int64_t **shapes, bool adds) {
  Problem problem;
  if (!Read(results, rois, params, shapes, &problem)) return Report("bad parameters");
  std::vector<float *> gradients;
  for (int level = 0; level < kMaxLevels; ++level) {
    float *gradient = static_cast<float *>(params[results + level]);
    if (level < static_cast<int>(problem.levels.size())) {
      gradients.push_back(gradient);
    } else if (!adds) {
      const int64_t *shape = shapes[results + level];
      std::fill_n(gradient, shape[0] * shape[1] * shape[2] * shape[3], 0.0f);
    }
  }
  return Report(rcnn::RoIAlignBackward(problem.options, problem.levels, gradients, problem.batch, problem.channels,
                                       problem.rois, problem.roi_levels, problem.count,
                                       static_cast<const float *>(params[output]), adds));
}

// output gradient, 5 arrays of the features' sides, rois, levels, config -> 5 feature gradients
extern "C" int RoIAlignBackward(int nparam, void **params, int *, int64_t **shapes, const char **, void *, void *) try {
  if (nparam != 2 * kMaxLevels + 4) return Report("bad parameters");
  return Backward(0, 1 + kMaxLevels, 4 + kMaxLevels, params, shapes, false);
} catch (const std::exception &error) {
  return Report(error.what());
}

// 5 other feature gradients, which are increased where they lie, rois, levels, config, output gradient -> 1 number, 0
extern "C" int RoIAlignBackwardAdd(int nparam, void **params, int *, int64_t **shapes, const char **, void *,
                                   void *) try {
  if (nparam != kMaxLevels + 5) return Report("bad parameters");
  *static_cast<float *>(params[nparam - 1]) = 0.0f;
  return Backward(kMaxLevels + 3, kMaxLevels, 0, params, shapes, true);
} catch (const std::exception &error) {
  return Report(error.what());
}
