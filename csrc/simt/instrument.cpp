// The functions that the compiler's instrumentation calls. Device code is compiled with -fsanitize=thread,
// which calls these at every load and store, and -fsanitize=undefined; neither of the compiler's own runtimes
// is linked, so the checks know blocks and threads, and the library loads into any process.
#include <cstdint>
#include <string>

#include "simt/executor.h"
#include "simt/memory.h"

using argus::simt::access;
using argus::simt::Kind;

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
// The guard of a static variable; only host code has such variables.
uint8_t __tsan_atomic8_load(const volatile uint8_t* address, int) {
  return __atomic_load_n(address, __ATOMIC_ACQUIRE);
}
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}

#define ARGUS_TSAN(BYTES)                            \
  void __tsan_read##BYTES(void* address) {           \
    access(address, BYTES, Kind::read);              \
  }                                                  \
  void __tsan_write##BYTES(void* address) {          \
    access(address, BYTES, Kind::write);             \
  }                                                  \
  void __tsan_unaligned_read##BYTES(void* a) {       \
    access(a, BYTES, Kind::read);                    \
  }                                                  \
  void __tsan_unaligned_write##BYTES(void* a) {      \
    access(a, BYTES, Kind::write);                   \
  }                                                  \
  void __tsan_volatile_read##BYTES(void* address) {  \
    access(address, BYTES, Kind::read);              \
  }                                                  \
  void __tsan_volatile_write##BYTES(void* address) { \
    access(address, BYTES, Kind::write);             \
  }
ARGUS_TSAN(1)
ARGUS_TSAN(2)
ARGUS_TSAN(4)
ARGUS_TSAN(8)
ARGUS_TSAN(16)
void __tsan_read_range(void* address, uintptr_t bytes) {
  access(address, bytes, Kind::read);
}
void __tsan_write_range(void* address, uintptr_t bytes) {
  access(address, bytes, Kind::write);
}

// The first argument of every handler begins with the place in the source.
struct SourcePlace {
  const char* file;
  uint32_t line, column;
};

static void undefined(const char* what, const SourcePlace* place) {
  std::string file = place->file != nullptr ? place->file : "?";
  file = file.substr(file.find_last_of('/') + 1);
  argus::simt::fault("undefined behaviour: " + std::string(what) + " (" + file + ":" +
                     std::to_string(place->line) + ")");
}

#define ARGUS_UBSAN(HANDLER, WHAT)                          \
  void __ubsan_handle_##HANDLER(const SourcePlace* place) { \
    undefined(WHAT, place);                                 \
  }
ARGUS_UBSAN(add_overflow, "an addition overflows")
ARGUS_UBSAN(sub_overflow, "a subtraction overflows")
ARGUS_UBSAN(mul_overflow, "a multiplication overflows")
ARGUS_UBSAN(negate_overflow, "a negation overflows")
ARGUS_UBSAN(divrem_overflow, "a division by zero or one that overflows")
ARGUS_UBSAN(shift_out_of_bounds, "a shift by more than the width, or of a negative value")
ARGUS_UBSAN(out_of_bounds, "an index outside its array")
ARGUS_UBSAN(type_mismatch_v1, "a null or misaligned pointer, or an object that does not fit")
ARGUS_UBSAN(pointer_overflow, "a pointer computation overflows")
ARGUS_UBSAN(load_invalid_value, "a bool or enum holds an impossible value")
ARGUS_UBSAN(builtin_unreachable, "unreachable code is reached")
ARGUS_UBSAN(missing_return, "a function ends without a return")
ARGUS_UBSAN(vla_bound_not_positive, "an array of no elements")
ARGUS_UBSAN(nonnull_arg, "a null argument where none may be")
ARGUS_UBSAN(nonnull_return_v1, "a null result where none may be")
ARGUS_UBSAN(invalid_builtin, "a count of leading or trailing zeros of 0")
}
