// What the kernels of golden vectors share: their entries for ctypes, and memory for both processors.
#pragma once

#include <cstring>
#include <exception>
#include <string>

#include "common/cuda/device.cuh"

#define GOLDEN_EXPORT extern "C" __attribute__((visibility("default")))

namespace golden {

// Runs body; leaves the error, or the empty string, in `report`.
template <class Body>
void report_of(char* report, size_t bytes, const Body& body) {
  std::string text;
  try {
    body();
  } catch (const std::exception& error) {
    text = error.what();
  }
  std::strncpy(report, text.c_str(), bytes - 1);
  report[bytes - 1] = '\0';
}

// `count` elements that a kernel may use: on a GPU the caller's own, on the executor, which lets TMA into
// nothing else, a device buffer; copy_back() brings its contents to the caller.
#if defined(__CUDACC__)
template <class T>
class Memory {
 public:
  Memory(const char*, T* data, size_t) : data_(data) {}
  T* get() const { return data_; }
  void copy_back() const {}

 private:
  T* data_;
};
#else
template <class T>
class Memory {
 public:
  Memory(const char* name, T* data, size_t count) : buffer_(name, data, count * sizeof(T)) {}
  T* get() const { return buffer_.template as<T>(); }
  void copy_back() const { buffer_.copy_back(); }

 private:
  argus::simt::DeviceBuffer buffer_;
};
#endif

}  // namespace golden
