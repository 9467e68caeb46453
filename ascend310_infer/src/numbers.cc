#include "numbers.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace rcnn {

size_t NumberSize(Number type) {
  switch (type) {
    case Number::kByte:
      return 1;
    case Number::kFloat16:
      return 2;
    case Number::kInt32:
    case Number::kFloat32:
      return 4;
    case Number::kInt64:
      return 8;
    default:
      return 0;
  }
}

float FromHalf(uint16_t half) {
  const int exponent = half >> 10 & 31;
  const float fraction = static_cast<float>(half & 1023);
  float value = std::ldexp(fraction + 1024.0f, exponent - 25);
  if (exponent == 0) value = std::ldexp(fraction, -24);
  if (exponent == 31) {
    value = fraction != 0 ? std::numeric_limits<float>::quiet_NaN() : std::numeric_limits<float>::infinity();
  }
  return (half & 0x8000) != 0 ? -value : value;
}

bool ConvertNumbers(Number from, const void *data, size_t count, Number to, void *out) {
  if (from == Number::kOther || to == Number::kOther) return false;
  if (from == to) {
    if (count != 0) std::memcpy(out, data, count * NumberSize(to));
    return true;
  }
  if (from == Number::kFloat16 && to == Number::kFloat32) {
    const auto *halves = static_cast<const uint16_t *>(data);
    std::transform(halves, halves + count, static_cast<float *>(out), FromHalf);
    return true;
  }
  if (from == Number::kInt64 && to == Number::kInt32) {
    const auto *whole = static_cast<const int64_t *>(data);
    constexpr int64_t kLeast = std::numeric_limits<int32_t>::min(), kMost = std::numeric_limits<int32_t>::max();
    std::transform(whole, whole + count, static_cast<int32_t *>(out), [](int64_t value) {
      return static_cast<int32_t>(value < kLeast ? kLeast : value > kMost ? kMost : value);
    });
    return true;
  }
  return false;
}

}  // namespace rcnn
