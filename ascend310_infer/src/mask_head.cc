// Compiled without contraction, as simd.h wants it.
#include "mask_head.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "../../src/ops/csrc/gemm_kernel.h"
#include "../../src/ops/csrc/parallel.h"
#include "../../src/ops/csrc/tiles.h"
#include "../../src/ops/csrc/winograd.h"
#include "../../src/ops/csrc/workspace.h"
#include "files.h"

namespace rcnn {

namespace {

using Shape = std::vector<int64_t>;

struct Layer {
  Shape shape;
  std::vector<float> weight, bias;
};

// Reads src/export/mask_weights.py's file.
std::vector<Layer> ReadLayers(const ModelFile &file) {
  const std::vector<uint8_t> bytes = ReadChecked(file);
  const UserError foreign(file.path + ": not a mask head of this version; export the model again");
  size_t at = 0;
  const auto take = [&](void *to, size_t size) {
    if (bytes.size() - at < size) throw foreign;
    std::memcpy(to, bytes.data() + at, size);
    at += size;
  };
  const auto number = [&] {
    uint32_t value;
    take(&value, sizeof(value));
    return int64_t{value};
  };
  const auto floats = [&](int64_t count) {
    if (static_cast<size_t>(count) > bytes.size() / sizeof(float)) throw foreign;
    std::vector<float> values(static_cast<size_t>(count));
    take(values.data(), values.size() * sizeof(float));
    return values;
  };
  char magic[8];
  take(magic, sizeof(magic));
  const int64_t count = number();
  if (std::memcmp(magic, "RCNNMSK1", sizeof(magic)) != 0 || count < 2 || count > 1000) throw foreign;
  std::vector<Layer> layers;
  int64_t channels = 0;
  for (int64_t i = 0; i < count; ++i) {
    const bool up = i + 2 == count, last = i + 1 == count;
    const int64_t side = up ? 2 : last ? 1 : 3;
    Layer layer;
    for (int k = 0; k < 4; ++k) layer.shape.push_back(number());
    const Shape &s = layer.shape;
    const int64_t inputs = s[up ? 0 : 1], outputs = s[up ? 1 : 0], most = 1 << 16;
    const bool fits = s[2] == side && s[3] == side && inputs > 0 && inputs < most && outputs > 0 && outputs < most;
    if (!fits || (i > 0 && inputs != channels)) throw foreign;
    channels = outputs;
    layer.weight = floats(s[0] * s[1] * s[2] * s[3]);
    layer.bias = floats(outputs);
    layers.push_back(std::move(layer));
  }
  if (at != bytes.size()) throw foreign;
  return layers;
}

// The transposed convolution of 2x2, stride 2, its ReLU, and one filter of the 1x1 convolution after it. Each input
// cell becomes 2x2 output cells (phases), so the first is a product of a (4 outputs x inputs) matrix with the features,
// of which no more than a block of rows is there at a time.
class Tail {
 public:
  Tail(const Layer &up, Layer last)
      : inputs_(up.shape[0]), outputs_(up.shape[1]), bias_(up.bias), last_(std::move(last)) {
    const int64_t rows = kPhases * outputs_;
    if (HasTiles()) {
      SplitWeight(up);
      return;
    }
    weight_ = TakeMemory(rows * inputs_);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t phase = row / outputs_, output = row % outputs_, block = row / kBlockRows * kBlockRows;
      const int64_t count = std::min(kBlockRows, rows - block);
      for (int64_t i = 0; i < inputs_; ++i) {
        weight_[block * inputs_ + i * count + row - block] =
            up.weight[static_cast<size_t>((i * outputs_ + output) * kPhases + phase)];
      }
    }
  }

  int64_t Classes() const { return last_.shape[0]; }

