// argus_native::hstu_attention_cpu_ and its backward: HSTU's pointwise attention over packed histories on the
// CPU. The blocks and their walk are attention/cpu/, the SiLU is silu_rule.h.
#include <torch/csrc/stable/library.h>

#include "attention/cpu/arguments.h"
#include "attention/cpu/launch.h"
#include "hstu_attention/silu_rule.h"

namespace argus::hstu_attention {
namespace {

using attention::History;
using attention::OptionalTensor;

constexpr const char* kOp = "hstu_attention";

void forward(Tensor out, Tensor q, Tensor k, Tensor v, Tensor offsets, OptionalTensor visible,
             OptionalTensor position_bias, OptionalTensor time_bias, OptionalTensor query_time,
             OptionalTensor key_time, OptionalTensor time_edges, double alpha, double divisor,
             int64_t window) {
  const History history{kOp,       q,          k,        v,          offsets, visible, position_bias,
                        time_bias, query_time, key_time, time_edges, alpha,   window};
  attention::check(history);
  attention::check_result(history, "out", out);
  const TimeBuckets buckets = attention::time_buckets(history);
  attention::with_stored(q, [&]<class T>() {
    attention::forward(attention::make_problem<T>(history, buckets), SiluRule<Arithmetic<T>>(divisor),
                       static_cast<T*>(out.mutable_data_ptr()), static_cast<Arithmetic<T>*>(nullptr));
  });
}

void backward(Tensor d_q, Tensor d_k, Tensor d_v, OptionalTensor d_position_bias, OptionalTensor d_time_bias,
              Tensor d_out, Tensor q, Tensor k, Tensor v, Tensor offsets, OptionalTensor visible,
              OptionalTensor position_bias, OptionalTensor time_bias, OptionalTensor query_time,
              OptionalTensor key_time, OptionalTensor time_edges, double alpha, double divisor,
              int64_t window) {
  const History history{kOp,       q,          k,        v,          offsets, visible, position_bias,
                        time_bias, query_time, key_time, time_edges, alpha,   window};
  const attention::BackwardTensors given{d_out, std::nullopt, std::nullopt,    std::nullopt, d_q,
                                         d_k,   d_v,          d_position_bias, d_time_bias};
  attention::check(history);
  attention::check(history, given);
  const TimeBuckets buckets = attention::time_buckets(history);
  attention::with_stored(q, [&]<class T>() {
    attention::backward(attention::make_problem<T>(history, buckets), SiluRule<Arithmetic<T>>(divisor),
                        attention::make_gradients<T>(given));
  });
}

}  // namespace
}  // namespace argus::hstu_attention

STABLE_TORCH_LIBRARY_FRAGMENT(argus_native, m) {
  m.def(
      "hstu_attention_cpu_(Tensor(a!) out, Tensor q, Tensor k, Tensor v, Tensor offsets, Tensor? visible, "
      "Tensor? position_bias, Tensor? time_bias, Tensor? query_time, Tensor? key_time, Tensor? time_edges, "
      "float alpha, float divisor, int window) -> ()");
  m.def(
      "hstu_attention_cpu_backward_(Tensor(a!) d_q, Tensor(b!) d_k, Tensor(c!) d_v, Tensor(d!)? "
      "d_position_bias, "
      "Tensor(e!)? d_time_bias, Tensor d_out, Tensor q, Tensor k, Tensor v, Tensor offsets, Tensor? visible, "
      "Tensor? position_bias, Tensor? time_bias, Tensor? query_time, Tensor? key_time, Tensor? time_edges, "
      "float alpha, float divisor, int window) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(argus_native, CPU, m) {
  m.impl("hstu_attention_cpu_", TORCH_BOX(&argus::hstu_attention::forward));
  m.impl("hstu_attention_cpu_backward_", TORCH_BOX(&argus::hstu_attention::backward));
}
