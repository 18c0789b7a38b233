// ldmatrix and mma.sync against a plain matrix product, loaded through the fragment layouts of the PTX
// manual.
#include "cases.h"
#include "common/cuda/ptx.cuh"
#include "matrix_kernels.cuh"

namespace {

using argus::launch;
using argus::LaunchShape;
using cases::Buffer;
using cases::expect;
using cases::pattern;
using matrix_kernels::kK;
using matrix_kernels::kM;
using matrix_kernels::kN;

template <int kMatrices, bool kTransposed>
void run_load() {
  std::vector<uint16_t> numbers(kMatrices * 64);
  for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<uint16_t>(i);
  Buffer<uint16_t> in("in", numbers);
  Buffer<uint32_t> out("out", kMatrices * 32);
  launch("load", matrix_kernels::load<kMatrices, kTransposed>, LaunchShape{dim3(1), dim3(32)}, nullptr,
         in.get(), out.get());
  const auto& result = out.result();
  for (uint32_t i = 0; i < kMatrices * 32; ++i) {
    const uint32_t base = i / 32 * 64, row = i % 32 / 4, column = i % 4 * 2;
    const uint32_t low = kTransposed ? base + column * 8 + row : base + row * 8 + column;
    expect("out", i, result[i], low | (low + (kTransposed ? 8 : 1)) << 16);
  }
}
ARGUS_CASE(ldmatrix) {
  run_load<1, false>();
  run_load<2, false>();
  run_load<4, false>();
}
ARGUS_CASE(ldmatrix_transposed) {
  run_load<1, true>();
  run_load<2, true>();
  run_load<4, true>();
}

__global__ void load_from_global(const uint16_t* in, uint32_t* out) {
  uint32_t words[1];
  argus::ptx::ldmatrix(words, in + 8 * (threadIdx.x % 8));
  out[threadIdx.x] = words[0];
}

ARGUS_CASE(fault_ldmatrix_of_global_memory) {
  Buffer<uint16_t> in("in", 64);
  Buffer<uint32_t> out("out", 32);
  launch("load_from_global", load_from_global, LaunchShape{dim3(1), dim3(32)}, nullptr, in.get(), out.get());
}

template <class T>
std::vector<T> matrix(int rows, int columns, int salt) {
  std::vector<T> values;
  for (int row = 0; row < rows; ++row)
    for (int column = 0; column < columns; ++column)
      values.push_back(static_cast<T>(pattern(row + salt, column)));
  return values;
}

// Sums of these numbers are exact in float32, so that equality is the test.
template <class T>
void expect_product(const std::vector<float>& d, const std::vector<T>& a, const std::vector<T>& b, int rows,
                    int columns, int depth, bool offset) {
  for (int row = 0; row < rows; ++row) {
    for (int column = 0; column < columns; ++column) {
      float sum = offset ? static_cast<float>(1 + row / 8 * 2 + column % 2) : 0.0f;
      for (int k = 0; k < depth; ++k) {
        const size_t left = static_cast<size_t>(row * depth + k),
                     right = static_cast<size_t>(k * columns + column);
        sum += static_cast<float>(a[left]) * static_cast<float>(b[right]);
      }
      const size_t index = static_cast<size_t>(row * columns + column);
      expect("d", index, d[index], sum);
    }
  }
}

template <class T>
void run_multiply_16() {
  Buffer<T> a("a", matrix<T>(16, 16, 0)), b("b", matrix<T>(16, 8, 5));
  Buffer<float> d("d", 128);
  launch("multiply_16", matrix_kernels::multiply_16<T>, LaunchShape{dim3(1), dim3(32)}, nullptr, a.get(),
         b.get(), d.get());
  expect_product(d.result(), a.host, b.host, 16, 8, 16, true);
}
ARGUS_CASE(mma_bfloat16) {
  run_multiply_16<__nv_bfloat16>();
}
ARGUS_CASE(mma_half) {
  run_multiply_16<__half>();
}
ARGUS_CASE(mma_tf32) {
  Buffer<float> a("a", matrix<float>(16, 8, 0)), b("b", matrix<float>(8, 8, 5)), d("d", 128);
  launch("multiply_tf32", matrix_kernels::multiply_tf32, LaunchShape{dim3(1), dim3(32)}, nullptr, a.get(),
         b.get(), d.get());
  expect_product(d.result(), a.host, b.host, 16, 8, 8, true);
}

template <class T, bool kBarrier>
void run_tiled() {
  Buffer<T> a("a", matrix<T>(kM, kK, 0)), b("b", matrix<T>(kK, kN, 3));
  Buffer<float> c("c", kM * kN);
  launch("tiled", matrix_kernels::tiled<T, kBarrier>, LaunchShape{dim3(1), dim3(64)}, nullptr, a.get(),
         b.get(), c.get());
  expect_product(c.result(), a.host, b.host, kM, kN, kK, false);
}
ARGUS_CASE(tiled_product) {
  run_tiled<__nv_bfloat16, true>();
  run_tiled<__half, true>();
}
ARGUS_CASE(fault_tiled_product_overwrites_a_stage) {
  run_tiled<__half, false>();
}

}  // namespace
