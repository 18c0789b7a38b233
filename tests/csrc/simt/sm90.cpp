// TMA and wgmma on the executor against exact products: every swizzle, major and type on random integers.
#include "cases.h"
#include "sm90_kernels.cuh"
#include "sm90_matrices.h"

namespace {

using argus::launch;
using argus::LaunchShape;
using argus::ptx::Major;
using cases::Buffer;
using cases::expect;
using matrices::drawn;
using matrices::matrix;
using sm90_kernels::kRows;
using sm90_kernels::Tile;

void expect_product(const std::vector<float>& d, int columns, int depth, int sign, float before) {
  for (int row = 0; row < kRows; ++row) {
    for (int column = 0; column < columns; ++column) {
      int sum = 0;
      for (int k = 0; k < depth; ++k) sum += drawn(row, k) * drawn(1000 + column, k);
      const auto index = static_cast<size_t>(row * columns + column);
      expect("d", index, d[index], static_cast<float>(sign * sum) + before * static_cast<float>(index % 7));
    }
  }
}

template <class T, Major kA, Major kB, int kSwizzle, int kColumns>
void run_multiply(bool negate = false, float before = 0.0f) {
  using TileA = Tile<T, kA, kSwizzle, kRows>;
  using TileB = Tile<T, kB, kSwizzle, kColumns>;
  constexpr int kDepth = TileA::kSteps * TileA::kStepDepth;
  Buffer<T> a("a", matrix<T>(kRows, kDepth, kA, 0)), b("b", matrix<T>(kColumns, kDepth, kB, 1000));
  std::vector<float> start(static_cast<size_t>(kRows * kColumns));
  for (size_t i = 0; i < start.size(); ++i) start[i] = before * static_cast<float>(i % 7);
  Buffer<float> given("before", start), d("d", start.size());
  const auto map_a = TileA::map(a.get(), kRows, kDepth, kA == Major::k ? kDepth : kRows);
  const auto map_b = TileB::map(b.get(), kColumns, kDepth, kB == Major::k ? kDepth : kColumns);
  const float* begin = before == 0.0f ? nullptr : given.get();
  launch("multiply", sm90_kernels::multiply<T, kColumns>,
         LaunchShape{dim3(1), dim3(128), TileA::kBytes + TileB::kBytes + 1024}, nullptr, map_a, map_b,
         sm90_kernels::plan_of<TileA>(), sm90_kernels::plan_of<TileB>(), negate, begin, d.get());
  expect_product(d.result(), kColumns, kDepth, negate ? -1 : 1, before);
}

template <class T, int kSwizzle>
void run_majors() {
  run_multiply<T, Major::k, Major::k, kSwizzle, 64>();
  run_multiply<T, Major::k, Major::mn, kSwizzle, 64>();
  run_multiply<T, Major::mn, Major::k, kSwizzle, 64>();
  run_multiply<T, Major::mn, Major::mn, kSwizzle, 64>();
}

ARGUS_CASE(bfloat16_no_swizzle) {
  run_majors<__nv_bfloat16, 0>();
}
ARGUS_CASE(bfloat16_swizzle_32) {
  run_majors<__nv_bfloat16, 32>();
}
ARGUS_CASE(bfloat16_swizzle_64) {
  run_majors<__nv_bfloat16, 64>();
}
ARGUS_CASE(bfloat16_swizzle_128) {
  run_majors<__nv_bfloat16, 128>();
}
ARGUS_CASE(half_no_swizzle) {
  run_majors<__half, 0>();
}
ARGUS_CASE(half_swizzle_32) {
  run_majors<__half, 32>();
}
ARGUS_CASE(half_swizzle_64) {
  run_majors<__half, 64>();
}
ARGUS_CASE(half_swizzle_128) {
  run_majors<__half, 128>();
}
ARGUS_CASE(tf32_of_every_swizzle) {
  run_multiply<float, Major::k, Major::k, 0, 64>();
  run_multiply<float, Major::k, Major::k, 32, 64>();
  run_multiply<float, Major::k, Major::k, 64, 64>();
  run_multiply<float, Major::k, Major::k, 128, 64>();
}
ARGUS_CASE(wide_products) {
  run_multiply<__nv_bfloat16, Major::k, Major::k, 128, 256>();
}
ARGUS_CASE(products_subtracted_from_what_was_there) {
  run_multiply<__nv_bfloat16, Major::k, Major::k, 128, 64>(true, 0.5f);
}

template <class T, Major kB, int kSign>
void run_from_registers() {
  using TileB = Tile<T, kB, 128, 64>;
  constexpr int kDepth = 64;
  Buffer<T> a("a", matrix<T>(kRows, kDepth, Major::k, 0)), b("b", matrix<T>(64, kDepth, kB, 1000));
  Buffer<float> d("d", kRows * 64);
  const auto map_b = TileB::map(b.get(), 64, kDepth, 64);
  launch("multiply", sm90_kernels::multiply_from_registers<T, kB, 64, kSign>,
         LaunchShape{dim3(1), dim3(128), TileB::kBytes + 1024}, nullptr, a.get(), map_b, d.get());
  expect_product(d.result(), 64, kDepth, kSign, 0.0f);
}
ARGUS_CASE(a_in_registers) {
  run_from_registers<__nv_bfloat16, Major::k, 1>();
  run_from_registers<__half, Major::mn, -1>();
}

// A box that hangs over every edge of a [20, 24] tensor comes with zeros, and goes back without them.
__global__ void shift_box(const __grid_constant__ argus::ptx::TensorMap from,
                          const __grid_constant__ argus::ptx::TensorMap to, float* seen, int column,
                          int row) {
  ARGUS_SHARED(uint64_t, full, [1]);
  ARGUS_DYNAMIC_SHARED(unsigned char, buffer);
  float* tile = reinterpret_cast<float*>(argus::sm90::align_to_pattern(buffer));
  if (threadIdx.x == 0) {
    argus::ptx::mbarrier_init(full, 1);
    argus::ptx::fence_mbarrier_init();
    argus::ptx::mbarrier_arrive_expect(full, 16 * 8 * sizeof(float));
    argus::ptx::tma_load(tile, from, column, row, full);
  }
  __syncwarp();
  argus::ptx::mbarrier_wait(full, 0);
  for (int i = static_cast<int>(threadIdx.x); i < 16 * 8; i += 32) seen[i] = tile[i];
  if (threadIdx.x == 0) {
    argus::ptx::tma_store(to, column, row, tile);
    argus::ptx::tma_store_commit();
    argus::ptx::tma_store_wait_read<0>();
  }
}

void run_shift_box(int column, int row) {
  constexpr int kTensorRows = 20, kTensorColumns = 24;
  Buffer<float> from("from", cases::counted(kTensorRows * kTensorColumns)), seen("seen", 16 * 8);
  Buffer<float> to("to", kTensorRows * kTensorColumns, -1.0f);
  const auto map = [&](const float* base) {
    return argus::ptx::make_tensor_map<float>(
        {base, kTensorColumns, kTensorRows, kTensorColumns * 4, 8, 16, 0});
  };
  launch("shift_box", shift_box, LaunchShape{dim3(1), dim3(32), 2048}, nullptr, map(from.get()),
         map(to.get()), seen.get(), column, row);
  const auto inside = [&](int r, int c) { return r >= 0 && r < kTensorRows && c >= 0 && c < kTensorColumns; };
  for (int i = 0; i < 16 * 8; ++i) {
    const int r = row + i / 8, c = column + i % 8;
    expect("seen", static_cast<size_t>(i), seen.result()[static_cast<size_t>(i)],
           inside(r, c) ? static_cast<float>(r * kTensorColumns + c) : 0.0f);
  }
  for (int r = 0; r < kTensorRows; ++r) {
    for (int c = 0; c < kTensorColumns; ++c) {
      const bool copied = r >= row && r < row + 16 && c >= column && c < column + 8;
      const auto index = static_cast<size_t>(r * kTensorColumns + c);
      expect("to", index, to.result()[index], copied ? static_cast<float>(index) : -1.0f);
    }
  }
}
ARGUS_CASE(boxes_over_the_edges) {
  for (const int row : {-17, -3, 0, 11, 21}) {
    for (const int column : {-8, -5, 0, 9, 19, 24}) run_shift_box(column, row);
  }
}

}  // namespace
