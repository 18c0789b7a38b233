// triple_embedding on CPU tensors: allocation, the order of the rows, the passes.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>

#include "triple_embedding/inputs.h"
#include "triple_embedding/triple_embedding.h"

namespace argus::triple_embedding {

inline void check_ids(const Column& column, int64_t k, int64_t events, int64_t rows) {
  bool outside = false;
  for (int64_t t = 0; t < events; ++t) outside |= column.ids[t] < kSkippedRow || column.ids[t] >= rows;
  if (!outside) return;
  for (int64_t t = 0; t < events; ++t) {
    if (column.ids[t] < kSkippedRow || column.ids[t] >= rows)
      fail(kOp, "ids[", k, ", ", t, "] is ", column.ids[t], ", expected -1 (missing) or a row of tables[",
           column.table, "], 0 to ", rows - 1);
  }
}

inline Problem make_problem(const Inputs& inputs, int64_t stack) {
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

inline Tensor forward_on_cpu(Tensor ids, std::vector<Tensor> tables, std::vector<int64_t> columns,
                             Tensor weight, std::optional<Tensor> bias) {
  const Inputs inputs = dense_inputs(ids, tables, columns, weight);
  const Problem problem = make_problem(inputs, kForwardStack);
  const std::optional<Tensor> dense = dense_bias(inputs, bias);
  Tensor output = new_result(inputs.weight, {problem.events, problem.width});
  forward_cpu(problem, dense ? dense->const_data_ptr() : nullptr, output.mutable_data_ptr());
  return output;
}

// Fresh memory for a gradient; zeros if there are no events or no output columns.
inline Tensor fresh_gradient(const Tensor& like, const Problem& problem,
                             std::initializer_list<int64_t> size) {
  return new_result(like, size, problem.events == 0 || problem.width == 0);
}

// For every table, the rows that were read and a row of gradients for each.
inline std::vector<Tensor> allocate_rows(const Inputs& inputs, const Problem& problem, Backward& backward) {
  std::vector<Tensor> made;
  for (size_t index = 0; index < inputs.tables.size(); ++index) {
    RowGradients& rows = backward.rows[index];
    const int64_t count = rows.order.runs();
    Tensor numbers = torch::stable::new_empty(inputs.ids, {count});
    std::copy_n(rows.order.rows(), count, numbers.mutable_data_ptr<int64_t>());
    Tensor values = fresh_gradient(inputs.tables[index], problem, {count, inputs.tables[index].size(1)});
    rows.values = values.mutable_data_ptr();
    made.push_back(numbers);
    made.push_back(values);
  }
  return made;
}

inline void order_all_rows(const Problem& problem, Backward& backward) {
  backward.rows.resize(problem.tables.size());
  torch::stable::parallel_for(
      0, static_cast<int64_t>(problem.tables.size()), 1, [&](int64_t first, int64_t last) {
        for (int64_t table = first; table < last; ++table)
          backward.rows[static_cast<size_t>(table)].order = order_rows(problem, static_cast<int>(table));
      });
}

// Allocates the gradients of weight and bias that are wanted and computes; adds them to `made`.
inline void run_backward(const Inputs& inputs, const Problem& problem, Backward& backward,
                         std::vector<Tensor>& made) {
  if (backward.weight) {
    made.push_back(fresh_gradient(inputs.weight, problem, {problem.height, problem.width}));
    backward.d_weight = made.back().mutable_data_ptr();
  }
  if (backward.bias) {
    made.push_back(fresh_gradient(inputs.weight, problem, {problem.width}));
    backward.d_bias = made.back().mutable_data_ptr();
  }
  if (problem.events > 0 && problem.width > 0) backward_cpu(problem, backward);
}

// d_tables: a tensor of zeros for each table, which the dense gradients are written to, or none. Returns
// (rows, values) of each table if row-sparse, each table's gradient if dense and no zeros were given, then
// the weight's and the bias's gradient if wanted.
inline std::vector<Tensor> backward_on_cpu(Tensor gradient, Tensor ids, std::vector<Tensor> tables,
                                           std::vector<int64_t> columns, Tensor weight,
                                           std::vector<Tensor> d_tables, bool sparse, bool needs_tables,
                                           bool needs_weight, bool needs_bias) {
  const Inputs inputs = dense_inputs(ids, tables, columns, weight);
  const Problem problem = make_problem(inputs, kBackwardStack);
  const Tensor dense = dense_gradient(inputs, gradient);
  Backward backward{dense.const_data_ptr(), needs_tables, needs_weight, needs_bias, {}, nullptr, nullptr};
  std::vector<Tensor> made;
  if (needs_tables) {
    order_all_rows(problem, backward);
    if (sparse) {
      made = allocate_rows(inputs, problem, backward);
    } else {
      const std::vector<Tensor> zeros = gradient_zeros(inputs, d_tables, made);
      for (size_t index = 0; index < zeros.size(); ++index) {
        backward.rows[index].values = zeros[index].mutable_data_ptr();
        backward.rows[index].dense = true;
      }
    }
  }
  run_backward(inputs, problem, backward, made);
  return made;
}

// The backward pass with row-wise Adagrad on every table in it. states [V] of each table, in float32, or
// float64 for float64; lr, eps and weight_decay of each. Returns the weight's and the bias's gradient if
// wanted.
inline std::vector<Tensor> backward_and_step_on_cpu(Tensor gradient, Tensor ids, std::vector<Tensor> tables,
                                                    std::vector<int64_t> columns, Tensor weight,
                                                    std::vector<Tensor> states, std::vector<double> lr,
                                                    std::vector<double> eps, std::vector<double> weight_decay,
                                                    bool needs_weight, bool needs_bias) {
  const Inputs inputs = dense_inputs(ids, tables, columns, weight);
  check_states(inputs, states, {lr.size(), eps.size(), weight_decay.size()});
  const Problem problem = make_problem(inputs, kBackwardStack);
  const Tensor dense = dense_gradient(inputs, gradient);
  Backward backward{dense.const_data_ptr(), true, needs_weight, needs_bias, {}, nullptr, nullptr};
  order_all_rows(problem, backward);
  for (size_t index = 0; index < states.size(); ++index) {
    RowGradients& rows = backward.rows[index];
    rows.values = inputs.tables[index].mutable_data_ptr();
    rows.dense = true;
    rows.state = states[index].mutable_data_ptr();
    rows.settings = {lr[index], eps[index], weight_decay[index]};
  }
  std::vector<Tensor> made;
  run_backward(inputs, problem, backward, made);
  return made;
}

}  // namespace argus::triple_embedding
