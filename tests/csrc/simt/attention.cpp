// The launchers of causal_attention and hstu_attention on host memory, for ctypes.
#include <algorithm>

#include "causal_attention/causal_attention.h"
#include "attention/cuda/launch.cuh"
#include "hstu_attention/hstu_attention.h"
#include "on_host.h"

namespace {

using argus::attention::Arguments;
using argus::attention::Backward;
using argus::Dtype;
using argus::attention::Forward;
using argus::attention::Heads;

size_t bytes_of(const Arguments& given, int64_t elements) {
  return static_cast<size_t>(elements) * (given.dtype == Dtype::float32 ? 4 : 2);
}

// The tensors of an attention op, on top of plain pointers.
class Device : public on_host::Device {
 public:
  // float32.
  void floats(const char* name, const void*& pointer, int64_t count) {
    input(name, pointer, static_cast<size_t>(count) * 4);
  }
  void float_results(const char* name, void*& pointer, int64_t count) {
    output(name, pointer, static_cast<size_t>(count) * 4);
  }
  template <class T>
  void numbers(const char* name, const T*& pointer, int64_t count) {
    input(name, pointer, static_cast<size_t>(count) * sizeof(T));
  }
  template <class T>
  void results(const char* name, T*& pointer, int64_t count) {
    output(name, pointer, static_cast<size_t>(count) * sizeof(T));
  }
  void dense(const char* name, const void*& pointer, const Arguments& given) {
    input(name, pointer, bytes_of(given, given.rows * given.heads * given.width));
  }
  void dense_result(const char* name, void*& pointer, const Arguments& given) {
    output(name, pointer, bytes_of(given, given.rows * given.heads * given.width));
  }
  void heads(const char* name, Heads& heads, const Arguments& given) {
    int64_t count = 0;
    if (given.rows > 0 && given.heads > 0)
      count = (given.rows - 1) * heads.row_stride + (given.heads - 1) * heads.head_stride + given.width;
    input(name, heads.data, bytes_of(given, count));
  }
  void arguments(Arguments& given) {
    heads("q", given.q, given);
    heads("k", given.k, given);
    heads("v", given.v, given);
    numbers("offsets", given.offsets, given.users + 1);
    numbers("visible", given.visible, given.rows);
    floats("position_bias", given.position_bias, int64_t{given.heads} * given.positions);
    floats("time_bias", given.time_bias, int64_t{given.heads} * given.times);
    numbers("query_time", given.query_time, given.rows);
    numbers("key_time", given.key_time, given.rows);
  }
};

using ForwardLauncher = void (*)(const Forward&, void*);
using BackwardLauncher = void (*)(const Backward&, void*);

void forward(Forward call, ForwardLauncher launch) {
  Device device;
  const int64_t statistics = call.given.rows * call.given.heads;
  device.dense_result("out", call.out, call.given);
  device.float_results("log_sum_exp", call.log_sum_exp, statistics);
  device.arguments(call.given);
  launch(call, nullptr);
  device.copy_back();
}

void backward(Backward call, BackwardLauncher launch) {
  Device device;
  const Arguments given = call.given;
  const int64_t statistics = given.rows * given.heads;
  const int64_t blocks = argus::attention::most_blocks(given.rows, given.users);
  device.heads("d_out", call.d_out, given);
  device.dense("out", call.out, given);
  device.floats("log_sum_exp", call.log_sum_exp, statistics);
  device.floats("d_log_sum_exp", call.d_log_sum_exp, statistics);
  device.dense_result("d_q", call.d_q, given);
  device.dense_result("d_k", call.d_k, given);
  device.dense_result("d_v", call.d_v, given);
  device.float_results("d_position_bias", call.d_position_bias, int64_t{given.heads} * given.positions);
  device.float_results("d_time_bias", call.d_time_bias, int64_t{given.heads} * given.times);
  device.results("delta", call.delta, statistics);
  device.results("correction", call.correction, statistics);
  device.results("visible_bounds", call.visible_bounds, 2 * blocks);
  device.results("table_parts", call.table_parts, blocks * given.heads * (given.positions + given.times));
  device.arguments(call.given);
  launch(call, nullptr);
  device.copy_back();
}

}  // namespace

ARGUS_EXPORT void causal_attention_on_host(const Forward* call, uint64_t seed, char* report, size_t bytes) {
  on_host::run(seed, report, bytes, [&] { forward(*call, argus::causal_attention::launch_forward); });
}
ARGUS_EXPORT void causal_attention_backward_on_host(const Backward* call, uint64_t seed, char* report,
                                                    size_t bytes) {
  on_host::run(seed, report, bytes, [&] { backward(*call, argus::causal_attention::launch_backward); });
}
ARGUS_EXPORT void hstu_attention_on_host(const Forward* call, uint64_t seed, char* report, size_t bytes) {
  on_host::run(seed, report, bytes, [&] { forward(*call, argus::hstu_attention::launch_forward); });
}
ARGUS_EXPORT void hstu_attention_backward_on_host(const Backward* call, uint64_t seed, char* report,
                                                  size_t bytes) {
  on_host::run(seed, report, bytes, [&] { backward(*call, argus::hstu_attention::launch_backward); });
}

ARGUS_EXPORT int64_t most_blocks(int64_t rows, int64_t users) {
  return argus::attention::most_blocks(rows, users);
}

// Dynamic shared memory of the hungriest kernel for heads of `width`, with tables as large as they may be.
ARGUS_EXPORT int64_t most_shared_bytes(int dtype, int width) {
  static const float table = 0.0f;
  Backward call{};
  call.given.dtype = static_cast<Dtype>(dtype);
  call.given.width = width;
  call.given.position_bias = call.given.time_bias = &table;
  call.given.positions = argus::attention::kMaxPositions;
  call.given.times = argus::kTimeBuckets;
  float gradient = 0.0f;
  call.d_time_bias = &gradient;
  size_t most = 0;
  argus::attention::with_kernel(call.given, [&]<class T, int kWidth>() {
    most = std::max({argus::attention::ForwardSmem<T, kWidth>::bytes(call.given),
                     argus::attention::QuerySmem<T, kWidth>::bytes(call),
                     argus::attention::KeySmem<T, kWidth>::bytes(call)});
  });
  return static_cast<int64_t>(most);
}
