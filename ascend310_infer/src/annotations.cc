#include "annotations.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>

#include "files.h"
#include "json.h"

namespace rcnn {

namespace {

constexpr int64_t kMostSide = int64_t{1} << 31;

// Folders and name, slashes either way, no dots.
std::vector<std::string> Parts(const std::string &name) {
  std::vector<std::string> out;
  std::string part;
  for (const char c : name + "/") {
    if (c != '/' && c != '\\') {
      part.push_back(c);
      continue;
    }
    if (!part.empty() && part != "." && part != "..") out.push_back(part);
    part.clear();
  }
  return out;
}

// The name with its suffix in small letters.
std::string Plain(std::string name) {
  const size_t dot = name.rfind('.');
  if (dot != std::string::npos) {
    std::transform(name.begin() + static_cast<std::ptrdiff_t>(dot), name.end(),
                   name.begin() + static_cast<std::ptrdiff_t>(dot), [](unsigned char c) { return std::tolower(c); });
  }
  return name;
}

// A side in pixels, as a number or a text of one; 0 for anything else.
int64_t Side(const Json &entry, const std::string &key) {
  if (!entry.Has(key)) return 0;
  const Json &value = entry.At(key);
  double side = 0;
  if (value.IsNumber()) side = value.AsNumber();
  if (value.IsText()) side = static_cast<double>(std::strtoll(value.AsText().c_str(), nullptr, 10));
  return side >= 1 && side < static_cast<double>(kMostSide) ? static_cast<int64_t>(side) : 0;
}

}  // namespace

AnnotatedSizes::AnnotatedSizes(const std::string &path) : path_(path) {
  const std::vector<uint8_t> bytes = ReadFile(path, "annotations");
  const size_t mark = bytes.size() >= 3 && bytes[0] == 0xEF && bytes[1] == 0xBB && bytes[2] == 0xBF ? 3 : 0;
  const std::string text(bytes.begin() + static_cast<std::ptrdiff_t>(mark), bytes.end());
  const Json document =
      Json::ParseList(text, path, "images", {"file_name", "height", "width"}, "fetch or write the file again");
  if (!document.IsList()) throw UserError(path + ": no list of \"images\"; not a COCO instances file");
  for (const Json &image : document.AsList()) {
    if (!image.Has("file_name") || !image.At("file_name").IsText()) {
      throw UserError(path + ": an image without file_name; not a COCO instances file");
    }
    std::vector<std::string> parts = Parts(image.Text("file_name"));
    if (parts.empty()) continue;
    const size_t place = entries_.size();
    by_name_[parts.back()].push_back(place);
    by_plain_name_[Plain(parts.back())].push_back(place);
    const std::array<int64_t, 2> size = {Side(image, "height"), Side(image, "width")};
    const bool usable = size[0] > 0 && size[1] > 0;
    entries_.push_back({std::move(parts), usable ? size : std::array<int64_t, 2>{0, 0}});
  }
}

std::array<int64_t, 2> AnnotatedSizes::Find(const std::string &image) const {
  const std::vector<std::string> parts = Parts(image);
  if (parts.empty()) return {0, 0};
  auto found = by_name_.find(parts.back());
  if (found == by_name_.end()) {
    found = by_plain_name_.find(Plain(parts.back()));
    if (found == by_plain_name_.end()) return {0, 0};
  }
  // whether the whole file_name ends the path, and how many of its parts do
  std::pair<bool, size_t> best{false, 0};
  const Entry *chosen = nullptr;
  bool differ = false;
  for (const size_t place : found->second) {
    const Entry &entry = entries_[place];
    const size_t most = std::min(entry.parts.size(), parts.size());
    size_t same = 1;
    while (same < most && entry.parts[entry.parts.size() - 1 - same] == parts[parts.size() - 1 - same]) ++same;
    const std::pair<bool, size_t> score{same == entry.parts.size(), same};
    if (score > best) {
      best = score;
      chosen = &entry;
      differ = false;
    } else if (score == best && entry.size != chosen->size) {
      differ = true;
    }
  }
  if (differ) {
    throw UserError(image + ": several images of " + path_ +
                    " fit it equally well, of different sizes (tried its path" +
                    " and its name); name the folder above them as --input, with --recursive");
  }
  return chosen->size;
}

}  // namespace rcnn
