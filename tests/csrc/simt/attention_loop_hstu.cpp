#include "attention_loop.h"
#include "hstu_attention/hstu_attention_kernels.cuh"

ARGUS_EXPORT void hstu_attention_on_host(const attention_on_host::Forward* call, uint64_t seed, char* report,
                                         size_t bytes) {
  using argus::hstu_attention::Silu;
  on_host::run(seed, report, bytes,
               [&] { attention_on_host::forward(*call, attention_on_host::launch_loop<Silu>); });
}
