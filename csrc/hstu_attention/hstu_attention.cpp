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

Tensor forward(ARGUS_ROWS_PARAMETERS, double alpha, double divisor, int64_t window, double dropout,
               ARGUS_TENSORS_PARAMETERS) {
  const Given given{kOp, ARGUS_HISTORY_VALUES, alpha, divisor, window, dropout};
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

std::vector<Tensor> backward(Tensor d_out, ARGUS_ROWS_PARAMETERS, double alpha, double divisor,
                             int64_t window, double dropout, bool need_position_bias, bool need_time_bias,
                             ARGUS_TENSORS_PARAMETERS) {
  const Given given{kOp, ARGUS_HISTORY_VALUES, alpha, divisor, window, dropout};
  attention::check_wanted(given, "position_bias", need_position_bias, position_bias);
  attention::check_wanted(given, "time_bias", need_time_bias, time_bias);
  attention::Backward call = attention::backward_of(given, {d_out, {}, {}, {}});
#ifdef ARGUS_CUDA_LIBRARY
  const CurrentStream stream(q);
#endif
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
}  // namespace argus::hstu_attention

#ifndef ARGUS_CUDA_LIBRARY

#define ARGUS_NUMBERS ARGUS_ROWS_SCHEMA "float alpha, float divisor" ARGUS_NUMBERS_SCHEMA

STABLE_TORCH_LIBRARY_FRAGMENT(argus_native, m) {
  m.def("hstu_attention(" ARGUS_NUMBERS ARGUS_TENSORS_SCHEMA ") -> Tensor");
  m.def("hstu_attention_backward(Tensor d_out, " ARGUS_NUMBERS ARGUS_WANTED_SCHEMA ARGUS_TENSORS_SCHEMA
        ") -> Tensor[]");
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
