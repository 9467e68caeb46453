// usage: numbers_main FROM TO COUNT <numbers >numbers; the types by their place in Number. Status 1: can't be
// converted.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../../ascend310_infer/src/numbers.h"

int main(int, char **words) {
  const auto from = static_cast<rcnn::Number>(std::atoi(words[1])), to = static_cast<rcnn::Number>(std::atoi(words[2]));
  const size_t count = std::strtoul(words[3], nullptr, 10);
  std::vector<char> data(count * rcnn::NumberSize(from)), out(count * rcnn::NumberSize(to));
  if (std::fread(data.data(), 1, data.size(), stdin) != data.size()) return 2;
  if (!rcnn::ConvertNumbers(from, data.data(), count, to, out.data())) return 1;
  return std::fwrite(out.data(), 1, out.size(), stdout) == out.size() ? 0 : 2;
}
