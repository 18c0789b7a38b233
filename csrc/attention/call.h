// Checks the tensors of an attention op over packed histories and unpacks them, for both processors.
// Every value that the kernels use as an index is checked here, except the values of offsets and visible on
// CUDA, which are not on the host.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <exception>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "attention/arguments.h"
#include "common/torch/check.h"
#include "common/torch/memory.h"

namespace argus::attention {

using OptionalTensor = std::optional<Tensor>;

// The schemas of the native ops begin with the rows; the op's factors follow, then what a call may leave out.
// A backward pass has in front what it knows of the forward pass, and `wanted` after the dropout.
#define ARGUS_ROWS_SCHEMA "Tensor q, Tensor k, Tensor v, Tensor offsets, "
#define ARGUS_NUMBERS_SCHEMA ", int window=0, float dropout=0.0, "
#define ARGUS_WANTED_SCHEMA "bool need_position_bias=False, bool need_time_bias=False, "
#define ARGUS_TENSORS_SCHEMA                                                                             \
  "Tensor? position_bias=None, Tensor? time_bias=None, Tensor? query_time=None, Tensor? key_time=None, " \
  "Tensor? visible=None, Tensor? position=None, Tensor? own_begin=None, Tensor? own_end=None, "          \
  "Tensor? prefix=None, Tensor? key_offsets=None, Tensor? dropout_seed=None"
#define ARGUS_ROWS_PARAMETERS Tensor q, Tensor k, Tensor v, Tensor offsets
#define ARGUS_TENSORS_PARAMETERS                                                                          \
  OptionalTensor position_bias, OptionalTensor time_bias, OptionalTensor query_time,                      \
      OptionalTensor key_time, OptionalTensor visible, OptionalTensor position, OptionalTensor own_begin, \
      OptionalTensor own_end, OptionalTensor prefix, OptionalTensor key_offsets, OptionalTensor dropout_seed
#define ARGUS_HISTORY_VALUES                                                                               \
  q, k, v, offsets, position_bias, time_bias, query_time, key_time, visible, position, own_begin, own_end, \
      prefix, key_offsets, dropout_seed

// The arguments as the native ops take them. Tables are contiguous, in the dtype of the sums.
struct Given {
  const char* op;
  Tensor q, k, v, offsets;
  OptionalTensor position_bias, time_bias, query_time, key_time;
  OptionalTensor visible, position, own_begin, own_end, prefix, key_offsets, dropout_seed;
  double scale, divisor;
  int64_t window;  // 0: no limit
  double dropout;

