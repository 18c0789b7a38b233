// The forward loop of attention alone, for the gates of sm_90a.
#include "sm90_attention_kinds.cuh"

namespace argus::attention {

#define ARGUS_LOOP(WEIGHTS, MASK, T, WIDTH, BIASES)                                        \
  template __global__ void forward_loop_kernel<LoopKind<WEIGHTS, MASK, T, WIDTH, BIASES>>( \
      const __grid_constant__ ForwardMaps, const __grid_constant__ Forward);
ARGUS_EVERY_KIND(ARGUS_LOOP)

}  // namespace argus::attention
