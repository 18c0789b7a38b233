// argus_native::row_sgd_, row_adagrad_ and row_adam_: checks, the order of the rows, registration.
#include "row_optimizers/row_optimizers.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "common/torch/check.h"

namespace argus::row_optimizers {
namespace {

struct Inputs {
  const char* op;
  Tensor table, rows, row_gradients;
};

void check(const Inputs& inputs) {
  const auto& [op, table, rows, row_gradients] = inputs;
  check_shape(op, "table", table, "[V, d]", {-1, -1});
  check_shape(op, "rows", rows, "[R]", {-1});
  check_shape(op, "row_gradients", row_gradients, "[R, d]", {rows.size(0), table.size(1)});
  check_dtype(op, "table", table,
              {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half, ScalarType::Double});
  check_dtype(op, "row_gradients", row_gradients, {table.scalar_type()});
  check_dtype(op, "rows", rows, {ScalarType::Long});
  check_same_device(op, "rows", rows, "table", table);
  check_same_device(op, "row_gradients", row_gradients, "table", table);
  check_dense_rows(op, "table", table);
  check_no_overlap(op, "table", table);
}

void* state(const Inputs& inputs, const char* name, const Tensor& given) {
  const Tensor& table = inputs.table;
  const bool wide = table.scalar_type() == ScalarType::Double;
  check_shape(inputs.op, name, given, "[V, d]", {table.size(0), table.size(1)});
  check_dtype(inputs.op, name, given, {wide ? ScalarType::Double : ScalarType::Float});
  check_same_device(inputs.op, name, given, "table", table);
  check_contiguous(inputs.op, name, given);
  return given.mutable_data_ptr();
}

void check_rows(const char* op, const int64_t* rows, int64_t count, int64_t table_rows) {
  for (int64_t i = 0; i < count; ++i) {
    if (rows[i] < kSkippedRow || rows[i] >= table_rows)
      fail(op, "rows[", i, "] is ", rows[i], ", expected -1 (skipped) or 0 to ", table_rows - 1);
  }
}

// Rows are distributed over threads in pieces of about this many gradient elements.
constexpr int64_t kGrain = 1 << 14;

void run(const Inputs& inputs, Params params) {
  const Tensor gradients = dense(inputs.op, "row_gradients", inputs.row_gradients);
  const Tensor rows = dense(inputs.op, "rows", inputs.rows);
  const int64_t count = rows.size(0);
  const int64_t* given = rows.const_data_ptr<int64_t>();
  check_rows(inputs.op, given, count, inputs.table.size(0));
  params.table = inputs.table.mutable_data_ptr();
  params.gradients = gradients.const_data_ptr();
  params.table_stride = inputs.table.stride(0);
  params.width = inputs.table.size(1);
  params.dtype = dtype_of(inputs.table);
  if (count == 0 || params.width == 0) return;
  const RowOrder order(inputs.op, {&given, 1}, count, inputs.table.size(0));
  const int64_t grain = std::max<int64_t>(1, kGrain / params.width);
  torch::stable::parallel_for(0, order.runs(), grain, [&](int64_t first, int64_t last) {
    update_rows_cpu(params, order, first, last);
  });
}

void row_sgd(Tensor table, Tensor rows, Tensor row_gradients, double lr, double weight_decay) {
  const Inputs inputs{"row_sgd_", table, rows, row_gradients};
  check(inputs);
  Params params{};
  params.rule = Rule::sgd;
  params.lr = lr;
  params.weight_decay = weight_decay;
  run(inputs, params);
}

void row_adagrad(Tensor table, Tensor sum, Tensor rows, Tensor row_gradients, double lr, double eps,
                 double weight_decay) {
  const Inputs inputs{"row_adagrad_", table, rows, row_gradients};
  check(inputs);
  Params params{};
  params.rule = Rule::adagrad;
  params.first_state = state(inputs, "sum", sum);
  params.lr = lr;
  params.eps = eps;
  params.weight_decay = weight_decay;
  run(inputs, params);
}

void row_adam(Tensor table, Tensor exp_avg, Tensor exp_avg_sq, Tensor rows, Tensor row_gradients, double lr,
              double beta1, double beta2, double eps) {
  const Inputs inputs{"row_adam_", table, rows, row_gradients};
  check(inputs);
  Params params{};
  params.rule = Rule::adam;
  params.first_state = state(inputs, "exp_avg", exp_avg);
  params.second_state = state(inputs, "exp_avg_sq", exp_avg_sq);
  params.lr = lr;
  params.beta1 = beta1;
  params.beta2 = beta2;
  params.eps = eps;
  run(inputs, params);
}

}  // namespace
}  // namespace argus::row_optimizers

STABLE_TORCH_LIBRARY_FRAGMENT(argus_native, m) {
  m.def("row_sgd_(Tensor(a!) table, Tensor rows, Tensor row_gradients, float lr, float weight_decay) -> ()");
  m.def(
      "row_adagrad_(Tensor(a!) table, Tensor(b!) sum, Tensor rows, Tensor row_gradients, float lr, float "
      "eps, "
      "float weight_decay) -> ()");
  m.def(
      "row_adam_(Tensor(a!) table, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor rows, "
      "Tensor row_gradients, float lr, float beta1, float beta2, float eps) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(argus_native, CPU, m) {
  m.impl("row_sgd_", TORCH_BOX(&argus::row_optimizers::row_sgd));
  m.impl("row_adagrad_", TORCH_BOX(&argus::row_optimizers::row_adagrad));
  m.impl("row_adam_", TORCH_BOX(&argus::row_optimizers::row_adam));
}
