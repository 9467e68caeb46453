// What a graph on the CPU is made of: layers, each of which makes one array of numbers of others.
#ifndef RCNN_INFER_CPU_LAYER_H_
#define RCNN_INFER_CPU_LAYER_H_

#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "../../../src/ops/csrc/product.h"
#include "mindir.h"

namespace rcnn {

using Shape = std::vector<int64_t>;

int64_t CountOf(const Shape &shape);

// What a layer can't run, in words that follow the file's name.
class Unsuitable : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class Layer {
 public:
  virtual ~Layer() = default;

  // The output's shape for inputs of these shapes, which the next calls of Run have. Throws Unsuitable.
  virtual Shape Resize(const std::vector<Shape> &inputs) = 0;
  // Throws std::bad_alloc.
  virtual void Run(const std::vector<const float *> &inputs, float *output, int threads) const = 0;
  // Whether the output may lie where this input does.
  virtual bool InPlace(size_t) const { return false; }

  // Whether RunRows can be asked for: some rows of an image's maps, (channels, rows, width), from all of an input's.
  virtual bool HasRows() const { return false; }
  virtual void RunRows(const float *, int64_t /* image */, const Range & /* rows */, float *, int /* threads */) const {
  }

  // What may follow in the same pass; false where it can't, and nothing has changed then.
  virtual bool AddBias(const FileTensor &) { return false; }
  virtual bool Activate(Activation) { return false; }
  virtual bool AddOther() { return false; }     // a further input, of the output's shape, before the activation
  virtual bool AddEnlarged() { return false; }  // or of half its height and width, each number for 2 x 2
  // Whether the layer does nothing but repeat each number for 2 x 2.
  virtual bool Doubles() const { return false; }
};

// The numbers of a tensor of a file.
std::vector<float> NumbersOf(const FileTensor &tensor);

class Conv3x3;
// What is made of filters, by where they are in the file: layers with the same ones share it.
using SharedFilters = std::map<const uint8_t *, std::shared_ptr<const Conv3x3>>;

// Layers by what they do, each for an operator of MindSpore's. weight: constant. Throw Unsuitable.
std::unique_ptr<Layer> MakeConvolution(const Operator &op, const FileTensor &weight, SharedFilters *shared);
std::unique_ptr<Layer> MakeTransposedConvolution(const Operator &op, const FileTensor &weight);
std::unique_ptr<Layer> MakeDense(const Operator &op, const FileTensor &weight);

// Lets a convolution do what 1x1 convolutions that alone read it make of it; returns what is left for each of these:
// taking its channels from the result. Empty where it can't, and nothing has changed then.
std::vector<std::unique_ptr<Layer>> FuseHead(Layer *hidden, const std::vector<Layer *> &readers);

// Layers of operators without weights, by their type. list: Reshape's shape, or the axes of a sum, or empty. Null for
// an unknown type. Throws Unsuitable.
std::unique_ptr<Layer> MakeLayer(const Operator &op, const std::vector<int64_t> &list);
// Lets a pool do what the layer before it does, where that pads with zeros; false where it can't.
bool PadByPool(const Layer &pad, Layer *pool);
// Lets a pool have its maps made some rows at a time by the layer before it, which it takes; false where it can't.
bool FeedPool(std::unique_ptr<Layer> *maker, Layer *pool);
// The activation that an operator's type means, or kNone.
Activation ActivationOf(const std::string &type);

}  // namespace rcnn

#endif  // RCNN_INFER_CPU_LAYER_H_
