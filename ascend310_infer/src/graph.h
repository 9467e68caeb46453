// One graph, on the program's own runtime or on MindSpore Lite. Checks what these accept silently: files, shapes,
// types.
#ifndef RCNN_INFER_GRAPH_H_
#define RCNN_INFER_GRAPH_H_

#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "numbers.h"
#include "sidecar.h"

namespace rcnn {

// Whether MindSpore Lite is built in.
#if defined(RCNN_LITE)
constexpr bool kHasLite = true;
#else
constexpr bool kHasLite = false;
#endif

struct Device {
  bool ascend = false;
  int id = 0, threads = 1;
  bool lite = false;  // MindSpore Lite, else the program's own runtime; on Ascend always Lite
  std::string aipp;   // AIPP configuration file, or empty
};

using Shape = std::vector<int64_t>;

std::string ShapeText(const Shape &shape);

class Graph {
 public:
  // Throws UserError for a file that isn't the sidecar's, or that the device can't run.
  Graph(const ModelFile &file, const std::string &format, const Device &device);
  ~Graph();
  Graph(const Graph &) = delete;
  Graph &operator=(const Graph &) = delete;

  // Shapes for the next Run; the model is resized where they differ from the last ones. Throws UserError.
  void SetShapes(const std::vector<Shape> &shapes);
  // The shape that the file itself says, or the last one set.
  Shape InputShape(size_t i) const;
  size_t Inputs() const;
  bool TakesBytes() const;  // input 0 is 8-bit pixels (AIPP)

  // Input i's memory, valid until SetShapes.
  template <typename T>
  T *Input(size_t i) {
    return static_cast<T *>(InputMemory(i, kNumber<T>));
  }
  void Run();
  // Output i's numbers, valid until the next Run or SetShapes, also where the device gives them in float16 or 64 bits.
  // Throws UserError where its shape or type isn't this.
  template <typename T>
  const T *Output(size_t i, const Shape &shape) {
    return static_cast<const T *>(OutputMemory(i, shape, kNumber<T>));
  }
  void ExpectOutputs(size_t count) const;

 private:
  template <typename T>
  static constexpr Number kNumber = std::is_same_v<T, float>     ? Number::kFloat32
                                    : std::is_same_v<T, int32_t> ? Number::kInt32
                                                                 : Number::kByte;
  void *InputMemory(size_t i, Number type);
  const void *OutputMemory(size_t i, const Shape &shape, Number type);

  struct Session;

  std::string path_;
  std::unique_ptr<Session> session_;
};

}  // namespace rcnn

#endif  // RCNN_INFER_GRAPH_H_
