// The tensors of an attention op over packed histories, checked and taken apart, for the CPU kernels.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <limits>
#include <optional>
#include <utility>

#include "attention/cpu/backward.h"
#include "attention/cpu/problem.h"
#include "attention/relative_bias.h"
#include "common/torch/check.h"

namespace argus::attention {

using OptionalTensor = std::optional<Tensor>;

// The arguments as the op's schema has them. Tables and edges are contiguous, the tables in float32 (float64
// for float64), as attention/relative_bias.py and the room's native.py hand them over.
struct History {
  const char* op;
  Tensor q, k, v, offsets;
  OptionalTensor visible, position_bias, time_bias, query_time, key_time, time_edges;
  double scale;
  int64_t window;  // 0: no limit
};

// Calls visit.operator()<T>() for the tensor's stored type.
template <class Visit>
void with_stored(const Tensor& tensor, Visit&& visit) {
  switch (tensor.scalar_type()) {
    case ScalarType::Double:
      return visit.template operator()<double>();
    case ScalarType::BFloat16:
      return visit.template operator()<BFloat16>();
    case ScalarType::Half:
      return visit.template operator()<Float16>();
    default:
      return visit.template operator()<float>();
  }
}

inline void check_contiguous_like(const char* op, const char* name, const Tensor& tensor, ScalarType dtype,
                                  const char* pattern, std::initializer_list<int64_t> sizes) {
  check_shape(op, name, tensor, pattern, sizes);
  check_dtype(op, name, tensor, {dtype});
  check_contiguous(op, name, tensor);
}

// The dtype of sums, statistics and tables.
inline ScalarType wide_of(const Tensor& q) {
  return q.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// A tensor like q, the elements of a head side by side.
inline void check_packed(const History& history, const char* name, const Tensor& tensor) {
  const Tensor& q = history.q;
  check_shape(history.op, name, tensor, "[T, H, Dh]", {q.size(0), q.size(1), q.size(2)});
  check_dtype(history.op, name, tensor, {q.scalar_type()});
  if (tensor.numel() > 0 && tensor.size(2) > 1 && tensor.stride(2) != 1)
    fail(history.op, name, " has stride ", tensor.stride(2), " within a head, expected 1");
}

inline void check_offsets(const History& history) {
  const Tensor& offsets = history.offsets;
  check_contiguous_like(history.op, "offsets", offsets, ScalarType::Int, "[B + 1]", {-1});
  if (offsets.size(0) < 1) fail(history.op, "offsets is empty, expected [B + 1] values, the first of them 0");
  const int32_t* values = offsets.const_data_ptr<int32_t>();
  const int64_t users = offsets.size(0) - 1, rows = history.q.size(0);
  for (int64_t i = 0; i <= users; ++i) {
    const int64_t least = i == 0 ? 0 : values[i - 1], most = i == 0 ? 0 : rows;
    if (values[i] < least || values[i] > most)
      fail(history.op, "offsets[", i, "] is ", values[i], ", expected ", least, " to ", most);
  }
}

inline void check_visible(const History& history) {
  if (!history.visible) return;
  check_contiguous_like(history.op, "visible", *history.visible, ScalarType::Int, "[T]", {history.q.size(0)});
  const int32_t* visible = history.visible->const_data_ptr<int32_t>();
  const int32_t* offsets = history.offsets.const_data_ptr<int32_t>();
  for (int64_t user = 0; user + 1 < history.offsets.size(0); ++user) {
    bool outside = false;
    for (int32_t row = offsets[user]; row < offsets[user + 1]; ++row)
      outside |= visible[row] < 0 || visible[row] > row - offsets[user];
    for (int32_t row = offsets[user]; outside && row < offsets[user + 1]; ++row) {
      if (visible[row] < 0 || visible[row] > row - offsets[user])
        fail(history.op, "visible[", row, "] is ", visible[row], ", expected 0 to ", row - offsets[user],
             ", the event's place in its user");
    }
  }
}

inline void check_table(const History& history, const char* name, const OptionalTensor& table) {
  if (!table) return;
  check_contiguous_like(history.op, name, *table, wide_of(history.q), "[H, any]", {history.q.size(1), -1});
  if (table->size(1) < 1) fail(history.op, name, " has no entries, expected at least 1");
}

inline void check_times(const History& history) {
  check_table(history, "time_bias", history.time_bias);
  for (const auto& [name, given] :
       {std::pair{"query_time", &history.query_time}, std::pair{"key_time", &history.key_time}}) {
    if (history.time_bias && !*given) fail(history.op, name, " is not given, expected it beside time_bias");
    if (*given)
      check_contiguous_like(history.op, name, **given, ScalarType::Long, "[T]", {history.q.size(0)});
  }
  if (!history.time_bias) return;
  if (!history.time_edges) fail(history.op, "time_edges is not given, expected it beside time_bias");
  check_contiguous_like(history.op, "time_edges", *history.time_edges, ScalarType::Long, "[N]",
                        {history.time_bias->size(1)});
}

// All that the kernels rely on, but for the values of the time edges, which TimeBuckets checks.
inline void check(const History& history) {
  const Tensor& q = history.q;
  check_shape(history.op, "q", q, "[T, H, Dh]", {-1, -1, -1});
  check_dtype(history.op, "q", q,
              {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half, ScalarType::Double});
  if (q.size(2) < 1) fail(history.op, "q has head width 0, expected at least 1");
  for (const auto& [name, tensor] :
       {std::pair{"q", &q}, std::pair{"k", &history.k}, std::pair{"v", &history.v}})
    check_packed(history, name, *tensor);
  check_offsets(history);
  check_visible(history);
  check_table(history, "position_bias", history.position_bias);
  check_times(history);
  if (history.window < 0)
    fail(history.op, "window is ", history.window, ", expected at least 1, or 0 for no limit");
}

// A result like q that is written, or one that was.
inline void check_result(const History& history, const char* name, const Tensor& tensor) {
  const Tensor& q = history.q;
  check_contiguous_like(history.op, name, tensor, q.scalar_type(), "[T, H, Dh]",
                        {q.size(0), q.size(1), q.size(2)});
}

inline void check_statistic(const History& history, const char* name, const Tensor& tensor) {
  check_contiguous_like(history.op, name, tensor, wide_of(history.q), "[H, T]",
                        {history.q.size(1), history.q.size(0)});
}

inline void check_table_gradient(const History& history, const char* name, const OptionalTensor& gradient,
                                 const OptionalTensor& table) {
  if (!gradient) return;
  if (!table) fail(history.op, name, " is given without its table, expected both or neither");
  check_contiguous_like(history.op, name, *gradient, wide_of(history.q), "[H, entries]",
                        {table->size(0), table->size(1)});
}

// What the backward pass takes and gives besides; the statistics are softmax's.
struct BackwardTensors {
  Tensor d_out;
  OptionalTensor out, log_sum_exp, d_log_sum_exp;
  Tensor d_q, d_k, d_v;
  OptionalTensor d_position_bias, d_time_bias;
};

// After `check(history)`.
inline void check(const History& history, const BackwardTensors& given) {
  check_packed(history, "d_out", given.d_out);
  if (given.log_sum_exp) {
    check_result(history, "out", *given.out);
    check_statistic(history, "log_sum_exp", *given.log_sum_exp);
    check_statistic(history, "d_log_sum_exp", *given.d_log_sum_exp);
  }
  check_result(history, "d_q", given.d_q);
  check_result(history, "d_k", given.d_k);
  check_result(history, "d_v", given.d_v);
  check_table_gradient(history, "d_position_bias", given.d_position_bias, history.position_bias);
  check_table_gradient(history, "d_time_bias", given.d_time_bias, history.time_bias);
}

inline TimeBuckets time_buckets(const History& history) {
  if (!history.time_bias) return {};
  return {history.op, "time_edges", history.time_edges->const_data_ptr<int64_t>(),
          history.time_edges->size(0)};
}

template <class E>
const E* data(const OptionalTensor& tensor) {
  return tensor ? static_cast<const E*>(tensor->const_data_ptr()) : nullptr;
}

template <class E>
E* mutable_data(const OptionalTensor& tensor) {
  return tensor ? static_cast<E*>(tensor->mutable_data_ptr()) : nullptr;
}

template <class T>
Packed<const T> packed(const Tensor& tensor) {
  return {static_cast<const T*>(tensor.const_data_ptr()), tensor.stride(0), tensor.stride(1)};
}

template <class T>
Problem<T> make_problem(const History& history, const TimeBuckets& buckets) {
  using A = Arithmetic<T>;
  const Tensor& q = history.q;
  return Problem<T>{
      .q = packed<T>(q),
      .k = packed<T>(history.k),
      .v = packed<T>(history.v),
      .offsets = history.offsets.const_data_ptr<int32_t>(),
      .users = history.offsets.size(0) - 1,
      .rows = q.size(0),
      .heads = q.size(1),
      .width = q.size(2),
      .visible = data<int32_t>(history.visible),
      .window = history.window > 0 ? history.window : std::numeric_limits<int32_t>::max(),
      .position_bias = data<A>(history.position_bias),
      .positions = history.position_bias ? history.position_bias->size(1) : 0,
      .time_bias = data<A>(history.time_bias),
      .times = history.time_bias ? history.time_bias->size(1) : 0,
      .query_time = data<int64_t>(history.query_time),
      .key_time = data<int64_t>(history.key_time),
      .buckets = &buckets,
      .scale = static_cast<A>(history.scale),
  };
}

template <class T>
Gradients<T> make_gradients(const BackwardTensors& given) {
  using A = Arithmetic<T>;
  return Gradients<T>{
      .d_out = packed<T>(given.d_out),
      .out = data<T>(given.out),
      .statistic = data<A>(given.log_sum_exp),
      .d_statistic = data<A>(given.d_log_sum_exp),
      .d_q = static_cast<T*>(given.d_q.mutable_data_ptr()),
      .d_k = static_cast<T*>(given.d_k.mutable_data_ptr()),
      .d_v = static_cast<T*>(given.d_v.mutable_data_ptr()),
      .d_position_bias = mutable_data<A>(given.d_position_bias),
      .d_time_bias = mutable_data<A>(given.d_time_bias),
  };
}

}  // namespace argus::attention
