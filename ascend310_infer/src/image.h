// Images as training reads them (src/data/transforms.py): decoded, resized as 8-bit pixels, normalised.
#ifndef RCNN_INFER_IMAGE_H_
#define RCNN_INFER_IMAGE_H_

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace rcnn {

struct Canvas {
  int64_t height = 0, width = 0;
  bool IsUpright() const { return height > width; }
};

enum class Rounding { kNearest, kFloor, kShortFirst };

enum class Filter { kBilinear, kUnrounded, kAntialias };

// How large pictures are shown, and by which filter (src/data/transforms.py).
struct ResizeRule {
  int64_t short_side = 0, long_side = 0;  // pixels that a picture's sides are to have; 0: as many as fit the canvas
  Rounding rounding = Rounding::kNearest;
  Filter filter = Filter::kBilinear;
};

struct Picture {
  int64_t height = 0, width = 0;
  std::vector<uint8_t> pixels;        // height x width x 3
  std::vector<float> unrounded = {};  // in place of `pixels`, of a picture resized with Filter::kUnrounded
};

// An image of a batch, resized.
struct Prepared {
  std::string name;
  int64_t height = 0, width = 0;  // of the file, turned as asked for
  Picture picture;                // top left on the canvas; channels as the network wants them
  Canvas canvas;
  double decode_ms = 0;
};

// EXIF's orientation of a JPEG or PNG, 1 to 8; 1 where it says none. Never fails, whatever the bytes are.
int ExifOrientation(const std::vector<uint8_t> &bytes);

// The picture as an orientation wants it shown.
Picture Turn(Picture picture, int orientation);

// The orientation to apply, as src/data/images.py has it. policy: stored, upright or auto; stored_size, annotated:
// height and width, annotated {0, 0} where unknown.
int OrientationFor(const std::string &policy, const std::array<int64_t, 2> &stored_size, int orientation,
                   const std::array<int64_t, 2> &annotated);

// JPEG or PNG to RGB. EXIF rotation is not applied; grey images get three equal channels, alpha is dropped, 16-bit
// images keep their upper 8 bits. Throws UserError, whose text is the reason alone.
Picture DecodeImage(const std::vector<uint8_t> &bytes);

// The size, height and width, that a height x width image takes of the canvas.
std::array<int64_t, 2> FitSize(int64_t height, int64_t width, int64_t canvas_height, int64_t canvas_width,
                               bool keep_ratio, const ResizeRule &rule = {});

// kBilinear, in fixed-point arithmetic: bit for bit OpenCV's resize of 8-bit images with INTER_LINEAR; kUnrounded: bit
// for bit src/data/transforms.py's; kAntialias: over all pixels that a smaller one covers, bit for bit Pillow's with
// BILINEAR (its src/libImaging/Resample.c).
Picture Resize(const Picture &from, int64_t height, int64_t width, Filter filter = Filter::kBilinear);

void SwapRedAndBlue(Picture *picture);

// (value - mean) / std into `canvas` (3, canvas_height, canvas_width), zero beside the picture.
void Normalise(const Picture &picture, const std::array<double, 3> &mean, const std::array<double, 3> &std,
               int64_t canvas_height, int64_t canvas_width, float *canvas);

}  // namespace rcnn

#endif  // RCNN_INFER_IMAGE_H_
