// argus_native::sampled_softmax_loss and _backward: checks, allocation, registration. Compiled into both op
// libraries.
#include "sampled_softmax_loss/sampled_softmax_loss.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "common/torch/check.h"
#include "common/torch/memory.h"
#include "common/torch/stream.h"
#include "sampled_softmax_loss/sampled_softmax_loss_cuda.h"

namespace argus::sampled_softmax_loss {
namespace {

constexpr const char* kOp = "sampled_softmax_loss";

using MaybeTensor = std::optional<Tensor>;

ScalarType statistics_of(const Tensor& query) {
  return query.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// The op's tensors, contiguous; they own the memory that Inputs points to.
struct Given {
  Tensor query, positive, candidates, positive_ids, candidate_ids, log_q;
  MaybeTensor positive_log_q;
  Tensor scale;
  MaybeTensor row_weight, query_owner, candidate_owner;
  bool refined;

  void check() const;
  void make_dense();
  // After make_dense, of values on the CPU: what the losses are not defined for.
  void check_values() const;
  Inputs inputs() const;
};

void check_vector(const char* name, const Tensor& tensor, int64_t size, ScalarType dtype,
                  const Tensor& query) {
  check_shape(kOp, name, tensor, "[size]", {size});
  check_dtype(kOp, name, tensor, {dtype});
  check_same_device(kOp, name, tensor, "query", query);
}

void check_matrix(const char* name, const Tensor& tensor, int64_t rows, const Tensor& query) {
  check_shape(kOp, name, tensor, "[rows, D]", {rows, query.size(1)});
  check_dtype(kOp, name, tensor, {query.scalar_type()});
  check_same_device(kOp, name, tensor, "query", query);
}

void Given::check() const {
  check_shape(kOp, "query", query, "[N, D]", {-1, -1});
  if (query.is_cpu()) {
    check_dtype(kOp, "query", query,
                {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half, ScalarType::Double});
  } else {
    check_dtype(kOp, "query", query, {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half});
  }
  const ScalarType statistics = statistics_of(query);
  check_shape(kOp, "candidates", candidates, "[M, D]", {-1, query.size(1)});
  const int64_t rows = query.size(0), drawn = candidates.size(0);
  check_matrix("positive", positive, rows, query);
  check_matrix("candidates", candidates, drawn, query);
  check_vector("positive_ids", positive_ids, rows, ScalarType::Long, query);
  check_vector("candidate_ids", candidate_ids, drawn, ScalarType::Long, query);
  check_vector("log_q", log_q, drawn, statistics, query);
  if (positive_log_q) check_vector("positive_log_q", *positive_log_q, rows, statistics, query);
  check_shape(kOp, "scale", scale, "[]", {});
  check_dtype(kOp, "scale", scale, {statistics});
  check_same_device(kOp, "scale", scale, "query", query);
  if (row_weight) check_vector("row_weight", *row_weight, rows, statistics, query);
  if (query_owner.has_value() != candidate_owner.has_value())
    fail(kOp, "one of query_owner and candidate_owner is None, expected both or neither");
  if (query_owner) check_vector("query_owner", *query_owner, rows, ScalarType::Long, query);
  if (candidate_owner) check_vector("candidate_owner", *candidate_owner, drawn, ScalarType::Long, query);
  if (refined && !positive_log_q) fail(kOp, "positive_log_q is None: the refined form needs it");
}

void Given::make_dense() {
  query = dense(kOp, "query", query);
  positive = dense(kOp, "positive", positive);
  candidates = dense(kOp, "candidates", candidates);
  positive_ids = dense(kOp, "positive_ids", positive_ids);
  candidate_ids = dense(kOp, "candidate_ids", candidate_ids);
  log_q = dense(kOp, "log_q", log_q);
  positive_log_q = dense(kOp, "positive_log_q", positive_log_q);
  row_weight = dense(kOp, "row_weight", row_weight);
  query_owner = dense(kOp, "query_owner", query_owner);
  candidate_owner = dense(kOp, "candidate_owner", candidate_owner);
}

template <class A, class Holds>
void check_each(const char* name, const Tensor& tensor, const char* expected, const Holds& holds) {
  const A* values = tensor.const_data_ptr<A>();
  for (int64_t i = 0; i < tensor.numel(); ++i)
    if (!holds(values[i], i)) fail(kOp, name, "[", i, "] is ", values[i], ", expected ", expected);
}

template <class A>
void check_values_of(const Given& given) {
  const auto finite = [](A value, int64_t) { return std::isfinite(value); };
  const A scale = *given.scale.const_data_ptr<A>();
  if (!(scale > 0) || !std::isfinite(scale))
    fail(kOp, "scale is ", scale, ", expected a finite value above 0");
  check_each<A>("log_q", given.log_q, "a finite value", finite);
  const A* weight = nullptr;
  if (given.row_weight) {
    weight = given.row_weight->const_data_ptr<A>();
    check_each<A>("row_weight", *given.row_weight, "a finite value of at least 0",
                  [](A value, int64_t) { return value >= 0 && std::isfinite(value); });
  }
  if (!given.positive_log_q) return;
  check_each<A>("positive_log_q", *given.positive_log_q,
                given.refined ? "a finite value below 0" : "a finite value", [&](A value, int64_t row) {
                  const bool holds = std::isfinite(value) && (value < 0 || !given.refined);
                  return holds || (weight != nullptr && weight[row] == 0);
                });
}

void Given::check_values() const {
  if (!query.is_cpu()) return;
  if (query.scalar_type() == ScalarType::Double) {
    check_values_of<double>(*this);
  } else {
    check_values_of<float>(*this);
  }
}

template <class T = void>
const T* data_or_null(const MaybeTensor& tensor) {
  return tensor ? static_cast<const T*>(tensor->const_data_ptr()) : nullptr;
}

Inputs Given::inputs() const {
  return Inputs{
      .query = query.const_data_ptr(),
      .positive = positive.const_data_ptr(),
      .candidates = candidates.const_data_ptr(),
      .positive_ids = positive_ids.const_data_ptr<int64_t>(),
      .candidate_ids = candidate_ids.const_data_ptr<int64_t>(),
      .log_q = log_q.const_data_ptr(),
      .positive_log_q = data_or_null(positive_log_q),
      .scale = scale.const_data_ptr(),
      .row_weight = data_or_null(row_weight),
      .query_owner = data_or_null<int64_t>(query_owner),
      .candidate_owner = data_or_null<int64_t>(candidate_owner),
      .rows = query.size(0),
      .drawn = candidates.size(0),
      .width = query.size(1),
      .dtype = dtype_of(query),
      .refined = refined,
  };
}

using Losses = std::tuple<Tensor, Tensor, Tensor>;
using Found = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using LossesAndFound = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

struct Needs {
  bool query, positive, candidates, scale;
};

// A tensor of the same shape, or an empty one if not needed; zeros if there are no rows.
Tensor gradient_of(const Tensor& like, bool needed, int64_t rows) {
  std::vector<int64_t> sizes;
  if (needed) {
    for (int64_t dim = 0; dim < like.dim(); ++dim) sizes.push_back(like.size(dim));
  } else {
    sizes.push_back(0);
  }
  return rows == 0 ? zeros(like, sizes) : empty(like, sizes);
}

#ifndef ARGUS_CUDA_LIBRARY

void compute_losses(const Inputs& inputs, const Outputs& outputs, const Tensor&) {
  forward_cpu(inputs, outputs);
}

void compute_gradients(const Inputs& inputs, const Gradients& gradients, const Tensor&) {
  backward_cpu(inputs, gradients);
}

void compute_both(const Inputs& inputs, const Outputs& outputs, const Gradients& gradients, const Tensor&) {
  forward_and_backward_cpu(inputs, outputs, gradients);
}

#else

// Scratch for the kernels from torch's allocator, which frees it in the order of the stream.
class Scratch {
 public:
  explicit Scratch(const Tensor& query) : query_(query) {}

  float* floats(int64_t count) {
    return static_cast<float*>(keep(empty(query_, {count}, ScalarType::Float)));
  }
  int32_t* integers(int64_t count) {
    return static_cast<int32_t*>(keep(empty(query_, {count}, ScalarType::Int)));
  }
  void* elements(int64_t count) { return keep(empty(query_, {count})); }

 private:
  void* keep(Tensor tensor) {
    kept_.push_back(tensor);
    return tensor.mutable_data_ptr();
  }

  Tensor query_;
  std::vector<Tensor> kept_;
};

void compute_losses(const Inputs& inputs, const Outputs& outputs, const Tensor& query) {
  const CurrentStream stream(query);
  const CudaPlan plan(inputs.rows, inputs.drawn, inputs.width, uses_product_loop(inputs));
  const int64_t parts = plan.forward_chunks * inputs.rows;
  Scratch scratch(query);
  Workspace workspace{};
  workspace.product = scratch.floats(inputs.rows);
  workspace.peak = scratch.floats(parts);
  workspace.total = scratch.floats(parts);
  workspace.kept = scratch.integers(parts);
  forward_cuda(inputs, outputs, plan, workspace, stream.get());
}

void compute_gradients(const Inputs& inputs, const Gradients& gradients, const Tensor& query) {
  const CurrentStream stream(query);
  const CudaPlan plan(inputs.rows, inputs.drawn, inputs.width, uses_product_loop(inputs));
  Scratch scratch(query);
  Workspace workspace{};
  workspace.product = scratch.floats(inputs.rows);
  workspace.whole = scratch.floats(inputs.rows);
  workspace.row_scale = scratch.floats(inputs.rows);
  workspace.amplify = scratch.floats(2);
  workspace.d_scores = scratch.elements(plan.strip_rows * plan.score_stride);
  workspace.sums = scratch.floats(plan.chunks * 3 * plan.strip_rows);
  if (gradients.d_query != nullptr)
    workspace.d_query = scratch.floats(plan.splits * plan.strip_rows * inputs.width);
  if (gradients.d_candidates != nullptr && plan.strips > 1)
    workspace.d_candidates = scratch.floats(inputs.drawn * inputs.width);
  if (plan.loop && inputs.row_weight != nullptr)
    workspace.queries = scratch.elements(plan.strip_rows * inputs.width);
  backward_cuda(inputs, gradients, plan, workspace, stream.get());
}

void compute_both(const Inputs& inputs, const Outputs& outputs, const Gradients& gradients,
                  const Tensor& query) {
  compute_losses(inputs, outputs, query);
  compute_gradients(inputs, gradients, query);
}

#endif

// Allocates the outputs of the forward pass.
struct NewLosses {
  Tensor loss, lse, statistics;

  explicit NewLosses(const Tensor& query)
      : loss(numbers(query, {query.size(0)})),
        lse(numbers(query, {query.size(0)})),
        statistics(numbers(query, {2, query.size(0)})) {}

  Outputs outputs() {
    return {loss.mutable_data_ptr(), lse.mutable_data_ptr(), statistics.mutable_data_ptr()};
  }

 private:
  static Tensor numbers(const Tensor& query, const std::vector<int64_t>& sizes) {
    return empty(query, sizes, statistics_of(query));
  }
};

// Allocates the outputs of the backward pass.
struct NewGradients {
  Needs needs;
  Tensor query, positive, candidates, scale;

  NewGradients(const Given& given, Needs wanted)
      : needs(wanted),
        query(gradient_of(given.query, wanted.query, given.query.size(0))),
        positive(gradient_of(given.positive, wanted.positive, given.query.size(0))),
        candidates(gradient_of(given.candidates, wanted.candidates, given.query.size(0))),
        scale(gradient_of(given.scale, wanted.scale, given.query.size(0))) {}

  Gradients gradients(const Tensor& d_loss, const Tensor& d_lse, const void* statistics) {
    const auto place = [](bool needed, Tensor& tensor) {
      return needed ? tensor.mutable_data_ptr() : nullptr;
    };
    return {
        .d_loss = d_loss.const_data_ptr(),
        .d_lse = d_lse.const_data_ptr(),
        .statistics = statistics,
        .d_query = place(needs.query, query),
        .d_positive = place(needs.positive, positive),
        .d_candidates = place(needs.candidates, candidates),
        .d_scale = place(needs.scale, scale),
    };
  }
};

Losses forward_op(Tensor query, Tensor positive, Tensor candidates, Tensor positive_ids, Tensor candidate_ids,
                  Tensor log_q, MaybeTensor positive_log_q, Tensor scale, MaybeTensor row_weight,
                  MaybeTensor query_owner, MaybeTensor candidate_owner, bool refined) {
  Given given{query,          positive, candidates, positive_ids, candidate_ids,   log_q,
              positive_log_q, scale,    row_weight, query_owner,  candidate_owner, refined};
  given.check();
  given.make_dense();
  given.check_values();
  NewLosses losses(given.query);
  compute_losses(given.inputs(), losses.outputs(), query);
  return {losses.loss, losses.lse, losses.statistics};
}

Found backward_op(Tensor d_loss, MaybeTensor d_lse, Tensor statistics, bool need_query, bool need_positive,
                  bool need_candidates, bool need_scale, Tensor query, Tensor positive, Tensor candidates,
                  Tensor positive_ids, Tensor candidate_ids, Tensor log_q, MaybeTensor positive_log_q,
                  Tensor scale, MaybeTensor row_weight, MaybeTensor query_owner, MaybeTensor candidate_owner,
                  bool refined) {
  Given given{query,          positive, candidates, positive_ids, candidate_ids,   log_q,
              positive_log_q, scale,    row_weight, query_owner,  candidate_owner, refined};
  given.check();
  given.make_dense();
  const int64_t rows = query.size(0);
  const ScalarType statistics_dtype = statistics_of(query);
  check_vector("d_loss", d_loss, rows, statistics_dtype, query);
  if (d_lse) check_vector("d_lse", *d_lse, rows, statistics_dtype, query);
  check_shape(kOp, "statistics", statistics, "[2, N]", {2, rows});
  check_dtype(kOp, "statistics", statistics, {statistics_dtype});
  check_same_device(kOp, "statistics", statistics, "query", query);
  const Tensor dense_loss = dense(kOp, "d_loss", d_loss);
  const Tensor dense_lse = d_lse ? dense(kOp, "d_lse", *d_lse) : zeros(query, {rows}, statistics_dtype);
  const Tensor dense_statistics = dense(kOp, "statistics", statistics);
  NewGradients found(given, {need_query, need_positive, need_candidates, need_scale});
  const Gradients gradients = found.gradients(dense_loss, dense_lse, dense_statistics.const_data_ptr());
  compute_gradients(given.inputs(), gradients, query);
  return {found.query, found.positive, found.candidates, found.scale};
}

// The losses and the gradients of the arguments, for gradients of the losses that are known beforehand.
LossesAndFound with_gradients_op(Tensor d_loss, bool need_query, bool need_positive, bool need_candidates,
                                 bool need_scale, Tensor query, Tensor positive, Tensor candidates,
                                 Tensor positive_ids, Tensor candidate_ids, Tensor log_q,
                                 MaybeTensor positive_log_q, Tensor scale, MaybeTensor row_weight,
                                 MaybeTensor query_owner, MaybeTensor candidate_owner, bool refined) {
  Given given{query,          positive, candidates, positive_ids, candidate_ids,   log_q,
              positive_log_q, scale,    row_weight, query_owner,  candidate_owner, refined};
  given.check();
  given.make_dense();
  given.check_values();
  check_vector("d_loss", d_loss, query.size(0), statistics_of(query), query);
  const Tensor dense_loss = dense(kOp, "d_loss", d_loss);
  const Tensor d_lse = zeros(query, {query.size(0)}, statistics_of(query));
  NewLosses losses(given.query);
  NewGradients found(given, {need_query, need_positive, need_candidates, need_scale});
  const Gradients gradients = found.gradients(dense_loss, d_lse, losses.statistics.const_data_ptr());
  compute_both(given.inputs(), losses.outputs(), gradients, query);
  return {losses.loss, losses.lse, found.query, found.positive, found.candidates, found.scale};
}

}  // namespace
}  // namespace argus::sampled_softmax_loss

#ifndef ARGUS_CUDA_LIBRARY

#define ARGUS_ARGUMENTS                                                                           \
  "Tensor query, Tensor positive, Tensor candidates, Tensor positive_ids, Tensor candidate_ids, " \
  "Tensor log_q, Tensor? positive_log_q, Tensor scale, Tensor? row_weight, Tensor? query_owner, " \
  "Tensor? candidate_owner, bool refined"

STABLE_TORCH_LIBRARY_FRAGMENT(argus_native, m) {
  m.def("sampled_softmax_loss(" ARGUS_ARGUMENTS ") -> (Tensor, Tensor, Tensor)");
  m.def(
      "sampled_softmax_loss_backward(Tensor d_loss, Tensor? d_lse, Tensor statistics, bool need_query, "
      "bool need_positive, bool need_candidates, bool need_scale, " ARGUS_ARGUMENTS
      ") -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "sampled_softmax_loss_with_gradients(Tensor d_loss, bool need_query, bool need_positive, "
      "bool need_candidates, bool need_scale, " ARGUS_ARGUMENTS
      ") -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(argus_native, CPU, m) {
  m.impl("sampled_softmax_loss", TORCH_BOX(&argus::sampled_softmax_loss::forward_op));
  m.impl("sampled_softmax_loss_backward", TORCH_BOX(&argus::sampled_softmax_loss::backward_op));
  m.impl("sampled_softmax_loss_with_gradients", TORCH_BOX(&argus::sampled_softmax_loss::with_gradients_op));
}

#else

STABLE_TORCH_LIBRARY_IMPL(argus_native, CUDA, m) {
  m.impl("sampled_softmax_loss", TORCH_BOX(&argus::sampled_softmax_loss::forward_op));
  m.impl("sampled_softmax_loss_backward", TORCH_BOX(&argus::sampled_softmax_loss::backward_op));
  m.impl("sampled_softmax_loss_with_gradients", TORCH_BOX(&argus::sampled_softmax_loss::with_gradients_op));
}

#endif
