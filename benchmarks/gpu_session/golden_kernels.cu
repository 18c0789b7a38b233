// Runs the instructions and functions that have twins in the executor (csrc/simt/) on given numbers: on a GPU
// if compiled by nvcc, with the twins if compiled by the host compiler.
#include "common/cuda/ptx.cuh"
#include "golden.h"

namespace golden {

using argus::launch;
using argus::LaunchShape;

// One warp per product, its fragments in the lanes' layout: a [cases, 32, 4], b [cases, 32, 2], c and d
// [cases, 32, 4].
template <class T>
__global__ void multiply(const uint32_t* a, const uint32_t* b, const float* c, float* d) {
  const int place = static_cast<int>(blockIdx.x) * 32 + static_cast<int>(threadIdx.x);
  uint32_t left[4], right[2];
  float sum[4];
  for (int i = 0; i < 4; ++i) left[i] = a[4 * place + i];
  for (int i = 0; i < 2; ++i) right[i] = b[2 * place + i];
  for (int i = 0; i < 4; ++i) sum[i] = c[4 * place + i];
  if constexpr (sizeof(T) == 4) {
    argus::ptx::mma_m16n8k8_tf32(sum, left, right);
  } else {
    argus::ptx::mma_m16n8k16(sum, left, right, T{});
  }
  for (int i = 0; i < 4; ++i) d[4 * place + i] = sum[i];
}

// One warp per load of four matrices [cases, 4, 8, 8] of 16-bit numbers; out [cases, 32, 4].
template <bool kTransposed>
__global__ void load(const uint16_t* in, uint32_t* out) {
  ARGUS_SHARED(uint16_t, tile, [32][8]);
  const int lane = static_cast<int>(threadIdx.x), first = static_cast<int>(blockIdx.x) * 256;
  for (int i = 0; i < 8; ++i) tile[lane][i] = in[first + 8 * lane + i];
  __syncwarp();
  uint32_t words[4];
  if constexpr (kTransposed) {
    argus::ptx::ldmatrix_transposed(words, tile[lane]);
  } else {
    argus::ptx::ldmatrix(words, tile[lane]);
  }
  for (int i = 0; i < 4; ++i) out[(static_cast<int>(blockIdx.x) * 32 + lane) * 4 + i] = words[i];
}

ARGUS_DEVICE float evaluate(int function, float x) {
  switch (function) {
    case 0:
      return argus::ptx::exp2_approx(x);
    case 1:
      return argus::ptx::tanh_approx(x);
    case 2:
      return expf(x);
    case 3:
      return __expf(x);
    case 4:
      return logf(x);
    case 5:
      return __logf(x);
    case 6:
      return tanhf(x);
    case 7:
      return rsqrtf(x);
    case 8:
      return __bfloat162float(__float2bfloat16_rn(x));
    default:
      return __half2float(__float2half_rn(x));
  }
}

__global__ void map(int function, const float* x, float* y) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  y[i] = evaluate(function, x[i]);
}

}  // namespace golden

// kind 0: half, 1: bfloat16, 2: tf32. Writes the error, or the empty string, to `report`.
GOLDEN_EXPORT void golden_multiply(int kind, const uint32_t* a, const uint32_t* b, const float* c, float* d,
                                   int cases, char* report, size_t bytes) {
  golden::report_of(report, bytes, [&] {
    const golden::LaunchShape shape{dim3(static_cast<unsigned>(cases)), dim3(32)};
    const auto kernel = kind == 0   ? golden::multiply<__half>
                        : kind == 1 ? golden::multiply<__nv_bfloat16>
                                    : golden::multiply<float>;
    golden::launch("golden_multiply", kernel, shape, nullptr, a, b, c, d);
  });
}

GOLDEN_EXPORT void golden_load(int transposed, const uint16_t* in, uint32_t* out, int cases, char* report,
                               size_t bytes) {
  golden::report_of(report, bytes, [&] {
    const golden::LaunchShape shape{dim3(static_cast<unsigned>(cases)), dim3(32)};
    golden::launch("golden_load", transposed ? golden::load<true> : golden::load<false>, shape, nullptr, in,
                   out);
  });
}

// `count` is a multiple of 32.
GOLDEN_EXPORT void golden_map(int function, const float* x, float* y, int count, char* report, size_t bytes) {
  golden::report_of(report, bytes, [&] {
    const golden::LaunchShape shape{dim3(static_cast<unsigned>(count / 32)), dim3(32)};
    golden::launch("golden_map", golden::map, shape, nullptr, function, x, y);
  });
}
