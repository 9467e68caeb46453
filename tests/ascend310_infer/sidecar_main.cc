// Reads sidecars: for the tests, which spoil them.
//
// usage: sidecar_main SIDECAR...: a line for each on standard output: "read", or why it isn't.
#include <cstdio>

#include "../../ascend310_infer/src/files.h"
#include "../../ascend310_infer/src/sidecar.h"

int main(int argc, char **argv) {
  for (int i = 1; i < argc; ++i) {
    try {
      rcnn::ReadSidecar(argv[i]);
      std::puts("read");
    } catch (const rcnn::UserError &e) {
      std::puts(e.what());
    }
  }
  return 0;
}
