// Files: read whole, written beside and renamed, checked by SHA-256; and the one kind of error that a user can mend.
#ifndef RCNN_INFER_FILES_H_
#define RCNN_INFER_FILES_H_

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace rcnn {

// The text in one line that a terminal shows as it is: control characters as escapes, the middle cut out if long.
std::string OneLine(const std::string &text);

// Its message is one line that names the file or option, and the remedy. The program prints it and exits with status 2.
class UserError : public std::runtime_error {
 public:
  explicit UserError(const std::string &message) : std::runtime_error(OneLine(message)) {}
};

// The text of errno.
std::string SystemReason();

// Throws UserError: "PATH: can't read the WHAT: reason", also for what is no file, and for one of more than `most`
// bytes.
std::vector<uint8_t> ReadFile(const std::string &path, const std::string &what, uint64_t most = UINT64_MAX);

// Beside, then renamed: the file is whole or not there. Throws UserError.
void WriteFile(const std::string &path, const void *data, size_t bytes);
void WriteFile(const std::string &path, const std::string &text);

// Hexadecimal (FIPS 180-4).
std::string Sha256(const uint8_t *data, size_t bytes);

}  // namespace rcnn

#endif  // RCNN_INFER_FILES_H_
