#include "image.h"

#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <string>

#include <jpeglib.h>
#include <png.h>

#include "../../src/ops/csrc/parallel.h"
#include "files.h"

namespace rcnn {

namespace {

constexpr int64_t kMostPixels = 100000000;  // MAX_PIXELS of src/data/images.py
// Pixels of all scans of a JPEG: one takes time by its picture's size, and a few bytes. MOST_SCANNED there.
constexpr int64_t kMostScanned = 10000000000;

// Before anything is decoded.
void DemandFew(int64_t height, int64_t width) {
  if (height <= kMostPixels / std::max<int64_t>(width, 1)) return;
  throw UserError(std::to_string(width) + " x " + std::to_string(height) + ", more than " +
                  std::to_string(kMostPixels) + " pixels; make it smaller");
}

bool IsJpeg(const std::vector<uint8_t> &bytes) {
  return bytes.size() >= 3 && bytes[0] == 0xFF && bytes[1] == 0xD8 && bytes[2] == 0xFF;
}

bool IsPng(const std::vector<uint8_t> &bytes) { return bytes.size() >= 8 && png_sig_cmp(bytes.data(), 0, 8) == 0; }

template <typename Value>
void Reserve(int64_t height, int64_t width, int64_t channels, std::vector<Value> *pixels) {
  pixels->resize(static_cast<size_t>(height * width * channels));
}

// ---- JPEG -----------------------------------------------------------------------------------------------

struct JpegState {
  jpeg_decompress_struct reader;
  jpeg_error_mgr errors;
  jpeg_source_mgr source;
  size_t skip = 0;
  std::jmp_buf jump;
  char reason[JMSG_LENGTH_MAX] = "";
};

JpegState *StateOf(j_common_ptr reader) { return static_cast<JpegState *>(reader->client_data); }

void JpegFail(j_common_ptr reader) {
  JpegState *state = StateOf(reader);
  reader->err->format_message(reader, state->reason);
  std::longjmp(state->jump, 1);
}

void JpegQuiet(j_common_ptr, int) {}

void JpegBegin(j_decompress_ptr) {}

// All bytes are there from the start: who wants more has a truncated file.
boolean JpegNoMore(j_decompress_ptr) { return FALSE; }

void JpegSkip(j_decompress_ptr reader, long bytes) {
  jpeg_source_mgr *source = reader->src;
  if (bytes <= 0) return;
  const size_t taken = std::min(static_cast<size_t>(bytes), source->bytes_in_buffer);
  source->next_input_byte += taken;
  source->bytes_in_buffer -= taken;
}

// As often as a JPEG begins a scan; that of another picture in it, too.
int64_t CountScans(const std::vector<uint8_t> &bytes) {
  int64_t count = 0;
  for (size_t i = 1; i < bytes.size(); ++i) count += bytes[i - 1] == 0xFF && bytes[i] == 0xDA;
  return count;
}

// `pixels`: height x width x 3, or x 4 for CMYK. Empty on failure.
bool RunJpeg(const std::vector<uint8_t> &bytes, JpegState *state, Picture *picture, std::vector<uint8_t> *cmyk) {
  if (setjmp(state->jump) != 0) return false;
  jpeg_decompress_struct *reader = &state->reader;
  reader->client_data = state;
  jpeg_create_decompress(reader);
  reader->client_data = state;
  state->source.init_source = JpegBegin;
  state->source.fill_input_buffer = JpegNoMore;
  state->source.skip_input_data = JpegSkip;
  state->source.resync_to_restart = jpeg_resync_to_restart;
  state->source.term_source = JpegBegin;
  state->source.next_input_byte = bytes.data();
  state->source.bytes_in_buffer = bytes.size();
  reader->src = &state->source;
  if (jpeg_read_header(reader, TRUE) != JPEG_HEADER_OK) return false;
  picture->height = reader->image_height;
  picture->width = reader->image_width;
  if (picture->height * picture->width > kMostPixels) return false;
  if (picture->height * picture->width * CountScans(bytes) > kMostScanned) {
    std::snprintf(state->reason, sizeof(state->reason), "too many scans");
    return false;
  }
  const bool is_cmyk = reader->num_components == 4;
  reader->out_color_space = is_cmyk ? JCS_CMYK : JCS_RGB;
  if (!jpeg_start_decompress(reader)) return false;
  const int64_t channels = is_cmyk ? 4 : 3;
  std::vector<uint8_t> *to = is_cmyk ? cmyk : &picture->pixels;
  Reserve(picture->height, picture->width, channels, to);
  while (reader->output_scanline < reader->output_height) {
    JSAMPROW row = to->data() + static_cast<int64_t>(reader->output_scanline) * picture->width * channels;
    if (jpeg_read_scanlines(reader, &row, 1) != 1) return false;
  }
  return true;
}

Picture DecodeJpeg(const std::vector<uint8_t> &bytes) {
  JpegState state{};
  state.reader.err = jpeg_std_error(&state.errors);
  state.errors.error_exit = JpegFail;
  state.errors.emit_message = JpegQuiet;
  Picture picture;
  std::vector<uint8_t> cmyk;
  const bool done = RunJpeg(bytes, &state, &picture, &cmyk);
  jpeg_destroy_decompress(&state.reader);
  DemandFew(picture.height, picture.width);
  if (!done) {
    throw UserError(std::string("damaged or truncated JPEG") + (state.reason[0] != '\0' ? ": " : "") + state.reason);
  }
  if (!cmyk.empty()) {
    // inks come inverted, as Adobe writes them
    Reserve(picture.height, picture.width, 3, &picture.pixels);
    for (size_t i = 0; i < cmyk.size() / 4; ++i) {
      const int black = cmyk[4 * i + 3];
      for (size_t c = 0; c < 3; ++c) {
        picture.pixels[3 * i + c] = static_cast<uint8_t>(black - ((255 - cmyk[4 * i + c]) * black >> 8));
      }
    }
  }
  return picture;
}

// ---- PNG ------------------------------------------------------------------------------------------------

struct PngState {
  png_structp reader = nullptr;
  png_infop info = nullptr;
  const uint8_t *data = nullptr;
  size_t left = 0;
  std::vector<png_bytep> rows;
  char reason[160] = "";
};

void PngFail(png_structp reader, png_const_charp message) {
  auto *state = static_cast<PngState *>(png_get_error_ptr(reader));
  std::snprintf(state->reason, sizeof(state->reason), "%s", message);
  png_longjmp(reader, 1);
}

void PngQuiet(png_structp, png_const_charp) {}

void PngRead(png_structp reader, png_bytep to, size_t bytes) {
  auto *state = static_cast<PngState *>(png_get_io_ptr(reader));
  if (bytes > state->left) png_error(reader, "truncated");
  std::memcpy(to, state->data, bytes);
  state->data += bytes;
  state->left -= bytes;
}

bool RunPng(PngState *state, Picture *picture) {
  if (setjmp(png_jmpbuf(state->reader)) != 0) return false;
  png_structp reader = state->reader;
  png_set_read_fn(reader, state, PngRead);
  png_read_info(reader, state->info);
  picture->height = png_get_image_height(reader, state->info);
  picture->width = png_get_image_width(reader, state->info);
  if (picture->height * picture->width > kMostPixels) return false;
  const int type = png_get_color_type(reader, state->info), depth = png_get_bit_depth(reader, state->info);
  if (depth == 16) png_set_strip_16(reader);
  png_set_strip_alpha(reader);
  if (type == PNG_COLOR_TYPE_PALETTE) png_set_palette_to_rgb(reader);
  if ((type & PNG_COLOR_MASK_COLOR) == 0) {
    if (depth < 8) png_set_expand_gray_1_2_4_to_8(reader);
    png_set_gray_to_rgb(reader);
  }
  png_set_interlace_handling(reader);
  png_read_update_info(reader, state->info);
  if (png_get_rowbytes(reader, state->info) != static_cast<size_t>(picture->width) * 3) return false;
  Reserve(picture->height, picture->width, 3, &picture->pixels);
  state->rows.resize(static_cast<size_t>(picture->height));
  for (size_t y = 0; y < state->rows.size(); ++y) {
    state->rows[y] = picture->pixels.data() + y * static_cast<size_t>(picture->width) * 3;
  }
  png_read_image(reader, state->rows.data());
  png_read_end(reader, nullptr);
  return true;
}

Picture DecodePng(const std::vector<uint8_t> &bytes) {
  PngState state;
  state.data = bytes.data();
  state.left = bytes.size();
  state.reader = png_create_read_struct(PNG_LIBPNG_VER_STRING, &state, PngFail, PngQuiet);
  state.info = state.reader == nullptr ? nullptr : png_create_info_struct(state.reader);
  Picture picture;
  const bool done = state.info != nullptr && RunPng(&state, &picture);
  png_destroy_read_struct(&state.reader, &state.info, nullptr);
  DemandFew(picture.height, picture.width);
  if (!done) {
    throw UserError(std::string("damaged or truncated PNG") + (state.reason[0] != '\0' ? ": " : "") + state.reason);
  }
  return picture;
}

// ---- EXIF -----------------------------------------------------------------------------------------------

// Bytes that are never read past their end.
class Span {
 public:
  Span(const uint8_t *data, size_t size) : data_(data), size_(size) {}

