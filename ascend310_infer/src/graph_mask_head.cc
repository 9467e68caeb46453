#include <algorithm>

#include "graph.h"
#include "mask_head.h"

namespace rcnn {

namespace {

class GraphMaskHead : public MaskHead {
 public:
  GraphMaskHead(const ModelFile &file, const Device &device) : graph_(file, "MINDIR", device) {}

  // the runtime's memory grows with them, and past some ten they are no faster together
  size_t MostRois() const override { return 32; }

  int64_t Channels() const override {
    const Shape wanted = graph_.InputShape(0);
    return wanted.size() == 4 ? wanted[1] : 0;
  }

  float *Input(int64_t count, int64_t side) override {
    count_ = count;
    side_ = side;
    graph_.SetShapes({{count, Channels(), side, side}});
    return graph_.Input<float>(0);
  }

  void Run(const int32_t *labels, int64_t classes, float *logits) override {
    graph_.Run();
    graph_.ExpectOutputs(1);
    const int64_t cells = 4 * side_ * side_;
    const float *all = graph_.Output<float>(0, {count_, classes, 2 * side_, 2 * side_});
    for (int64_t r = 0; r < count_; ++r)
      std::copy_n(all + (r * classes + labels[r]) * cells, cells, logits + r * cells);
  }

 private:
  Graph graph_;
  int64_t count_ = 0, side_ = 0;
};

}  // namespace

std::unique_ptr<MaskHead> MakeGraphMaskHead(const ModelFile &file, const Device &device) {
  return std::make_unique<GraphMaskHead>(file, device);
}

}  // namespace rcnn
