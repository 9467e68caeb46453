#include "json.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "files.h"

namespace rcnn {

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
  [[noreturn]] void Fail() const {
    throw UserError(name_ + ": not whole JSON (byte " + std::to_string(at_) + "); " + remedy_);
  }

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
    if (depth > 64) Fail();
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
      value.number_ = Number();
    }
    return value;
  }

  // Of ListOf's document (depth 0) the list, of the list's items (depth 2) their keys, of both nothing else.
  bool IsWanted(const std::string &key, int depth) const {
    if (list_ == nullptr || depth == 1 || depth > 2) return true;
    return depth == 0 ? key == *list_ : std::find(keys_->begin(), keys_->end(), key) != keys_->end();
  }

  void SkipValue(int depth) {
    if (depth > 64) Fail();
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
          code = 0x10000 + ((code - 0xD800) << 10) + (Hex() - 0xDC00);
          if (code > 0x10FFFF) Fail();
        }
        if (code >= 0xDC80 && code < 0xDD00) {
          // a byte that is no UTF-8, as Quoted writes it
          out.push_back(static_cast<char>(code & 0xFF));
        } else {
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
  size_t at_ = 0;
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
  return found->second;
}

const std::string &Json::AsText() const {
  if (kind_ != Kind::kText) Wrong("a text");
  return text_;
}

double Json::AsNumber() const {
  if (kind_ != Kind::kNumber) Wrong("a number");
  return number_;
}

const std::vector<Json> &Json::AsList() const {
  if (kind_ != Kind::kList) Wrong("a list");
  return list_;
}

const std::string &Json::Text(const std::string &key) const { return At(key).AsText(); }

double Json::Number(const std::string &key) const { return At(key).AsNumber(); }

int64_t Json::Integer(const std::string &key, int64_t low, int64_t high) const {
  const double number = Number(key);
  if (number != std::floor(number) || number < static_cast<double>(low) || number > static_cast<double>(high)) {
    At(key).Wrong("an integer from " + std::to_string(low) + " to " + std::to_string(high));
  }
  return static_cast<int64_t>(number);
}

bool Json::Bool(const std::string &key) const {
  const Json &value = At(key);
  if (value.kind_ != Kind::kBool) value.Wrong("true or false");
  return value.bool_;
}

const std::vector<Json> &Json::List(const std::string &key) const { return At(key).AsList(); }

std::vector<float> Json::Floats(const std::string &key, size_t size) const {
  std::vector<float> out;
  for (const Json &item : List(key)) out.push_back(static_cast<float>(item.AsNumber()));
  if (out.empty() || (size > 0 && out.size() != size)) At(key).Wrong("a list of the right length");
  return out;
}

std::vector<int64_t> Json::Integers(const std::string &key, int64_t low, int64_t high) const {
  std::vector<int64_t> out;
  for (const Json &item : List(key)) {
    const double number = item.AsNumber();
    if (number != std::floor(number) || number < static_cast<double>(low) || number > static_cast<double>(high)) {
      item.Wrong("an integer from " + std::to_string(low) + " to " + std::to_string(high));
    }
    out.push_back(static_cast<int64_t>(number));
  }
  if (out.empty()) At(key).Wrong("a list with anything in it");
  return out;
}

// Bytes of the UTF-8 character at `i`; 0: there is none.
size_t Utf8Length(const std::string &text, size_t i) {
  const auto lead = static_cast<unsigned char>(text[i]);
  const size_t length = lead < 0x80 ? 1 : lead >= 0xC2 && lead < 0xE0 ? 2 : lead >= 0xE0 && lead < 0xF0 ? 3
                        : lead >= 0xF0 && lead < 0xF5                 ? 4
                                                                      : 0;
  if (length == 0 || i + length > text.size()) return 0;
  for (size_t k = 1; k < length; ++k) {
    if ((static_cast<unsigned char>(text[i + k]) & 0xC0) != 0x80) return 0;
  }
  return length;
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

}  // namespace rcnn
