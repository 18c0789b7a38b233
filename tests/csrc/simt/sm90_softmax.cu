// The product loop's kernels of sampled_softmax_loss alone, for the gates of sm_90a.
#include "sampled_softmax_loss/forward_loop_sm90.cuh"

namespace argus::sampled_softmax_loss {

static_assert(ScoreLoop<__half>::kShared + 2 * sizeof(LoopKeys) + 1024 <= 228 << 10);

#define ARGUS_LOOP(T)                                                                         \
  template __global__ void loop_log_sum_exp_kernel<T>(const __grid_constant__ ptx::TensorMap, \
                                                      const __grid_constant__ ptx::TensorMap, \
                                                      const __grid_constant__ Kernel<T>);
ARGUS_LOOP(__nv_bfloat16)
ARGUS_LOOP(__half)

}  // namespace argus::sampled_softmax_loss
