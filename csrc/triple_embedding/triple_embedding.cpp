// argus_native::triple_embedding and its backward: checks, allocation, registration. Compiled into both op
// libraries.
#include "triple_embedding/triple_embedding.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>

#include "common/check.h"

namespace argus::triple_embedding {
namespace {

constexpr const char* kOp = "triple_embedding";

struct Inputs {
  Tensor ids, weight;
  std::vector<Tensor> tables;
  std::vector<int64_t> columns;
};

void check_table(const Tensor& table, const Tensor& weight, const Tensor& first) {
  check_shape(kOp, "a table", table, "[V, d]", {-1, -1});
  check_same_device(kOp, "a table", table, "weight", weight);
  const bool narrow =
      weight.scalar_type() == ScalarType::BFloat16 || weight.scalar_type() == ScalarType::Half;
  if (narrow && table.scalar_type() != weight.scalar_type())
    check_dtype(kOp, "a table", table, {ScalarType::Float});
  if (!narrow) check_dtype(kOp, "a table", table, {weight.scalar_type()});
  check_dtype(kOp, "a table", table, {first.scalar_type()});
}

void check(const Inputs& inputs) {
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
    height += inputs.tables[static_cast<size_t>(column)].size(1);
  }
  if (inputs.weight.size(0) != height)
    fail(kOp, "weight has ", inputs.weight.size(0), " rows, expected ", height);
}

#ifndef ARGUS_CUDA_LIBRARY

void check_ids(const Column& column, int64_t k, int64_t events, int64_t rows) {
  bool outside = false;
  for (int64_t t = 0; t < events; ++t) outside |= column.ids[t] < kSkippedRow || column.ids[t] >= rows;
  if (!outside) return;
  for (int64_t t = 0; t < events; ++t) {
    if (column.ids[t] < kSkippedRow || column.ids[t] >= rows)
      fail(kOp, "ids[", k, ", ", t, "] is ", column.ids[t], ", expected -1 (missing) or a row of tables[",
           column.table, "], 0 to ", rows - 1);
  }
}

Problem make_problem(const Inputs& inputs, int64_t stack) {
  Problem problem{
      .tables = {},
      .columns = {},
      .weight = inputs.weight.const_data_ptr(),
      .events = inputs.ids.size(1),
      .height = inputs.weight.size(0),
      .width = inputs.weight.size(1),
      .table_dtype = dtype_of(inputs.tables.empty() ? inputs.weight : inputs.tables.front()),
      .dtype = dtype_of(inputs.weight),
  };
  for (const Tensor& table : inputs.tables)
    problem.tables.push_back(
        {table.const_data_ptr(), table.size(0), table.size(1), table.stride(0), table.stride(1), false});
  int64_t offset = 0;
  for (size_t k = 0; k < inputs.columns.size(); ++k) {
    const int table = static_cast<int>(inputs.columns[k]);
    const Table& read = problem.tables[static_cast<size_t>(table)];
    const int64_t first = static_cast<int64_t>(k) * problem.events;
    problem.columns.push_back({table, inputs.ids.const_data_ptr<int64_t>() + first, offset});
    check_ids(problem.columns.back(), static_cast<int64_t>(k), problem.events, read.rows);
    offset += read.width;
  }
  choose_projected(problem, stack);
  return problem;
}

Inputs dense_inputs(const Tensor& ids, const std::vector<Tensor>& tables, const std::vector<int64_t>& columns,
                    const Tensor& weight) {
  Inputs inputs{ids, weight, tables, columns};
  check(inputs);
  inputs.ids = torch::stable::contiguous(ids);
  inputs.weight = torch::stable::contiguous(weight);
  return inputs;
}

Tensor forward_on_cpu(Tensor ids, std::vector<Tensor> tables, std::vector<int64_t> columns, Tensor weight,
                      std::optional<Tensor> bias) {
  const Inputs inputs = dense_inputs(ids, tables, columns, weight);
  const Problem problem = make_problem(inputs, kForwardStack);
  Tensor output = torch::stable::new_empty(inputs.weight, {problem.events, problem.width});
  if (!bias) {
    forward_cpu(problem, nullptr, output.mutable_data_ptr());
    return output;
  }
  check_shape(kOp, "bias", *bias, "[D]", {problem.width});
  check_dtype(kOp, "bias", *bias, {inputs.weight.scalar_type()});
  const Tensor dense_bias = torch::stable::contiguous(*bias);
  forward_cpu(problem, dense_bias.const_data_ptr(), output.mutable_data_ptr());
  return output;
}

// The rows that were read and a row of gradients for each, of every table.
std::vector<Tensor> allocate_rows(const Inputs& inputs, Backward& backward) {
  std::vector<Tensor> made;
  for (size_t index = 0; index < inputs.tables.size(); ++index) {
    RowGradients& rows = backward.rows[index];
    const int64_t count = rows.order.runs();
    Tensor numbers = torch::stable::new_empty(inputs.ids, {count});
    std::copy_n(rows.order.rows(), count, numbers.mutable_data_ptr<int64_t>());
    Tensor values = torch::stable::new_empty(inputs.tables[index], {count, inputs.tables[index].size(1)});
    rows.values = values.mutable_data_ptr();
    made.push_back(numbers);
    made.push_back(values);
  }
  return made;
}

void take_dense(const Inputs& inputs, const std::vector<Tensor>& zeros, Backward& backward) {
  if (zeros.size() != inputs.tables.size())
    fail(kOp, "d_tables has ", zeros.size(), " tensors, expected one for each of ", inputs.tables.size(),
         " tables");
  for (size_t index = 0; index < zeros.size(); ++index) {
    const Tensor& table = inputs.tables[index];
    check_shape(kOp, "d_tables", zeros[index], "[V, d]", {table.size(0), table.size(1)});
    check_dtype(kOp, "d_tables", zeros[index], {table.scalar_type()});
    check_contiguous(kOp, "d_tables", zeros[index]);
    backward.rows[index].values = zeros[index].mutable_data_ptr();
    backward.rows[index].dense = true;
  }
}

void order_all_rows(const Problem& problem, Backward& backward) {
  backward.rows.resize(problem.tables.size());
  torch::stable::parallel_for(
      0, static_cast<int64_t>(problem.tables.size()), 1, [&](int64_t first, int64_t last) {
        for (int64_t table = first; table < last; ++table)
          backward.rows[static_cast<size_t>(table)].order = order_rows(problem, static_cast<int>(table));
      });
}

// d_tables: a tensor of zeros for each table, or none for row-sparse gradients. Returns (rows, values) of
// each table where row-sparse, then the weight's and the bias's gradient where wanted.
std::vector<Tensor> backward_on_cpu(Tensor gradient, Tensor ids, std::vector<Tensor> tables,
                                    std::vector<int64_t> columns, Tensor weight, std::vector<Tensor> d_tables,
                                    bool sparse, bool needs_tables, bool needs_weight, bool needs_bias) {
  const Inputs inputs = dense_inputs(ids, tables, columns, weight);
  const Problem problem = make_problem(inputs, kBackwardStack);
  check_shape(kOp, "gradient", gradient, "[T, D]", {problem.events, problem.width});
  check_dtype(kOp, "gradient", gradient, {inputs.weight.scalar_type()});
  const Tensor dense = torch::stable::contiguous(gradient);
  Backward backward{dense.const_data_ptr(), needs_tables, needs_weight, needs_bias, {}, nullptr, nullptr};
  std::vector<Tensor> made;
  if (needs_tables) {
    order_all_rows(problem, backward);
    if (sparse) {
      made = allocate_rows(inputs, backward);
    } else {
      take_dense(inputs, d_tables, backward);
    }
  }
  if (needs_weight) {
    made.push_back(torch::stable::new_empty(inputs.weight, {problem.height, problem.width}));
    backward.d_weight = made.back().mutable_data_ptr();
  }
  if (needs_bias) {
    made.push_back(torch::stable::new_empty(inputs.weight, {problem.width}));
    backward.d_bias = made.back().mutable_data_ptr();
  }
  backward_cpu(problem, backward);
  return made;
}

#endif

}  // namespace
}  // namespace argus::triple_embedding

#ifndef ARGUS_CUDA_LIBRARY

STABLE_TORCH_LIBRARY_FRAGMENT(argus_native, m) {
  m.def(
      "triple_embedding(Tensor ids, Tensor[] tables, int[] columns, Tensor weight, Tensor? bias) -> Tensor");
  m.def(
      "triple_embedding_backward(Tensor gradient, Tensor ids, Tensor[] tables, int[] columns, Tensor weight, "
      "Tensor(a!)[] d_tables, bool sparse, bool needs_tables, bool needs_weight, bool needs_bias) -> "
      "Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(argus_native, CPU, m) {
  m.impl("triple_embedding", TORCH_BOX(&argus::triple_embedding::forward_on_cpu));
  m.impl("triple_embedding_backward", TORCH_BOX(&argus::triple_embedding::backward_on_cpu));
}

#endif
