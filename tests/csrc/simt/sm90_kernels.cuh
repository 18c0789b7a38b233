// Kernels around TMA, mbarrier and wgmma: run on the executor by sm90.cpp and sm90_faults.cpp, compiled by
// nvcc from sm90_kernels.cu.
#pragma once

#include "common/cuda/sm90/product_loop.cuh"

namespace sm90_kernels {

using argus::ptx::Major;
using argus::ptx::TensorMap;
namespace ptx = argus::ptx;

constexpr int kRows = 64;

// As deep as the swizzle is wide: K-major that is one box.
template <class T, Major kMajor, int kSwizzle, int kLines>
using Tile =
    argus::sm90::OperandTile<T, kMajor, kSwizzle, kLines, (kSwizzle == 0 ? 64 : kSwizzle) / sizeof(T)>;

// A tile whose layout is known at run time, so that one kernel serves all of them.
struct TilePlan {
  uint64_t descriptor;
  Major major;
  int boxes, box_bytes, box_columns, bytes, steps, step_bytes;
};

template <class Tile>
TilePlan plan_of() {
  return {Tile::kDescriptor, Tile::kMajor, Tile::kBoxes, Tile::kBoxBytes,
          Tile::kBoxColumns, Tile::kBytes, Tile::kSteps, Tile::kStepBytes};
}

__device__ inline void load(const TilePlan& plan, unsigned char* tile, const TensorMap& map, uint64_t* full) {
  for (int box = 0; box < plan.boxes; ++box)
    ptx::tma_load(tile + box * plan.box_bytes, map, box * plan.box_columns, 0, full);
}

template <int kColumns, class Visit>
ARGUS_DEVICE void for_each_of_d(const Visit& visit) {
#pragma unroll
  for (int i = 0; i < kColumns / 2; ++i) visit(i, argus::sm90::row_of_sum(i), argus::sm90::column_of_sum(i));
}

template <class T, int kColumns>
__device__ void multiply_step(float (&sums)[kColumns / 2], uint64_t a, uint64_t b, const TilePlan& plan_a,
                              const TilePlan& plan_b, bool add, bool negate) {
  constexpr bool kNarrow = sizeof(T) == 2;
  constexpr Major kMn = kNarrow ? Major::mn : Major::k;
  const bool mn_a = plan_a.major == Major::mn, mn_b = plan_b.major == Major::mn;
  if (negate) {
    ptx::wgmma<Major::k, Major::k, -1>(sums, a, b, add, T{});
  } else if (!mn_a && !mn_b) {
    ptx::wgmma<Major::k, Major::k>(sums, a, b, add, T{});
  } else if (!mn_a) {
    ptx::wgmma<Major::k, kMn>(sums, a, b, add, T{});
  } else if (!mn_b) {
    ptx::wgmma<kMn, Major::k>(sums, a, b, add, T{});
  } else {
    ptx::wgmma<kMn, kMn>(sums, a, b, add, T{});
  }
}

// D [64, kColumns] = ± A Bᵀ by one warpgroup, of one tile of each operand; with `before`, added to it.
template <class T, int kColumns>
__global__ void __launch_bounds__(128)
    multiply(const __grid_constant__ TensorMap map_a, const __grid_constant__ TensorMap map_b,
             TilePlan plan_a, TilePlan plan_b, bool negate, const float* before, float* d) {
  ARGUS_SHARED(uint64_t, full, [1]);
  ARGUS_DYNAMIC_SHARED(unsigned char, buffer);
  unsigned char* a = argus::sm90::align_to_pattern(buffer);
  unsigned char* b = a + plan_a.bytes;
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(full, 1);
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    ptx::mbarrier_arrive_expect(full, static_cast<uint32_t>(plan_a.bytes + plan_b.bytes));
    load(plan_a, a, map_a, full);
    load(plan_b, b, map_b, full);
  }
  float sums[kColumns / 2];
  if (before != nullptr)
    for_each_of_d<kColumns>([&](int i, int row, int column) { sums[i] = before[row * kColumns + column]; });
  ptx::mbarrier_wait(full, 0);
  ptx::wgmma_fence();
  for (int step = 0; step < plan_a.steps; ++step) {
    multiply_step<T, kColumns>(sums,
                               ptx::matrix_descriptor_at(plan_a.descriptor, a + step * plan_a.step_bytes),
                               ptx::matrix_descriptor_at(plan_b.descriptor, b + step * plan_b.step_bytes),
                               plan_a, plan_b, step > 0 || before != nullptr, negate);
  }
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>(sums);
  for_each_of_d<kColumns>([&](int i, int row, int column) { d[row * kColumns + column] = sums[i]; });
}

// D = ± A Bᵀ with A, K-major, read into registers.
template <class T, Major kB, int kColumns, int kSign>
__global__ void __launch_bounds__(128)
    multiply_from_registers(const T* a, const __grid_constant__ TensorMap map_b, float* d) {
  using TileB = Tile<T, kB, 128, kColumns>;
  constexpr int kDepth = 128 / sizeof(T);
  ARGUS_SHARED(uint64_t, full, [1]);
  ARGUS_DYNAMIC_SHARED(unsigned char, buffer);
  unsigned char* b = argus::sm90::align_to_pattern(buffer);
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(full, 1);
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    ptx::mbarrier_arrive_expect(full, TileB::kBytes);
    TileB::load(b, map_b, 0, 0, full);
  }
  ptx::mbarrier_wait(full, 0);
  const int t = static_cast<int>(threadIdx.x), row = t / 32 * 16 + t % 32 / 4;
  float sums[kColumns / 2];
  for (int step = 0; step < TileB::kSteps; ++step) {
    uint32_t fragment[4];
    for (int i = 0; i < 4; ++i) {
      const T* from = a + (row + i % 2 * 8) * kDepth + 16 * step + t % 4 * 2 + i / 2 * 8;
      const T pair[2] = {from[0], from[1]};
      memcpy(&fragment[i], pair, sizeof(uint32_t));
    }
    ptx::wgmma_fence();
    ptx::wgmma<kB, kSign>(sums, fragment, TileB::descriptor(b, step), step > 0, T{});
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>(sums);
  }
  for_each_of_d<kColumns>([&](int i, int r, int column) { d[r * kColumns + column] = sums[i]; });
}

template <int kColumns>
struct StoreTile {
  float* d;
  int rows, columns;

  template <class Tile>
  ARGUS_DEVICE void begin(const Tile&) {}
  template <class Tile>
  ARGUS_DEVICE void take(const float (&sums)[kColumns / 2], const Tile& tile) {
    float* part = d + size_t(tile.split) * rows * columns;
    for_each_of_d<kColumns>([&](int i, int r, int c) {
      const int row = tile.row + r, column = tile.column + c;
      if (row < rows && column < columns) part[size_t(row) * columns + column] = sums[i];
    });
  }
};

// The persistent loop with the plainest policy: D in float32.
template <class T, Major kA, Major kB, int kColumns>
__global__ void __launch_bounds__(384, 1)
    product(const __grid_constant__ TensorMap map_a, const __grid_constant__ TensorMap map_b,
            typename argus::sm90::ProductLoop<T, kA, kB, kColumns>::Shape shape, float* d) {
  StoreTile<kColumns> policy{d, shape.rows, shape.columns};
  argus::sm90::ProductLoop<T, kA, kB, kColumns>::run(map_a, map_b, shape, policy);
}

}  // namespace sm90_kernels
