// argus_native::hstu_attention and its backward: checks, allocation, registration. Compiled into both op
// libraries.
#include "hstu_attention/hstu_attention.h"

#include <torch/csrc/stable/library.h>

#include <vector>

#include "attention/call.h"
#include "common/torch/stream.h"

namespace argus::hstu_attention {
namespace {

using attention::Given;
using attention::OptionalTensor;

constexpr const char* kOp = "hstu_attention";

Tensor forward(Tensor q, Tensor k, Tensor v, Tensor offsets, OptionalTensor visible,
               OptionalTensor position_bias, OptionalTensor time_bias, OptionalTensor query_time,
               OptionalTensor key_time, double alpha, double divisor, int64_t window) {
  const Given given{kOp,       q,          k,        v,     offsets, visible, position_bias,
                    time_bias, query_time, key_time, alpha, divisor, window};
  const attention::Arguments arguments = attention::arguments_of(given);
#ifdef ARGUS_CUDA_LIBRARY
  const CurrentStream stream(q);
#endif
  Tensor out = attention::new_rows(given);
  const attention::Forward call{arguments, out.mutable_data_ptr(), nullptr};
#ifdef ARGUS_CUDA_LIBRARY
  launch_forward(call, stream.get());
#else
  forward_cpu(call);
#endif
  return out;
}

std::vector<Tensor> backward(Tensor d_out, Tensor q, Tensor k, Tensor v, Tensor offsets,
                             OptionalTensor visible, OptionalTensor position_bias, OptionalTensor time_bias,
                             OptionalTensor query_time, OptionalTensor key_time, double alpha, double divisor,
                             int64_t window, bool need_position_bias, bool need_time_bias) {
  const Given given{kOp,       q,          k,        v,     offsets, visible, position_bias,
                    time_bias, query_time, key_time, alpha, divisor, window};
  attention::check_wanted(given, "position_bias", need_position_bias, position_bias);
  attention::check_wanted(given, "time_bias", need_time_bias, time_bias);
  attention::Backward call = attention::backward_of(given, {d_out, {}, {}, {}});
#ifdef ARGUS_CUDA_LIBRARY
  const CurrentStream stream(q);
#endif
  const attention::NewGradients gradients(given, need_position_bias, need_time_bias);
  attention::write_to(gradients, call);
#ifdef ARGUS_CUDA_LIBRARY
  const attention::CudaScratch scratch(given, call);
  launch_backward(call, stream.get());
#else
  backward_cpu(call);
#endif
  return gradients.list();
}

}  // namespace
}  // namespace argus::hstu_attention

#ifndef ARGUS_CUDA_LIBRARY

#define ARGUS_ARGUMENTS                                                                            \
  "Tensor q, Tensor k, Tensor v, Tensor offsets, Tensor? visible, Tensor? position_bias, Tensor? " \
  "time_bias, Tensor? query_time, Tensor? key_time, float alpha, float divisor, int window"

STABLE_TORCH_LIBRARY_FRAGMENT(argus_native, m) {
  m.def("hstu_attention(" ARGUS_ARGUMENTS ") -> Tensor");
  m.def("hstu_attention_backward(Tensor d_out, " ARGUS_ARGUMENTS
        ", bool need_position_bias, bool need_time_bias) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(argus_native, CPU, m) {
  m.impl("hstu_attention", TORCH_BOX(&argus::hstu_attention::forward));
  m.impl("hstu_attention_backward", TORCH_BOX(&argus::hstu_attention::backward));
}

#else

STABLE_TORCH_LIBRARY_IMPL(argus_native, CUDA, m) {
  m.impl("hstu_attention", TORCH_BOX(&argus::hstu_attention::forward));
  m.impl("hstu_attention_backward", TORCH_BOX(&argus::hstu_attention::backward));
}

#endif
