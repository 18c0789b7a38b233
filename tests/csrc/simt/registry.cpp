// The cases by number, for ctypes; with the address sanitizer, a program that runs the cases it is given.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>

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

#if defined(__SANITIZE_ADDRESS__)
// main seeds name…: the reports of each case under seeds 0 … seeds − 1.
int main(int count, char** arguments) {
  const uint64_t seeds = std::strtoull(arguments[1], nullptr, 10);
  for (int i = 2; i < count; ++i) {
    for (uint64_t seed = 0; seed < seeds; ++seed) {
      for (int index = 0; index < case_count(); ++index) {
        if (std::string_view(case_name(index)) != arguments[i]) continue;
        char report[4096];
        case_run(index, seed, report, sizeof(report));
        std::printf("%s %s\n", arguments[i], report);
        std::fflush(stdout);
      }
    }
  }
  return 0;
}
#endif
