// Writes an image as the network is given it: for the tests, which compare it with training's reader.
//
// usage: rcnn_prepare IMAGE CANVAS_HEIGHT CANVAS_WIDTH KEEP_RATIO EXIF FILTER: height and width of the file, of the
// picture on the canvas (4 x int64), then the picture's pixels (RGB), but for
// those of FILTER unrounded, and the normalised canvas of the picture's size (3 planes of float), to standard output.
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "../../ascend310_infer/src/files.h"
#include "../../ascend310_infer/src/image.h"

int main(int argc, char **argv) {
  if (argc != 7) return 2;
  try {
    const auto bytes = rcnn::ReadFile(argv[1], "image");
    rcnn::Picture whole = rcnn::DecodeImage(bytes);
    const int turn = rcnn::OrientationFor(argv[5], {whole.height, whole.width}, rcnn::ExifOrientation(bytes), {0, 0});
    whole = rcnn::Turn(std::move(whole), turn);
    const auto size =
        rcnn::FitSize(whole.height, whole.width, std::atoll(argv[2]), std::atoll(argv[3]), std::string(argv[4]) == "1");
    const std::map<std::string, rcnn::Filter> filters = {{"bilinear", rcnn::Filter::kBilinear},
                                                         {"unrounded", rcnn::Filter::kUnrounded},
                                                         {"antialias", rcnn::Filter::kAntialias}};
    const rcnn::Picture resized = rcnn::Resize(whole, size[0], size[1], filters.at(argv[6]));
    const int64_t sizes[] = {whole.height, whole.width, resized.height, resized.width};
    std::fwrite(sizes, sizeof(sizes), 1, stdout);
    if (!resized.pixels.empty()) std::fwrite(resized.pixels.data(), 1, resized.pixels.size(), stdout);
    std::vector<float> canvas(static_cast<size_t>(3 * size[0] * size[1]));
    rcnn::Normalise(resized, {123.675, 116.28, 103.53}, {58.395, 57.12, 57.375}, size[0], size[1], canvas.data());
    std::fwrite(canvas.data(), sizeof(float), canvas.size(), stdout);
  } catch (const rcnn::UserError &e) {
    std::fprintf(stderr, "error: %s\n", e.what());
    return 2;
  }
  return 0;
}