  // The dtype of sums, statistics and tables.
  ScalarType wide() const {
    return q.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  }
};

inline void check_like(const Given& given, const char* name, const Tensor& tensor, ScalarType dtype,
                       const char* pattern, std::initializer_list<int64_t> sizes) {
  check_shape(given.op, name, tensor, pattern, sizes);
  check_dtype(given.op, name, tensor, {dtype});
  check_contiguous(given.op, name, tensor);
  check_same_device(given.op, name, tensor, "q", given.q);
}

inline void check_below_2_31(const Given& given, const char* name, int64_t size, const char* what) {
  if (size > std::numeric_limits<int32_t>::max())
    fail(given.op, name, " has ", size, " ", what, ", expected below 2^31");
}

inline void check_query(const Given& given) {
  const Tensor& q = given.q;
  check_shape(given.op, "q", q, "[T, H, Dh]", {-1, -1, -1});
  const int64_t heads = q.size(1), width = q.size(2);
  check_below_2_31(given, "q", q.size(0), "rows");
  check_below_2_31(given, "q", heads, "heads");
  check_below_2_31(given, "q", width, "elements a head");
  if (!q.is_cuda()) {
    check_dtype(given.op, "q", q,
                {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half, ScalarType::Double});
    if (width < 1) fail(given.op, "q has head width 0, expected at least 1");
    return;
  }
  check_dtype(given.op, "q", q, {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half});
  if (width < 8 || width % 8 != 0 || width > kMaxWidth)
    fail(given.op, "q has head width ", width, ", expected a multiple of 8 from 8 to ", kMaxWidth);
  if (heads > 65535) fail(given.op, "q has ", heads, " heads, expected at most 65535");
}

// A tensor of [rows, heads, width]; the elements of a head are contiguous. On CUDA each row is aligned to 16
// bytes, because the kernels copy 16 bytes at a time.
inline Heads heads_of(const Given& given, const char* name, const Tensor& tensor, int64_t rows,
                      int64_t heads) {
  const Tensor& q = given.q;
  check_shape(given.op, name, tensor, "[T, H, Dh]", {rows, heads, q.size(2)});
  check_dtype(given.op, name, tensor, {q.scalar_type()});
  check_same_device(given.op, name, tensor, "q", q);
  const int64_t bytes = static_cast<int64_t>(q.element_size());
  const auto address = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
  const bool dense = tensor.numel() == 0 || tensor.size(2) <= 1 || tensor.stride(2) == 1;
  if (!q.is_cuda() && !dense)
    fail(given.op, name, " has stride ", tensor.stride(2), " within a head, expected 1");
  const bool aligned =
      tensor.stride(0) * bytes % 16 == 0 && tensor.stride(1) * bytes % 16 == 0 && address % 16 == 0;
  if (q.is_cuda() && tensor.numel() > 0 && !(dense && aligned))
    fail(given.op, name, " has strides [", tensor.stride(0), ", ", tensor.stride(1), ", ", tensor.stride(2),
         "], expected heads of adjacent elements that begin at multiples of 16 bytes");
  return {tensor.const_data_ptr(), tensor.stride(0), tensor.stride(1)};
}

// Rows and heads of k and v.
inline void check_keys(const Given& given) {
  const Tensor& q = given.q;
  const Tensor& k = given.k;
  check_shape(given.op, "k", k, "[Tk, Hk, Dh]",
              {given.key_offsets.has_value() ? -1 : q.size(0), -1, q.size(2)});
  check_below_2_31(given, "k", k.size(0), "rows");
  if (q.size(1) > 0 && (k.size(1) < 1 || q.size(1) % k.size(1) != 0))
    fail(given.op, "k has ", k.size(1), " heads, expected a divisor of q's ", q.size(1));
}

inline const int32_t* offsets_of(const Given& given, const char* name, const Tensor& offsets, int64_t rows) {
  check_like(given, name, offsets, ScalarType::Int, "[B + 1]", {-1});
  if (offsets.size(0) < 1) fail(given.op, name, " is empty, expected [B + 1] values, the first of them 0");
  check_below_2_31(given, name, offsets.size(0), "values");
  const int32_t* values = static_cast<const int32_t*>(offsets.const_data_ptr());
  if (offsets.is_cuda()) return values;
  const int64_t users = offsets.size(0) - 1;
  for (int64_t i = 0; i <= users; ++i) {
    const int64_t least = i == 0 ? 0 : values[i - 1], most = i == 0 ? 0 : rows;
    if (values[i] < least || values[i] > most)
      fail(given.op, name, "[", i, "] is ", values[i], ", expected ", least, " to ", most);
  }
  return values;
}

template <class E>
const E* column_of(const Given& given, const char* name, const OptionalTensor& tensor, ScalarType dtype,
                   const char* pattern, int64_t rows) {
  if (!tensor.has_value()) return nullptr;
  check_like(given, name, *tensor, dtype, pattern, {rows});
  return static_cast<const E*>(tensor->const_data_ptr());
}

constexpr int32_t kMostPlaces = 1 << 30;

// The numbers of the mask rule, on the CPU: `visible` and a query's own keys lie within its user's keys.
inline void check_query_numbers(const Given& given, const Arguments& arguments) {
  const auto refuse = [&](const char* name, int64_t row, int32_t value, int64_t least, int64_t most,
                          const char* why = "") {
    if (value < least || value > most)
      fail(given.op, name, "[", row, "] is ", value, ", expected ", least, " to ", most, why);
  };
  constexpr const char* kKeysOfUser = ", the number of its user's keys";
  const bool own = arguments.own_begin != nullptr;
  for (int32_t user = 0; user < arguments.users; ++user) {
    const int64_t keys = arguments.key_offsets[user + 1] - arguments.key_offsets[user];
    for (int64_t row = arguments.offsets[user]; row < arguments.offsets[user + 1]; ++row) {
      if (arguments.visible != nullptr) refuse("visible", row, arguments.visible[row], 0, keys, kKeysOfUser);
      if (arguments.position != nullptr)
        refuse("position", row, arguments.position[row], -kMostPlaces, kMostPlaces);
      if (own) refuse("own_end", row, arguments.own_end[row], 0, keys, kKeysOfUser);
      if (own) refuse("own_begin", row, arguments.own_begin[row], 0, arguments.own_end[row], ", its own_end");
    }
    if (arguments.prefix != nullptr && arguments.prefix[user] < 0)
      fail(given.op, "prefix[", user, "] is ", arguments.prefix[user], ", expected at least 0");
  }
}

inline const void* table_of(const Given& given, const char* name, const OptionalTensor& table) {
  if (!table.has_value()) return nullptr;
  check_like(given, name, *table, given.wide(), "[H, any]", {given.q.size(1), -1});
  if (table->size(1) < 1) fail(given.op, name, " has no entries, expected at least 1");
  check_below_2_31(given, name, table->size(1), "entries");
  return table->const_data_ptr();
}

inline void check_options(const Given& given) {
  if (given.window < 0)
    fail(given.op, "window is ", given.window, ", expected at least 1, or 0 for no limit");
  if (!(given.dropout >= 0 && given.dropout < 1))
    fail(given.op, "dropout is ", given.dropout, ", expected at least 0 and below 1");
  if (given.dropout > 0 && !given.dropout_seed)
    fail(given.op, "dropout_seed is not given, expected it with dropout");
  if (given.own_begin.has_value() != given.own_end.has_value())
    fail(given.op, "one of own_begin and own_end is given, expected both or neither");
  for (const auto& [name, time] :
       {std::pair{"query_time", &given.query_time}, std::pair{"key_time", &given.key_time}}) {
    if (given.time_bias && !*time) fail(given.op, name, " is not given, expected it beside time_bias");
  }
  if (given.q.is_cuda() && given.position_bias && given.position_bias->size(1) > kMaxPositions)
    fail(given.op, "position_bias has ", given.position_bias->size(1), " columns, expected at most ",
         kMaxPositions);
}

inline Arguments arguments_of(const Given& given) {
  check_query(given);
  const void* position_bias = table_of(given, "position_bias", given.position_bias);
  const void* time_bias = table_of(given, "time_bias", given.time_bias);
  check_options(given);
  const auto columns = [](const OptionalTensor& table) {
    return table.has_value() ? static_cast<int32_t>(table->size(1)) : 0;
  };
  const bool limited = given.window > 0 && given.window < kNoWindow;
  check_keys(given);
  const int64_t rows = given.q.size(0), key_rows = given.k.size(0), key_heads = given.k.size(1);
  const int32_t* offsets = offsets_of(given, "offsets", given.offsets, rows);
  const int32_t* key_offsets =
      given.key_offsets ? offsets_of(given, "key_offsets", *given.key_offsets, key_rows) : offsets;
  if (given.key_offsets && given.key_offsets->size(0) != given.offsets.size(0))
    fail(given.op, "key_offsets has ", given.key_offsets->size(0), " values, expected offsets' ",
         given.offsets.size(0));
  const int64_t users = given.offsets.size(0) - 1;
  const auto number_of = [&](const char* name, const OptionalTensor& tensor) {
    return column_of<int32_t>(given, name, tensor, ScalarType::Int, "[T]", rows);
  };
  const Arguments arguments{
      .q = heads_of(given, "q", given.q, rows, given.q.size(1)),
      .k = heads_of(given, "k", given.k, key_rows, key_heads),
      .v = heads_of(given, "v", given.v, key_rows, key_heads),
      .offsets = offsets,
      .key_offsets = key_offsets,
      .visible = number_of("visible", given.visible),
      .position = number_of("position", given.position),
      .own_begin = number_of("own_begin", given.own_begin),
      .own_end = number_of("own_end", given.own_end),
      .prefix = column_of<int32_t>(given, "prefix", given.prefix, ScalarType::Int, "[B]", users),
      .position_bias = position_bias,
      .time_bias = time_bias,
      .query_time = column_of<int64_t>(given, "query_time", given.query_time, ScalarType::Long, "[T]", rows),
      .key_time = column_of<int64_t>(given, "key_time", given.key_time, ScalarType::Long, "[Tk]", key_rows),
      .dropout_seed = given.dropout > 0 ? column_of<int64_t>(given, "dropout_seed", given.dropout_seed,
                                                             ScalarType::Long, "[B]", users)
                                        : nullptr,
      .rows = rows,
      .key_rows = key_rows,
      .users = static_cast<int32_t>(users),
      .heads = static_cast<int32_t>(given.q.size(1)),
      .key_heads = static_cast<int32_t>(key_heads),
      .width = static_cast<int32_t>(given.q.size(2)),
      .positions = columns(given.position_bias),
      .times = columns(given.time_bias),
      .window = limited ? static_cast<int32_t>(given.window) : kNoWindow,
      .dropped_below = static_cast<uint32_t>(std::floor(given.dropout * 4294967296.0)),
      .kept_factor = 1 / (1 - given.dropout),
      .scale = given.scale,
      .divisor = given.divisor,
      .dtype = dtype_of(given.q),
  };
  const bool numbers = arguments.visible != nullptr || !arguments.own_rows();
  if (!given.q.is_cuda() && numbers) check_query_numbers(given, arguments);
  return arguments;
}

inline Heads heads_of(const Given& given, const char* name, const Tensor& like_q) {
  return heads_of(given, name, like_q, given.q.size(0), given.q.size(1));
}

// A contiguous result shaped like q, of an earlier pass.
inline const void* result_of(const Given& given, const char* name, const Tensor& tensor) {
  const Tensor& q = given.q;
  check_like(given, name, tensor, q.scalar_type(), "[T, H, Dh]", {q.size(0), q.size(1), q.size(2)});
  return tensor.const_data_ptr();
}

// One number per head and row, of an earlier pass; null if the op has no statistics.
inline const void* statistic_of(const Given& given, const char* name, const OptionalTensor& tensor) {
  if (!tensor.has_value()) return nullptr;
  check_like(given, name, *tensor, given.wide(), "[H, T]", {given.q.size(1), given.q.size(0)});
  return tensor->const_data_ptr();
}

// Memory for a result shaped like q.
inline Tensor new_rows(const Given& given) {
  const Tensor& q = given.q;
  try {
    return empty(q, {q.size(0), q.size(1), q.size(2)});
  } catch (const std::exception&) {
    fail(given.op, "q has shape ", shape_text(q), ", expected one that memory holds a result of");
  }
}

// Memory for a gradient of keys or values.
inline Tensor new_key_rows(const Given& given) {
  const Tensor& k = given.k;
  try {
    return empty(k, {k.size(0), k.size(1), k.size(2)});
  } catch (const std::exception&) {
    fail(given.op, "k has shape ", shape_text(k), ", expected one that memory holds a result of");
  }
}

// Memory for one number per head and row.
inline Tensor new_statistic(const Given& given) {
  return empty(given.q, {given.q.size(1), given.q.size(0)}, given.wide());
}

// What a backward pass reads besides the arguments; only softmax has statistics.
struct BackwardInputs {
  Tensor d_out;
  OptionalTensor d_log_sum_exp, out, log_sum_exp;
};

// The gradients that a backward pass writes; those of the bias tables only where they are wanted.
struct NewGradients {
  Tensor d_q, d_k, d_v;
  OptionalTensor d_position_bias, d_time_bias;

