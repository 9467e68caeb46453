// The pixels that a convolution's filters see, as a matrix of products.
#ifndef RCNN_OPS_PATCHES_H_
#define RCNN_OPS_PATCHES_H_

#include <algorithm>
#include <cstdint>

#include "product.h"

namespace rcnn {

// One axis of a convolution: the filter's cells, how far it moves, the zeros before the map, and the places it has.
struct FilterAxis {
  int64_t kernel, stride, before, places;
};

// Maps (images, all_channels, height, width), of which some channels are seen.
struct SeenMaps {
  const float *data;
  int64_t all_channels, height, width;
  int64_t first_channel = 0;
  Gate gate = {};
};

// Reads what one cell of the filter sees at neighbouring places.
class PatchReader {
 public:
  PatchReader(const SeenMaps &maps, const FilterAxis &down, const FilterAxis &across)
      : maps_(maps), down_(down), across_(across) {}

  // Where every place sees the pixel of its number.
  bool Plain() const { return down_.kernel * across_.kernel == 1 && down_.stride * across_.stride == 1; }
  int64_t Cells() const { return maps_.height * maps_.width; }
  int64_t Taps() const { return down_.kernel * across_.kernel; }
  // Where a channel's map begins.
  int64_t Map(int64_t image, int64_t channel) const {
    return (image * maps_.all_channels + maps_.first_channel + channel) * Cells();
  }
  const SeenMaps &Maps() const { return maps_; }
  const FilterAxis &Down() const { return down_; }
  const FilterAxis &Across() const { return across_; }

  // Pixels that a cell of the filter sees of the map at `map` from a place on, one after the other.
  class Line {
   public:
    Line(const PatchReader &reader, int64_t map, int64_t tap, int64_t place)
        : r_(reader),
          map_(map),
          dy_(tap / reader.across_.kernel - reader.down_.before),
          dx_(tap % reader.across_.kernel - reader.across_.before),
          y_(place / reader.across_.places),
          x_(place % reader.across_.places) {}

    // The next `count` of them; up to kLanes more are written, of any content.
    void Read(int64_t count, float *to) {
      while (count > 0) {
        const int64_t run = std::min(r_.across_.places - x_, count);
        const int64_t row = y_ * r_.down_.stride + dy_;
        if (row < 0 || row >= r_.maps_.height) {
          std::fill_n(to, run, 0.0f);
        } else {
          r_.ReadRow(map_ + row * r_.maps_.width, x_ * r_.across_.stride + dx_, run, to);
        }
        to += run;
        count -= run;
        x_ += run;
        if (x_ == r_.across_.places) {
          x_ = 0;
          ++y_;
        }
      }
    }

   private:
    const PatchReader &r_;
    const int64_t map_, dy_, dx_;
    int64_t y_, x_;
  };

  // Pixels x, x + 2, ... of the map's row that begins at `row`, and x + 1, x + 3, ...: `count` of each; up to kLanes
  // more are written, of any content.
  void Part(int64_t row, int64_t x, int64_t count, float *even, float *odd) const {
    const float *data = maps_.data + row;
    const Gate gate = maps_.gate.At(row);
    const int64_t ahead = kAhead * Cells();
    for (int64_t i = 0; i < count; i += kLanes) {
      const int64_t at = x + 2 * i;
      __builtin_prefetch(data + at + ahead, 0, 3);
      __builtin_prefetch(data + at + kLanes + ahead, 0, 3);
      const Floats low = LoadGated(data, gate, at, maps_.width), high = LoadGated(data, gate, at + kLanes, maps_.width);
      Store(even + i, ShuffleBy<EvenLanes>(low, high));
      Store(odd + i, ShuffleBy<OddLanes>(low, high));
    }
  }

 private:
  static constexpr int64_t kAhead = 2;  // channels, as Patches'

