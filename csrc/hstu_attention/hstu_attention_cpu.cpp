// HSTU's pointwise attention on the CPU: attention/cpu/ has the loops over blocks and tiles, silu_rule.h the
// SiLU.
#include "attention/cpu/launch.h"
#include "common/cpu/stored_type.h"
#include "hstu_attention/hstu_attention.h"
#include "hstu_attention/silu_rule.h"

namespace argus::hstu_attention {

void forward_cpu(const attention::Forward& call) {
  with_stored_type(call.given.dtype, [&]<class T>() {
    attention::forward<T>(call, SiluRule<Arithmetic<T>>(call.given.divisor));
  });
}

void backward_cpu(const attention::Backward& call) {
  with_stored_type(call.given.dtype, [&]<class T>() {
    attention::backward<T>(call, SiluRule<Arithmetic<T>>(call.given.divisor));
  });
}

}  // namespace argus::hstu_attention
