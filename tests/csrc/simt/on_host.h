// What the launchers' entries for ctypes share: device buffers in the place of host pointers, and the report.
#pragma once

#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "common/cuda/device.cuh"

#define ARGUS_EXPORT extern "C" __attribute__((visibility("default")))

namespace on_host {

// Replaces pointers by those of device buffers, for as long as it lives. Null pointers stay null.
class Device {
 public:
  template <class T>
  void input(const char* name, const T*& pointer, size_t bytes) {
    if (pointer == nullptr) return;
    buffers_.push_back(
        std::make_unique<argus::simt::DeviceBuffer>(name, static_cast<const void*>(pointer), bytes));
    pointer = buffers_.back()->template as<T>();
  }

  // Memory as torch::empty gives it: a kernel may not read of it what it has not written.
  template <class T>
  void output(const char* name, T*& pointer, size_t bytes) {
    add(name, pointer, bytes, argus::simt::Contents::fresh);
  }

  // What a kernel changes in place.
  template <class T>
  void changed(const char* name, T*& pointer, size_t bytes) {
    add(name, pointer, bytes, argus::simt::Contents::given);
  }

  void copy_back() const {
    for (const argus::simt::DeviceBuffer* buffer : written_) buffer->copy_back();
  }

 private:
  template <class T>
  void add(const char* name, T*& pointer, size_t bytes, argus::simt::Contents contents) {
    if (pointer == nullptr) return;
    buffers_.push_back(
        std::make_unique<argus::simt::DeviceBuffer>(name, static_cast<void*>(pointer), bytes, contents));
    written_.push_back(buffers_.back().get());
    pointer = buffers_.back()->template as<T>();
  }

  std::vector<std::unique_ptr<argus::simt::DeviceBuffer>> buffers_;
  std::vector<const argus::simt::DeviceBuffer*> written_;
};

// Runs body under the seed; leaves the executor's report, or the empty string, in `report`.
template <class Body>
void run(uint64_t seed, char* report, size_t bytes, const Body& body) {
  std::string text;
  argus::simt::set_seed(seed);
  try {
    body();
  } catch (const std::exception& error) {
    text = error.what();
  }
  std::strncpy(report, text.c_str(), bytes - 1);
  report[bytes - 1] = '\0';
}

}  // namespace on_host
