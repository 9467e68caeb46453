#include "json.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "files.h"

namespace rcnn {

namespace {

constexpr int kDeepest = 64;
constexpr double kLargest = 3e38;        // float32 holds it
constexpr size_t kMostValues = 1 << 20;  // of a document that is kept whole: some 200 MiB

// Bytes of the UTF-8 character at `i`; 0: there is none.
size_t Utf8Length(const std::string &text, size_t i) {
  const auto lead = static_cast<unsigned char>(text[i]);
  const size_t length = lead < 0x80                   ? 1
                        : lead >= 0xC2 && lead < 0xE0 ? 2
                        : lead >= 0xE0 && lead < 0xF0 ? 3
                        : lead >= 0xF0 && lead < 0xF5 ? 4
                                                      : 0;
  if (length == 0 || i + length > text.size()) return 0;
  for (size_t k = 1; k < length; ++k) {
    if ((static_cast<unsigned char>(text[i + k]) & 0xC0) != 0x80) return 0;
  }
  return length;
}

std::string Short(double number) {
  char text[32];
  std::snprintf(text, sizeof(text), "%g", number);
  return text;
}

std::string Between(double low, double high) { return "from " + Short(low) + " to " + Short(high); }

}  // namespace

class JsonReader {
 public:
  JsonReader(const std::string &text, const std::string &name, const std::string &remedy = "export the model again")
      : text_(text), name_(name), remedy_(remedy) {}

  Json Document() {
    Json value = Value(name_ + ":", 0);
    SkipSpace();
    if (at_ != text_.size()) Fail();
    return value;
  }

  Json ListOf(const std::string &key, const std::vector<std::string> &keys) {
    list_ = &key;
    keys_ = &keys;
    Json document = Document();
    const auto found = document.object_.find(key);
    return found == document.object_.end() ? Json() : std::move(found->second);
  }

 private:
  [[noreturn]] void Fail() const { Fail("not whole JSON (byte " + std::to_string(at_) + ")"); }
  [[noreturn]] void Fail(const std::string &what) const { throw UserError(name_ + ": " + what + "; " + remedy_); }
  [[noreturn]] void FailDeep() const { Fail("nested deeper than " + std::to_string(kDeepest) + " levels"); }

  void SkipSpace() {
    while (at_ < text_.size() && std::strchr(" \t\r\n", text_[at_]) != nullptr && text_[at_] != '\0') ++at_;
  }

  char Next() {
    SkipSpace();
    if (at_ >= text_.size()) Fail();
    return text_[at_];
  }

  void Expect(char c) {
    if (Next() != c) Fail();
    ++at_;
  }

  bool Take(const char *word) {
    const size_t length = std::strlen(word);
    if (text_.compare(at_, length, word) != 0) return false;
    at_ += length;
    return true;
  }

  Json Value(const std::string &where, int depth) {
    if (depth > kDeepest) FailDeep();
    if (list_ == nullptr && ++values_ > kMostValues) Fail("more than a million values");
    Json value;
    value.where_ = where;
    const char c = Next();
    if (c == '{') {
      value.kind_ = Json::Kind::kObject;
      ++at_;
      if (Next() == '}') {
        ++at_;
        return value;
      }
      for (;;) {
        Next();
        const std::string key = String();
        Expect(':');
        if (list_ == nullptr && value.object_.count(key) > 0) Fail("\"" + key + "\" comes twice in an object");
        if (IsWanted(key, depth)) {
          value.object_[key] = Value(where + (depth == 0 ? " " : ".") + key, depth + 1);
        } else {
          SkipValue(depth + 1);
        }
        if (Next() == '}') break;
        Expect(',');
      }
      ++at_;
    } else if (c == '[') {
      value.kind_ = Json::Kind::kList;
      ++at_;
      if (Next() == ']') {
        ++at_;
        return value;
      }
      for (;;) {
        value.list_.push_back(Value(where + "[" + std::to_string(value.list_.size()) + "]", depth + 1));
        if (Next() == ']') break;
        Expect(',');
      }
      ++at_;
    } else if (c == '"') {
      value.kind_ = Json::Kind::kText;
      value.text_ = String();
    } else if (Take("true")) {
      value.kind_ = Json::Kind::kBool;
      value.bool_ = true;
    } else if (Take("false")) {
      value.kind_ = Json::Kind::kBool;
    } else if (!Take("null")) {
      value.kind_ = Json::Kind::kNumber;
      const size_t begin = at_;
      value.number_ = Number();
      value.is_integer_ = text_.substr(begin, at_ - begin).find_first_of(".eE") == std::string::npos;
    }
    return value;
  }

