// A small reader of MINDIR files (MindSpore's mind_ir.proto, in the protocol buffers' wire format): what an exported
// graph of the split form holds, its numbers left where they are in the file.
#ifndef RCNN_INFER_CPU_MINDIR_H_
#define RCNN_INFER_CPU_MINDIR_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace rcnn {

// Numbers of a file; `data` needn't be aligned.
struct FileTensor {
  std::vector<int64_t> shape;
  const uint8_t *data = nullptr;  // float32
  size_t count = 0;
};

// An operator's argument: whatever of this its kind has.
struct Argument {
  std::string text;
  std::vector<int64_t> integers;  // of a number or truth value one, of nested lists all in order
  double real = 0;
  std::vector<FileTensor> tensors;
};

struct Operator {
  std::string type;
  std::map<std::string, Argument> arguments;
  std::vector<std::string> inputs;
  std::string output;

  // The argument's text, integers, first integer or number; `otherwise` where it isn't there.
  std::string Text(const std::string &name) const;
  std::vector<int64_t> Integers(const std::string &name) const;
  int64_t Integer(const std::string &name, int64_t otherwise) const;
  double Real(const std::string &name, double otherwise) const;
};

struct MindirInput {
  std::string name;
  std::vector<int64_t> shape;
};

struct Mindir {
  std::vector<MindirInput> inputs;  // float32
  std::string output;               // one value, which may be a tuple
  std::map<std::string, FileTensor> parameters;
  std::vector<Operator> operators;  // each after those that it reads
};

// The graph of a file's bytes, which must outlive it. path: for messages. Throws UserError for what is no such file.
Mindir ReadMindir(const std::string &path, const std::vector<uint8_t> &bytes);

}  // namespace rcnn

#endif  // RCNN_INFER_CPU_MINDIR_H_
