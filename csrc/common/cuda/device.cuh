// The one header that device code includes: the CUDA language, the conversions between stored and arithmetic
// types, shared memory and launches. Under nvcc that is CUDA; under the host compiler it is the SIMT executor
// (csrc/simt/), which runs the same code on the CPU and reports races and other undefined behaviour.
#pragma once

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
#include "simt/language.h"
#include "simt/launch.h"
#endif

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#define ARGUS_DEVICE __device__ __forceinline__
#define ARGUS_HOST_DEVICE __host__ __device__ __forceinline__
// A rarely called function, not inlined, with registers of its own. A kernel that passes its argument on
// declares it `const __grid_constant__`; otherwise the argument would be copied to the stack.
#if defined(__CUDACC__)
#define ARGUS_RARE __device__ __noinline__
#else
#define ARGUS_RARE __attribute__((noinline))
#endif

// ARGUS_SHARED(float, tile, [32][33]) declares `tile`, shared by the block; ARGUS_DYNAMIC_SHARED(float,
// buffer) a pointer to the launch's dynamic shared memory, aligned to 128 bytes.
#if defined(__CUDACC__)
#define ARGUS_SHARED(type, name, extent) __shared__ __align__(16) type name extent
#define ARGUS_DYNAMIC_SHARED(type, name)                                 \
  extern __shared__ __align__(128) unsigned char argus_dynamic_shared[]; \
  type* name = reinterpret_cast<type*>(argus_dynamic_shared)
#endif

namespace argus {

constexpr int kWarpSize = 32;
constexpr unsigned kFullWarp = 0xffffffffu;
constexpr int kChunkBytes = 16;  // of the widest access
template <class T>
constexpr int kChunk = kChunkBytes / static_cast<int>(sizeof(T));  // elements of it

// For a one-dimensional block.
ARGUS_DEVICE int lane_index() {
  return static_cast<int>(threadIdx.x) % kWarpSize;
}
ARGUS_DEVICE int warp_index() {
  return static_cast<int>(threadIdx.x) / kWarpSize;
}

ARGUS_DEVICE float to_float(float x) {
  return x;
}
ARGUS_DEVICE float to_float(__half x) {
  return __half2float(x);
}
ARGUS_DEVICE float to_float(__nv_bfloat16 x) {
  return __bfloat162float(x);
}

ARGUS_DEVICE bool is_nan(float x) {
  return x != x;
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

// Both rounded, x in the lower half.
ARGUS_DEVICE uint32_t packed(float x, float y, __half) {
  const __half2 pair = __floats2half2_rn(x, y);
  uint32_t word;
  memcpy(&word, &pair, sizeof(word));
  return word;
}
ARGUS_DEVICE uint32_t packed(float x, float y, __nv_bfloat16) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(x, y);
  uint32_t word;
  memcpy(&word, &pair, sizeof(word));
  return word;
}

// What packed() has rounded.
ARGUS_DEVICE float2 unpacked(uint32_t word, __half) {
  __half pair[2];
  memcpy(pair, &word, sizeof(word));
  return {to_float(pair[0]), to_float(pair[1])};
}
ARGUS_DEVICE float2 unpacked(uint32_t word, __nv_bfloat16) {
  // An instruction each; through __nv_bfloat16 nvcc makes two.
  return {__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u)};
}

struct LaunchShape {
  dim3 grid, block;
  size_t dynamic_shared = 0;
  unsigned cluster = 1;  // blocks along x that share memory (sm90/cluster.cuh); the grid's x is a multiple
  // Blocks wait for blocks before them in the grid, x fastest (sm90/turns.cuh); told to the executor.
  bool in_order = false;
};

#if defined(__CUDACC__)
template <class... Parameters, class... Arguments>
cudaError_t launch_cuda(void (*kernel)(Parameters...), const LaunchShape& shape, cudaStream_t stream,
                        const Arguments&... arguments) {
  if (shape.cluster == 1) {
    kernel<<<shape.grid, shape.block, shape.dynamic_shared, stream>>>(arguments...);
    return cudaGetLastError();
  }
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {shape.cluster, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.dynamic_shared;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}
#endif

// Enqueues kernel(arguments...) on `stream`, a cudaStream_t; `op` names the op in errors.
template <class... Parameters, class... Arguments>
void launch(const char* op, void (*kernel)(Parameters...), const LaunchShape& shape, void* stream,
            const Arguments&... arguments) {
#if defined(__CUDACC__)
  // 48 KB are the default, less the shared memory that the kernel declares statically.
  constexpr size_t kDefaultDynamicShared = 32 << 10;
  cudaError_t error = cudaSuccess;
  if (shape.dynamic_shared > kDefaultDynamicShared) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shape.dynamic_shared));
  }
  if (error == cudaSuccess)
    error = launch_cuda(kernel, shape, static_cast<cudaStream_t>(stream), arguments...);
  if (error != cudaSuccess) {
    // The runtime keeps an error until it is read: the next launch would fail with this one's.
    static_cast<void>(cudaGetLastError());
    throw std::runtime_error(std::string(op) + ": kernel launch failed: " + cudaGetErrorString(error));
  }
#else
  static_cast<void>(stream);
  simt::launch(op, kernel, shape.grid, shape.block, shape.dynamic_shared, shape.cluster, shape.in_order,
               arguments...);
#endif
}

}  // namespace argus
