/* Writes down large allocations of the program that it is loaded into (LD_PRELOAD), for benchmarks/memory.py.
 *
 * To the file TRACE_FILE, which must not exist: for each allocation of LEAST bytes and more, and each release of one, a
 * record of address, size (0: released) and up to DEPTH return addresses, as 64-bit numbers. Only the first process
 * that finds no such file writes.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <execinfo.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LEAST 262144
#define DEPTH 24
#define PLACES (1 << 20)

struct record {
  uint64_t address, size, callers[DEPTH];
};

static void *(*next_malloc)(size_t);
static void *(*next_calloc)(size_t, size_t);
static void *(*next_realloc)(void *, size_t);
static void *(*next_aligned)(size_t, size_t);
static int (*next_posix)(void **, size_t, size_t);
static void (*next_free)(void *);

static int file = -1;
static __thread int inside; /* what backtrace allocates isn't written down */
static volatile int lock;
static uint64_t alive[PLACES]; /* open addressing; 1: was used */
static char early[65536];      /* what the loader asks for before there is an allocator */
static size_t early_used;

static void find_next(void) {
  void *frames[2];
  const char *path;
  if (next_malloc != NULL) return;
  inside = 1;
  next_calloc = dlsym(RTLD_NEXT, "calloc");
  next_realloc = dlsym(RTLD_NEXT, "realloc");
  next_free = dlsym(RTLD_NEXT, "free");
  next_aligned = dlsym(RTLD_NEXT, "aligned_alloc");
  next_posix = dlsym(RTLD_NEXT, "posix_memalign");
  next_malloc = dlsym(RTLD_NEXT, "malloc");
  path = getenv("TRACE_FILE");
  if (path != NULL) file = open(path, O_WRONLY | O_CREAT | O_EXCL | O_APPEND, 0644);
  backtrace(frames, 2); /* loads libgcc */
  inside = 0;
}

static size_t place_of(uint64_t address) { return (address >> 4) * 11400714819323198485ull >> 44; }

static void write_down(uint64_t address, uint64_t size) {
  struct record r;
  size_t i = place_of(address);
  memset(&r, 0, sizeof r);
  r.address = address;
  r.size = size;
  inside = 1;
  if (size > 0) backtrace((void **)r.callers, DEPTH);
  while (__sync_lock_test_and_set(&lock, 1)) {
  }
  if (size > 0) {
    while (alive[i] > 1) i = (i + 1) & (PLACES - 1);
    alive[i] = address;
  } else {
    while (alive[i] != 0 && alive[i] != address) i = (i + 1) & (PLACES - 1);
    if (alive[i] == address) alive[i] = 1;
    else r.address = 0;
  }
  if (r.address != 0 && write(file, &r, sizeof r) < 0) file = -1;
  __sync_lock_release(&lock);
  inside = 0;
}

static void *made(void *p, size_t size) {
  if (file >= 0 && !inside && p != NULL && size >= LEAST) write_down((uint64_t)p, size);
  return p;
}

static void released(void *p) {
  if (file >= 0 && !inside && p != NULL) write_down((uint64_t)p, 0);
}

void *malloc(size_t size) {
  find_next();
  return made(next_malloc(size), size);
}

void *calloc(size_t count, size_t size) {
  if (next_calloc == NULL) {
    void *p = early + early_used;
    early_used += (count * size + 15) & ~(size_t)15;
    return early_used <= sizeof early ? p : NULL;
  }
  return made(next_calloc(count, size), count * size);
}

void free(void *p) {
  if ((char *)p >= early && (char *)p < early + sizeof early) return;
  find_next();
  released(p);
  next_free(p);
}

void *realloc(void *p, size_t size) {
  find_next();
  released(p);
  return made(next_realloc(p, size), size);
}

void *aligned_alloc(size_t alignment, size_t size) {
  find_next();
  return made(next_aligned(alignment, size), size);
}

void *memalign(size_t alignment, size_t size) { return aligned_alloc(alignment, size); }

int posix_memalign(void **p, size_t alignment, size_t size) {
  int status;
  find_next();
  status = next_posix(p, alignment, size);
  if (status == 0) made(*p, size);
  return status;
}