  // Of ListOf's document (depth 0) the list, of the list's items (depth 2) their keys, of both nothing else.
  bool IsWanted(const std::string &key, int depth) const {
    if (list_ == nullptr || depth == 1 || depth > 2) return true;
    return depth == 0 ? key == *list_ : std::find(keys_->begin(), keys_->end(), key) != keys_->end();
  }

  void SkipValue(int depth) {
    if (depth > kDeepest) FailDeep();
    const char c = Next();
    if (c == '{' || c == '[') {
      const char end = c == '{' ? '}' : ']';
      ++at_;
      for (bool more = Next() != end; more;) {
        if (c == '{') {
          Next();
          String();
          Expect(':');
        }
        SkipValue(depth + 1);
        more = Next() != end;
        if (more) Expect(',');
      }
      ++at_;
    } else if (c == '"') {
      String();
    } else if (!Take("true") && !Take("false") && !Take("null") && !Take("NaN") && !Take("Infinity") &&
               !Take("-Infinity")) {
      Number();
    }
  }

  double Number() {
    const size_t begin = at_;
    while (at_ < text_.size() && std::strchr("+-.0123456789eE", text_[at_]) != nullptr && text_[at_] != '\0') ++at_;
    const std::string digits = text_.substr(begin, at_ - begin);
    // what strtod would take besides: +1, .5, 01
    const size_t first = digits[0] == '-' ? 1 : 0;
    if (first >= digits.size() || std::strchr("+-.eE", digits[first]) != nullptr) Fail();
    if (digits[first] == '0' && first + 1 < digits.size() && std::strchr(".eE", digits[first + 1]) == nullptr) Fail();
    char *end = nullptr;
    const double number = std::strtod(digits.c_str(), &end);
    if (digits.empty() || *end != '\0' || !std::isfinite(number)) Fail();
    return number;
  }

  uint32_t Hex() {
    if (at_ + 4 > text_.size()) Fail();
    uint32_t code = 0;
    for (int i = 0; i < 4; ++i) {
      const char c = text_[at_++];
      const char *digits = "0123456789abcdefABCDEF";
      const char *found = std::strchr(digits, c);
      if (c == '\0' || found == nullptr) Fail();
      const auto place = static_cast<uint32_t>(found - digits);
      code = code * 16 + (place < 16 ? place : place - 6);
    }
    return code;
  }

  void AppendUtf8(uint32_t code, std::string *to) {
    if (code < 0x80) {
      to->push_back(static_cast<char>(code));
      return;
    }
    const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    const uint32_t lead[] = {0, 0xC0, 0xE0, 0xF0};
    to->push_back(static_cast<char>(lead[more] | code >> (6 * more)));
    for (int i = more - 1; i >= 0; --i) to->push_back(static_cast<char>(0x80 | ((code >> (6 * i)) & 0x3F)));
  }

  std::string String() {
    Expect('"');
    std::string out;
    for (;;) {
      if (at_ >= text_.size()) Fail();
      const char c = text_[at_++];
      if (c == '"') return out;
      if (c != '\\') {
        out.push_back(c);
        continue;
      }
      if (at_ >= text_.size()) Fail();
      const char escape = text_[at_++];
      const char *names = "\"\\/bfnrt", *meanings = "\"\\/\b\f\n\r\t";
      const char *found = escape == '\0' ? nullptr : std::strchr(names, escape);
      if (found != nullptr) {
        out.push_back(meanings[found - names]);
      } else if (escape == 'u') {
        uint32_t code = Hex();
        if (code >= 0xD800 && code < 0xDC00) {
          if (!Take("\\u")) Fail();
          const uint32_t low = Hex();
          if (low < 0xDC00 || low > 0xDFFF) Fail();
          code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
        }
        if (code >= 0xDC80 && code < 0xDD00) {
          // a byte that is no UTF-8, as Quoted writes it
          out.push_back(static_cast<char>(code & 0xFF));
        } else {
          if (code >= 0xDC00 && code <= 0xDFFF) Fail();
          AppendUtf8(code, &out);
        }
      } else {
        Fail();
      }
    }
  }

