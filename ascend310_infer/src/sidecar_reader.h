// What a sidecar's parts are read with: the program's own (sidecar.cc), and each branch's.
#ifndef RCNN_INFER_SIDECAR_READER_H_
#define RCNN_INFER_SIDECAR_READER_H_

#include <string>
#include <vector>

#include "json.h"
#include "sidecar.h"

namespace rcnn {

// Every key that is there must be read once, also one that the program doesn't go by: what nobody reads is no key of a
// sidecar. All calls throw UserError.
class SidecarReader {
 public:
  using Names = std::vector<std::string>;

  SidecarReader(const Json &json, const std::string &path);

  const Json &All() const { return json_; }
  bool IsOld() const { return old_; }
  bool IsWhole() const { return whole_; }

  // "PATH: its parts don't fit together: WHAT", unless they do.
  void Demand(bool fits, const std::string &what) const;
  // Whether to read a key that older exports lack.
  bool Says(const Json &from, const std::string &key) const { return !old_ || from.Has(key); }
  // One of `known`, without asking whether it is there.
  static std::string OneOf(const Json &from, const std::string &key, const Names &known);
  // A convention by its name; older exports, which don't say it, did the first.
  std::string Convention(const Json &from, const std::string &key, const Names &known) const {
    return Says(from, key) ? OneOf(from, key, known) : known[0];
  }
  // Of a file entry; and of the list of them that the split form's "files" has of this name.
  ModelFile File(const Json &entry) const;
  std::vector<ModelFile> Files(const std::string &name) const;
  // A RoIAlign, whose levels are the pyramid's first.
  RoiSettings Roi(const std::string &name) const;
  // Of a cascade; 0: it is none.
  int64_t Stages() const;

 private:
  const Json &json_;
  const std::string path_;
  std::string folder_;
  bool old_ = false, whole_ = false;
};

}  // namespace rcnn

#endif  // RCNN_INFER_SIDECAR_READER_H_
