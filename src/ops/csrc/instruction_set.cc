// What the library was compiled for, as vector_width.h and simd.h see it.

// "AVX-512", "AVX2", ...: the vectors that its loops use.
extern "C" const char *RcnnInstructionSet() {
#if defined(__AVX512F__)
  return "AVX-512";
#elif defined(__AVX2__)
  return "AVX2";
#elif defined(__AVX__)
  return "AVX";
#elif defined(__SSE4_2__)
  return "SSE4.2";
#elif defined(__aarch64__)
  return "NEON";
#else
  return "vectors of 128 bits";
#endif
}
