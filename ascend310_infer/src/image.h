// Images as training reads them (src/data/transforms.py): decoded, resized as 8-bit pixels, normalised.
#ifndef RCNN_INFER_IMAGE_H_
#define RCNN_INFER_IMAGE_H_

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace rcnn {

struct Picture {
  int64_t height = 0, width = 0;
  std::vector<uint8_t> pixels;  // height x width x 3
};

// An image of a batch, resized.
struct Prepared {
  std::string name;
  int64_t height = 0, width = 0;  // of the file
  Picture picture;                // top left on the canvas; channels as the network wants them
  double decode_ms = 0;
};

// JPEG or PNG to RGB. EXIF rotation is not applied; grey images get three equal channels, alpha is dropped, 16-bit
// images keep their upper 8 bits. Throws UserError, whose text is the reason alone.
Picture DecodeImage(const std::vector<uint8_t> &bytes);

// The size that a height x width image takes of the canvas.
std::array<int64_t, 2> FitSize(int64_t height, int64_t width, int64_t canvas_height, int64_t canvas_width,
                               bool keep_ratio);

// Bilinear, in fixed-point arithmetic: bit for bit OpenCV's resize of 8-bit images with INTER_LINEAR.
Picture Resize(const Picture &from, int64_t height, int64_t width);

void SwapRedAndBlue(Picture *picture);

// (value - mean) / std into `canvas` (3, canvas_height, canvas_width), zero beside the picture.
void Normalise(const Picture &picture, const std::array<double, 3> &mean, const std::array<double, 3> &std,
               int64_t canvas_height, int64_t canvas_width, float *canvas);

}  // namespace rcnn

#endif  // RCNN_INFER_IMAGE_H_
