// The launchers of causal_attention and hstu_attention on host memory, for ctypes.
#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "causal_attention/causal_attention_cuda.h"
#include "common/history_launch.cuh"
#include "hstu_attention/hstu_attention_cuda.h"

namespace {

using argus::history::Arguments;
using argus::history::Backward;
using argus::history::Dtype;
using argus::history::Forward;
using argus::history::Heads;
using argus::simt::DeviceBuffer;

// Device buffers in place of host pointers, for as long as it lives.
class Device {
 public:
  template <class T>
  void input(const char* name, const T*& pointer, int64_t count) {
    if (pointer != nullptr)
      pointer = add(name, static_cast<const void*>(pointer), count, sizeof(T))->template as<T>();
  }
  template <class T>
  void output(const char* name, T*& pointer, int64_t count) {
    if (pointer != nullptr)
      pointer = add(name, static_cast<void*>(pointer), count, sizeof(T))->template as<T>();
  }
  void input(const char* name, Heads& heads, const Arguments& given) {
    int64_t count = 0;
    if (given.rows > 0 && given.heads > 0)
      count = (given.rows - 1) * heads.row_stride + (given.heads - 1) * heads.head_stride + given.width;
    heads.data = add(name, heads.data, count, element_bytes(given))->as<void>();
  }
  void input(const char* name, const void*& pointer, const Arguments& given) {
    pointer = add(name, pointer, given.rows * given.heads * given.width, element_bytes(given))->as<void>();
  }
  void output(const char* name, void*& pointer, const Arguments& given) {
    pointer = add(name, pointer, given.rows * given.heads * given.width, element_bytes(given))->as<void>();
  }
  void arguments(Arguments& given) {
    input("q", given.q, given);
    input("k", given.k, given);
    input("v", given.v, given);
    input("offsets", given.offsets, given.users + 1);
    input("visible", given.visible, given.rows);
    input("position_bias", given.position_bias, int64_t{given.heads} * given.positions);
    input("time_bias", given.time_bias, int64_t{given.heads} * given.times);
    input("query_time", given.query_time, given.rows);
    input("key_time", given.key_time, given.rows);
  }
  void copy_back() const {
    for (const auto& buffer : buffers_) buffer->copy_back();
  }

 private:
  static size_t element_bytes(const Arguments& given) { return given.dtype == Dtype::float32 ? 4 : 2; }

  template <class Pointer>
  DeviceBuffer* add(const char* name, Pointer host, int64_t count, size_t element) {
    buffers_.push_back(std::make_unique<DeviceBuffer>(name, host, static_cast<size_t>(count) * element));
    return buffers_.back().get();
  }

  std::vector<std::unique_ptr<DeviceBuffer>> buffers_;
};

using ForwardLauncher = void (*)(const Forward&, void*);
using BackwardLauncher = void (*)(const Backward&, void*);

void forward(Forward call, ForwardLauncher launch) {
  Device device;
  const int64_t statistics = call.given.rows * call.given.heads;
  device.output("out", call.out, call.given);
  device.output("log_sum_exp", call.log_sum_exp, statistics);
  device.arguments(call.given);
  launch(call, nullptr);
  device.copy_back();
}

void backward(Backward call, BackwardLauncher launch) {
  Device device;
  const Arguments given = call.given;
  const int64_t statistics = given.rows * given.heads;
  const int64_t blocks = argus::history::most_blocks(given.rows, given.users);
  device.input("d_out", call.d_out, given);
  if (call.out != nullptr) device.input("out", call.out, given);
  device.input("log_sum_exp", call.log_sum_exp, statistics);
  device.input("d_log_sum_exp", call.d_log_sum_exp, statistics);
  device.output("d_q", call.d_q, given);
  device.output("d_k", call.d_k, given);
  device.output("d_v", call.d_v, given);
  device.output("d_position_bias", call.d_position_bias, int64_t{given.heads} * given.positions);
  device.output("d_time_bias", call.d_time_bias, int64_t{given.heads} * given.times);
  device.output("delta", call.delta, statistics);
  device.output("correction", call.correction, statistics);
  device.output("visible_bounds", call.visible_bounds, 2 * blocks);
  device.output("table_parts", call.table_parts, blocks * given.heads * (given.positions + given.times));
  device.arguments(call.given);
  launch(call, nullptr);
  device.copy_back();
}

// Leaves the executor's report, or the empty string, in `report`.
template <class Run>
void reported(uint64_t seed, char* report, size_t bytes, Run run) {
  std::string text;
  try {
    argus::simt::set_seed(seed);
    run();
  } catch (const std::exception& error) {
    text = error.what();
  }
  std::strncpy(report, text.c_str(), bytes - 1);
  report[bytes - 1] = '\0';
}

}  // namespace

#define ARGUS_EXPORT extern "C" __attribute__((visibility("default")))

ARGUS_EXPORT void causal_attention_on_host(const Forward* call, uint64_t seed, char* report, size_t bytes) {
  reported(seed, report, bytes, [&] { forward(*call, argus::causal_attention::launch_forward); });
}
ARGUS_EXPORT void causal_attention_backward_on_host(const Backward* call, uint64_t seed, char* report,
                                                    size_t bytes) {
  reported(seed, report, bytes, [&] { backward(*call, argus::causal_attention::launch_backward); });
}
ARGUS_EXPORT void hstu_attention_on_host(const Forward* call, uint64_t seed, char* report, size_t bytes) {
  reported(seed, report, bytes, [&] { forward(*call, argus::hstu_attention::launch_forward); });
}
ARGUS_EXPORT void hstu_attention_backward_on_host(const Backward* call, uint64_t seed, char* report,
                                                  size_t bytes) {
  reported(seed, report, bytes, [&] { backward(*call, argus::hstu_attention::launch_backward); });
}

// The bucket's lower edge, 0 past the last.
ARGUS_EXPORT uint64_t time_edge(int bucket) {
  return bucket < argus::kTimeBuckets ? argus::kTimeEdges[bucket] : 0;
}
ARGUS_EXPORT int64_t most_blocks(int64_t rows, int64_t users) {
  return argus::history::most_blocks(rows, users);
}

// Dynamic shared memory of the hungriest kernel for heads of `width`, with tables as large as they may be.
ARGUS_EXPORT int64_t most_shared_bytes(int dtype, int width) {
  static const float table = 0.0f;
  Backward call{};
  call.given.dtype = static_cast<Dtype>(dtype);
  call.given.width = width;
  call.given.position_bias = call.given.time_bias = &table;
  call.given.positions = argus::history::kMostPositions;
  call.given.times = argus::kTimeBuckets;
  float gradient = 0.0f;
  call.d_time_bias = &gradient;
  size_t most = 0;
  argus::history::with_kernel(call.given, [&]<class T, int kWidth>() {
    most = std::max({argus::history::ForwardRoom<T, kWidth>::bytes(call.given),
                     argus::history::QueryRoom<T, kWidth>::bytes(call),
                     argus::history::KeyRoom<T, kWidth>::bytes(call)});
  });
  return static_cast<int64_t>(most);
}
