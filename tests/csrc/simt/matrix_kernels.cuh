// Kernels around ldmatrix, mma.sync and cp.async: run on the executor by matrix.cpp, compiled by nvcc from
// matrix_kernels.cu.
#pragma once

#include "common/cuda/ptx.cuh"

namespace matrix_kernels {

template <int kMatrices, bool kTransposed>
__global__ void load(const uint16_t* in, uint32_t* out) {
  ARGUS_SHARED(uint16_t, tile, [kMatrices * 8][8]);
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < kMatrices * 64; i += 32) tile[i / 8][i % 8] = in[i];
  __syncwarp();
  uint32_t words[kMatrices];
  const void* row = tile[lane % (8 * kMatrices)];
  if constexpr (kTransposed) {
    argus::ptx::ldmatrix_transposed(words, row);
  } else {
    argus::ptx::ldmatrix(words, row);
  }
  for (int m = 0; m < kMatrices; ++m) out[32 * m + lane] = words[m];
}

template <class T>
__device__ uint32_t two(T low, T high) {
  const T pair[2] = {low, high};
  uint32_t word;
  memcpy(&word, pair, sizeof(word));
  return word;
}

// A [16, 16] row-major, B [16, 8] row-major, D [16, 8]; registers filled element by element.
template <class T>
__global__ void multiply_16(const T* a, const T* b, float* d) {
  const int lane = static_cast<int>(threadIdx.x), group = lane / 4, pair = lane % 4 * 2;
  uint32_t fragment_a[4], fragment_b[2];
  for (int i = 0; i < 4; ++i) {
    const T* from = a + (group + i % 2 * 8) * 16 + pair + i / 2 * 8;
    fragment_a[i] = two(from[0], from[1]);
  }
  for (int i = 0; i < 2; ++i) {
    const T* from = b + (pair + i * 8) * 8 + group;
    fragment_b[i] = two(from[0], from[8]);
  }
  float accumulated[4] = {1.0f, 2.0f, 3.0f, 4.0f};
  argus::ptx::mma_m16n8k16(accumulated, fragment_a, fragment_b, T{});
  for (int i = 0; i < 4; ++i) d[(group + i / 2 * 8) * 8 + pair + i % 2] = accumulated[i];
}

__global__ void multiply_tf32(const float* a, const float* b, float* d) {
  const int lane = static_cast<int>(threadIdx.x), group = lane / 4, k = lane % 4;
  const uint32_t fragment_a[4] = {__float_as_uint(a[group * 8 + k]), __float_as_uint(a[(group + 8) * 8 + k]),
                                  __float_as_uint(a[group * 8 + k + 4]),
                                  __float_as_uint(a[(group + 8) * 8 + k + 4])};
  const uint32_t fragment_b[2] = {__float_as_uint(b[k * 8 + group]), __float_as_uint(b[(k + 4) * 8 + group])};
  float accumulated[4] = {1.0f, 2.0f, 3.0f, 4.0f};
  argus::ptx::mma_m16n8k8_tf32(accumulated, fragment_a, fragment_b);
  for (int i = 0; i < 4; ++i) d[(group + i / 2 * 8) * 8 + k * 2 + i % 2] = accumulated[i];
}

// The way a kernel does it: cp.async into shared memory, ldmatrix, mma; C [32, 16] = A [32, 64] B [64, 16],
// each warp 16 rows, stages of 16 in depth, two under way. `kBarrier` guards a stage's place against being
// written too early.
constexpr int kM = 32, kN = 16, kK = 64, kDepth = 16;

template <class T, bool kBarrier>
__global__ void tiled(const T* a, const T* b, float* c) {
  ARGUS_SHARED(T, tile_a, [2][kM][kDepth]);
  ARGUS_SHARED(T, tile_b, [2][kDepth][kN]);
  const int t = static_cast<int>(threadIdx.x), lane = t % 32, warp = t / 32;
  const auto stage = [&](int index) {
    const int slot = index % 2, row = t / 2, half = t % 2 * 8;
    if (index < kK / kDepth) {
      argus::ptx::cp_async<16>(&tile_a[slot][row][half], a + row * kK + index * kDepth + half);
      if (row < kDepth)
        argus::ptx::cp_async<16>(&tile_b[slot][row][half], b + (index * kDepth + row) * kN + half);
    }
    argus::ptx::cp_async_commit();
  };
  float sums[2][4] = {};
  stage(0);
  for (int index = 0; index < kK / kDepth; ++index) {
    stage(index + 1);
    argus::ptx::cp_async_wait<1>();
    __syncthreads();
    const int slot = index % 2;
    uint32_t fragment_a[4], fragment_b[4];
    argus::ptx::ldmatrix(fragment_a, &tile_a[slot][16 * warp + lane % 16][lane / 16 * 8]);
    argus::ptx::ldmatrix_transposed(fragment_b, &tile_b[slot][lane % 16][lane / 16 * 8]);
    const uint32_t left[2] = {fragment_b[0], fragment_b[1]}, right[2] = {fragment_b[2], fragment_b[3]};
    argus::ptx::mma_m16n8k16(sums[0], fragment_a, left, T{});
    argus::ptx::mma_m16n8k16(sums[1], fragment_a, right, T{});
    if constexpr (kBarrier) __syncthreads();
  }
  for (int part = 0; part < 2; ++part)
    for (int i = 0; i < 4; ++i)
      c[(16 * warp + lane / 4 + i / 2 * 8) * kN + 8 * part + lane % 4 * 2 + i % 2] = sums[part][i];
}

}  // namespace matrix_kernels
