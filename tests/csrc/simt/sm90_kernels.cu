// What nvcc must accept for sm_90a, and turn into the instructions that the gates look for.
#include "sm90_kernels.cuh"

namespace sm90_kernels {

using Loop = argus::sm90::ProductLoop<__nv_bfloat16, Major::k, Major::k, 256>;
static_assert(128 * Loop::kProducerRegisters + 256 * Loop::kConsumerRegisters <= 64 << 10);
static_assert(Loop::kShared + 1024 <= 228 << 10);

#define ARGUS_PRODUCT(T, A, B, COLUMNS)                                     \
  template __global__ void product<T, Major::A, Major::B, COLUMNS>(         \
      const __grid_constant__ TensorMap, const __grid_constant__ TensorMap, \
      argus::sm90::ProductLoop<T, Major::A, Major::B, COLUMNS>::Shape, float*);
ARGUS_PRODUCT(__nv_bfloat16, k, k, 128)
ARGUS_PRODUCT(__nv_bfloat16, k, k, 256)
ARGUS_PRODUCT(__half, k, mn, 128)
ARGUS_PRODUCT(__half, mn, mn, 256)
ARGUS_PRODUCT(float, k, k, 128)

template __global__ void multiply_from_registers<__half, Major::mn, 64, -1>(const __half*,
                                                                            const __grid_constant__ TensorMap,
                                                                            float*);

}  // namespace sm90_kernels
