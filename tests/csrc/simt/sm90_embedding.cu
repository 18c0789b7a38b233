// The product loop's kernels of triple_embedding alone, for the gates of sm_90a.
#include "triple_embedding/forward_loop_sm90.cuh"

namespace argus::triple_embedding {

template <int kColumns>
using Plan = ForwardLoop<__half, __half, kColumns>;
// Of a block's 227 KB, beside the barriers and the bias.
template <int kColumns>
constexpr bool kFits =
    Plan<kColumns>::shared_bytes(kMaxLoopChunks * 128 / kColumns / 8) + 4 * kColumns + 256 <= 227 << 10;
static_assert(kFits<128> && kFits<256>);
static_assert(128 * Plan<256>::kProducerRegisters + 256 * Plan<256>::kConsumerRegisters <= 64 << 10);

#define ARGUS_LOOP(T, STORED, COLUMNS)                                                                     \
  template __global__ void loop_forward_kernel<T, STORED, COLUMNS>(const __grid_constant__ ptx::TensorMap, \
                                                                   const __grid_constant__ CudaForward);
// Of every type of rows and number of columns one; that of the arithmetic changes an instruction's name.
ARGUS_LOOP(__nv_bfloat16, __nv_bfloat16, 256)
ARGUS_LOOP(__nv_bfloat16, float, 128)
ARGUS_LOOP(__half, __half, 128)
ARGUS_LOOP(__half, float, 256)

}  // namespace argus::triple_embedding