  size_t size() const { return size_; }
  bool Has(size_t at, size_t bytes) const { return at <= size_ && bytes <= size_ - at; }
  bool Is(size_t at, const char *text, size_t bytes) const {
    return Has(at, bytes) && std::memcmp(data_ + at, text, bytes) == 0;
  }
  // From `at` on, at most `bytes`.
  Span Part(size_t at, size_t bytes) const {
    at = std::min(at, size_);
    return {data_ + at, std::min(bytes, size_ - at)};
  }
  // An unsigned number of 1 to 4 bytes; 0 past the end.
  uint32_t Number(size_t at, size_t bytes, bool big_endian) const {
    uint32_t value = 0;
    for (size_t i = 0; Has(at, bytes) && i < bytes; ++i) {
      value = value << 8 | data_[at + (big_endian ? i : bytes - 1 - i)];
    }
    return value;
  }

 private:
  const uint8_t *data_;
  size_t size_;
};

// Of the first directory (TIFF 6.0, Exif 2.32).
int DirectoryOrientation(Span tiff) {
  constexpr uint32_t kOrientation = 0x0112, kShort = 3, kLong = 4;
  while (tiff.Is(0, "Exif\0", 6)) tiff = tiff.Part(6, tiff.size());
  const bool big = tiff.Is(0, "MM", 2);
  if ((!big && !tiff.Is(0, "II", 2)) || tiff.Number(2, 2, big) != 42) return 1;
  const size_t start = tiff.Number(4, 4, big);
  if (!tiff.Has(start, 2)) return 1;
  const uint32_t count = tiff.Number(start, 2, big);
  for (uint32_t i = 0; i < count && tiff.Has(start + 2 + size_t{12} * i, 12); ++i) {
    const size_t entry = start + 2 + size_t{12} * i;
    if (tiff.Number(entry, 2, big) != kOrientation) continue;
    const uint32_t type = tiff.Number(entry + 2, 2, big);
    if (type != kShort && type != kLong) return 1;
    const uint32_t orientation = tiff.Number(entry + 8, type == kShort ? 2 : 4, big);
    return orientation >= 1 && orientation <= 8 ? static_cast<int>(orientation) : 1;
  }
  return 1;
}

int JpegOrientation(const Span &file) {
  size_t at = 2;
  while (file.Has(at, 2)) {
    if (file.Number(at, 1, true) != 0xFF) return 1;
    const uint32_t marker = file.Number(at + 1, 1, true);
    if (marker == 0xFF) {
      ++at;  // padding
      continue;
    }
    at += 2;
    if (marker == 0x01 || (marker >= 0xD0 && marker <= 0xD8)) continue;  // without a length
    if (marker == 0xD9 || marker == 0xDA) return 1;                      // the end, or the pixels
    const size_t length = file.Number(at, 2, true);
    if (length < 2) return 1;
    const Span segment = file.Part(at + 2, length - 2);
    if (marker == 0xE1 && segment.Is(0, "Exif\0", 6)) return DirectoryOrientation(segment);
    at += length;
  }
  return 1;
}

int PngOrientation(const Span &file) {
  constexpr int kMostChunks = 100000;  // as src/data/images.py
  size_t at = 8;
  for (int i = 0; i < kMostChunks && file.Has(at, 8); ++i) {
    const size_t length = file.Number(at, 4, true);
    if (file.Is(at + 4, "IEND", 4)) return 1;
    if (file.Is(at + 4, "eXIf", 4)) return DirectoryOrientation(file.Part(at + 8, length));
    at += 12 + length;
  }
  return 1;
}

bool IsSwapped(int orientation) { return orientation >= 5; }

// ---- resize ---------------------------------------------------------------------------------------------

constexpr int kOne = 2048;  // fixed-point one of the weights

// Between which source cells each target cell lies, and their weights.
struct Taps {
  std::vector<int32_t> low, high, weight_low, weight_high;
};

Taps MakeTaps(int64_t from, int64_t to, bool clamp_weights) {
  // OpenCV inverts the inverse: the two divisions round differently from one
  const double scale = 1.0 / (static_cast<double>(to) / static_cast<double>(from));
  Taps taps;
  for (int64_t i = 0; i < to; ++i) {
    auto position = static_cast<float>((static_cast<double>(i) + 0.5) * scale - 0.5);
    auto cell = static_cast<int64_t>(std::floor(position));
    position -= static_cast<float>(cell);
    if (clamp_weights && cell < 0) position = 0.0f, cell = 0;
    if (clamp_weights && cell >= from - 1) position = 0.0f, cell = from - 1;
    taps.low.push_back(static_cast<int32_t>(std::clamp<int64_t>(cell, 0, from - 1)));
    taps.high.push_back(static_cast<int32_t>(std::clamp<int64_t>(cell + 1, 0, from - 1)));
    taps.weight_low.push_back(static_cast<int32_t>(std::lrintf((1.0f - position) * kOne)));
    taps.weight_high.push_back(static_cast<int32_t>(std::lrintf(position * kOne)));
  }
  return taps;
}

Picture ResizeBetween(const Picture &from, int64_t height, int64_t width) {
  Picture to{height, width, {}};
  Reserve(height, width, 3, &to.pixels);
  const Taps columns = MakeTaps(from.width, width, true), rows = MakeTaps(from.height, height, false);
  // rows of the source, enlarged or reduced across; `held` says which, as two neighbours serve several target rows
  std::vector<int32_t> lines[2];
  int64_t held[2] = {-1, -1};
  for (auto &line : lines) line.resize(static_cast<size_t>(width * 3));
  const auto line_of = [&](int64_t row, int64_t other) {
    size_t slot = held[0] == row ? 0 : 1;
    if (held[slot] != row) {
      slot = held[0] == other ? 1 : 0;
      held[slot] = row;
      const uint8_t *source = from.pixels.data() + row * from.width * 3;
      int32_t *line = lines[slot].data();
      for (size_t x = 0; x < static_cast<size_t>(width); ++x) {
        const uint8_t *low = source + columns.low[x] * 3, *high = source + columns.high[x] * 3;
        for (int c = 0; c < 3; ++c)
          line[3 * x + static_cast<size_t>(c)] = low[c] * columns.weight_low[x] + high[c] * columns.weight_high[x];
      }
    }
    return lines[slot].data();
  };
  for (int64_t y = 0; y < height; ++y) {
    const auto i = static_cast<size_t>(y);
    const int32_t *low = line_of(rows.low[i], rows.high[i]), *high = line_of(rows.high[i], rows.low[i]);
    const int32_t a = rows.weight_low[i], b = rows.weight_high[i];
    uint8_t *out = to.pixels.data() + y * width * 3;
    for (int64_t x = 0; x < width * 3; ++x) {
      out[x] = static_cast<uint8_t>((((a * (low[x] >> 4)) >> 16) + ((b * (high[x] >> 4)) >> 16) + 2) >> 2);
    }
  }
  return to;
}

// ---- resize without rounding ----------------------------------------------------------------------------

// Of each target cell the two source cells whose centres it lies between, and the second's share.
struct Neighbours {
  std::vector<int64_t> low, high;
  std::vector<float> share;
};

Neighbours MakeNeighbours(int64_t from, int64_t to) {
  const double scale = static_cast<double>(from) / static_cast<double>(to);
  Neighbours out;
  for (int64_t i = 0; i < to; ++i) {
    const double place = std::max((static_cast<double>(i) + 0.5) * scale - 0.5, 0.0);
    const int64_t low = std::min(static_cast<int64_t>(place), from - 1);
    out.low.push_back(low);
    out.high.push_back(std::min(low + 1, from - 1));
    out.share.push_back(static_cast<float>(place - static_cast<double>(low)));
  }
  return out;
}

float Between(float low, float high, float share) { return low + (high - low) * share; }

Picture ResizeUnrounded(const Picture &from, int64_t height, int64_t width) {
  Picture to{height, width, {}};
  Reserve(height, width, 3, &to.unrounded);
  const Neighbours rows = MakeNeighbours(from.height, height), columns = MakeNeighbours(from.width, width);
  std::vector<float> line(static_cast<size_t>(from.width * 3));
  float *out = to.unrounded.data();
  for (size_t y = 0; y < rows.low.size(); ++y) {
    const uint8_t *low = from.pixels.data() + rows.low[y] * from.width * 3;
    const uint8_t *high = from.pixels.data() + rows.high[y] * from.width * 3;
    for (size_t i = 0; i < line.size(); ++i) line[i] = Between(low[i], high[i], rows.share[y]);
    for (size_t x = 0; x < columns.low.size(); ++x, out += 3) {
      const float *left = line.data() + columns.low[x] * 3, *right = line.data() + columns.high[x] * 3;
      for (int c = 0; c < 3; ++c) out[c] = Between(left[c], right[c], columns.share[x]);
    }
  }
  return to;
}

// ---- resize over areas ----------------------------------------------------------------------------------

constexpr int kWeightBits = 22;  // of a weight's fraction: 32 less a pixel's 8 and Pillow's 2 for other filters

// From which source cell on each target cell is summed, and the weights, as whole numbers.
struct AreaTaps {
  std::vector<int64_t> first;
  std::vector<std::vector<int32_t>> weights;
};

AreaTaps MakeAreaTaps(int64_t from, int64_t to) {
  const double scale = static_cast<double>(from) / static_cast<double>(to);
  const double reach = std::max(scale, 1.0), inverse = 1.0 / reach;
  AreaTaps taps;
  std::vector<double> shares;
  for (int64_t i = 0; i < to; ++i) {
    const double centre = (static_cast<double>(i) + 0.5) * scale;
    const int64_t first = std::max<int64_t>(static_cast<int64_t>(centre - reach + 0.5), 0);
    const int64_t end = std::min(static_cast<int64_t>(centre + reach + 0.5), from);
    shares.clear();
    double total = 0;
    for (int64_t cell = first; cell < end; ++cell) {
      const double away = std::abs((static_cast<double>(cell) - centre + 0.5) * inverse);
      shares.push_back(away < 1.0 ? 1.0 - away : 0.0);
      total += shares.back();
    }
    std::vector<int32_t> weights;
    for (const double share : shares) {
      weights.push_back(static_cast<int32_t>(0.5 + (total != 0 ? share / total : share) * (1 << kWeightBits)));
    }
    taps.first.push_back(first);
    taps.weights.push_back(std::move(weights));
  }
  return taps;
}

uint8_t Rounded(int32_t sum) { return static_cast<uint8_t>(std::clamp(sum >> kWeightBits, 0, 255)); }

constexpr int32_t kHalf = 1 << (kWeightBits - 1);

Picture SumAcross(const Picture &from, int64_t width) {
  if (width == from.width) return from;
  Picture to{from.height, width, {}};
  Reserve(to.height, width, 3, &to.pixels);
  const AreaTaps columns = MakeAreaTaps(from.width, width);
  uint8_t *out = to.pixels.data();
  for (int64_t y = 0; y < to.height; ++y) {
    for (size_t x = 0; x < columns.first.size(); ++x, out += 3) {
      const uint8_t *source = from.pixels.data() + (y * from.width + columns.first[x]) * 3;
      int32_t sums[3] = {kHalf, kHalf, kHalf};
      for (const int32_t weight : columns.weights[x]) {
        for (int c = 0; c < 3; ++c) sums[c] += *source++ * weight;
      }
      for (int c = 0; c < 3; ++c) out[c] = Rounded(sums[c]);
    }
  }
  return to;
}

Picture SumDown(const Picture &from, int64_t height) {
  if (height == from.height) return from;
  Picture to{height, from.width, {}};
  Reserve(height, to.width, 3, &to.pixels);
  const AreaTaps rows = MakeAreaTaps(from.height, height);
  std::vector<int32_t> sums(static_cast<size_t>(to.width * 3));
  uint8_t *out = to.pixels.data();
  for (size_t y = 0; y < rows.first.size(); ++y) {
    std::fill(sums.begin(), sums.end(), kHalf);
    const uint8_t *source = from.pixels.data() + rows.first[y] * to.width * 3;
    for (const int32_t weight : rows.weights[y]) {
      for (int32_t &sum : sums) sum += *source++ * weight;
    }
    for (const int32_t sum : sums) *out++ = Rounded(sum);
  }
  return to;
}

// One direction after the other, with 8 bits between. Pillow 13 goes down first where more than twice as many rows as
// columns are lost, in older ones always across; that is a grey level here and there, in pictures twice as high as
// wide.
Picture ResizeOverAreas(const Picture &from, int64_t height, int64_t width) {
  const bool down_first = height < from.height && from.height - height > 2 * (from.width - width);
  return down_first ? SumAcross(SumDown(from, height), width) : SumDown(SumAcross(from, width), height);
}

// ---- sizes ----------------------------------------------------------------------------------------------

// Canvas pixels of an image pixel.
double FitScale(double height, double width, double canvas_height, double canvas_width, const ResizeRule &rule) {
  const double room = std::min(canvas_height / height, canvas_width / width);
  if (rule.short_side == 0) return room;
  return std::min({static_cast<double>(rule.short_side) / std::min(height, width),
                   static_cast<double>(rule.long_side) / std::max(height, width), room});
}

// maskrcnn-benchmark's: the shorter side is rounded, and the longer one is in proportion to that, rounded down.
std::array<int64_t, 2> ShortSideFirst(int64_t height, int64_t width, double scale, const ResizeRule &rule) {
  const auto low = static_cast<double>(std::min(height, width)), high = static_cast<double>(std::max(height, width));
  const auto longest = static_cast<double>(rule.long_side);
  auto side = static_cast<double>(rule.short_side);
  // nearbyint: halves to even, as Python
  if (high / low * side > longest) side = std::nearbyint(longest * low / high);
  side = std::min(side, std::nearbyint(scale * low));
  const auto shorter = static_cast<int64_t>(side), longer = static_cast<int64_t>(side * high / low);
  return height <= width ? std::array<int64_t, 2>{shorter, longer} : std::array<int64_t, 2>{longer, shorter};
}

}  // namespace

int ExifOrientation(const std::vector<uint8_t> &bytes) {
  const Span file(bytes.data(), bytes.size());
  if (IsJpeg(bytes)) return JpegOrientation(file);
  return IsPng(bytes) ? PngOrientation(file) : 1;
}

Picture Turn(Picture picture, int orientation) {
  if (orientation < 2 || orientation > 8) return picture;
  const bool swapped = IsSwapped(orientation);
  const bool mirror = orientation == 2 || orientation == 3 || orientation == 6 || orientation == 7;
  const bool upset = orientation == 3 || orientation == 4 || orientation == 7 || orientation == 8;
  Picture out{swapped ? picture.width : picture.height, swapped ? picture.height : picture.width, {}};
  Reserve(out.height, out.width, 3, &out.pixels);
  uint8_t *to = out.pixels.data();
  for (int64_t y = 0; y < out.height; ++y) {
    const int64_t row = upset ? out.height - 1 - y : y;
    for (int64_t x = 0; x < out.width; ++x, to += 3) {
      const int64_t column = mirror ? out.width - 1 - x : x;
      const int64_t place = swapped ? column * picture.width + row : row * picture.width + column;
      std::memcpy(to, picture.pixels.data() + 3 * place, 3);
    }
  }
  return out;
}

int OrientationFor(const std::string &policy, const std::array<int64_t, 2> &stored_size, int orientation,
                   const std::array<int64_t, 2> &annotated) {
  if (policy == "upright") return orientation;
  if (policy == "stored") return 1;
  std::array<int64_t, 2> upright = stored_size;
  if (IsSwapped(orientation)) std::swap(upright[0], upright[1]);
  return annotated == upright && annotated != stored_size ? orientation : 1;
}

Picture DecodeImage(const std::vector<uint8_t> &bytes) {
  if (bytes.empty()) throw UserError("empty file");
  try {
    if (IsJpeg(bytes)) return DecodeJpeg(bytes);
    if (IsPng(bytes)) return DecodePng(bytes);
  } catch (const std::bad_alloc &) {
    throw UserError("larger than this machine's memory");
  }
  throw UserError("neither JPEG nor PNG");
}

std::array<int64_t, 2> FitSize(int64_t height, int64_t width, int64_t canvas_height, int64_t canvas_width,
                               bool keep_ratio, const ResizeRule &rule) {
  if (!keep_ratio) return {canvas_height, canvas_width};
  const auto high = static_cast<double>(height), wide = static_cast<double>(width);
  const double scale =
      FitScale(high, wide, static_cast<double>(canvas_height), static_cast<double>(canvas_width), rule);
  const double half = rule.rounding == Rounding::kFloor ? 0.0 : 0.5;
  std::array<int64_t, 2> size{static_cast<int64_t>(high * scale + half), static_cast<int64_t>(wide * scale + half)};
  if (rule.rounding == Rounding::kShortFirst && rule.short_side > 0) size = ShortSideFirst(height, width, scale, rule);
  return {std::clamp<int64_t>(size[0], 1, canvas_height), std::clamp<int64_t>(size[1], 1, canvas_width)};
}

Picture Resize(const Picture &from, int64_t height, int64_t width, Filter filter) {
  if (height == from.height && width == from.width) return from;
  if (filter == Filter::kUnrounded) return ResizeUnrounded(from, height, width);
  return filter == Filter::kAntialias ? ResizeOverAreas(from, height, width) : ResizeBetween(from, height, width);
}

void SwapRedAndBlue(Picture *picture) {
  for (size_t i = 0; i + 2 < picture->pixels.size(); i += 3) std::swap(picture->pixels[i], picture->pixels[i + 2]);
  std::vector<float> &unrounded = picture->unrounded;
  for (size_t i = 0; i + 2 < unrounded.size(); i += 3) std::swap(unrounded[i], unrounded[i + 2]);
}

void Normalise(const Picture &picture, const std::array<double, 3> &mean, const std::array<double, 3> &std,
               int64_t canvas_height, int64_t canvas_width, float *canvas) {
  // as OpenCV, of whose scalars the difference has float32 and the product float64
  float shift[3];
  double factor[3];
  for (size_t c = 0; c < 3; ++c) {
    shift[c] = static_cast<float>(mean[c]);
    factor[c] = 1.0 / std[c];
  }
  const auto normalised = [&shift, &factor](float value, int64_t c) {
    return static_cast<float>(static_cast<double>(value - shift[c]) * factor[c]);
  };
  float values[3][256];
  for (int64_t c = 0; c < 3; ++c) {
    for (int v = 0; v < 256; ++v) values[c][v] = normalised(static_cast<float>(v), c);
  }
  const bool unrounded = !picture.unrounded.empty();
  ParallelFor(canvas_height, NumThreads(), [&](int64_t y) {
    const bool inside = y < picture.height;
    const int64_t width = inside ? picture.width : 0;
    const int64_t first = inside ? y * picture.width * 3 : 0;
    for (int64_t c = 0; c < 3; ++c) {
      float *to = canvas + (c * canvas_height + y) * canvas_width;
      if (unrounded) {
        const float *from = picture.unrounded.data() + first + c;
        for (int64_t x = 0; x < width; ++x) to[x] = normalised(from[3 * x], c);
      } else {
        const uint8_t *from = picture.pixels.data() + first + c;
        for (int64_t x = 0; x < width; ++x) to[x] = values[c][from[3 * x]];
      }
      std::fill(to + width, to + canvas_width, 0.0f);
    }
  });
}

}  // namespace rcnn
