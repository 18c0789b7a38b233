// argus_native::rowwise_adagrad_: checks, the order of the rows, registration. Compiled into both op
// libraries.
#include "rowwise_adagrad/rowwise_adagrad.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "common/cpu/row_order.h"
#include "common/torch/check.h"
#include "common/torch/memory.h"
#include "common/torch/sort.h"
#include "common/torch/stream.h"

namespace argus::rowwise_adagrad {
namespace {

constexpr const char* kOp = "rowwise_adagrad_";

void check_dtypes(const Tensor& table, const Tensor& state, const Tensor& row_gradients) {
  const bool wide = table.scalar_type() == ScalarType::Double && table.is_cpu();
  if (wide) {
    check_dtype(kOp, "state", state, {ScalarType::Float, ScalarType::Double});
  } else {
    check_dtype(kOp, "table", table, {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half});
    check_dtype(kOp, "state", state, {ScalarType::Float});
  }
  check_dtype(kOp, "row_gradients", row_gradients, {table.scalar_type(), ScalarType::Float});
}

void check(const Tensor& table, const Tensor& state, const Tensor& rows, const Tensor& row_gradients) {
  check_shape(kOp, "table", table, "[V, d]", {-1, -1});
  check_shape(kOp, "state", state, "[V]", {table.size(0)});
  check_shape(kOp, "rows", rows, "[R]", {-1});
  check_shape(kOp, "row_gradients", row_gradients, "[R, d]", {rows.size(0), table.size(1)});
  check_dtypes(table, state, row_gradients);
  check_dtype(kOp, "rows", rows, {ScalarType::Long});
  check_same_device(kOp, "state", state, "table", table);
  check_same_device(kOp, "rows", rows, "table", table);
  check_same_device(kOp, "row_gradients", row_gradients, "table", table);
  check_dense_rows(kOp, "table", table);
  check_contiguous(kOp, "state", state);
  check_no_overlap(kOp, "table", table);
}

Params make_params(const Tensor& table, const Tensor& state, const Tensor& gradients, double lr, double eps,
                   double weight_decay) {
  return Params{
      .table = table.mutable_data_ptr(),
      .state = state.mutable_data_ptr(),
      .gradients = gradients.const_data_ptr(),
      .rows = nullptr,
      .order = nullptr,
      .piece_sums = nullptr,
      .table_rows = table.size(0),
      .table_stride = table.stride(0),
      .count = gradients.size(0),
      .width = table.size(1),
      .table_dtype = dtype_of(table),
      .state_dtype = dtype_of(state),
      .gradient_dtype = dtype_of(gradients),
      .lr = lr,
      .eps = eps,
      .weight_decay = weight_decay,
  };
}

#ifndef ARGUS_CUDA_LIBRARY

void check_values(const int64_t* rows, int64_t count, int64_t table_rows) {
  const auto [lowest, highest] = std::minmax_element(rows, rows + count);
  if (count == 0 || (*lowest >= kSkippedRow && *highest < table_rows)) return;
  for (int64_t i = 0; i < count; ++i) {
    if (rows[i] < kSkippedRow || rows[i] >= table_rows) {
      fail(kOp, "rows[", i, "] is ", rows[i], ", expected -1 (skipped) or 0 to ", table_rows - 1);
    }
  }
}

// Rows are distributed over threads in pieces of about this many gradient elements.
constexpr int64_t kGrain = 1 << 14;

void update_on_cpu(Tensor table, Tensor state, Tensor rows, Tensor row_gradients, double lr, double eps,
                   double weight_decay) {
  check(table, state, rows, row_gradients);
  const Tensor gradients = dense(kOp, "row_gradients", row_gradients);
  const Tensor dense_rows = dense(kOp, "rows", rows);
  const int64_t* given = dense_rows.const_data_ptr<int64_t>();
  Params params = make_params(table, state, gradients, lr, eps, weight_decay);
  check_values(given, params.count, params.table_rows);
  if (params.count == 0 || params.width == 0) return;

  const RowOrder order(kOp, {&given, 1}, params.count, params.table_rows);
  const int64_t grain = std::max<int64_t>(1, kGrain / params.width);
  torch::stable::parallel_for(0, order.runs(), grain, [&](int64_t first, int64_t last) {
    update_rows_cpu(params, order, first, last);
  });
}

#else

void update_on_cuda(Tensor table, Tensor state, Tensor rows, Tensor row_gradients, double lr, double eps,
                    double weight_decay) {
  check(table, state, rows, row_gradients);
  const CurrentStream stream(table);
  const Tensor gradients = dense(kOp, "row_gradients", row_gradients);
  Params params = make_params(table, state, gradients, lr, eps, weight_decay);
  if (params.count == 0 || params.width == 0) return;

  const auto [sorted, order] = sort_stably(rows);
  params.rows = sorted.const_data_ptr<int64_t>();
  params.order = order.const_data_ptr<int64_t>();
  const int64_t pieces = params.count < 2 * kPiece ? 0 : params.count / kPiece;
  const Tensor piece_sums = empty(table, {pieces, params.width}, ScalarType::Float);
  params.piece_sums = piece_sums.mutable_data_ptr<float>();
  launch_cuda(params, stream.get());
}

#endif

}  // namespace
}  // namespace argus::rowwise_adagrad

#ifndef ARGUS_CUDA_LIBRARY

STABLE_TORCH_LIBRARY_FRAGMENT(argus_native, m) {
  m.def(
      "rowwise_adagrad_(Tensor(a!) table, Tensor(b!) state, Tensor rows, Tensor row_gradients, float lr, "
      "float eps, "
      "float weight_decay) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(argus_native, CPU, m) {
  m.impl("rowwise_adagrad_", TORCH_BOX(&argus::rowwise_adagrad::update_on_cpu));
}

#else

STABLE_TORCH_LIBRARY_IMPL(argus_native, CUDA, m) {
  m.impl("rowwise_adagrad_", TORCH_BOX(&argus::rowwise_adagrad::update_on_cuda));
}

#endif
