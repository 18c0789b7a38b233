// The arguments of triple_embedding as torch passes them, and their checks.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <exception>
#include <initializer_list>
#include <optional>
#include <vector>

#include "common/torch/check.h"
#include "common/torch/memory.h"

namespace argus::triple_embedding {

inline constexpr const char* kOp = "triple_embedding";

struct Inputs {
  Tensor ids, weight;
  std::vector<Tensor> tables;
  std::vector<int64_t> columns;
};

// Memory for a result. Its width comes from the weight, which has no elements if no column is given and may
// then have any width.
inline Tensor new_result(const Tensor& like, std::initializer_list<int64_t> sizes, bool zeros = false) {
  try {
    return zeros ? argus::zeros(like, sizes) : empty(like, sizes);
  } catch (const std::exception&) {
    fail(kOp, "a result has ", *sizes.begin(), " rows of the weight's width, expected one that memory holds");
  }
}

inline void check_table(const Tensor& table, const Tensor& weight, const Tensor& first) {
  check_shape(kOp, "a table", table, "[V, d]", {-1, -1});
  check_same_device(kOp, "a table", table, "weight", weight);
  const bool narrow =
      weight.scalar_type() == ScalarType::BFloat16 || weight.scalar_type() == ScalarType::Half;
  if (narrow && table.scalar_type() != weight.scalar_type())
    check_dtype(kOp, "a table", table, {ScalarType::Float});
  if (!narrow) check_dtype(kOp, "a table", table, {weight.scalar_type()});
  check_dtype(kOp, "a table", table, {first.scalar_type()});
}

inline void check(const Inputs& inputs) {
  const int64_t columns = static_cast<int64_t>(inputs.columns.size());
  check_shape(kOp, "ids", inputs.ids, "[K, T]", {columns, -1});
  check_shape(kOp, "weight", inputs.weight, "[H, D]", {-1, -1});
  check_dtype(kOp, "ids", inputs.ids, {ScalarType::Long});
  check_dtype(kOp, "weight", inputs.weight,
              {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half, ScalarType::Double});
  check_same_device(kOp, "ids", inputs.ids, "weight", inputs.weight);
  for (const Tensor& table : inputs.tables) check_table(table, inputs.weight, inputs.tables.front());
  int64_t height = 0;
  for (const int64_t column : inputs.columns) {
    if (column < 0 || column >= static_cast<int64_t>(inputs.tables.size()))
      fail(kOp, "columns names table ", column, ", expected one of the ", inputs.tables.size(), " tables");
    const int64_t width = inputs.tables[static_cast<size_t>(column)].size(1);
    height = checked_sum(kOp, "the sum of the columns' widths", height, width);
  }
  if (inputs.weight.size(0) != height)
    fail(kOp, "weight has ", inputs.weight.size(0), " rows, expected ", height);
}

inline Inputs dense_inputs(const Tensor& ids, const std::vector<Tensor>& tables,
                           const std::vector<int64_t>& columns, const Tensor& weight) {
  Inputs inputs{ids, weight, tables, columns};
  check(inputs);
  inputs.ids = dense(kOp, "ids", ids);
  inputs.weight = dense(kOp, "weight", weight);
  return inputs;
}

// Zeros of each table's shape and dtype, which its dense gradient is written to.
inline void check_zeros(const Inputs& inputs, const std::vector<Tensor>& zeros) {
  if (zeros.size() != inputs.tables.size())
    fail(kOp, "d_tables has ", zeros.size(), " tensors, expected one for each of ", inputs.tables.size(),
         " tables");
  for (size_t index = 0; index < zeros.size(); ++index) {
    const Tensor& table = inputs.tables[index];
    check_shape(kOp, "d_tables", zeros[index], "[V, d]", {table.size(0), table.size(1)});
    check_dtype(kOp, "d_tables", zeros[index], {table.scalar_type()});
    check_same_device(kOp, "d_tables", zeros[index], "weight", inputs.weight);
    check_contiguous(kOp, "d_tables", zeros[index]);
  }
}

// What dense gradients of the tables are written to: the given zeros, or where none are given fresh ones,
// which are added to `made`.
inline std::vector<Tensor> gradient_zeros(const Inputs& inputs, const std::vector<Tensor>& given,
                                          std::vector<Tensor>& made) {
  if (!given.empty()) {
    check_zeros(inputs, given);
    return given;
  }
  for (const Tensor& table : inputs.tables)
    made.push_back(new_result(table, {table.size(0), table.size(1)}, true));
  return made;
}

// The states of tables that the backward pass updates, and how many of each setting there are.
inline void check_states(const Inputs& inputs, const std::vector<Tensor>& states,
                         std::initializer_list<size_t> settings) {
  const size_t count = inputs.tables.size();
  if (states.size() != count)
    fail(kOp, "states has ", states.size(), " tensors, expected one for each of ", count, " tables");
  for (const size_t given : settings) {
    if (given != count)
      fail(kOp, "a setting has ", given, " numbers, expected one for each of ", count, " tables");
  }
  if (inputs.weight.size(1) == 0) fail(kOp, "weight has no columns, expected at least one for a step");
  const bool wide = inputs.weight.scalar_type() == ScalarType::Double;
  for (size_t index = 0; index < count; ++index) {
    const Tensor& table = inputs.tables[index];
    check_contiguous(kOp, "a table that is updated", table);
    check_no_overlap(kOp, "a table that is updated", table);
    if (table.size(1) == 0) fail(kOp, "a table has rows of no columns, expected at least one for a step");
    check_shape(kOp, "a state", states[index], "[V]", {table.size(0)});
    check_dtype(kOp, "a state", states[index], {wide ? ScalarType::Double : ScalarType::Float});
    check_same_device(kOp, "a state", states[index], "weight", inputs.weight);
    check_contiguous(kOp, "a state", states[index]);
  }
}

// The bias as the kernels take it, contiguous; null if there is none.
inline std::optional<Tensor> dense_bias(const Inputs& inputs, const std::optional<Tensor>& bias) {
  if (!bias) return std::nullopt;
  check_shape(kOp, "bias", *bias, "[D]", {inputs.weight.size(1)});
  check_dtype(kOp, "bias", *bias, {inputs.weight.scalar_type()});
  check_same_device(kOp, "bias", *bias, "weight", inputs.weight);
  return dense(kOp, "bias", *bias);
}

inline Tensor dense_gradient(const Inputs& inputs, const Tensor& gradient) {
  check_shape(kOp, "gradient", gradient, "[T, D]", {inputs.ids.size(1), inputs.weight.size(1)});
  check_dtype(kOp, "gradient", gradient, {inputs.weight.scalar_type()});
  check_same_device(kOp, "gradient", gradient, "weight", inputs.weight);
  return dense(kOp, "gradient", gradient);
}

}  // namespace argus::triple_embedding
