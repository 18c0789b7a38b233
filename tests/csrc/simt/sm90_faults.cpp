// A producer/consumer pipeline of TMA and wgmma with one planted fault at a time, beside the same without it.
#include <array>

#include "cases.h"
#include "sm90_kernels.cuh"

namespace {

using argus::launch;
using argus::LaunchShape;
using argus::ptx::Major;
using argus::ptx::TensorMap;
using cases::Buffer;
using cases::expect;
namespace ptx = argus::ptx;

enum class Plant {
  none,
  barriers_not_fenced,
  barriers_not_announced,
  copy_not_expected,
  too_few_bytes_expected,
  too_many_bytes_expected,
  unaligned_box,
  stage_not_waited_for,
  wrong_parity,
  stage_refilled_early,
  stage_released_early,
  over_arrival,
  stage_zeroed_without_proxy_fence,
  no_wgmma_fence,
  no_wgmma_fence_after_scaling,
  accumulators_read_early,
  accumulators_written_early,
  wrong_stride_offset,
  wrong_swizzle,
  no_proxy_fence_before_store,
  no_barrier_before_store,
  store_source_reused_early,
  stored_bytes_read_early,
  exit_before_store_is_read,
  named_barrier_of_too_many,
};

constexpr int kTile = 64, kStages = 2, kBlocks = 5;  // square tiles; the depth is 5 of them
using Operand = argus::sm90::OperandTile<__nv_bfloat16, Major::k, 128, kTile, kTile>;

struct Stages {
  uint64_t *full, *empty;
  unsigned char* tiles;

