// The backward loop of attention and the kernels around it alone, for the gates of sm_90a.
#include "attention/cuda/sm90/launch.cuh"
#include "causal_attention/causal_attention_kernels.cuh"
#include "hstu_attention/hstu_attention_kernels.cuh"

namespace argus::attention {

#define ARGUS_LOOP(WEIGHTS, MASK, T, WIDTH, BIASES)                                                \
  template __global__ void backward_loop_kernel<LoopKind<WEIGHTS, MASK, T, WIDTH, BIASES>>(        \
      const __grid_constant__ BackwardSetup, const __grid_constant__ Backward);                    \
  template __global__ void backward_preparation_kernel<LoopKind<WEIGHTS, MASK, T, WIDTH, BIASES>>( \
      const __grid_constant__ Backward);                                                           \
  template __global__ void backward_finish_kernel<LoopKind<WEIGHTS, MASK, T, WIDTH, BIASES>>(      \
      const __grid_constant__ Backward);
#define ARGUS_WIDTHS(WEIGHTS, MASK, T, BIASES) \
  ARGUS_LOOP(WEIGHTS, MASK, T, 64, BIASES)     \
  ARGUS_LOOP(WEIGHTS, MASK, T, 128, BIASES)
#define ARGUS_TYPES(WEIGHTS, MASK, BIASES)           \
  ARGUS_WIDTHS(WEIGHTS, MASK, __nv_bfloat16, BIASES) \
  ARGUS_WIDTHS(WEIGHTS, MASK, __half, BIASES)
#define ARGUS_MASKS(WEIGHTS)               \
  ARGUS_TYPES(WEIGHTS, CausalMask, false)  \
  ARGUS_TYPES(WEIGHTS, CausalMask, true)   \
  ARGUS_TYPES(WEIGHTS, GeneralMask, false) \
  ARGUS_TYPES(WEIGHTS, GeneralMask, true)
ARGUS_MASKS(causal_attention::Softmax)
ARGUS_MASKS(hstu_attention::Silu)

}  // namespace argus::attention