  const std::string &text_, &name_;
  const std::string remedy_;
  const std::string *list_ = nullptr;
  const std::vector<std::string> *keys_ = nullptr;
  size_t at_ = 0, values_ = 0;
};

Json Json::Parse(const std::string &text, const std::string &name) { return JsonReader(text, name).Document(); }

Json Json::ParseList(const std::string &text, const std::string &name, const std::string &key,
                     const std::vector<std::string> &keys, const std::string &remedy) {
  return JsonReader(text, name, remedy).ListOf(key, keys);
}

void Json::Wrong(const std::string &expected) const {
  throw UserError(where_ + " is not " + expected + "; export the model again");
}

bool Json::Has(const std::string &key) const { return object_.count(key) > 0; }

const Json &Json::At(const std::string &key) const {
  const auto found = object_.find(key);
  if (found == object_.end()) throw UserError(where_ + " has no \"" + key + "\"; export the model again");
  found->second.read_ = true;
  return found->second;
}

std::vector<std::string> Json::Keys() const {
  if (kind_ != Kind::kObject) Wrong("an object");
  std::vector<std::string> out;
  for (const auto &entry : object_) out.push_back(entry.first);
  return out;
}

void Json::DemandPlain() const {
  if (kind_ == Kind::kList) {
    for (const Json &item : list_) {
      if (item.kind_ == Kind::kList) item.Wrong("a number, a flag or a text");
      item.DemandPlain();
    }
  } else if (kind_ == Kind::kNumber) {
    AsNumber(-kLargest, kLargest);
  } else if (kind_ != Kind::kBool && kind_ != Kind::kText) {
    Wrong("a number, a flag, a text, or a list of these");
  }
}

void Json::DemandAllRead() const {
  for (const auto &[key, value] : object_) {
    if (!value.read_) throw UserError(value.where_ + ": no key of a sidecar; export the model again");
    value.DemandAllRead();
  }
  for (const Json &item : list_) item.DemandAllRead();
}

const std::string &Json::AsText() const {
  if (kind_ != Kind::kText) Wrong("a text");
  return text_;
}

double Json::AsNumber() const {
  if (kind_ != Kind::kNumber) Wrong("a number");
  return number_;
}

double Json::AsNumber(double low, double high) const {
  const double number = AsNumber();
  if (!(number >= low && number <= high)) Wrong("a number " + Between(low, high));
  return number;
}

const std::vector<Json> &Json::AsList() const {
  if (kind_ != Kind::kList) Wrong("a list");
  return list_;
}

std::vector<double> Json::AsNumbers(size_t size, double low, double high) const {
  std::vector<double> out;
  for (const Json &item : AsList()) out.push_back(item.AsNumber(low, high));
  if (size > 0 && out.size() != size) Wrong("a list of " + std::to_string(size) + " numbers");
  if (out.empty()) Wrong("a list with anything in it");
  return out;
}

const std::string &Json::Text(const std::string &key) const { return At(key).AsText(); }

double Json::Number(const std::string &key, double low, double high) const { return At(key).AsNumber(low, high); }

int64_t Json::AsInteger(int64_t low, int64_t high) const {
  const double number = AsNumber();
  if (!is_integer_ || number < static_cast<double>(low) || number > static_cast<double>(high)) {
    Wrong("an integer from " + std::to_string(low) + " to " + std::to_string(high));
  }
  return static_cast<int64_t>(number);
}

int64_t Json::Integer(const std::string &key, int64_t low, int64_t high) const { return At(key).AsInteger(low, high); }

bool Json::Bool(const std::string &key) const {
  const Json &value = At(key);
  if (value.kind_ != Kind::kBool) value.Wrong("true or false");
  return value.bool_;
}

const std::vector<Json> &Json::List(const std::string &key) const { return At(key).AsList(); }

std::vector<double> Json::Numbers(const std::string &key, size_t size, double low, double high) const {
  return At(key).AsNumbers(size, low, high);
}

std::vector<int64_t> Json::Integers(const std::string &key, int64_t low, int64_t high) const {
  std::vector<int64_t> out;
  for (const Json &item : List(key)) out.push_back(item.AsInteger(low, high));
  if (out.empty()) At(key).Wrong("a list with anything in it");
  return out;
}

std::string Quoted(const std::string &text) {
  std::string out = "\"";
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    const size_t length = Utf8Length(text, i);
    if (length > 1) {
      out += text.substr(i, length);
      i += length - 1;
    } else if (length == 0) {
      // a file name of any bytes: as Python's os.fsdecode has it
      char code[8];
      std::snprintf(code, sizeof(code), "\\udc%02x", static_cast<unsigned>(static_cast<unsigned char>(c)));
      out += code;
    } else if (c == '"' || c == '\\') {
      out.push_back('\\');
      out.push_back(c);
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char code[8];
      std::snprintf(code, sizeof(code), "\\u%04x", static_cast<unsigned>(c));
      out += code;
    } else {
      out.push_back(c);
    }
  }
  return out + "\"";
}

std::string Decimals(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.3f", value);
  return text;
}

}  // namespace rcnn
