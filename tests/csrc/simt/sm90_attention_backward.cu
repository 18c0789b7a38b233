// The backward loop of attention and the kernels around it alone, for the gates of sm_90a.
#include "sm90_attention_kinds.cuh"

namespace argus::attention {

#define ARGUS_LOOP(WEIGHTS, MASK, T, WIDTH, BIASES)                                                \
  template __global__ void backward_loop_kernel<LoopKind<WEIGHTS, MASK, T, WIDTH, BIASES>>(        \
      const __grid_constant__ BackwardSetup, const __grid_constant__ Backward);                    \
  template __global__ void backward_preparation_kernel<LoopKind<WEIGHTS, MASK, T, WIDTH, BIASES>>( \
      const __grid_constant__ Backward);                                                           \
  template __global__ void backward_finish_kernel<LoopKind<WEIGHTS, MASK, T, WIDTH, BIASES>>(      \
      const __grid_constant__ Backward);
ARGUS_EVERY_KIND(ARGUS_LOOP)

}  // namespace argus::attention
