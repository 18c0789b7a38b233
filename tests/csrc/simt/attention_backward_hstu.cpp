#include "attention_loop.h"
#include "hstu_attention/hstu_attention_kernels.cuh"

ARGUS_EXPORT void hstu_attention_backward_on_host(const attention_on_host::Backward* call, uint64_t seed,
                                                  char* report, size_t bytes) {
  using argus::hstu_attention::Silu;
  on_host::run(seed, report, bytes, [&] { attention_on_host::backward_loop<Silu>(*call); });
}
