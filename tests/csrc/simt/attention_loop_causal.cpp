#include "attention_loop.h"
#include "causal_attention/causal_attention_kernels.cuh"

ARGUS_EXPORT void causal_attention_on_host(const attention_on_host::Forward* call, uint64_t seed,
                                           char* report, size_t bytes) {
  using argus::causal_attention::Softmax;
  on_host::run(seed, report, bytes,
               [&] { attention_on_host::forward(*call, attention_on_host::launch_loop<Softmax>); });
}
