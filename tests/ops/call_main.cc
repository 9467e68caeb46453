// Calls the operators of a library, for tests that can't load it: it is for another kind of CPU. usage: LIBRARY
//
// Standard input: calls one after the other, of int64 numbers and bytes: the environment's RCNN_NUM_THREADS and
// RCNN_CACHE_KIB and the operator's name, each its length and itself; how many arrays there are and how many of these
// are inputs; of each array the number of dimensions, they, the bytes an element and, of an input, its elements.
// Standard output: of each call the status (int64), then its outputs.
#include <dlfcn.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

namespace {

[[noreturn]] void Fail(const std::string &reason) {
  std::fprintf(stderr, "call_main: %s\n", reason.c_str());
  std::exit(1);
}

void Read(void *to, int64_t size) {
  if (std::fread(to, 1, static_cast<size_t>(size), stdin) != static_cast<size_t>(size)) Fail("a call ends early");
}

int64_t Number() {
  int64_t number = 0;
  Read(&number, sizeof(number));
  return number;
}

std::string Text() {
  std::string text(static_cast<size_t>(Number()), ' ');
  Read(text.data(), static_cast<int64_t>(text.size()));
  return text;
}

void Write(const void *from, int64_t size) {
  if (std::fwrite(from, 1, static_cast<size_t>(size), stdout) != static_cast<size_t>(size)) Fail("can't answer");
}

void Call(void *library) {
  setenv("RCNN_NUM_THREADS", Text().c_str(), 1);
  setenv("RCNN_CACHE_KIB", Text().c_str(), 1);
  const std::string name = Text();
  using Operator = int (*)(int, void **, int *, int64_t **, const char **, void *, void *);
  const auto function = reinterpret_cast<Operator>(dlsym(library, name.c_str()));
  if (function == nullptr) Fail("no operator " + name);
  const auto count = static_cast<size_t>(Number()), inputs = static_cast<size_t>(Number());
  std::vector<std::vector<int64_t>> shapes(count);
  std::vector<std::unique_ptr<char[]>> arrays;
  std::vector<int64_t> sizes;
  std::vector<void *> params;
  std::vector<int> dimensions;
  std::vector<int64_t *> starts;
  for (auto &shape : shapes) {
    shape.resize(static_cast<size_t>(Number()));
    int64_t size = 1;
    for (int64_t &d : shape) size *= d = Number();
    size *= Number();
    arrays.emplace_back(new char[static_cast<size_t>(size)]);
    std::fill_n(arrays.back().get(), size, '\xff');  // no number, until the operator writes one
    if (arrays.size() <= inputs) Read(arrays.back().get(), size);
    sizes.push_back(size);
    params.push_back(arrays.back().get());
    dimensions.push_back(static_cast<int>(shape.size()));
    starts.push_back(shape.data());
  }
  const int64_t status =
      function(static_cast<int>(count), params.data(), dimensions.data(), starts.data(), nullptr, nullptr, nullptr);
  Write(&status, sizeof(status));
  for (size_t i = inputs; i < count; ++i) Write(arrays[i].get(), sizes[i]);
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char **argv) {
  if (argc != 2) Fail("usage: LIBRARY");
  void *library = dlopen(argv[1], RTLD_NOW);
  if (library == nullptr) Fail(dlerror());
  for (int next = std::getchar(); next != EOF; next = std::getchar()) {
    std::ungetc(next, stdin);
    Call(library);
  }
  return 0;
}
