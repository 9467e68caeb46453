// Which branches there are, and which of them each detector has.
#include <algorithm>
#include <map>

#include "branch.h"

namespace rcnn {

// Each reads its branch's part of a sidecar: null where the detector hasn't the branch (`has`), and the sidecar says
// so.
std::shared_ptr<const Branch> ReadMask(const SidecarReader &from, bool has);
std::shared_ptr<const Branch> ReadKeypoint(const SidecarReader &from, bool has);

namespace {

const std::map<std::string, std::shared_ptr<const Branch> (*)(const SidecarReader &, bool)> kBranches = {
    {"mask", ReadMask},
    {"keypoint", ReadKeypoint},
};

// As src/config/keys.py's.
const std::map<std::string, std::vector<std::string>> kDetectors = {
    {"mask_rcnn", {"mask"}},         {"faster_rcnn", {}}, {"cascade_rcnn", {}}, {"cascade_mask_rcnn", {"mask"}},
    {"keypoint_rcnn", {"keypoint"}},
};

template <typename Table>
std::vector<std::string> Keys(const Table &table) {
  std::vector<std::string> out;
  for (const auto &entry : table) out.push_back(entry.first);
  return out;
}

}  // namespace

std::vector<std::string> DetectorNames() { return Keys(kDetectors); }

std::vector<std::string> BranchNames() { return Keys(kBranches); }

std::vector<std::shared_ptr<const Branch>> ReadBranches(const SidecarReader &from, const std::string &detector) {
  const std::vector<std::string> &own = kDetectors.at(detector);
  std::vector<std::shared_ptr<const Branch>> out;
  for (const std::string &name : own) out.push_back(kBranches.at(name)(from, true));
  for (const auto &[name, read] : kBranches) {
    if (std::find(own.begin(), own.end(), name) == own.end()) read(from, false);
  }
  return out;
}

}  // namespace rcnn
