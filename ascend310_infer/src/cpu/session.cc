// A graph's layers, in order, and the memory that they share.
#include <malloc.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <numeric>
#include <utility>

#include "../../../src/ops/csrc/workspace.h"
#include "../files.h"
#include "../graph_session.h"
#include "layer.h"

namespace rcnn {

namespace {

struct Step {
  std::unique_ptr<Layer> layer;
  std::vector<size_t> inputs;  // values
  size_t output = 0;
};

// An array of numbers: a graph's input, a constant, or what a step makes.
struct Value {
  Shape shape;
  std::vector<float> constant;
  int64_t offset = -1;  // in the memory; -1: a constant
};

struct Network {
  std::vector<Value> values;
  std::vector<Step> steps;
  std::vector<size_t> inputs, outputs;
};

// Makes a network of a file's operators, as few layers as can be.
class Builder {
 public:
  Builder(const std::string &path, const std::vector<uint8_t> &bytes) : path_(path), file_(ReadMindir(path, bytes)) {}

  Network Build() {
    ShareEqualParameters();
    CountUses();
    for (const MindirInput &input : file_.inputs) {
      network_.inputs.push_back(NewValue(input.shape));
      names_[input.name] = {network_.inputs.back(), {}, {}, {}, true};
    }
    for (const auto &[name, tensor] : file_.parameters) names_[name] = {0, tensor, {}, {}, false};
    for (const Operator &op : file_.operators) {
      if (uses_.count(op.output) == 0) continue;
      try {
        Add(op);
      } catch (const Unsuitable &problem) {
        Refuse(problem.what());
      }
    }
    const Named &output = Find(file_.output);
    for (const std::string &name : output.parts.empty() ? std::vector<std::string>{file_.output} : output.parts) {
      network_.outputs.push_back(ValueOf(name));
    }
    DropEmptySteps();
    for (Step &step : network_.steps) FuseReaders(&step);
    DropEmptySteps();
    return std::move(network_);
  }

 private:
  // What a name of the file stands for.
  struct Named {
    size_t value = 0;
    FileTensor tensor;               // or of a constant
    std::vector<int64_t> list;       // or of a constant that says a shape or axes
    std::vector<std::string> parts;  // or of a tuple
    bool is_value = false;
  };

  [[noreturn]] void Refuse(const std::string &what) const {
    throw UserError(path_ + ": the program's own runtime can't run it: " + what +
                    "; export with --split, or run it in MindSpore Lite (--runtime lite)");
  }

  [[noreturn]] void Damaged() const { throw UserError(path_ + ": its parts don't fit together; export it again"); }

  // Levels share a head's weights, which the file has once for each.
  void ShareEqualParameters() {
    std::map<std::pair<std::vector<int64_t>, std::string>, std::vector<FileTensor>> known;
    for (auto &[name, tensor] : file_.parameters) {
      const std::string start(reinterpret_cast<const char *>(tensor.data), std::min<size_t>(4 * tensor.count, 64));
      std::vector<FileTensor> &like = known[{tensor.shape, start}];
      const auto same = std::find_if(like.begin(), like.end(), [&tensor = tensor](const FileTensor &other) {
        return std::memcmp(other.data, tensor.data, 4 * tensor.count) == 0;
      });
      if (same == like.end()) {
        like.push_back(tensor);
      } else {
        tensor = *same;
      }
    }
  }

  static bool IsAlias(const Operator &op) { return op.type == "Load" || op.type == "Depend"; }

  // How often each name that the output needs is read; what passes a name on counts as its reader's.
  void CountUses() {
    std::map<std::string, const Operator *> makers;
    for (const Operator &op : file_.operators) makers[op.output] = &op;
    std::vector<std::string> left = {file_.output};
    while (!left.empty()) {
      const std::string name = left.back();
      left.pop_back();
      if (++uses_[name] > 1) continue;
      const auto found = makers.find(name);
      if (found == makers.end()) continue;
      const Operator &op = *found->second;
      const size_t count = IsAlias(op) ? std::min<size_t>(1, op.inputs.size()) : op.inputs.size();
      left.insert(left.end(), op.inputs.begin(), op.inputs.begin() + static_cast<int64_t>(count));
    }
  }

  size_t NewValue(Shape shape) {
    network_.values.push_back({std::move(shape), {}, 0});
    return network_.values.size() - 1;
  }

  const Named &Find(const std::string &name) const {
    const auto found = names_.find(name);
    if (found == names_.end()) Damaged();
    return found->second;
  }

  size_t ValueOf(const std::string &name) {
    const Named &named = Find(name);
    if (named.is_value) return named.value;
    if (named.tensor.data == nullptr) Damaged();
    return Constant(named.tensor, named.tensor.shape);
  }

