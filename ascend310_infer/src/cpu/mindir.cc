#include "mindir.h"

#include <cstring>
#include <utility>

#include "../files.h"

namespace rcnn {

namespace {

// Of files: more than any export has, so that a damaged one can't ask for much memory or a deep recursion.
constexpr int kDeepest = 8;
constexpr size_t kMostDimensions = 8, kMostOperators = 100000;
constexpr int64_t kLongestSide = int64_t{1} << 31;

enum Kind : int64_t { kFloat32 = 1, kTensorsKind = 17 };

struct Bytes {
  const uint8_t *data = nullptr;
  size_t size = 0;
};

std::string TextOf(const Bytes &bytes) { return {reinterpret_cast<const char *>(bytes.data), bytes.size}; }

// The fields of one message, one after the other.
class Fields {
 public:
  Fields(const std::string &path, const Bytes &bytes) : path_(path), bytes_(bytes) {}

  // Goes to the next one; false where there is none.
  bool Next() {
    if (at_ == bytes_.size) return false;
    const uint64_t key = Varint();
    number = static_cast<int64_t>(key >> 3);
    switch (key & 7) {
      case 0:
        integer = static_cast<int64_t>(Varint());
        bytes = {};
        break;
      case 1:
        bytes = Take(8);
        break;
      case 2:
        bytes = Take(Varint());
        break;
      case 5:
        bytes = Take(4);
        break;
      default:
        Fail();
    }
    is_integer = (key & 7) == 0;
    return true;
  }

  int64_t Integer() const {
    if (!is_integer) Fail();
    return integer;
  }

  // A message, a text, or packed numbers.
  const Bytes &Inner() const {
    if (is_integer) Fail();
    return bytes;
  }

  double Real() const {
    if (is_integer) Fail();
    float single = 0;
    double twice = 0;
    if (bytes.size == sizeof(single)) {
      std::memcpy(&single, bytes.data, sizeof(single));
      return static_cast<double>(single);
    }
    if (bytes.size != sizeof(twice)) Fail();
    std::memcpy(&twice, bytes.data, sizeof(twice));
    return twice;
  }

  // Integers of a repeated field, which may be packed.
  void AppendIntegers(std::vector<int64_t> *to) const {
    if (is_integer) {
      to->push_back(integer);
      return;
    }
    Fields packed(path_, bytes);
    while (packed.at_ < packed.bytes_.size) to->push_back(static_cast<int64_t>(packed.Varint()));
  }

  [[noreturn]] void Fail() const {
    throw UserError(path_ + ": not a MINDIR file that this program reads; export it again");
  }

  int64_t number = 0;  // the field's, in its message

 private:
  uint64_t Varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (at_ == bytes_.size) Fail();
      const uint8_t byte = bytes_.data[at_++];
      value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if ((byte & 0x80) == 0) return value;
    }
    Fail();
  }

  Bytes Take(uint64_t size) {
    if (size > bytes_.size - at_) Fail();
    const Bytes taken{bytes_.data + at_, static_cast<size_t>(size)};
    at_ += taken.size;
    return taken;
  }

  const std::string &path_;
  const Bytes bytes_;
  size_t at_ = 0;
  bool is_integer = false;
  int64_t integer = 0;
  Bytes bytes;
};

class Reader {
 public:
  explicit Reader(const std::string &path) : path_(path) {}

  Mindir ReadModel(const Bytes &bytes) {
    Bytes graph;
    Fields model(path_, bytes);
    while (model.Next()) {
      if (model.number == 7) graph = model.Inner();
      if (model.number == 8)
        throw UserError(path_ + ": has functions, which this program's runtime doesn't run" + kRemedy);
      if (model.number == 12) ReadPrimitive(model.Inner());
    }
    Mindir out;
    Fields fields(path_, graph);
    size_t outputs = 0;
    while (fields.Next()) {
      if (fields.number == 1) {
        if (out.operators.size() == kMostOperators) fields.Fail();
        out.operators.push_back(ReadOperator(fields.Inner()));
      } else if (fields.number == 3) {
        std::string name;
        const FileTensor tensor = ReadTensor(fields.Inner(), true, &name);
        out.parameters[name] = tensor;
      } else if (fields.number == 5) {
        out.inputs.push_back(ReadInput(fields.Inner()));
      } else if (fields.number == 6) {
        out.output = ReadInput(fields.Inner()).name;
        ++outputs;
      }
    }
    if (outputs != 1 || out.inputs.empty()) fields.Fail();
    return out;
  }

  static constexpr const char *kRemedy = "; export it again, with --mindir_version 1";

 private:
  void ReadPrimitive(const Bytes &bytes) {
    std::string name;
    Operator primitive;
    Fields fields(path_, bytes);
    while (fields.Next()) {
      if (fields.number == 1) name = TextOf(fields.Inner());
      if (fields.number == 2) primitive.type = TextOf(fields.Inner());
      if (fields.number == 3) ReadArgument(fields.Inner(), &primitive);
    }
    primitives_[name] = std::move(primitive);
  }

