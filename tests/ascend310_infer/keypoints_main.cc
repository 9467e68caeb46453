// Finds keypoints in heatmaps: for the tests, which find them in Python.
//
// usage: keypoints_main COUNT SIDE SCORE X1 Y1 X2 Y2: maps (COUNT, SIDE, SIDE) float32 from standard input; x, y and
// score (COUNT, 3) float32 to standard output, or why not to standard error. SCORE: logit, or probability.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "../../ascend310_infer/src/files.h"
#include "../../ascend310_infer/src/keypoints.h"

int main(int, char **words) {
  const int64_t count = std::atoll(words[1]), side = std::atoll(words[2]);
  rcnn::Box box{};
  for (size_t i = 0; i < 4; ++i) box[i] = std::strtof(words[4 + i], nullptr);
  std::vector<float> maps(static_cast<size_t>(count * side * side));
  if (std::fread(maps.data(), sizeof(float), maps.size(), stdin) != maps.size()) return 1;
  try {
    for (const auto &[x, y, score] :
         rcnn::FindKeypoints(maps.data(), count, side, box, std::string(words[3]) == "probability")) {
      const float numbers[] = {x, y, score};
      if (std::fwrite(numbers, sizeof(float), 3, stdout) != 3) return 1;
    }
  } catch (const rcnn::UserError &e) {
    std::fputs(e.what(), stderr);
    return 2;
  }
  return 0;
}
