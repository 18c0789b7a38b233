// argus_native::causal_attention and its backward: checks, allocation, registration. Compiled into both op
// libraries.
#include "causal_attention/causal_attention.h"

#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "attention/call.h"
#include "common/torch/stream.h"

namespace argus::causal_attention {
namespace {

using attention::Given;
using attention::OptionalTensor;

constexpr const char* kOp = "causal_attention";

std::tuple<Tensor, Tensor> forward(ARGUS_ROWS_PARAMETERS, double scale, int64_t window, double dropout,
                                   ARGUS_TENSORS_PARAMETERS) {
  const Given given{kOp, ARGUS_HISTORY_VALUES, scale, 1.0, window, dropout};
  const attention::Arguments arguments = attention::arguments_of(given);
#ifdef ARGUS_CUDA_LIBRARY
  const CurrentStream stream(q);
#endif
  Tensor out = attention::new_rows(given), log_sum_exp = attention::new_statistic(given);
  const attention::Forward call{arguments, out.mutable_data_ptr(), log_sum_exp.mutable_data_ptr()};
#ifdef ARGUS_CUDA_LIBRARY
  launch_forward(call, stream.get());
#else
  forward_cpu(call);
#endif
  return {out, log_sum_exp};
}

std::vector<Tensor> backward(Tensor d_out, OptionalTensor d_log_sum_exp, Tensor out, Tensor log_sum_exp,
                             ARGUS_ROWS_PARAMETERS, double scale, int64_t window, double dropout,
                             bool need_position_bias, bool need_time_bias, ARGUS_TENSORS_PARAMETERS) {
  const Given given{kOp, ARGUS_HISTORY_VALUES, scale, 1.0, window, dropout};
  attention::check_wanted(given, "position_bias", need_position_bias, position_bias);
  attention::check_wanted(given, "time_bias", need_time_bias, time_bias);
  attention::check_query(given);
#ifdef ARGUS_CUDA_LIBRARY
  const CurrentStream stream(q);
  if (!d_log_sum_exp.has_value()) d_log_sum_exp = zeros(q, {q.size(1), q.size(0)}, given.wide());
#endif
  attention::Backward call = attention::backward_of(given, {d_out, d_log_sum_exp, out, log_sum_exp});
  const attention::NewGradients gradients(given, need_position_bias, need_time_bias);
  attention::write_to(gradients, call);
#ifdef ARGUS_CUDA_LIBRARY
  const attention::CudaScratch scratch(given, call, loop_scratch(call));
  launch_backward(call, stream.get());
#else
  backward_cpu(call);
#endif
  return gradients.list();
}

}  // namespace
}  // namespace argus::causal_attention

// Under another name a library registers the op over forward_cpu and backward_cpu of a policy of its own,
// see docs/howto/own_scores.md.
#ifndef ARGUS_NATIVE_LIBRARY
#define ARGUS_NATIVE_LIBRARY argus_native
#endif

#ifndef ARGUS_CUDA_LIBRARY

#define ARGUS_NUMBERS ARGUS_ROWS_SCHEMA "float scale" ARGUS_NUMBERS_SCHEMA

STABLE_TORCH_LIBRARY_FRAGMENT(ARGUS_NATIVE_LIBRARY, m) {
  m.def("causal_attention(" ARGUS_NUMBERS ARGUS_TENSORS_SCHEMA ") -> (Tensor, Tensor)");
  m.def(
      "causal_attention_backward(Tensor d_out, Tensor? d_log_sum_exp, Tensor out, Tensor "
      "log_sum_exp, " ARGUS_NUMBERS ARGUS_WANTED_SCHEMA ARGUS_TENSORS_SCHEMA ") -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(ARGUS_NATIVE_LIBRARY, CPU, m) {
  m.impl("causal_attention", TORCH_BOX(&argus::causal_attention::forward));
  m.impl("causal_attention_backward", TORCH_BOX(&argus::causal_attention::backward));
}

#else

STABLE_TORCH_LIBRARY_IMPL(ARGUS_NATIVE_LIBRARY, CUDA, m) {
  m.impl("causal_attention", TORCH_BOX(&argus::causal_attention::forward));
  m.impl("causal_attention_backward", TORCH_BOX(&argus::causal_attention::backward));
}

#endif
