// argus_native::hstu_attention_cuda_ and its backward: checks, the call, registration. Empty in the CPU
// library, whose op is in hstu_attention_cpu.cpp.
#ifdef ARGUS_CUDA_LIBRARY

#include <torch/csrc/stable/library.h>

#include "attention/cuda/call.h"
#include "hstu_attention/hstu_attention_cuda.h"

namespace argus::hstu_attention {
namespace {

using attention::Given;
using attention::OptionalTensor;

constexpr const char* kOp = "hstu_attention";

void forward(Tensor out, Tensor q, Tensor k, Tensor v, Tensor offsets, OptionalTensor visible,
             OptionalTensor position_bias, OptionalTensor time_bias, OptionalTensor query_time,
             OptionalTensor key_time, double alpha, double divisor, int64_t window) {
  const Given given{kOp,       q,          k,        v,     offsets, visible, position_bias,
                    time_bias, query_time, key_time, alpha, divisor, window};
  const attention::Forward call{attention::arguments_of(given), attention::result_of(given, "out", out),
                                nullptr};
  attention::on_current_stream(given, [&](void* stream) { launch_forward(call, stream); });
}

void backward(Tensor d_q, Tensor d_k, Tensor d_v, OptionalTensor d_position_bias, OptionalTensor d_time_bias,
              Tensor visible_bounds, Tensor table_parts, Tensor d_out, Tensor q, Tensor k, Tensor v,
              Tensor offsets, OptionalTensor visible, OptionalTensor position_bias, OptionalTensor time_bias,
              OptionalTensor query_time, OptionalTensor key_time, double alpha, double divisor,
              int64_t window) {
  const Given given{kOp,       q,          k,        v,     offsets, visible, position_bias,
                    time_bias, query_time, key_time, alpha, divisor, window};
  const attention::BackwardTensors tensors{
      d_q, d_k, d_v, d_position_bias, d_time_bias, visible_bounds, table_parts, d_out, {}, {}, {}, {}, {}};
  const attention::Backward call = attention::backward_of(given, tensors);
  attention::on_current_stream(given, [&](void* stream) { launch_backward(call, stream); });
}

}  // namespace
}  // namespace argus::hstu_attention

STABLE_TORCH_LIBRARY_FRAGMENT(argus_native, m) {
  m.def(
      "hstu_attention_cuda_(Tensor(a!) out, Tensor q, Tensor k, Tensor v, Tensor offsets, Tensor? visible, "
      "Tensor? position_bias, Tensor? time_bias, Tensor? query_time, Tensor? key_time, float alpha, "
      "float divisor, int window) -> ()");
  m.def(
      "hstu_attention_cuda_backward_(Tensor(a!) d_q, Tensor(b!) d_k, Tensor(c!) d_v, "
      "Tensor(d!)? d_position_bias, Tensor(e!)? d_time_bias, Tensor(f!) visible_bounds, "
      "Tensor(g!) table_parts, Tensor d_out, Tensor q, Tensor k, Tensor v, Tensor offsets, Tensor? visible, "
      "Tensor? position_bias, Tensor? time_bias, Tensor? query_time, Tensor? key_time, float alpha, "
      "float divisor, int window) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(argus_native, CUDA, m) {
  m.impl("hstu_attention_cuda_", TORCH_BOX(&argus::hstu_attention::forward));
  m.impl("hstu_attention_cuda_backward_", TORCH_BOX(&argus::hstu_attention::backward));
}

#endif
