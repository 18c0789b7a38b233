// triple_embedding on CUDA tensors: allocation and the launches. Dense gradients do not synchronise with the
// GPU. The size of a row-sparse gradient is known only on the GPU, so the host waits for one number per
// table.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <limits>
#include <optional>
#include <vector>

#include "common/torch/stream.h"
#include "triple_embedding/inputs.h"
#include "triple_embedding/table_order.h"
#include "triple_embedding/triple_embedding_cuda.h"

namespace argus::triple_embedding {

inline CudaProblem make_cuda_problem(const Inputs& inputs) {
  constexpr int64_t kMaxWidth = std::numeric_limits<int>::max();
  if (inputs.weight.size(0) > kMaxWidth || inputs.weight.size(1) > kMaxWidth)
    fail(kOp, "weight has shape ", shape_text(inputs.weight), ", expected sizes below 2^31");
  if (inputs.columns.size() > static_cast<size_t>(kMaxColumns))
    fail(kOp, "ids has ", inputs.columns.size(), " columns, expected at most ", kMaxColumns);
  CudaProblem problem{};
  problem.ids = inputs.ids.const_data_ptr<int64_t>();
  problem.weight = inputs.weight.const_data_ptr();
  problem.events = inputs.ids.size(1);
  problem.count = static_cast<int>(inputs.columns.size());
  problem.width = static_cast<int>(inputs.weight.size(1));
  problem.dtype = dtype_of(inputs.weight);
  problem.table_dtype = dtype_of(inputs.tables.empty() ? inputs.weight : inputs.tables.front());
  int offset = 0;
  for (size_t k = 0; k < inputs.columns.size(); ++k) {
    const Tensor& table = inputs.tables[static_cast<size_t>(inputs.columns[k])];
    const int width = static_cast<int>(table.size(1));
    problem.columns[k] = {
        table.const_data_ptr(), table.size(0), table.stride(0), table.stride(1), width, offset, 0, false};
    offset += width;
  }
  lay_out_chunks(problem);
  return problem;
}

inline Tensor forward_on_cuda(Tensor ids, std::vector<Tensor> tables, std::vector<int64_t> columns,
                              Tensor weight, std::optional<Tensor> bias) {
  const Inputs inputs = dense_inputs(ids, tables, columns, weight);
  const CurrentStream stream(weight);
  const CudaProblem problem = make_cuda_problem(inputs);
  const std::optional<Tensor> dense = dense_bias(inputs, bias);
  Tensor output = new_result(inputs.weight, {problem.events, problem.width});
  CudaForward forward{problem, dense ? dense->const_data_ptr() : nullptr, output.mutable_data_ptr(), 0};
  forward.loop_blocks = product_loop_blocks(forward);
  launch_forward(forward, stream.get());
  return output;
}

inline Tensor float_room(const Tensor& like, std::initializer_list<int64_t> size) {
  return torch::stable::new_empty(like, size, ScalarType::Float);
}

// The last element of a running sum; waits for the GPU.
inline int64_t last_on_host(Tensor& sums) {
  if (sums.size(0) == 0) return 0;
  const Tensor last = torch::stable::narrow(sums, 0, sums.size(0) - 1, 1);
  return *torch::stable::to(last, torch::stable::Device(torch::headeronly::DeviceType::CPU))
              .const_data_ptr<int64_t>();
}

// Computes the gradient of the group's n-th table into `values`, or, if that is null, into `rows`: first its
// rows, then their values.
inline void sum_rows(const Inputs& inputs, const CudaProblem& problem, const Tensor& gathered,
                     const OrderedTables& group, size_t n, Tensor* values, Tensor* rows) {
  const Tensor& table = inputs.tables[group.tables[n]];
  const int begin = group.columns_before[n];
  const int end = n + 1 < group.tables.size() ? group.columns_before[n + 1] : group.keys.count;
  CudaRowSums sums{};
  const int chunk = depth(problem) / std::max(problem.chunks, 1);
  for (int c = begin; c < end; ++c)
    sums.first_elements[c - begin] = problem.columns[group.keys.columns[c]].first_chunk * chunk;
  const CurrentStream stream(table);
  sums.events = problem.events;
  sums.first_position = begin * problem.events;
  sums.count = (end - begin) * problem.events;
  sums.first_key = end > begin ? group.keys.first_keys[begin] : 0;
  sums.keys = group.ordered.const_data_ptr<int32_t>() + sums.first_position;
  sums.positions = group.positions.const_data_ptr<int64_t>() + sums.first_position;
  const int64_t windows = (sums.count + kWindow - 1) / kWindow;
  Tensor slots;
  if (values == nullptr) {
    Tensor leaders = torch::stable::new_empty(inputs.ids, {sums.count});
    launch_leaders(sums.keys, sums.count, sums.first_key, leaders.mutable_data_ptr<int64_t>(), stream.get());
    slots = running_sum(leaders);
    const int64_t found = last_on_host(slots);
    rows[0] = torch::stable::new_empty(inputs.ids, {found});
    rows[1] = torch::stable::new_empty(table, {found, table.size(1)});
    sums.slots = slots.const_data_ptr<int64_t>();
    sums.unique_rows = rows[0].mutable_data_ptr<int64_t>();
    values = &rows[1];
  }
  Tensor heads = float_room(gathered, {windows, table.size(1)}),
         tails = float_room(gathered, {windows, table.size(1)});
  sums.gathered_gradient = gathered.const_data_ptr<float>();
  sums.heads = heads.mutable_data_ptr<float>();
  sums.tails = tails.mutable_data_ptr<float>();
  sums.values = values->mutable_data_ptr();
  sums.depth = depth(problem);
  sums.width = static_cast<int>(table.size(1));
  sums.dtype = dtype_of(table);
  launch_row_sums(sums, stream.get());
}

inline std::vector<Tensor> backward_on_cuda(Tensor gradient, Tensor ids, std::vector<Tensor> tables,
                                            std::vector<int64_t> columns, Tensor weight,
                                            std::vector<Tensor> d_tables, bool sparse, bool needs_tables,
                                            bool needs_weight, bool needs_bias) {
  const Inputs inputs = dense_inputs(ids, tables, columns, weight);
  const CurrentStream stream(weight);
  const Tensor dense = dense_gradient(inputs, gradient);
  CudaBackward backward{};
  backward.problem = make_cuda_problem(inputs);
  backward.gradient = dense.const_data_ptr();
  const CudaProblem& problem = backward.problem;
  const int64_t elements = depth(problem), width = problem.width;
  Tensor gathered, parts, bias_sums, d_weight, d_bias;
  if (needs_tables) {
    gathered = float_room(dense, {problem.events, elements});
    backward.gathered_gradient = gathered.mutable_data_ptr<float>();
  }
  if (needs_weight) {
    parts = float_room(dense, {weight_parts(problem.events), elements, width});
    d_weight = torch::stable::new_empty(inputs.weight, {inputs.weight.size(0), width});
    backward.weight_parts = parts.mutable_data_ptr<float>();
    backward.d_weight = d_weight.mutable_data_ptr();
  }
  if (needs_bias) {
    bias_sums = float_room(dense, {bias_parts(problem.events), width});
    d_bias = torch::stable::new_empty(inputs.weight, {width});
    backward.bias_parts = bias_sums.mutable_data_ptr<float>();
    backward.d_bias = d_bias.mutable_data_ptr();
  }
  launch_backward(backward, stream.get());
  std::vector<Tensor> made;
  if (needs_tables) {
    std::vector<Tensor> zeros;
    if (sparse)
      made.resize(2 * inputs.tables.size());
    else
      zeros = gradient_zeros(inputs, d_tables, made);
    for (const OrderedTables& group : order_tables(inputs, problem)) {
      for (size_t n = 0; n < group.tables.size(); ++n) {
        const size_t table = group.tables[n];
        sum_rows(inputs, problem, gathered, group, n, sparse ? nullptr : &zeros[table],
                 sparse ? &made[2 * table] : nullptr);
      }
    }
  }
  if (needs_weight) made.push_back(d_weight);
  if (needs_bias) made.push_back(d_bias);
  return made;
}

}  // namespace argus::triple_embedding