  __device__ unsigned char* a(int block) const { return tiles + block % kStages * 2 * Operand::kBytes; }
  __device__ unsigned char* b(int block) const { return a(block) + Operand::kBytes; }
  __device__ uint64_t* full_of(int block) const { return full + block % kStages; }
  __device__ uint64_t* empty_of(int block) const { return empty + block % kStages; }
  // Of the block's own phase of `full`, and of the phase of `empty` before it.
  __device__ static uint32_t parity(int block) { return static_cast<uint32_t>(block / kStages % 2); }
};

__device__ void produce(const Stages& stages, const TensorMap& map_a, const TensorMap& map_b, Plant plant) {
  for (int block = 0; block < kBlocks; ++block) {
    uint64_t* full = stages.full_of(block);
    if (plant != Plant::stage_refilled_early)
      ptx::mbarrier_wait(stages.empty_of(block), Stages::parity(block) ^ 1);
    if (plant == Plant::stage_zeroed_without_proxy_fence) stages.a(block)[0] = 0;
    uint32_t bytes = 2 * Operand::kBytes;
    if (plant == Plant::too_few_bytes_expected) bytes -= 16;
    if (plant == Plant::too_many_bytes_expected) bytes += 16;
    if (plant != Plant::copy_not_expected) ptx::mbarrier_arrive_expect(full, bytes);
    if (plant == Plant::over_arrival && block == 1) ptx::mbarrier_arrive(full);
    const int shift = plant == Plant::unaligned_box ? 64 : 0;
    Operand::load(stages.a(block) + shift, map_a, 0, kTile * block, full);
    Operand::load(stages.b(block), map_b, 0, kTile * block, full);
    if (plant == Plant::copy_not_expected) ptx::mbarrier_arrive_expect(full, bytes);
  }
}

__device__ uint64_t descriptor(const unsigned char* tile, int step, Plant plant) {
  const uint64_t right = Operand::descriptor(tile, step);
  constexpr uint64_t kStride = 0x3fffull << 32, kSwizzle = 3ull << 62;
  if (plant == Plant::wrong_stride_offset) return (right & ~kStride) | 512ull >> 4 << 32;
  if (plant == Plant::wrong_swizzle) return (right & ~kSwizzle) | 2ull << 62;
  return right;
}

__device__ void consume(const Stages& stages, float (&sums)[kTile / 2], Plant plant) {
  for (int block = 0; block < kBlocks; ++block) {
    if (plant == Plant::wrong_parity) {
      ptx::mbarrier_wait(stages.full_of(block), Stages::parity(block) ^ 1);
    } else if (plant != Plant::stage_not_waited_for) {
      ptx::mbarrier_wait(stages.full_of(block), Stages::parity(block));
    }
    if (plant == Plant::stage_released_early && threadIdx.x % 32 == 0)
      ptx::mbarrier_arrive(stages.empty_of(block));
    if (block > 0) {
      for (float& sum : sums) sum *= 0.5f;
    }
    if (plant != Plant::no_wgmma_fence && (plant != Plant::no_wgmma_fence_after_scaling || block == 0))
      ptx::wgmma_fence();
    for (int step = 0; step < Operand::kSteps; ++step) {
      ptx::wgmma<Major::k, Major::k>(sums, descriptor(stages.a(block), step, plant),
                                     Operand::descriptor(stages.b(block), step), block + step > 0,
                                     __nv_bfloat16{});
    }
    ptx::wgmma_commit();
    if (plant == Plant::accumulators_read_early && sums[5] > 0.0f) continue;
    if (plant == Plant::accumulators_written_early) sums[5] = 0.0f;
    ptx::wgmma_wait<0>(sums);
    if (plant != Plant::stage_released_early && threadIdx.x % 32 == 0)
      ptx::mbarrier_arrive(stages.empty_of(block));
  }
}

// Leaves D in a tile of shared memory, stores that to `out`, and copies `out` to `seen`.
__device__ void store(float* tile, const float (&sums)[kTile / 2], const TensorMap& map_out, const float* out,
                      float* seen, Plant plant) {
  sm90_kernels::for_each_of_d<kTile>(
      [&](int i, int row, int column) { tile[row * kTile + column] = sums[i]; });
  if (plant != Plant::no_proxy_fence_before_store) ptx::fence_proxy_async();
  const uint32_t threads = plant == Plant::named_barrier_of_too_many ? 160 : 128;
  if (plant != Plant::no_barrier_before_store) ptx::named_barrier_sync(1, threads);
  if (threadIdx.x != 0) return;
  ptx::tma_store(map_out, 0, 0, tile);
  ptx::tma_store_commit();
  if (plant == Plant::exit_before_store_is_read) return;
  if (plant != Plant::store_source_reused_early) ptx::tma_store_wait_read<0>();
  tile[0] = 0.0f;
  if (plant != Plant::stored_bytes_read_early) ptx::tma_store_wait<0>();
  for (int i = 0; i < kTile * kTile; ++i) seen[i] = out[i];
}

__global__ void pipeline(const __grid_constant__ TensorMap map_a, const __grid_constant__ TensorMap map_b,
                         const __grid_constant__ TensorMap map_out, const float* out, float* seen,
                         Plant plant) {
  ARGUS_SHARED(uint64_t, full, [kStages]);
  ARGUS_SHARED(uint64_t, empty, [kStages]);
  ARGUS_DYNAMIC_SHARED(unsigned char, buffer);
  const Stages stages{full, empty, argus::sm90::align_to_pattern(buffer)};
  float* tile = reinterpret_cast<float*>(stages.tiles + 2 * kStages * Operand::kBytes);
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      ptx::mbarrier_init(full + stage, 1);
      ptx::mbarrier_init(empty + stage, 4);
    }
    if (plant != Plant::barriers_not_fenced) ptx::fence_mbarrier_init();
  }
  if (plant != Plant::barriers_not_announced) __syncthreads();
  if (threadIdx.x >= 128) {
    ptx::decrease_registers<24>();
    if (threadIdx.x == 128) produce(stages, map_a, map_b, plant);
    return;
  }
  ptx::increase_registers<256>();
  float sums[kTile / 2];
  consume(stages, sums, plant);
  store(tile, sums, map_out, out, seen, plant);
}

