// Says how large pictures are shown: for the tests, which compare it with training's reader.
//
// usage: sizes_main SIDECAR: reads height and width of pictures (2 x int64 each) from standard input, and writes height
// and width of the canvas, then of the picture on it (4 x int64) to standard output.
#include <cstdio>

#include "../../ascend310_infer/src/files.h"
#include "../../ascend310_infer/src/image.h"
#include "../../ascend310_infer/src/sidecar.h"

int main(int argc, char **argv) {
  if (argc != 2) return 2;
  try {
    const rcnn::Sidecar sidecar = rcnn::ReadSidecar(argv[1]);
    int64_t picture[2];
    while (std::fread(picture, sizeof(picture), 1, stdin) == 1) {
      const rcnn::Canvas canvas = sidecar.CanvasOf(picture[0], picture[1]);
      const auto size =
          rcnn::FitSize(picture[0], picture[1], canvas.height, canvas.width, sidecar.keep_ratio, sidecar.resize);
      const int64_t out[] = {canvas.height, canvas.width, size[0], size[1]};
      std::fwrite(out, sizeof(out), 1, stdout);
    }
  } catch (const rcnn::UserError &e) {
    std::fprintf(stderr, "error: %s\n", e.what());
    return 2;
  }
  return 0;
}
