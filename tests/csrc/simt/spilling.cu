// A kernel that cannot fit its registers: the compile gates must see its spills.
#include "common/cuda/device.cuh"

__global__ __launch_bounds__(1024, 2) void spilling(const float* in, float* out) {
  float held[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) held[i] = in[threadIdx.x + 1024 * i];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 64; ++i) out[threadIdx.x + 1024 * i] = held[63 - i] * held[(i * 7) % 64];
}