void run_pipeline(Plant plant) {
  constexpr int kDepth = kTile * kBlocks;
  std::vector<__nv_bfloat16> a(kTile * kDepth), b(a.size());
  for (int row = 0; row < kTile; ++row) {
    for (int k = 0; k < kDepth; ++k) {
      a[static_cast<size_t>(row * kDepth + k)] = 8.0f * cases::pattern(row, k);
      b[static_cast<size_t>(row * kDepth + k)] = 8.0f * cases::pattern(3 * row + 1, 5 * k);
    }
  }
  Buffer<__nv_bfloat16> device_a("a", a), device_b("b", b);
  Buffer<float> out("out", kTile * kTile), seen("seen", kTile * kTile);
  const auto map_a = Operand::map(device_a.get(), kTile, kDepth, kDepth);
  const auto map_b = Operand::map(device_b.get(), kTile, kDepth, kDepth);
  const auto map_out = ptx::make_tensor_map<float>({out.get(), kTile, kTile, kTile * 4, kTile, kTile, 0});
  const size_t shared = 2 * kStages * Operand::kBytes + kTile * kTile * sizeof(float) + 1024;
  launch("pipeline", pipeline, LaunchShape{dim3(1), dim3(160), shared}, nullptr, map_a, map_b, map_out,
         out.get(), seen.get(), plant);
  for (int row = 0; row < kTile; ++row) {
    for (int column = 0; column < kTile; ++column) {
      float sum = 0.0f;  // exact: multiples of 1/16 below 2^20
      for (int block = 0; block < kBlocks; ++block) {
        sum *= 0.5f;
        for (int k = kTile * block; k < kTile * (block + 1); ++k)
          sum += float(a[static_cast<size_t>(row * kDepth + k)]) *
                 float(b[static_cast<size_t>(column * kDepth + k)]);
      }
      const auto index = static_cast<size_t>(row * kTile + column);
      expect("out", index, out.result()[index], sum);
      expect("seen", index, seen.result()[index], sum);
    }
  }
}

// 384 threads have 168 registers each, 64,512 together; two warpgroups of 240 leave 24 for those of the
// third.
template <int kOfProducers>
__global__ void share_registers() {
  if (threadIdx.x < 128) {
    ptx::decrease_registers<kOfProducers>();
  } else {
    ptx::increase_registers<240>();
  }
}

ARGUS_CASE(registers_within_the_pool) {
  launch("share_registers", share_registers<24>, LaunchShape{dim3(1), dim3(384)}, nullptr);
}
ARGUS_CASE(fault_too_many_registers) {
  launch("share_registers", share_registers<32>, LaunchShape{dim3(1), dim3(384)}, nullptr);
}

__global__ void reuse_fragment(uint32_t* out, bool early) {
  ARGUS_DYNAMIC_SHARED(unsigned char, buffer);
  unsigned char* b = argus::sm90::align_to_pattern(buffer);
  for (int i = static_cast<int>(threadIdx.x); i < 64 * 32; i += 128) b[i] = 0;
  ptx::fence_proxy_async();
  __syncthreads();
  using TileB = argus::sm90::OperandTile<__half, Major::k, 32, 64, 16>;
  uint32_t fragment[4] = {0, 0, 0, 0};
  float sums[32];
  ptx::wgmma_fence();
  ptx::wgmma<Major::k>(sums, fragment, TileB::descriptor(b, 0), false, __half{});
  ptx::wgmma_commit();
  if (early) fragment[1] = threadIdx.x;
  ptx::wgmma_wait<0>(sums);
  fragment[1] = threadIdx.x;
  out[threadIdx.x] = fragment[1] + static_cast<uint32_t>(sums[3]);
}

void run_reuse_fragment(bool early) {
  Buffer<uint32_t> out("out", 128);
  launch("reuse_fragment", reuse_fragment, LaunchShape{dim3(1), dim3(128), 4096}, nullptr, out.get(), early);
  expect("out", 77, out.result()[77], 77u);
}
ARGUS_CASE(fragment_reused_after_the_wait) {
  run_reuse_fragment(false);
}
ARGUS_CASE(fault_fragment_reused_early) {
  run_reuse_fragment(true);
}