  // features (count, inputs, side, side) -> logits (count, 2 side, 2 side)
  void Run(const float *features, const int32_t *labels, int64_t count, int64_t side, float *logits) const {
    const int threads = static_cast<int>(std::min<int64_t>(NumThreads(), count));
    const int64_t cells = side * side, padded = RoundUp(cells, kBlockColumns);
    std::vector<Scratch> scratch(static_cast<size_t>(threads));
    for (Scratch &s : scratch) {
      s.input = TakeMemory(inputs_ * padded);
      s.block = TakeMemory(std::max(kBlockRows, kTileRows) * padded);
      s.sums = TakeMemory(kPhases * padded);
      if (!HasTiles()) continue;
      s.split = TakeMemory(Ceil(padded / kTileColumns * SplitSize(inputs_), 2));
      s.tile = TakeMemory(kTileRows * kTileColumns);
    }
    ParallelFor(threads, threads, [&](int64_t worker) {
      Scratch &s = scratch[static_cast<size_t>(worker)];
      for (int64_t r = count * worker / threads; r < count * (worker + 1) / threads; ++r) {
        RunOne(features + r * inputs_ * cells, labels[r], side, padded, &s, logits + r * kPhases * cells);
      }
    });
  }

 private:
  static constexpr int64_t kPhases = 4;

  struct Scratch {
    Memory input;  // [block of columns][input][column]
    Memory block;  // [row][column]
    Memory sums;   // [phase][column]
    Memory split;  // of tiles, the input: [block of columns]
    Memory tile;
  };

  // Blocks of kTileRows rows, for tiles.
  void SplitWeight(const Layer &up) {
    const int64_t rows = kPhases * outputs_, each = SplitSize(inputs_);
    weight_ = TakeMemory(Ceil(Ceil(rows, kTileRows) * each, 2));
    std::vector<float> block(static_cast<size_t>(kTileRows * inputs_));
    for (int64_t first = 0; first < rows; first += kTileRows) {
      const int64_t count = std::min(kTileRows, rows - first);
      for (int64_t r = 0; r < count; ++r) {
        const int64_t phase = (first + r) / outputs_, output = (first + r) % outputs_;
        for (int64_t i = 0; i < inputs_; ++i) {
          block[static_cast<size_t>(r * inputs_ + i)] =
              up.weight[static_cast<size_t>((i * outputs_ + output) * kPhases + phase)];
        }
      }
      uint16_t *to = reinterpret_cast<uint16_t *>(weight_.get()) + first / kTileRows * each;
      SplitRows(block.data(), inputs_, count, inputs_, to);
    }
  }

  void AddInTiles(int64_t label, int64_t cells, int64_t padded, Scratch *s) const {
    const TileThread thread;
    const int64_t rows = kPhases * outputs_, each = SplitSize(inputs_);
    auto *split = reinterpret_cast<uint16_t *>(s->split.get());
    for (int64_t c = 0; c < cells; c += kTileColumns) {
      SplitColumns(s->input.get() + c * inputs_, inputs_, split + c / kTileColumns * each);
    }
    for (int64_t row = 0; row < rows; row += kTileRows) {
      const uint16_t *a = reinterpret_cast<const uint16_t *>(weight_.get()) + row / kTileRows * each;
      for (int64_t c = 0; c < cells; c += kTileColumns) {
        std::fill_n(s->tile.get(), kTileRows * kTileColumns, 0.0f);
        const Ahead ahead{s->block.get() + c, nullptr, padded};
        MultiplyTiles(inputs_, a, split + c / kTileColumns * each, false, ahead, s->tile.get());
        for (int64_t r = 0; r < kTileRows; ++r) {
          std::copy_n(s->tile.get() + r * kTileColumns, kTileColumns, s->block.get() + r * padded + c);
        }
      }
      for (int64_t r = 0; r < std::min(kTileRows, rows - row); ++r) {
        AddRow(s->block.get() + r * padded, row + r, label, padded, s);
      }
    }
  }

