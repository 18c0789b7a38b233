// A case is a function that launches kernels on the executor and throws where a result is wrong.
#pragma once

#include <cmath>
#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/cuda/device.cuh"

namespace cases {

struct Case {
  Case(const char* name, void (*body)());
};

// ARGUS_CASE(name) { … } defines and registers one.
#define ARGUS_CASE(NAME)                                            \
  static void case_##NAME();                                        \
  static const ::cases::Case registered_##NAME(#NAME, case_##NAME); \
  static void case_##NAME()

template <class T>
struct Buffer {
  std::vector<T> host;
  argus::simt::DeviceBuffer device;

  Buffer(const char* name, size_t count, T value = T{})
      : host(count, value), device(name, static_cast<void*>(host.data()), count * sizeof(T)) {}
  Buffer(const char* name, std::vector<T> given)
      : host(std::move(given)), device(name, static_cast<void*>(host.data()), host.size() * sizeof(T)) {}

  T* get() const { return device.template as<T>(); }
  const std::vector<T>& result() {
    device.copy_back();
    return host;
  }
};

inline std::vector<float> counted(size_t count) {
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) values[i] = static_cast<float>(i);
  return values;
}

// Small and exact in every stored type, different in every place.
inline float pattern(int row, int column) {
  return static_cast<float>((row * 37 + column * 11) % 29 - 14) / 8.0f;
}

template <class T>
void expect(const char* what, size_t index, T actual, T expected) {
  if (actual == expected) return;
  std::ostringstream text;
  text << what << '[' << index << "] is " << actual << ", expected " << expected;
  throw std::runtime_error(text.str());
}

}  // namespace cases