// A warp fills a word step by step, and two read it in turns. On one pair of barriers of all steps a reader
// that is late may miss a phase of the other's, and take the next one, which counts on it, for that.
template <int kPairs>
__global__ void read_in_turns(int* out) {
  constexpr int kSteps = 8, kReaders = 2;
  ARGUS_SHARED(uint64_t, full, [kPairs]);
  ARGUS_SHARED(uint64_t, empty, [kPairs]);
  ARGUS_SHARED(int, word, [1]);
  const auto parity = [](int step) { return static_cast<uint32_t>(step / kPairs % 2); };
  const auto arrive = [](uint64_t* barrier) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(barrier);
    __syncwarp();
  };
  if (threadIdx.x == 0) {
    for (int i = 0; i < kPairs; ++i) {
      ptx::mbarrier_init(full + i, 1);
      ptx::mbarrier_init(empty + i, 1);
    }
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  const int reader = static_cast<int>(threadIdx.x) / 32 - 1;
  int sum = 0;
  for (int step = 0; step < kSteps; ++step) {
    const bool own = step % kReaders == reader;
    if (reader < 0) {
      if (step > 0) ptx::mbarrier_wait(empty + (step - 1) % kPairs, parity(step - 1));
      if (threadIdx.x == 0) *word = step;
      arrive(full + step % kPairs);
    } else if (own || kPairs == 1) {
      ptx::mbarrier_wait(full + step % kPairs, parity(step));
      if (!own) continue;
      sum += *word;
      arrive(empty + step % kPairs);
    }
  }
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

template <int kPairs>
void run_read_in_turns() {
  constexpr int kCount = 32 * 96;
  Buffer<int> out("out", kCount);
  launch("read_in_turns", read_in_turns<kPairs>, LaunchShape{dim3(32), dim3(96)}, nullptr, out.get());
  const auto found = out.result();
  for (size_t i = 0; i < kCount; ++i) expect("out", i, found[i], std::array{0, 12, 16}[i / 32 % 3]);
}
ARGUS_CASE(readers_in_turns_on_barriers_of_their_own) {
  run_read_in_turns<2>();
}
ARGUS_CASE(fault_phase_of_another_reader_missed) {
  run_read_in_turns<1>();
}

#define ARGUS_PLANT(NAME)      \
  ARGUS_CASE(fault_##NAME) {   \
    run_pipeline(Plant::NAME); \
  }
ARGUS_CASE(pipeline) {
  run_pipeline(Plant::none);
}
ARGUS_PLANT(barriers_not_fenced)
ARGUS_PLANT(barriers_not_announced)
ARGUS_PLANT(copy_not_expected)
ARGUS_PLANT(too_few_bytes_expected)
ARGUS_PLANT(too_many_bytes_expected)
ARGUS_PLANT(unaligned_box)
ARGUS_PLANT(stage_not_waited_for)
ARGUS_PLANT(wrong_parity)
ARGUS_PLANT(stage_refilled_early)
ARGUS_PLANT(stage_released_early)
ARGUS_PLANT(over_arrival)
ARGUS_PLANT(stage_zeroed_without_proxy_fence)
ARGUS_PLANT(no_wgmma_fence)
ARGUS_PLANT(no_wgmma_fence_after_scaling)
ARGUS_PLANT(accumulators_read_early)
ARGUS_PLANT(accumulators_written_early)
ARGUS_PLANT(wrong_stride_offset)
ARGUS_PLANT(wrong_swizzle)
ARGUS_PLANT(no_proxy_fence_before_store)
ARGUS_PLANT(no_barrier_before_store)
ARGUS_PLANT(store_source_reused_early)
ARGUS_PLANT(stored_bytes_read_early)
ARGUS_PLANT(exit_before_store_is_read)
ARGUS_PLANT(named_barrier_of_too_many)

}  // namespace