  NewGradients(const Given& given, bool position_bias, bool time_bias)
      : d_q(new_rows(given)),
        d_k(new_key_rows(given)),
        d_v(new_key_rows(given)),
        d_position_bias(of_table(given, position_bias, given.position_bias)),
        d_time_bias(of_table(given, time_bias, given.time_bias)) {}

  // In the order above, without those that are not wanted.
  std::vector<Tensor> list() const {
    std::vector<Tensor> found{d_q, d_k, d_v};
    for (const OptionalTensor* table : {&d_position_bias, &d_time_bias})
      if (table->has_value()) found.push_back(**table);
    return found;
  }

 private:
  static OptionalTensor of_table(const Given& given, bool wanted, const OptionalTensor& table) {
    if (!wanted) return std::nullopt;
    return empty(given.q, {table->size(0), table->size(1)}, given.wide());
  }
};

inline void check_wanted(const Given& given, const char* table_name, bool wanted,
                         const OptionalTensor& table) {
  if (wanted && !table.has_value())
    fail(given.op, "the gradient of ", table_name, " is wanted without it, expected both or neither");
}

// Everything but the addresses of the gradients, which `write_to` adds.
inline Backward backward_of(const Given& given, const BackwardInputs& inputs) {
  return {
      .given = arguments_of(given),
      .d_out = heads_of(given, "d_out", inputs.d_out),
      .out = inputs.out.has_value() ? result_of(given, "out", *inputs.out) : nullptr,
      .log_sum_exp = statistic_of(given, "log_sum_exp", inputs.log_sum_exp),
      .d_log_sum_exp = statistic_of(given, "d_log_sum_exp", inputs.d_log_sum_exp),
      .d_q = nullptr,
      .d_k = nullptr,
      .d_v = nullptr,
      .d_position_bias = nullptr,
      .d_time_bias = nullptr,
      .delta = nullptr,
      .correction = nullptr,
      .reach = nullptr,
      .table_parts = nullptr,
  };
}

inline void write_to(const NewGradients& to, Backward& call) {
  const auto address = [](const OptionalTensor& tensor) {
    return tensor.has_value() ? tensor->mutable_data_ptr() : nullptr;
  };
  call.d_q = to.d_q.mutable_data_ptr();
  call.d_k = to.d_k.mutable_data_ptr();
  call.d_v = to.d_v.mutable_data_ptr();
  call.d_position_bias = address(to.d_position_bias);
  call.d_time_bias = address(to.d_time_bias);
}

// The scratch of a backward pass on CUDA. torch's allocator reuses it only for later work on the same stream.
struct CudaScratch {
  Tensor reach, table_parts, statistics;
  std::optional<Tensor> query_sums, turns;

