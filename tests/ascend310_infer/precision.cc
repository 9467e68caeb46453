// Loaded before MindSpore Lite: writes which precision mode the program asks for to the file TOLD.
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace mindspore {

class AscendDeviceInfo {
 public:
  void SetPrecisionMode(const std::vector<char> &mode);
};

void AscendDeviceInfo::SetPrecisionMode(const std::vector<char> &mode) {
  std::FILE *file = std::fopen(std::getenv("TOLD"), "w");
  if (file == nullptr) return;
  std::fwrite(mode.data(), 1, mode.size(), file);
  std::fclose(file);
}

}  // namespace mindspore
