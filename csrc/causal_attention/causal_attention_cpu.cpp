// causal_attention on the CPU: attention/cpu/ has the loops over blocks and tiles, softmax_rule.h the
// softmax.
#include "attention/cpu/launch.h"
#include "causal_attention/causal_attention.h"
#include "causal_attention/softmax_rule.h"
#include "common/cpu/stored_type.h"

namespace argus::causal_attention {

void forward_cpu(const attention::Forward& call) {
  with_stored_type(call.given.dtype,
                   [&]<class T>() { attention::forward<T>(call, SoftmaxRule<Arithmetic<T>>()); });
}

void backward_cpu(const attention::Backward& call) {
  with_stored_type(call.given.dtype,
                   [&]<class T>() { attention::backward<T>(call, SoftmaxRule<Arithmetic<T>>()); });
}

}  // namespace argus::causal_attention