  void ReadRow(int64_t row, int64_t x, int64_t count, float *to) const {
    const float *data = maps_.data + row;
    const Gate gate = maps_.gate.At(row);
    if (across_.stride == 1) {
      for (int64_t i = 0; i < count; i += kLanes) Store(to + i, LoadGated(data, gate, x + i, maps_.width));
    } else if (across_.stride == 2) {
      const int64_t ahead = kAhead * Cells();
      for (int64_t i = 0; i < count; i += kLanes) {
        const int64_t at = x + 2 * i;
        __builtin_prefetch(data + at + ahead, 0, 3);
        __builtin_prefetch(data + at + kLanes + ahead, 0, 3);
        Store(to + i, ShuffleBy<EvenLanes>(LoadGated(data, gate, at, maps_.width),
                                           LoadGated(data, gate, at + kLanes, maps_.width)));
      }
    } else {
      for (int64_t i = 0; i < count; ++i) to[i] = LoadGated(data, gate, x + i * across_.stride, maps_.width)[0];
    }
  }

  const SeenMaps maps_;
  const FilterAxis down_, across_;
};

// Terms are [channel][row of the filter][column], columns the places. first_place: that of the first column.
class Patches : public Columns {
 public:
  Patches(const SeenMaps &maps, const FilterAxis &down, const FilterAxis &across, int64_t first_place = 0)
      : reader_(maps, down, across), first_place_(first_place) {}

  // Places that see the pixel of their number.
  explicit Patches(const SeenMaps &maps, int64_t first_place = 0)
      : Patches(maps, {1, 1, 0, maps.height}, {1, 1, 0, maps.width}, first_place) {}

  void Pack(int64_t image, int64_t first, int64_t count, const Range &depth, int64_t panel_depth,
            float *to) const override {
    const int64_t place = first_place_ + first;
    if (reader_.Across().stride == 2 && reader_.Across().kernel <= kMostTaps) {
      PackHalves(image, place, count, depth, panel_depth, to);
      return;
    }
    for (int64_t d = depth.begin; d < depth.end; ++d, to += kBlockColumns) {
      const int64_t map = reader_.Map(image, d / reader_.Taps());
      if (reader_.Plain()) {
        PackPixels(map + place, count, panel_depth, to);
        continue;
      }
      PatchReader::Line line(reader_, map, d % reader_.Taps(), place);
      // a vector more than is used may be written, before what comes next is
      alignas(64) float pixels[kBlockColumns + kLanes];
      for (int64_t p = 0; p < count; p += kBlockColumns) {
        line.Read(std::min(kBlockColumns, count - p), pixels);
        for (int64_t v = 0; v < kBlockColumns; v += kLanes) Store(to + p * panel_depth + v, Load(pixels + v));
      }
    }
  }

 private:
  static constexpr int64_t kAhead = 3;  // channels

  void PackPixels(int64_t place, int64_t count, int64_t panel_depth, float *to) const {
    const SeenMaps &maps = reader_.Maps();
    const float *from = maps.data + place;
    const Gate gate = maps.gate.At(place);
    // rows of channels lie far apart, where nothing else fetches ahead
    const int64_t ahead = kAhead * reader_.Cells();
    for (int64_t p = 0; p < count; p += 16) {
      __builtin_prefetch(from + ahead + p, 0, 3);
      if (gate.data != nullptr) __builtin_prefetch(gate.data + ahead + p, 0, 3);
    }
    for (int64_t p = 0; p < count; p += kBlockColumns, to += panel_depth * kBlockColumns) {
      for (int64_t v = 0; v < kBlockColumns; v += kLanes) Store(to + v, LoadGated(from, gate, p + v, count));
    }
  }

  // Of stride 2: a row's pixels are parted once into those of even and of odd columns, for all cells of the filter's
  // row.
  void PackHalves(int64_t image, int64_t place, int64_t count, const Range &depth, int64_t panel_depth,
                  float *to) const {
    const FilterAxis &down = reader_.Down(), &across = reader_.Across();
    alignas(64) float halves[2][kRun + kMostTaps / 2 + kLanes];
    for (int64_t d = depth.begin; d < depth.end;) {
      const int64_t tap = d % reader_.Taps(), left = tap % across.kernel;
      const int64_t taps = std::min(across.kernel - left, depth.end - d);
      const int64_t map = reader_.Map(image, d / reader_.Taps());
      int64_t y = place / across.places, x = place % across.places;
      for (int64_t done = 0; done < count;) {
        const int64_t run = std::min({across.places - x, count - done, kRun});
        const int64_t row = y * down.stride + tap / across.kernel - down.before;
        const int64_t wanted = run + (taps - 1) / 2;
        if (row < 0 || row >= reader_.Maps().height) {
          for (float *half : halves) std::fill_n(half, wanted, 0.0f);
        } else {
          reader_.Part(map + row * reader_.Maps().width, 2 * x - across.before + left, wanted, halves[0], halves[1]);
        }
        for (int64_t t = 0; t < taps; ++t) {
          PutColumns(halves[t % 2] + t / 2, done, run, panel_depth, to + t * kBlockColumns);
        }
        done += run;
        x += run;
        if (x == across.places) {
          x = 0;
          ++y;
        }
      }
      d += taps;
      to += taps * kBlockColumns;
    }
  }

