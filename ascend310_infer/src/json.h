// A small JSON reader (RFC 8259), for sidecars; and the quoting of texts for writing.
#ifndef RCNN_INFER_JSON_H_
#define RCNN_INFER_JSON_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace rcnn {

// A value of a document. Reading a key that isn't there, or as another type, or a number out of bounds (inclusive),
// throws UserError with the document's name and the key.
class Json {
 public:
  // Throws UserError for what isn't whole JSON, has a key twice in an object, or more levels or values than any
  // sidecar.
  static Json Parse(const std::string &text, const std::string &name);
  // The list `key` of a document that is an object, its items with no more than `keys`: the rest is read over and takes
  // no memory. Null without that key. Errors end with `remedy`.
  static Json ParseList(const std::string &text, const std::string &name, const std::string &key,
                        const std::vector<std::string> &keys, const std::string &remedy);

  bool Has(const std::string &key) const;
  const Json &At(const std::string &key) const;
  const std::string &Text(const std::string &key) const;
  double Number(const std::string &key, double low, double high) const;
  int64_t Integer(const std::string &key, int64_t low, int64_t high) const;
  bool Bool(const std::string &key) const;
  const std::vector<Json> &List(const std::string &key) const;
  // `size` numbers, or one or more of them for 0.
  std::vector<double> Numbers(const std::string &key, size_t size, double low, double high) const;
  std::vector<int64_t> Integers(const std::string &key, int64_t low, int64_t high) const;
  // The keys of an object.
  std::vector<std::string> Keys() const;
  // Throws UserError unless this is a number, a flag, a text, or a list of these.
  void DemandPlain() const;
  // Throws UserError for a key, here or below, that no call has named.
  void DemandAllRead() const;

  // This value itself.
  bool IsText() const { return kind_ == Kind::kText; }
  bool IsNumber() const { return kind_ == Kind::kNumber; }
  bool IsList() const { return kind_ == Kind::kList; }
  const std::string &AsText() const;
  double AsNumber() const;
  double AsNumber(double low, double high) const;
  const std::vector<Json> &AsList() const;
  int64_t AsInteger(int64_t low, int64_t high) const;
  std::vector<double> AsNumbers(size_t size, double low, double high) const;

  // Throws UserError: this value "is not EXPECTED".
  [[noreturn]] void Wrong(const std::string &expected) const;

 private:
  enum class Kind { kNull, kBool, kNumber, kText, kList, kObject };
  friend class JsonReader;

  Kind kind_ = Kind::kNull;
  bool bool_ = false;
  double number_ = 0;
  bool is_integer_ = false;  // written without point and exponent
  std::string text_;
  std::vector<Json> list_;
  std::map<std::string, Json> object_;
  std::string where_;          // document and key
  mutable bool read_ = false;  // by its key
};

// `text` as a JSON string, with its quotes.
std::string Quoted(const std::string &text);

// `value` with three decimals.
std::string Decimals(double value);

}  // namespace rcnn

#endif  // RCNN_INFER_JSON_H_
