// argus_native::causal_attention_cpu_ and its backward: softmax attention over packed histories on the CPU.
// The blocks and their walk are attention/cpu/, the softmax is softmax_rule.h.
#include <torch/csrc/stable/library.h>

#include "attention/cpu/arguments.h"
#include "attention/cpu/launch.h"
#include "causal_attention/softmax_rule.h"

namespace argus::causal_attention {
namespace {

using attention::History;
using attention::OptionalTensor;

constexpr const char* kOp = "causal_attention";

void forward(Tensor out, Tensor log_sum_exp, Tensor q, Tensor k, Tensor v, Tensor offsets,
             OptionalTensor visible, OptionalTensor position_bias, OptionalTensor time_bias,
             OptionalTensor query_time, OptionalTensor key_time, OptionalTensor time_edges, double scale,
             int64_t window) {
  const History history{kOp,       q,          k,        v,          offsets, visible, position_bias,
                        time_bias, query_time, key_time, time_edges, scale,   window};
  attention::check(history);
  attention::check_result(history, "out", out);
  attention::check_statistic(history, "log_sum_exp", log_sum_exp);
  const TimeBuckets buckets = attention::time_buckets(history);
  attention::with_stored(q, [&]<class T>() {
    attention::forward(attention::make_problem<T>(history, buckets), SoftmaxRule<Arithmetic<T>>(),
                       static_cast<T*>(out.mutable_data_ptr()),
                       static_cast<Arithmetic<T>*>(log_sum_exp.mutable_data_ptr()));
  });
}

void backward(Tensor d_q, Tensor d_k, Tensor d_v, OptionalTensor d_position_bias, OptionalTensor d_time_bias,
              Tensor d_out, Tensor d_log_sum_exp, Tensor out, Tensor log_sum_exp, Tensor q, Tensor k,
              Tensor v, Tensor offsets, OptionalTensor visible, OptionalTensor position_bias,
              OptionalTensor time_bias, OptionalTensor query_time, OptionalTensor key_time,
              OptionalTensor time_edges, double scale, int64_t window) {
  const History history{kOp,       q,          k,        v,          offsets, visible, position_bias,
                        time_bias, query_time, key_time, time_edges, scale,   window};
  const attention::BackwardTensors given{d_out, out, log_sum_exp,     d_log_sum_exp, d_q,
                                         d_k,   d_v, d_position_bias, d_time_bias};
  attention::check(history);
  attention::check(history, given);
  const TimeBuckets buckets = attention::time_buckets(history);
  attention::with_stored(q, [&]<class T>() {
    attention::backward(attention::make_problem<T>(history, buckets), SoftmaxRule<Arithmetic<T>>(),
                        attention::make_gradients<T>(given));
  });
}

}  // namespace
}  // namespace argus::causal_attention

STABLE_TORCH_LIBRARY_FRAGMENT(argus_native, m) {
  m.def(
      "causal_attention_cpu_(Tensor(a!) out, Tensor(b!) log_sum_exp, Tensor q, Tensor k, Tensor v, Tensor "
      "offsets, "
      "Tensor? visible, Tensor? position_bias, Tensor? time_bias, Tensor? query_time, Tensor? key_time, "
      "Tensor? time_edges, float scale, int window) -> ()");
  m.def(
      "causal_attention_cpu_backward_(Tensor(a!) d_q, Tensor(b!) d_k, Tensor(c!) d_v, Tensor(d!)? "
      "d_position_bias, "
      "Tensor(e!)? d_time_bias, Tensor d_out, Tensor d_log_sum_exp, Tensor out, Tensor log_sum_exp, Tensor "
      "q, "
      "Tensor k, Tensor v, Tensor offsets, Tensor? visible, Tensor? position_bias, Tensor? time_bias, "
      "Tensor? query_time, Tensor? key_time, Tensor? time_edges, float scale, int window) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(argus_native, CPU, m) {
  m.impl("causal_attention_cpu_", TORCH_BOX(&argus::causal_attention::forward));
  m.impl("causal_attention_cpu_backward_", TORCH_BOX(&argus::causal_attention::backward));
}
