// The launchers of causal_attention and hstu_attention on host memory, for ctypes.
#include <algorithm>

#include "attention/cuda/launch.cuh"
#include "causal_attention/causal_attention.h"
#include "hstu_attention/hstu_attention.h"
#include "on_host.h"

namespace {

using argus::Dtype;
using argus::attention::Arguments;
using argus::attention::Backward;
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
  void key_result(const char* name, void*& pointer, const Arguments& given) {
    output(name, pointer, bytes_of(given, given.key_rows * given.key_heads * given.width));
  }
  void heads(const char* name, Heads& heads, const Arguments& given, int64_t rows, int64_t count) {
    int64_t elements = 0;
    if (rows > 0 && count > 0)
      elements = (rows - 1) * heads.row_stride + (count - 1) * heads.head_stride + given.width;
    input(name, heads.data, bytes_of(given, elements));
  }
  void arguments(Arguments& given) {
    heads("q", given.q, given, given.rows, given.heads);
    heads("k", given.k, given, given.key_rows, given.key_heads);
    heads("v", given.v, given, given.key_rows, given.key_heads);
    const bool own_rows = given.key_offsets == given.offsets;
    numbers("offsets", given.offsets, given.users + 1);
    if (own_rows) {
      given.key_offsets = given.offsets;
    } else {
      numbers("key_offsets", given.key_offsets, given.users + 1);
    }
    numbers("visible", given.visible, given.rows);
    numbers("position", given.position, given.rows);
    numbers("own_begin", given.own_begin, given.rows);
    numbers("own_end", given.own_end, given.rows);
    numbers("prefix", given.prefix, given.users);
    numbers("dropout_seed", given.dropout_seed, given.users);
    floats("position_bias", given.position_bias, int64_t{given.heads} * given.positions);
    floats("time_bias", given.time_bias, int64_t{given.heads} * given.times);
    numbers("query_time", given.query_time, given.rows);
    numbers("key_time", given.key_time, given.key_rows);
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
  device.heads("d_out", call.d_out, given, given.rows, given.heads);
  device.dense("out", call.out, given);
  device.floats("log_sum_exp", call.log_sum_exp, statistics);
  device.floats("d_log_sum_exp", call.d_log_sum_exp, statistics);
  device.dense_result("d_q", call.d_q, given);
  device.key_result("d_k", call.d_k, given);
  device.key_result("d_v", call.d_v, given);
  device.float_results("d_position_bias", call.d_position_bias, int64_t{given.heads} * given.positions);
  device.float_results("d_time_bias", call.d_time_bias, int64_t{given.heads} * given.times);
  device.results("delta", call.delta, statistics);
  device.results("correction", call.correction, statistics);
  device.results("reach", call.reach, argus::attention::kReachNumbers * blocks);
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
  // Dropout needs the general mask.
  static const int64_t seed = 0;
  for (const int64_t* dropout_seed : {static_cast<const int64_t*>(nullptr), &seed}) {
    call.given.dropout_seed = dropout_seed;
    argus::attention::with_kernel(call.given, [&]<class Mask, class T, int kWidth>() {
      most = std::max({most, argus::attention::ForwardSmem<Mask, T, kWidth>::bytes(call.given),
                       argus::attention::QuerySmem<Mask, T, kWidth>::bytes(call),
                       argus::attention::KeySmem<Mask, T, kWidth>::bytes(call)});
    });
  }
  return static_cast<int64_t>(most);
}