  void RunOne(const float *features, int64_t label, int64_t side, int64_t padded, Scratch *s, float *logits) const {
    const int64_t cells = side * side, rows = kPhases * outputs_;
    for (int64_t i = 0; i < inputs_; ++i) {
      for (int64_t c = 0; c < cells; c += kBlockColumns) {
        std::copy_n(features + i * cells + c, std::min(kBlockColumns, cells - c),
                    s->input.get() + c * inputs_ + i * kBlockColumns);
      }
    }
    std::fill_n(s->sums.get(), kPhases * padded, last_.bias[static_cast<size_t>(label)]);
    if (HasTiles()) AddInTiles(label, cells, padded, s);
    for (int64_t row = 0; row < rows && !HasTiles(); row += kBlockRows) {
      const int64_t count = std::min(kBlockRows, rows - row);
      for (int64_t c = 0; c < cells; c += kBlockColumns) {
        Multiply(count, cells - c, inputs_, weight_.get() + row * inputs_, 1, count, s->input.get() + c * inputs_,
                 s->block.get() + c, padded, false);
      }
      for (int64_t r = 0; r < count; ++r) AddRow(s->block.get() + r * padded, row + r, label, padded, s);
    }
    const float *sums = s->sums.get();
    for (int64_t y = 0; y < 2 * side; ++y) {
      for (int64_t x = 0; x < 2 * side; ++x) {
        *logits++ = sums[(y % 2 * 2 + x % 2) * padded + y / 2 * side + x / 2];
      }
    }
  }

  void AddRow(const float *row, int64_t number, int64_t label, int64_t padded, Scratch *s) const {
    const auto output = static_cast<size_t>(number % outputs_);
    const Floats bias = Broadcast(bias_[output]);
    const Floats factor = Broadcast(last_.weight[static_cast<size_t>(label * outputs_) + output]);
    float *sums = s->sums.get() + number / outputs_ * padded;
    for (int64_t c = 0; c < padded; c += kLanes) {
      const Floats v = Load(row + c) + bias;
      // written so that NaN stays NaN
      Store(sums + c, MulAdd(factor, v < 0.0f ? Floats{} : v, Load(sums + c)));
    }
  }

  const int64_t inputs_, outputs_;
  Memory weight_;  // [block of rows][input][row], or of tiles, split; rows: [phase][output]
  const std::vector<float> bias_;
  const Layer last_;
};

class HostMaskHead : public MaskHead {
 public:
  explicit HostMaskHead(const ModelFile &file) : HostMaskHead(file.path, ReadLayers(file)) {}

  // all, unless far more than usual: the filters are transformed anew each time
  size_t MostRois() const override { return 128; }
  int64_t Channels() const override { return channels_; }

  float *Input(int64_t count, int64_t side) override {
    count_ = count;
    side_ = side;
    features_.resize(static_cast<size_t>(count * channels_ * side * side));
    return features_.data();
  }

  void Run(const int32_t *labels, int64_t classes, float *logits) override {
    if (classes != tail_.Classes()) {
      throw UserError(path_ + ": of " + std::to_string(tail_.Classes()) + " classes, its sidecar means " +
                      std::to_string(classes) + "; model and sidecar disagree, export again");
    }
    for (Layer &conv : convs_) {
      Shape from = {count_, conv.shape[1], side_, side_}, to = {count_, conv.shape[0], side_, side_};
      Shape bias = {conv.shape[0]};
      next_.resize(static_cast<size_t>(count_ * conv.shape[0] * side_ * side_));
      void *data[] = {features_.data(), conv.weight.data(), conv.bias.data(), next_.data()};
      int64_t *shapes[] = {from.data(), conv.shape.data(), bias.data(), to.data()};
      if (Conv3x3ForwardReLU(4, data, nullptr, shapes, nullptr, nullptr, nullptr) != 0) throw std::bad_alloc();
      features_.swap(next_);
    }
    tail_.Run(features_.data(), labels, count_, side_, logits);
  }

 private:
  HostMaskHead(const std::string &path, std::vector<Layer> layers)
      : path_(path),
        channels_(layers[0].shape[layers.size() == 2 ? 0 : 1]),
        tail_(layers[layers.size() - 2], std::move(layers.back())),
        convs_(std::make_move_iterator(layers.begin()), std::make_move_iterator(layers.end() - 2)) {}

  const std::string path_;
  const int64_t channels_;
  const Tail tail_;
  std::vector<Layer> convs_;
  std::vector<float> features_, next_;
  int64_t count_ = 0, side_ = 0;
};

}  // namespace

std::unique_ptr<MaskHead> MakeHostMaskHead(const ModelFile &file) { return std::make_unique<HostMaskHead>(file); }

}  // namespace rcnn
