// argus_native::causal_attention_ and its backward: checks, the call, registration. Compiled into both op
// libraries.
#include "causal_attention/causal_attention.h"

#include <torch/csrc/stable/library.h>

#include "attention/call.h"
#include "common/torch/stream.h"

namespace argus::causal_attention {
namespace {

using attention::Given;
using attention::OptionalTensor;

constexpr const char* kOp = "causal_attention";

void forward(Tensor out, Tensor log_sum_exp, Tensor q, Tensor k, Tensor v, Tensor offsets,
             OptionalTensor visible, OptionalTensor position_bias, OptionalTensor time_bias,
             OptionalTensor query_time, OptionalTensor key_time, double scale, int64_t window) {
  const Given given{kOp,       q,          k,        v,     offsets, visible, position_bias,
                    time_bias, query_time, key_time, scale, 1.0,     window};
  const attention::Forward call = attention::forward_of(given, out, log_sum_exp);
#ifdef ARGUS_CUDA_LIBRARY
  const CurrentStream stream(q);
  launch_forward(call, stream.get());
#else
  forward_cpu(call);
#endif
}

void backward(Tensor d_q, Tensor d_k, Tensor d_v, OptionalTensor d_position_bias, OptionalTensor d_time_bias,
              Tensor d_out, Tensor d_log_sum_exp, Tensor out, Tensor log_sum_exp, Tensor q, Tensor k,
              Tensor v, Tensor offsets, OptionalTensor visible, OptionalTensor position_bias,
              OptionalTensor time_bias, OptionalTensor query_time, OptionalTensor key_time, double scale,
              int64_t window) {
  const Given given{kOp,       q,          k,        v,     offsets, visible, position_bias,
                    time_bias, query_time, key_time, scale, 1.0,     window};
  attention::Backward call = attention::backward_of(
      given, {d_q, d_k, d_v, d_position_bias, d_time_bias, d_out, d_log_sum_exp, out, log_sum_exp});
#ifdef ARGUS_CUDA_LIBRARY
  const CurrentStream stream(q);
  const attention::CudaScratch scratch(given, call);
  launch_backward(call, stream.get());
#else
  backward_cpu(call);
#endif
}

}  // namespace
}  // namespace argus::causal_attention

#ifndef ARGUS_CUDA_LIBRARY

#define ARGUS_ARGUMENTS                                                                            \
  "Tensor q, Tensor k, Tensor v, Tensor offsets, Tensor? visible, Tensor? position_bias, Tensor? " \
  "time_bias, "                                                                                    \
  "Tensor? query_time, Tensor? key_time, float scale, int window) -> ()"

STABLE_TORCH_LIBRARY_FRAGMENT(argus_native, m) {
  m.def("causal_attention_(Tensor(a!) out, Tensor(b!) log_sum_exp, " ARGUS_ARGUMENTS);
  m.def(
      "causal_attention_backward_(Tensor(a!) d_q, Tensor(b!) d_k, Tensor(c!) d_v, "
      "Tensor(d!)? d_position_bias, Tensor(e!)? d_time_bias, Tensor d_out, Tensor d_log_sum_exp, Tensor out, "
      "Tensor log_sum_exp, " ARGUS_ARGUMENTS);
}

STABLE_TORCH_LIBRARY_IMPL(argus_native, CPU, m) {
  m.impl("causal_attention_", TORCH_BOX(&argus::causal_attention::forward));
  m.impl("causal_attention_backward_", TORCH_BOX(&argus::causal_attention::backward));
}

#else

STABLE_TORCH_LIBRARY_IMPL(argus_native, CUDA, m) {
  m.impl("causal_attention_", TORCH_BOX(&argus::causal_attention::forward));
  m.impl("causal_attention_backward_", TORCH_BOX(&argus::causal_attention::backward));
}

#endif
