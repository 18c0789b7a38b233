#include "attention_loop.h"
#include "causal_attention/causal_attention_kernels.cuh"

ARGUS_EXPORT void causal_attention_backward_on_host(const attention_on_host::Backward* call, uint64_t seed,
                                                    char* report, size_t bytes) {
  using argus::causal_attention::Softmax;
  on_host::run(seed, report, bytes, [&] { attention_on_host::backward_loop<Softmax>(*call); });
}