  CudaScratch(const Given& given, Backward& call, const LoopScratch& loop) {
    const Arguments& arguments = call.given;
    const int64_t blocks = most_blocks(arguments.rows, arguments.users);
    const bool tables = call.d_position_bias != nullptr || call.d_time_bias != nullptr;
    const int64_t entries = tables ? int64_t{arguments.positions} + arguments.times : 0;
    const int64_t statistic = call.log_sum_exp == nullptr ? 0 : arguments.heads * arguments.rows;
    reach = empty(given.q, {blocks, kReachNumbers}, ScalarType::Int);
    table_parts = empty(given.q, {blocks, arguments.heads, entries}, ScalarType::Float);
    statistics = empty(given.q, {2, statistic}, ScalarType::Float);
    call.reach = reach.mutable_data_ptr<int32_t>();
    call.table_parts = table_parts.mutable_data_ptr<float>();
    call.delta = statistics.mutable_data_ptr<float>();
    call.correction = call.delta + statistic;
    if (loop.turns == 0) return;
    query_sums = empty(given.q, {loop.floats}, ScalarType::Float);
    turns = empty(given.q, {loop.turns}, ScalarType::Int);
    call.query_sums = query_sums->mutable_data_ptr<float>();
    call.turns = turns->mutable_data_ptr<int32_t>();
  }
};

}  // namespace argus::attention
