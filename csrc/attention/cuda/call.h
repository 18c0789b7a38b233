// The tensors of an attention op over packed histories, checked and taken apart, for the CUDA launchers.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <limits>
#include <optional>
#include <utility>

#include "attention/cuda/arguments.h"
#include "common/torch/check.h"

namespace argus::attention {

using OptionalTensor = std::optional<Tensor>;

// The arguments as the native ops have them. Tables are float32 and contiguous, as history_cuda.py hands them
// over.
struct Given {
  const char* op;
  Tensor q, k, v, offsets;
  OptionalTensor visible, position_bias, time_bias, query_time, key_time;
  double scale, divisor;
  int64_t window;  // 0: no limit
};

inline void check_like(const Given& given, const char* name, const Tensor& tensor, ScalarType dtype,
                       const char* pattern, std::initializer_list<int64_t> sizes) {
  check_shape(given.op, name, tensor, pattern, sizes);
  check_dtype(given.op, name, tensor, {dtype});
  check_contiguous(given.op, name, tensor);
  check_same_device(given.op, name, tensor, "q", given.q);
}

inline Dtype dtype_of(const Given& given) {
  check_dtype(given.op, "q", given.q, {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half});
  switch (given.q.scalar_type()) {
    case ScalarType::BFloat16:
      return Dtype::bfloat16;
    case ScalarType::Half:
      return Dtype::float16;
    default:
      return Dtype::float32;
  }
}

// Rows of 16-byte pieces, which the kernels copy.
inline Heads heads_of(const Given& given, const char* name, const Tensor& tensor) {
  const Tensor& q = given.q;
  check_shape(given.op, name, tensor, "[T, H, Dh]", {q.size(0), q.size(1), q.size(2)});
  check_dtype(given.op, name, tensor, {q.scalar_type()});
  check_same_device(given.op, name, tensor, "q", q);
  const int64_t bytes = q.scalar_type() == ScalarType::Float ? 4 : 2;
  const auto address = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
  const bool fits = tensor.stride(2) == 1 && tensor.stride(0) * bytes % 16 == 0 &&
                    tensor.stride(1) * bytes % 16 == 0 && address % 16 == 0;
  if (tensor.numel() > 0 && !fits) {
    fail(given.op, name, " has strides [", tensor.stride(0), ", ", tensor.stride(1), ", ", tensor.stride(2),
         "], expected heads of adjacent elements that begin at multiples of 16 bytes");
  }
  return {tensor.const_data_ptr(), tensor.stride(0), tensor.stride(1)};
}

template <class T>
const T* column_of(const Given& given, const char* name, const OptionalTensor& tensor, ScalarType dtype) {
  if (!tensor.has_value()) return nullptr;
  check_like(given, name, *tensor, dtype, "[T]", {given.q.size(0)});
  return static_cast<const T*>(tensor->const_data_ptr());
}

inline const float* table_of(const Given& given, const char* name, const OptionalTensor& table) {
  if (!table.has_value()) return nullptr;
  check_like(given, name, *table, ScalarType::Float, "[H, any]", {given.q.size(1), -1});
  if (table->size(1) < 1) fail(given.op, name, " has no entries, expected at least 1");
  return static_cast<const float*>(table->const_data_ptr());
}

inline void check_sizes(const Given& given) {
  const int64_t rows = given.q.size(0), heads = given.q.size(1), width = given.q.size(2);
  if (width < 8 || width % 8 != 0 || width > kMostWidth)
    fail(given.op, "q has head width ", width, ", expected a multiple of 8 from 8 to ", kMostWidth);
  if (given.offsets.size(0) < 1)
    fail(given.op, "offsets is empty, expected [B + 1] values, the first of them 0");
  if (given.window < 0)
    fail(given.op, "window is ", given.window, ", expected at least 1, or 0 for no limit");
  for (const auto& [name, time] :
       {std::pair{"query_time", &given.query_time}, std::pair{"key_time", &given.key_time}}) {
    if (given.time_bias && !*time) fail(given.op, name, " is not given, expected it beside time_bias");
  }
  for (const auto& [name, table] :
       {std::pair{"position_bias", &given.position_bias}, std::pair{"time_bias", &given.time_bias}}) {
    if (*table && (*table)->size(1) > std::numeric_limits<int32_t>::max())
      fail(given.op, name, " has ", (*table)->size(1), " entries, expected below 2^31");
  }
  if (heads > 65535) fail(given.op, "q has ", heads, " heads, expected at most 65535");
  if (rows > std::numeric_limits<int32_t>::max())
    fail(given.op, "q has ", rows, " rows, expected below 2^31");
  if (given.position_bias.has_value() && given.position_bias->size(1) > kMostPositions)
    fail(given.op, "position_bias has ", given.position_bias->size(1), " columns, expected at most ",
         kMostPositions);
}

inline Arguments arguments_of(const Given& given) {
  check_shape(given.op, "q", given.q, "[T, H, Dh]", {-1, -1, -1});
  check_like(given, "offsets", given.offsets, ScalarType::Int, "[B + 1]", {-1});
  for (const auto& [name, table] :
       {std::pair{"position_bias", &given.position_bias}, std::pair{"time_bias", &given.time_bias}})
    table_of(given, name, *table);
  check_sizes(given);
  const auto columns = [](const OptionalTensor& table) {
    return table.has_value() ? static_cast<int32_t>(table->size(1)) : 0;
  };
  const bool limited = given.window > 0 && given.window < kNoWindow;
  return Arguments{
      .q = heads_of(given, "q", given.q),
      .k = heads_of(given, "k", given.k),
      .v = heads_of(given, "v", given.v),
      .offsets = static_cast<const int32_t*>(given.offsets.const_data_ptr()),
      .visible = column_of<int32_t>(given, "visible", given.visible, ScalarType::Int),
      .position_bias = table_of(given, "position_bias", given.position_bias),
      .time_bias = table_of(given, "time_bias", given.time_bias),
      .query_time = column_of<int64_t>(given, "query_time", given.query_time, ScalarType::Long),
      .key_time = column_of<int64_t>(given, "key_time", given.key_time, ScalarType::Long),
      .rows = given.q.size(0),
      .users = static_cast<int32_t>(given.offsets.size(0) - 1),
      .heads = static_cast<int32_t>(given.q.size(1)),
      .width = static_cast<int32_t>(given.q.size(2)),
      .positions = columns(given.position_bias),
      .times = columns(given.time_bias),
      .window = limited ? static_cast<int32_t>(given.window) : kNoWindow,
      .scale = static_cast<float>(given.scale),
      .divisor = static_cast<float>(given.divisor),
      .dtype = dtype_of(given),
  };
}

// A result like q, contiguous.
inline void* result_of(const Given& given, const char* name, const Tensor& tensor) {
  const Tensor& q = given.q;
  check_like(given, name, tensor, q.scalar_type(), "[T, H, Dh]", {q.size(0), q.size(1), q.size(2)});
  return tensor.mutable_data_ptr();
}

// One float32 a head and row.
inline float* statistic_of(const Given& given, const char* name, const Tensor& tensor) {
  check_like(given, name, tensor, ScalarType::Float, "[H, T]", {given.q.size(1), given.q.size(0)});
  return static_cast<float*>(tensor.mutable_data_ptr());
}

// What the backward pass takes and gives besides the arguments; the statistics are softmax's.
struct BackwardTensors {
  Tensor d_q, d_k, d_v;
  OptionalTensor d_position_bias, d_time_bias;
  Tensor visible_bounds, table_parts, d_out;
  OptionalTensor delta, correction, d_log_sum_exp, out, log_sum_exp;
};

inline float* table_gradient_of(const Given& given, const char* name, const OptionalTensor& gradient,
                                const OptionalTensor& table) {
  if (!gradient.has_value()) return nullptr;
  if (!table.has_value()) fail(given.op, name, " is given without its table");
  check_like(given, name, *gradient, ScalarType::Float, "[H, columns]", {table->size(0), table->size(1)});
  return static_cast<float*>(gradient->mutable_data_ptr());
}

inline void check_scratch(const Given& given, const Backward& call, const BackwardTensors& tensors) {
  const Arguments& arguments = call.given;
  const int64_t blocks = most_blocks(arguments.rows, arguments.users);
  check_like(given, "visible_bounds", tensors.visible_bounds, ScalarType::Int, "[blocks, 2]", {blocks, 2});
  if (call.d_position_bias == nullptr && call.d_time_bias == nullptr) return;
  check_like(given, "table_parts", tensors.table_parts, ScalarType::Float, "[blocks, H, P + N]",
             {blocks, arguments.heads, arguments.positions + arguments.times});
}

inline Backward backward_of(const Given& given, const BackwardTensors& tensors) {
  const auto statistic = [&](const char* name, const OptionalTensor& tensor) {
    return tensor.has_value() ? statistic_of(given, name, *tensor) : nullptr;
  };
  const Backward call{
      .given = arguments_of(given),
      .d_out = heads_of(given, "d_out", tensors.d_out),
      .out = tensors.out.has_value() ? result_of(given, "out", *tensors.out) : nullptr,
      .log_sum_exp = statistic("log_sum_exp", tensors.log_sum_exp),
      .d_log_sum_exp = statistic("d_log_sum_exp", tensors.d_log_sum_exp),
      .d_q = result_of(given, "d_q", tensors.d_q),
      .d_k = result_of(given, "d_k", tensors.d_k),
      .d_v = result_of(given, "d_v", tensors.d_v),
      .d_position_bias =
          table_gradient_of(given, "d_position_bias", tensors.d_position_bias, given.position_bias),
      .d_time_bias = table_gradient_of(given, "d_time_bias", tensors.d_time_bias, given.time_bias),
      .delta = statistic("delta", tensors.delta),
      .correction = statistic("correction", tensors.correction),
      .visible_bounds = static_cast<int32_t*>(tensors.visible_bounds.mutable_data_ptr()),
      .table_parts = static_cast<float*>(tensors.table_parts.mutable_data_ptr()),
  };
  check_scratch(given, call, tensors);
  return call;
}

// Calls enqueue(stream) with torch's current stream of q's device.
template <class Enqueue>
void on_current_stream(const Given& given, Enqueue enqueue) {
  const torch::stable::accelerator::DeviceGuard guard(given.q.get_device_index());
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(given.q.get_device_index(), &stream));
  enqueue(stream);
}

}  // namespace argus::attention