  size_t Constant(const FileTensor &tensor, const Shape &shape) {
    const size_t value = NewValue(shape);
    network_.values[value].constant = NumbersOf(tensor);
    network_.values[value].offset = -1;
    return value;
  }

  const FileTensor &TensorOf(const Operator &op, size_t i) const {
    const Named &named = Find(InputOf(op, i));
    if (named.tensor.data == nullptr) throw Unsuitable(op.type + " has weights that aren't constant");
    return named.tensor;
  }

  const std::string &InputOf(const Operator &op, size_t i) const {
    if (i >= op.inputs.size()) Damaged();
    return op.inputs[i];
  }

  void Put(const std::string &name, size_t value) { names_[name] = {value, {}, {}, {}, true}; }

  void AddStep(const Operator &op, std::unique_ptr<Layer> layer, std::vector<size_t> inputs) {
    const size_t output = NewValue({});
    maker_[output] = network_.steps.size();
    network_.steps.push_back({std::move(layer), std::move(inputs), output});
    Put(op.output, output);
  }

  void DropEmptySteps() {
    std::vector<Step> &steps = network_.steps;
    steps.erase(std::remove_if(steps.begin(), steps.end(), [](const Step &s) { return s.layer == nullptr; }),
                steps.end());
  }

  // What alone reads a step's output becomes one with it, where that is a head's two convolutions or more, or a pool.
  void FuseReaders(Step *step) {
    const std::vector<size_t> &kept = network_.outputs;
    if (std::count(kept.begin(), kept.end(), step->output) != 0) return;
    std::vector<Step *> readers;
    std::vector<Layer *> layers;
    for (Step &other : network_.steps) {
      if (std::count(other.inputs.begin(), other.inputs.end(), step->output) == 0) continue;
      readers.push_back(&other);
      layers.push_back(other.layer.get());
    }
    if (readers.size() == 1 && readers[0]->inputs.size() == 1 && FeedPool(&step->layer, layers[0])) {
      readers[0]->inputs = std::exchange(step->inputs, {});
    }
    if (readers.size() < 2) return;
    std::vector<std::unique_ptr<Layer>> parts = FuseHead(step->layer.get(), layers);
    for (size_t i = 0; i < parts.size(); ++i) readers[i]->layer = std::move(parts[i]);
  }

  // The step that makes what the operator reads, if nothing else reads that; or null.
  Step *MakerOf(const Operator &op, size_t i) {
    const std::string &name = InputOf(op, i);
    const Named &named = Find(name);
    const auto found = named.is_value ? maker_.find(named.value) : maker_.end();
    return found == maker_.end() || uses_.at(name) != 1 ? nullptr : &network_.steps[found->second];
  }

  void Add(const Operator &op) {
    if (op.type == "Constant") {
      const auto found = op.arguments.find("value");
      Named named;
      if (found != op.arguments.end() && !found->second.tensors.empty()) {
        named.tensor = found->second.tensors[0];
      } else if (found != op.arguments.end()) {
        named.list = found->second.integers;
      }
      names_[op.output] = named;
    } else if (IsAlias(op)) {
      names_[op.output] = Find(InputOf(op, 0));
    } else if (op.type == "MakeTuple") {
      Named named;
      named.parts = op.inputs;
      names_[op.output] = named;
    } else if (op.type == "Conv2D") {
      AddStep(op, MakeConvolution(op, TensorOf(op, 1), &shared_), {ValueOf(InputOf(op, 0))});
    } else if (op.type == "Conv2DTranspose") {
      AddStep(op, MakeTransposedConvolution(op, TensorOf(op, 1)), {ValueOf(InputOf(op, 0))});
    } else if (op.type == "MatMul") {
      AddStep(op, MakeDense(op, TensorOf(op, 1)), {ValueOf(InputOf(op, 0))});
    } else if (op.type == "BiasAdd") {
      AddBias(op);
    } else if (op.type == "Add" && AddTo(op)) {
      return;
    } else if (ActivationOf(op.type) != Activation::kNone && MakerOf(op, 0) != nullptr &&
               MakerOf(op, 0)->layer->Activate(ActivationOf(op.type))) {
      Put(op.output, MakerOf(op, 0)->output);
    } else {
      AddOther(op);
    }
  }

  void AddBias(const Operator &op) {
    const FileTensor &bias = TensorOf(op, 1);
    Step *maker = MakerOf(op, 0);
    if (maker != nullptr && maker->layer->AddBias(bias)) return Put(op.output, maker->output);
    // of the channels of maps: what else has a bias is a dense layer, which takes it
    Operator add;
    add.type = "Add";
    const size_t x = ValueOf(InputOf(op, 0));
    AddStep(op, MakeLayer(add, {}), {x, Constant(bias, {static_cast<int64_t>(bias.count), 1, 1})});
  }

