// The cases by number, for ctypes.
#include <cstring>

#include "cases.h"

namespace {

struct Entry {
  const char* name;
  void (*body)();
};

std::vector<Entry>& entries() {
  static std::vector<Entry> all;
  return all;
}

}  // namespace

cases::Case::Case(const char* name, void (*body)()) {
  entries().push_back({name, body});
}

#define ARGUS_EXPORT extern "C" __attribute__((visibility("default")))

ARGUS_EXPORT int case_count() {
  return static_cast<int>(entries().size());
}

ARGUS_EXPORT const char* case_name(int index) {
  return entries()[static_cast<size_t>(index)].name;
}

// What went wrong, or the empty string.
ARGUS_EXPORT void case_run(int index, uint64_t seed, char* report, size_t bytes) {
  std::string text;
  argus::simt::set_seed(seed);
  try {
    entries()[static_cast<size_t>(index)].body();
  } catch (const std::exception& error) {
    text = error.what();
  }
  std::strncpy(report, text.c_str(), bytes - 1);
  report[bytes - 1] = '\0';
}