  // Columns [column, column + count) of a row of panels.
  static void PutColumns(const float *from, int64_t column, int64_t count, int64_t panel_depth, float *to) {
    for (const int64_t end = column + count; column < end;) {
      const int64_t first = column % kBlockColumns, some = std::min(kBlockColumns - first, end - column);
      float *columns = to + column / kBlockColumns * panel_depth * kBlockColumns + first;
      for (int64_t v = 0; v < some; v += kLanes) StoreFirst(columns + v, Load(from + v), some - v);
      from += some;
      column += some;
    }
  }

  static constexpr int64_t kMostTaps = 8, kRun = 512;  // of a filter's row, and places of a map's row, at a time

  const PatchReader reader_;
  const int64_t first_place_;
};

// The same matrix turned: terms are the places, columns [channel][row of the filter][column].
class TurnedPatches : public Columns {
 public:
  TurnedPatches(const SeenMaps &maps, const FilterAxis &down, const FilterAxis &across) : reader_(maps, down, across) {}

  explicit TurnedPatches(const SeenMaps &maps) : TurnedPatches(maps, {1, 1, 0, maps.height}, {1, 1, 0, maps.width}) {}

  void Pack(int64_t image, int64_t first, int64_t count, const Range &depth, int64_t panel_depth,
            float *to) const override {
    for (int64_t c = 0; c < count; c += kBlockColumns, to += panel_depth * kBlockColumns) {
      const int64_t some = std::min(kBlockColumns, count - c);
      if (reader_.Plain()) {
        const int64_t place = reader_.Map(image, first + c) + depth.begin;
        Turn(reader_.Maps().data + place, reader_.Maps().gate.At(place), reader_.Cells(), some, depth.Size(), to);
        continue;
      }
      alignas(64) float lines[kBlockColumns * kLine];
      for (int64_t d = 0; d < depth.Size(); d += kPixels) {
        const int64_t pixels = std::min(kPixels, depth.Size() - d);
        for (int64_t i = 0; i < some; ++i) {
          const int64_t column = first + c + i;
          PatchReader::Line(reader_, reader_.Map(image, column / reader_.Taps()), column % reader_.Taps(),
                            depth.begin + d)
              .Read(pixels, lines + i * kLine);
        }
        Turn(lines, Gate(), kLine, some, pixels, to + d * kBlockColumns);
      }
    }
  }

 private:
  static constexpr int64_t kPixels = 64, kLine = kPixels + kLanes;

  // Lines, `stride` apart, of `count` numbers -> [number][line].
  static void Turn(const float *from, const Gate &gate, int64_t stride, int64_t lines, int64_t count, float *to) {
    for (int64_t l = 0; l < kBlockColumns; l += kLanes) {
      for (int64_t n = 0; n < count; n += kLanes) {
        Floats block[kLanes];
        for (int64_t i = 0; i < kLanes; ++i) {
          const int64_t place = (l + i) * stride;
          block[i] = l + i < lines ? LoadGated(from + place, gate.At(place), n, count) : Floats{};
          // what is turned next, where lines lie far apart
          __builtin_prefetch(from + place + kLanes * stride + n, 0, 2);
        }
        Transpose(block);
        for (int64_t i = 0; i < std::min(kLanes, count - n); ++i) Store(to + (n + i) * kBlockColumns + l, block[i]);
      }
    }
  }

  const PatchReader reader_;
};

}  // namespace rcnn

#endif  // RCNN_OPS_PATCHES_H_
