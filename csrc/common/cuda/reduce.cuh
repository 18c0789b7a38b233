// Sums and maxima over a warp and over a block, with the same bits in every thread.
#pragma once

#include "common/cuda/device.cuh"

namespace argus {

// Each step combines the same two partial results on both sides, so all lanes agree.
ARGUS_DEVICE float warp_sum(float x) {
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2)
    x += __shfl_xor_sync(kFullWarp, x, distance);
  return x;
}

ARGUS_DEVICE float warp_max(float x) {
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2)
    x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, distance));
  return x;
}

// For a one-dimensional block of whole warps; every thread must call it. It ends with a barrier, so that it
// may be called again.
ARGUS_DEVICE float block_sum(float x) {
  ARGUS_SHARED(float, partial, [kWarpSize]);
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize,
            warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int warps = static_cast<int>(blockDim.x) / kWarpSize;
  const float sum = warp_sum(x);
  if (lane == 0) partial[warp] = sum;
  __syncthreads();
  const float total = warp_sum(lane < warps ? partial[lane] : 0.0f);
  __syncthreads();
  return total;
}

}  // namespace argus
