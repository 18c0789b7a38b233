// The tensors of causal_attention and hstu_attention on the executor.
#pragma once

#include <vector>

#include "attention/arguments.h"
#include "on_host.h"

namespace attention_on_host {

using argus::Dtype;
using argus::attention::Arguments;
using argus::attention::Backward;
using argus::attention::Forward;
using argus::attention::Heads;
using argus::attention::LoopScratch;

inline size_t bytes_of(const Arguments& given, int64_t elements) {
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

inline void forward(Forward call, ForwardLauncher launch) {
  Device device;
  const int64_t statistics = call.given.rows * call.given.heads;
  device.dense_result("out", call.out, call.given);
  device.float_results("log_sum_exp", call.log_sum_exp, statistics);
  device.arguments(call.given);
  launch(call, nullptr);
  device.copy_back();
}

inline void backward(Backward call, BackwardLauncher launch, const LoopScratch& scratch = {}) {
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
  // No result of the op: the caller has no memory for it.
  std::vector<float> query_sums(static_cast<size_t>(scratch.floats));
  std::vector<int32_t> turns(static_cast<size_t>(scratch.turns));
  call.query_sums = scratch.floats > 0 ? query_sums.data() : nullptr;
  call.turns = scratch.turns > 0 ? turns.data() : nullptr;
  device.results("query_sums", call.query_sums, scratch.floats);
  device.results("turns", call.turns, scratch.turns);
  device.arguments(call.given);
  launch(call, nullptr);
  device.copy_back();
}

}  // namespace attention_on_host
