// The product loop's kernels of sampled_softmax_loss alone, for the gates of sm_90a.
#include "sampled_softmax_loss/backward_loop_sm90.cuh"
#include "sampled_softmax_loss/forward_loop_sm90.cuh"

namespace argus::sampled_softmax_loss {

static_assert(ScoreLoop<__half>::kShared + 2 * sizeof(LoopGradientKeys) + 1024 <= 228 << 10);

#define ARGUS_LOOP(NAME, LOOP, T, ...)                                                \
  template __global__ void NAME<T>(                                                   \
      const __grid_constant__ ptx::TensorMap, const __grid_constant__ ptx::TensorMap, \
      const __grid_constant__ Kernel<T>,                                              \
      const __grid_constant__ typename LOOP<T>::Shape __VA_OPT__(, ) __VA_ARGS__);
#define ARGUS_LOOPS(T)                              \
  ARGUS_LOOP(loop_log_sum_exp_kernel, ScoreLoop, T) \
  ARGUS_LOOP(loop_d_scores_kernel, ScoreLoop, T)    \
  ARGUS_LOOP(loop_d_query_kernel, QueryLoop, T)     \
  ARGUS_LOOP(loop_d_candidates_kernel, CandidateLoop, T, bool, bool)
ARGUS_LOOPS(__nv_bfloat16)
ARGUS_LOOPS(__half)

}  // namespace argus::sampled_softmax_loss