  // Lets the later one of the two that are added add the other; false where it can't.
  bool AddTo(const Operator &op) {
    if (op.inputs.size() != 2 || !Find(op.inputs[0]).is_value || !Find(op.inputs[1]).is_value) return false;
    const size_t values[] = {Find(op.inputs[0]).value, Find(op.inputs[1]).value};
    if (values[0] == values[1]) return false;
    // values are numbered as they are made
    const size_t later = values[1] > values[0] ? 1 : 0;
    Step *maker = MakerOf(op, later), *other = MakerOf(op, 1 - later);
    // a map that is enlarged for it: the earlier one waits for that
    if (maker != nullptr && maker->layer->Doubles() && other != nullptr && other->layer->AddEnlarged()) {
      maker->layer = std::move(other->layer);
      maker->inputs.insert(maker->inputs.begin(), other->inputs[0]);
      Put(op.output, maker->output);
      return true;
    }
    if (maker == nullptr || maker->output != values[later] || !maker->layer->AddOther()) return false;
    maker->inputs.push_back(values[1 - later]);
    Put(op.output, maker->output);
    return true;
  }

  void AddOther(const Operator &op) {
    std::vector<int64_t> list;
    std::vector<std::string> names = op.inputs;
    if (op.type == "Reshape" || op.type.compare(0, 6, "Reduce") == 0) {
      list = Find(InputOf(op, 1)).list;
      names.resize(1);
    }
    // what is joined comes as a tuple
    if (names.size() == 1 && !Find(names[0]).parts.empty()) names = std::vector<std::string>(Find(names[0]).parts);
    std::unique_ptr<Layer> layer = MakeLayer(op, list);
    if (layer == nullptr) Refuse("it lacks the operator " + op.type);
    std::vector<size_t> inputs;
    for (const std::string &name : names) inputs.push_back(ValueOf(name));
    if (inputs.empty()) Damaged();
    // a pool's padding
    Step *before = op.inputs.size() == 1 ? MakerOf(op, 0) : nullptr;
    if (before != nullptr && PadByPool(*before->layer, layer.get())) {
      const size_t x = before->inputs[0];
      before->layer = std::move(layer);
      before->inputs = {x};
      return Put(op.output, before->output);
    }
    AddStep(op, std::move(layer), std::move(inputs));
  }

  const std::string &path_;
  Mindir file_;
  Network network_;
  std::map<std::string, int64_t> uses_;
  std::map<std::string, Named> names_;
  std::map<size_t, size_t> maker_;  // of values, the step
  SharedFilters shared_;
};

// Numbers that lie in memory from one step to another, both included; values that take each other's place are one.
struct Stay {
  size_t first, last;
  int64_t count, offset = -1;
};

// Gives each its offset, the largest first, each the lowest that it may have: "greedy by size" of Pisarchyk and Lee
// (2020, arXiv:2001.03288). Returns how much memory there must be.
int64_t PlaceAll(std::vector<Stay> *stays) {
  std::vector<size_t> order(stays->size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return (*stays)[a].count > (*stays)[b].count; });
  int64_t size = 0;
  std::vector<const Stay *> placed;  // by their offsets
  for (const size_t i : order) {
    Stay &stay = (*stays)[i];
    const int64_t count = Workspace::Padded(stay.count);
    int64_t begin = 0;
    for (const Stay *other : placed) {
      if (other->last < stay.first || other->first > stay.last) continue;
      if (other->offset >= begin + count) break;
      begin = std::max(begin, other->offset + Workspace::Padded(other->count));
    }
    stay.offset = begin;
    size = std::max(size, begin + count);
    const auto after = std::find_if(placed.begin(), placed.end(), [&](const Stay *o) { return o->offset > begin; });
    placed.insert(after, &stay);
  }
  return size;
}

class OwnSession : public GraphSession {
 public:
  OwnSession(const ModelFile &file, const Device &device) : path_(file.path), threads_(device.threads) {
    {
      const std::vector<uint8_t> bytes = ReadChecked(file);
      network_ = Builder(path_, bytes).Build();
    }
    malloc_trim(0);
  }

  size_t Inputs() const override { return network_.inputs.size(); }
  Shape InputShape(size_t i) const override { return network_.values[network_.inputs[i]].shape; }
  Number InputType(size_t) const override { return Number::kFloat32; }

  void *Input(size_t i) override {
    Plan();
    return At(network_.inputs[i]);
  }

