// All that device code includes: the CUDA language and the conversions between stored and arithmetic types.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#define ARGUS_DEVICE __device__ __forceinline__

namespace argus {

constexpr int kWarpSize = 32;
constexpr unsigned kFullWarp = 0xffffffffu;

ARGUS_DEVICE float to_float(float x) {
  return x;
}
ARGUS_DEVICE float to_float(__half x) {
  return __half2float(x);
}
ARGUS_DEVICE float to_float(__nv_bfloat16 x) {
  return __bfloat162float(x);
}

ARGUS_DEVICE void from_float(float& to, float x) {
  to = x;
}
ARGUS_DEVICE void from_float(__half& to, float x) {
  to = __float2half_rn(x);
}
ARGUS_DEVICE void from_float(__nv_bfloat16& to, float x) {
  to = __float2bfloat16_rn(x);
}

// The sum over the warp, the same bits in every lane: each step adds the same two partial sums on both sides.
ARGUS_DEVICE float warp_sum(float x) {
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2)
    x += __shfl_xor_sync(kFullWarp, x, distance);
  return x;
}

}  // namespace argus