  Operator ReadOperator(const Bytes &bytes) {
    Operator out;
    std::vector<std::string> inputs;
    Fields fields(path_, bytes);
    while (fields.Next()) {
      if (fields.number == 1) inputs.push_back(TextOf(fields.Inner()));
      if (fields.number == 2) out.output = TextOf(fields.Inner());
      if (fields.number == 4) out.type = TextOf(fields.Inner());
      // of what refers to a primitive, the arguments are the primitive's; its own say what the compiler inferred
      if (fields.number == 5 && out.type == "Constant") ReadArgument(fields.Inner(), &out);
    }
    const std::string reference = "REF::";
    if (out.type.compare(0, reference.size(), reference) == 0) {
      const auto found = primitives_.find(out.type.substr(reference.size()));
      if (found == primitives_.end()) fields.Fail();
      const std::string output = out.output;
      out = found->second;
      out.output = output;
    }
    out.inputs = std::move(inputs);
    return out;
  }

  MindirInput ReadInput(const Bytes &bytes) {
    MindirInput out;
    Fields fields(path_, bytes);
    while (fields.Next()) {
      if (fields.number == 1) out.name = TextOf(fields.Inner());
      if (fields.number == 2) {
        std::string name;
        out.shape = ReadTensor(fields.Inner(), false, &name).shape;
      }
    }
    return out;
  }

  void ReadArgument(const Bytes &bytes, Operator *to) {
    std::string name;
    Argument argument;
    ReadValue(bytes, kDeepest, &name, &argument);
    to->arguments[name] = std::move(argument);
  }

  void ReadValue(const Bytes &bytes, int depth, std::string *name, Argument *to) {
    Fields fields(path_, bytes);
    if (depth == 0) fields.Fail();
    while (fields.Next()) {
      switch (fields.number) {
        case 1:
          *name = TextOf(fields.Inner());
          break;
        case 2:
        case 4:
          to->real = fields.Real();
          break;
        case 3:
          to->integers.push_back(fields.Integer());
          break;
        case 5:
          to->text = TextOf(fields.Inner());
          break;
        case 10:
          fields.AppendIntegers(&to->integers);
          break;
        case 6:
        case 12: {
          std::string unused;
          to->tensors.push_back(ReadTensor(fields.Inner(), false, &unused));
          break;
        }
        case 17: {
          std::string unused;
          ReadValue(fields.Inner(), depth - 1, &unused, to);
          break;
        }
        default:
          break;
      }
    }
  }

  // whole: a parameter, of which the file must have every number. Others may have a shape alone.
  FileTensor ReadTensor(const Bytes &bytes, bool whole, std::string *name) {
    FileTensor out;
    int64_t type = 0;
    Bytes raw;
    Fields fields(path_, bytes);
    while (fields.Next()) {
      if (fields.number == 1) fields.AppendIntegers(&out.shape);
      if (fields.number == 2) type = fields.Integer();
      if (fields.number == 7) *name = TextOf(fields.Inner());
      if (fields.number == 9) raw = fields.Inner();
      if (fields.number == 16 && fields.Integer() != 0) fields.Fail();
    }
    if (out.shape.size() > kMostDimensions) fields.Fail();
    uint64_t count = 1;
    for (const int64_t side : out.shape) {
      // of a graph's input a side may be open
      if (side > kLongestSide || (whole && side < 1) || count > SIZE_MAX / 64 / kLongestSide) fields.Fail();
      count *= static_cast<uint64_t>(side < 1 ? 1 : side);
    }
    if (raw.size == count * sizeof(float) && type == kFloat32) {
      out.data = raw.data;
      out.count = static_cast<size_t>(count);
    } else if (whole) {
      throw UserError(path_ + ": its parameter " + *name +
                      " isn't float32, or isn't in the file whole; export it again");
    }
    return out;
  }

  const std::string &path_;
  std::map<std::string, Operator> primitives_;
};

}  // namespace

std::string Operator::Text(const std::string &name) const {
  const auto found = arguments.find(name);
  return found == arguments.end() ? "" : found->second.text;
}

std::vector<int64_t> Operator::Integers(const std::string &name) const {
  const auto found = arguments.find(name);
  return found == arguments.end() ? std::vector<int64_t>() : found->second.integers;
}

int64_t Operator::Integer(const std::string &name, int64_t otherwise) const {
  const std::vector<int64_t> all = Integers(name);
  return all.empty() ? otherwise : all[0];
}

double Operator::Real(const std::string &name, double otherwise) const {
  const auto found = arguments.find(name);
  return found == arguments.end() ? otherwise : found->second.real;
}

Mindir ReadMindir(const std::string &path, const std::vector<uint8_t> &bytes) {
  // primitives come after the graph that refers to them in some files: read twice
  Reader reader(path);
  return reader.ReadModel({bytes.data(), bytes.size()});
}

}  // namespace rcnn