  void Resize(const std::vector<Shape> &shapes) override {
    for (size_t i = 0; i < shapes.size(); ++i) network_.values[network_.inputs[i]].shape = shapes[i];
    planned_ = ran_ = false;
    Plan();
  }

  void Run() override {
    Plan();
    ran_ = false;
    try {
      for (const Step &step : network_.steps) {
        std::vector<const float *> inputs;
        for (const size_t value : step.inputs) inputs.push_back(At(value));
        step.layer->Run(inputs, At(step.output), threads_);
      }
    } catch (const std::bad_alloc &) {
      NoMemory();
    }
    ran_ = true;
  }

  size_t Outputs() const override { return ran_ ? network_.outputs.size() : 0; }
  Shape OutputShape(size_t i) const override { return network_.values[network_.outputs[i]].shape; }
  Number OutputType(size_t) const override { return Number::kFloat32; }
  const void *Output(size_t i) override { return At(network_.outputs[i]); }

 private:
  float *At(size_t value) {
    Value &v = network_.values[value];
    return v.offset < 0 ? v.constant.data() : memory_.get() + v.offset;
  }

  [[noreturn]] void NoMemory() const {
    throw UserError(path_ + ": there is not enough memory to run it on an input " + ShapeText(InputShape(0)) +
                    "; a smaller canvas takes less memory");
  }

  // Shapes of all values, and where each lies while it is needed.
  void Plan() {
    if (planned_) return;
    for (const size_t input : network_.inputs) {
      const Shape &shape = network_.values[input].shape;
      if (shape.empty() || std::any_of(shape.begin(), shape.end(), [](int64_t side) { return side < 1; })) {
        throw UserError(path_ + ": can't take input " + ShapeText(shape));
      }
    }
    for (Step &step : network_.steps) {
      std::vector<Shape> shapes;
      for (const size_t value : step.inputs) shapes.push_back(network_.values[value].shape);
      try {
        for (const Shape &shape : shapes) CountOf(shape);
        network_.values[step.output].shape = step.layer->Resize(shapes);
        CountOf(network_.values[step.output].shape);
      } catch (const Unsuitable &problem) {
        throw UserError(path_ + ": can't take input " + ShapeText(InputShape(0)) + " (" + problem.what() + ")");
      } catch (const std::bad_alloc &) {
        NoMemory();
      }
    }
    const int64_t size = Place();
    if (size > size_) {
      memory_.reset();
      size_ = 0;
      try {
        memory_ = TakeMemory(size);
      } catch (const std::bad_alloc &) {
        NoMemory();
      }
      size_ = size;
    }
    planned_ = true;
  }

  // Gives every value its place; returns how much memory there must be.
  int64_t Place() {
    std::vector<Value> &values = network_.values;
    const size_t end = network_.steps.size();
    std::vector<size_t> last(values.size(), 0);
    for (size_t i = 0; i < end; ++i) {
      last[network_.steps[i].output] = i;
      for (const size_t value : network_.steps[i].inputs) last[value] = i;
    }
    for (const size_t value : network_.outputs) last[value] = end;
    // inputs are there before the first step
    std::vector<Stay> stays;
    std::vector<size_t> stay_of(values.size());
    const auto stay = [&](size_t value, size_t first) {
      stay_of[value] = stays.size();
      stays.push_back({first, std::max(first, last[value]), CountOf(values[value].shape)});
    };
    for (const size_t input : network_.inputs) stay(input, 0);
    for (size_t i = 0; i < end; ++i) {
      const Step &step = network_.steps[i];
      stay(step.output, i);
      for (size_t k = 0; k < step.inputs.size(); ++k) {
        const size_t value = step.inputs[k];
        const bool once = std::count(step.inputs.begin(), step.inputs.end(), value) == 1;
        const bool done = values[value].offset >= 0 && last[value] == i;
        if (!once || !done || !step.layer->InPlace(k) || stays[stay_of[value]].count != stays.back().count) continue;
        stay_of[step.output] = stay_of[value];
        stays[stay_of[value]].last = stays.back().last;
        stays.pop_back();
        break;
      }
    }
    const int64_t size = PlaceAll(&stays);
    for (const size_t input : network_.inputs) values[input].offset = stays[stay_of[input]].offset;
    for (const Step &step : network_.steps) values[step.output].offset = stays[stay_of[step.output]].offset;
    return size;
  }

  const std::string path_;
  const int threads_;
  Network network_;
  Memory memory_;
  int64_t size_ = 0;
  bool planned_ = false, ran_ = false;
};

}  // namespace

std::unique_ptr<GraphSession> MakeOwnSession(const ModelFile &file, const Device &device) {
  return std::make_unique<OwnSession>(file, device);
}

}  // namespace rcnn
