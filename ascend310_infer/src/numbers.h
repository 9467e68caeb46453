// Numbers of the types that a device gives outputs in, as those that the program computes with.
#ifndef RCNN_INFER_NUMBERS_H_
#define RCNN_INFER_NUMBERS_H_

#include <cstddef>
#include <cstdint>

namespace rcnn {

enum class Number { kOther, kByte, kInt32, kInt64, kFloat16, kFloat32 };  // kByte: 8 bits, or a truth value

// Bytes of one; 0 for kOther.
size_t NumberSize(Number type);

// IEEE 754's binary16, exactly.
float FromHalf(uint16_t half);

// `count` numbers of `from` at `data`, as `to` at `out`, which has room for them. False, and nothing written, where
// that isn't a number as the same number: a fraction as an integer, or another type than kByte as truth values. A whole
// number of 64 bits that 32 don't hold becomes the nearest that they do.
bool ConvertNumbers(Number from, const void *data, size_t count, Number to, void *out);

}  // namespace rcnn

#endif  // RCNN_INFER_NUMBERS_H_
