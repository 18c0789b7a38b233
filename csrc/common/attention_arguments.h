// The tensors of an attention op over packed histories, checked and taken apart, for the CPU kernels.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <limits>
#include <optional>

#include "common/attention_backward.h"
#include "common/attention_problem.h"
#include "common/check.h"
#include "common/relative_bias.h"

namespace argus::attention {

using OptionalTensor = std::optional<Tensor>;

// The arguments as the op's schema has them. Tables and edges are contiguous, the tables in float32 (float64
// for float64), as core/relative_bias.py and the room's native.py hand them over.
struct History {
  const char* op;
  Tensor q, k, v, offsets;
  OptionalTensor visible, position_bias, time_bias, query_time, key_time, time_edges;
  double scale;
  int64_t window;  // 0: no limit
};

template <class T>
struct ScalarOf;
template <>
struct ScalarOf<float> {
  static constexpr ScalarType type = ScalarType::Float, wide = ScalarType::Float;
};
template <>
struct ScalarOf<double> {
  static constexpr ScalarType type = ScalarType::Double, wide = ScalarType::Double;
};
template <>
struct ScalarOf<BFloat16> {
  static constexpr ScalarType type = ScalarType::BFloat16, wide = ScalarType::Float;
};
template <>
struct ScalarOf<Float16> {
  static constexpr ScalarType type = ScalarType::Half, wide = ScalarType::Float;
};

// Calls visit.operator()<T>() for the tensor's stored type.
template <class Visit>
void with_stored(const char* op, const Tensor& tensor, Visit&& visit) {
  check_dtype(op, "q", tensor,
              {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half, ScalarType::Double});
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

template <class T>
Packed<const T> packed(const char* op, const char* name, const Tensor& tensor, const Tensor& like) {
  check_shape(op, name, tensor, "[T, H, Dh]", {like.size(0), like.size(1), like.size(2)});
  check_dtype(op, name, tensor, {ScalarOf<T>::type});
  if (tensor.numel() > 0 && tensor.size(2) > 1 && tensor.stride(2) != 1)
    fail(op, name, " has stride ", tensor.stride(2), " within a head, expected 1");
  return {static_cast<const T*>(tensor.const_data_ptr()), tensor.stride(0), tensor.stride(1)};
}

// Memory of a result like q.
template <class T>
T* result(const char* op, const char* name, const Tensor& tensor, const Tensor& q) {
  check_contiguous_like(op, name, tensor, ScalarOf<T>::type, "[T, H, Dh]", {q.size(0), q.size(1), q.size(2)});
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// Memory of a statistic [H, T].
template <class T>
Arithmetic<T>* statistic(const char* op, const char* name, const Tensor& tensor, const Tensor& q) {
  check_contiguous_like(op, name, tensor, ScalarOf<T>::wide, "[H, T]", {q.size(1), q.size(0)});
  return static_cast<Arithmetic<T>*>(tensor.mutable_data_ptr());
}

// Memory of a table [H, entries], or null.
template <class T>
Arithmetic<T>* table(const char* op, const char* name, const OptionalTensor& tensor, const Tensor& q) {
  if (!tensor) return nullptr;
  check_contiguous_like(op, name, *tensor, ScalarOf<T>::wide, "[H, any]", {q.size(1), -1});
  if (tensor->size(1) < 1) fail(op, name, " has no entries, expected at least 1");
  return static_cast<Arithmetic<T>*>(tensor->mutable_data_ptr());
}

template <class E>
const E* per_event(const char* op, const char* name, const OptionalTensor& tensor, const Tensor& q,
                   ScalarType dtype) {
  if (!tensor) return nullptr;
  check_contiguous_like(op, name, *tensor, dtype, "[T]", {q.size(0)});
  return static_cast<const E*>(tensor->const_data_ptr());
}

inline TimeBuckets time_buckets(const History& history) {
  if (!history.time_bias) return {};
  for (const auto& [name, given] :
       {std::pair{"time_edges", &history.time_edges}, std::pair{"query_time", &history.query_time},
        std::pair{"key_time", &history.key_time}}) {
    if (!*given) fail(history.op, name, " is not given, expected it beside time_bias");
  }
  check_contiguous_like(history.op, "time_edges", *history.time_edges, ScalarType::Long, "[N]",
                        {history.time_bias->size(1)});
  return {history.time_edges->const_data_ptr<int64_t>(), history.time_edges->size(0)};
}

inline void check_offsets(const History& history) {
  const Tensor& offsets = history.offsets;
  check_contiguous_like(history.op, "offsets", offsets, ScalarType::Int, "[B + 1]", {-1});
  if (offsets.size(0) < 1) fail(history.op, "offsets is empty, expected [B + 1] values, the first of them 0");
  const int32_t* values = offsets.const_data_ptr<int32_t>();
  for (int64_t i = 0; i < offsets.size(0); ++i) {
    const int64_t least = i == 0 ? 0 : values[i - 1], most = i == 0 ? 0 : history.q.size(0);
    if (values[i] < least || values[i] > most)
      fail(history.op, "offsets[", i, "] is ", values[i], ", expected ", least, " to ", most);
  }
}

template <class T>
Problem<T> make_problem(const History& history, const TimeBuckets& buckets) {
  const char* op = history.op;
  const Tensor& q = history.q;
  check_shape(op, "q", q, "[T, H, Dh]", {-1, -1, -1});
  check_offsets(history);
  Problem<T> p;
  p.q = packed<T>(op, "q", q, q);
  p.k = packed<T>(op, "k", history.k, q);
  p.v = packed<T>(op, "v", history.v, q);
  p.offsets = history.offsets.const_data_ptr<int32_t>();
  p.users = history.offsets.size(0) - 1;
  p.rows = q.size(0);
  p.heads = q.size(1);
  p.width = q.size(2);
  p.visible = per_event<int32_t>(op, "visible", history.visible, q, ScalarType::Int);
  p.window = history.window > 0 ? history.window : std::numeric_limits<int32_t>::max();
  p.position_bias = table<T>(op, "position_bias", history.position_bias, q);
  p.positions = history.position_bias ? history.position_bias->size(1) : 0;
  p.time_bias = table<T>(op, "time_bias", history.time_bias, q);
  p.times = history.time_bias ? history.time_bias->size(1) : 0;
  p.query_time = per_event<int64_t>(op, "query_time", history.query_time, q, ScalarType::Long);
  p.key_time = per_event<int64_t>(op, "key_time", history.key_time, q, ScalarType::Long);
  p.buckets = &buckets;
  p.scale = static_cast<Arithmetic<T>>(history.scale);
  return p;
}

// The gradients' memory; `statistic` and `d_statistic` where the rule keeps one.
struct BackwardTensors {
  Tensor d_out;
  OptionalTensor out, statistic, d_statistic;
  Tensor d_q, d_k, d_v;
  OptionalTensor d_position_bias, d_time_bias;
};

template <class T>
Gradients<T> make_gradients(const History& history, const BackwardTensors& given) {
  const char* op = history.op;
  const Tensor& q = history.q;
  Gradients<T> g{};
  g.d_out = packed<T>(op, "d_out", given.d_out, q);
  if (given.statistic) {
    g.out = result<T>(op, "out", *given.out, q);
    g.statistic = statistic<T>(op, "statistic", *given.statistic, q);
    g.d_statistic = statistic<T>(op, "d_statistic", *given.d_statistic, q);
  }
  g.d_q = result<T>(op, "d_q", given.d_q, q);
  g.d_k = result<T>(op, "d_k", given.d_k, q);
  g.d_v = result<T>(op, "d_v", given.d_v, q);
  g.d_position_bias = table<T>(op, "d_position_bias", given.d_position_bias, q);
  g.d_time_bias = table<T>(op, "d_time_bias", given.d_time_bias, q);
  return g;
}

}  // namespace argus::attention
