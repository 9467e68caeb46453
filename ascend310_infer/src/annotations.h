// What an annotation file says of images' sizes: whether they were annotated upright or as stored.
#ifndef RCNN_INFER_ANNOTATIONS_H_
#define RCNN_INFER_ANNOTATIONS_H_

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace rcnn {

// Sizes of a COCO file's images, by their names. As src/annotated.py finds an image's entry: whose file_name ends the
// image's path, the longest such; else the one of its name that shares most folders with it.
class AnnotatedSizes {
 public:
  AnnotatedSizes() = default;
  // Throws UserError for a file that can't be read, or isn't COCO's.
  explicit AnnotatedSizes(const std::string &path);

  // Height and width of the image at an absolute path; {0, 0} without an entry of that name, or a usable size in it.
  // Throws UserError where entries of different sizes fit equally well.
  std::array<int64_t, 2> Find(const std::string &image) const;

 private:
  struct Entry {
    std::vector<std::string> parts;  // folders and name
    std::array<int64_t, 2> size;
  };

  std::string path_;
  std::vector<Entry> entries_;
  std::map<std::string, std::vector<size_t>> by_name_, by_plain_name_;
};

}  // namespace rcnn

#endif  // RCNN_INFER_ANNOTATIONS_H_
