// An operand of wgmma that a warp gathers row by row, by cp.async and by plain stores, with one planted fault
// at a time, beside the same without it.
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
  gathered_without_proxy_fence,
  fenced_before_the_copies_landed,
  announced_before_the_copies_landed,
  announced_before_the_other_lanes,
  gathered_into_a_stage_in_use,
  padding_cleared_without_proxy_fence,
};

constexpr int kTile = 64, kStages = 2, kSteps = 5, kRowChunks = 8, kMissing = 59;
using Element = __nv_bfloat16;
using Gathered = argus::sm90::OperandTile<Element, Major::k, 128, kTile, kTile>;
using Weight = argus::sm90::OperandTile<Element, Major::mn, 128, kTile, kTile>;

struct Stages {
  uint64_t *full, *empty, *loaded;
  unsigned char* tiles;

  __device__ unsigned char* tile(int step) const { return tiles + step % kStages * Gathered::kBytes; }
  __device__ unsigned char* weight() const { return tiles + kStages * Gathered::kBytes; }
  __device__ static uint32_t parity(int step) { return static_cast<uint32_t>(step / kStages % 2); }
};

// Two rows a lane; of rows that are missing, zeros by plain stores.
__device__ void gather(const Stages& stages, const Element* table, const int* ids, int step) {
  const int lane = argus::lane_index();
  for (int row = lane; row < kTile; row += 32) {
    for (int chunk = 0; chunk < kRowChunks; ++chunk) {
      unsigned char* to = stages.tile(step) + Gathered::chunk_offset(row, chunk);
      const Element* from = table + ids[row] * kSteps * kTile + step * kTile + chunk * 8;
      if (ids[row] < 0) {
        *reinterpret_cast<uint4*>(to) = make_uint4(0, 0, 0, 0);
      } else {
        ptx::cp_async<16>(to, from);
      }
    }
  }
  ptx::cp_async_commit();
}

__device__ void produce(const Stages& stages, const Element* table, const int* ids, Plant plant) {
  for (int step = 0; step < kSteps; ++step) {
    if (plant != Plant::gathered_into_a_stage_in_use)
      ptx::mbarrier_wait(stages.empty + step % kStages, Stages::parity(step) ^ 1);
    gather(stages, table, ids, step);
    if (plant == Plant::fenced_before_the_copies_landed) ptx::fence_proxy_async();
    if (plant != Plant::announced_before_the_copies_landed) ptx::cp_async_wait<0>();
    if (plant != Plant::gathered_without_proxy_fence && plant != Plant::fenced_before_the_copies_landed)
      ptx::fence_proxy_async();
    if (plant != Plant::announced_before_the_other_lanes) __syncwarp();
    if (argus::lane_index() == 0) ptx::mbarrier_arrive(stages.full + step % kStages);
  }
  ptx::cp_async_wait_all();
}

__device__ void consume(const Stages& stages, float (&sums)[kTile / 2], Plant plant) {
  ptx::mbarrier_wait(stages.loaded, 0);
  // A row of the weight counts as missing: of the first step, since later ones come after the gatherers'
  // fence.
  if (threadIdx.x < kRowChunks) {
    unsigned char* row = stages.weight() + kMissing * 128;
    reinterpret_cast<uint4*>(row)[threadIdx.x] = make_uint4(0, 0, 0, 0);
  }
  if (plant != Plant::padding_cleared_without_proxy_fence) ptx::fence_proxy_async();
  ptx::named_barrier_sync(1, 128);
  for (int step = 0; step < kSteps; ++step) {
    ptx::mbarrier_wait(stages.full + step % kStages, Stages::parity(step));
    ptx::wgmma_fence();
    for (int k = 0; k < Gathered::kSteps; ++k)
      ptx::wgmma<Major::k, Major::mn>(sums, Gathered::descriptor(stages.tile(step), k),
                                      Weight::descriptor(stages.weight() + step * Weight::kBytes, k),
                                      step + k > 0, Element{});
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>(sums);
    if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(stages.empty + step % kStages);
  }
}

__global__ void gathered_product(const __grid_constant__ TensorMap weight, const Element* table,
                                 const int* ids, float* out, Plant plant) {
  ARGUS_SHARED(uint64_t, full, [kStages]);
  ARGUS_SHARED(uint64_t, empty, [kStages]);
  ARGUS_SHARED(uint64_t, loaded, [1]);
  ARGUS_DYNAMIC_SHARED(unsigned char, buffer);
  const Stages stages{full, empty, loaded, argus::sm90::align_to_pattern(buffer)};
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      ptx::mbarrier_init(full + stage, 1);
      ptx::mbarrier_init(empty + stage, 4);
    }
    ptx::mbarrier_init(loaded, 1);
    ptx::fence_mbarrier_init();
    ptx::mbarrier_arrive_expect(loaded, kSteps * Weight::kBytes);
    for (int step = 0; step < kSteps; ++step)
      Weight::load(stages.weight() + step * Weight::kBytes, weight, 0, kTile * step, loaded);
  }
  __syncthreads();
  if (threadIdx.x >= 128) {
    produce(stages, table, ids, plant);
    return;
  }
  float sums[kTile / 2];
  consume(stages, sums, plant);
  sm90_kernels::for_each_of_d<kTile>(
      [&](int i, int row, int column) { out[row * kTile + column] = sums[i]; });
}

void run_gathered(Plant plant) {
  constexpr int kDepth = kTile * kSteps, kTableRows = 9;
  std::vector<Element> table(kTableRows * kDepth), weight(kDepth * kTile);
  for (int row = 0; row < kTableRows; ++row) {
    for (int k = 0; k < kDepth; ++k)
      table[static_cast<size_t>(row * kDepth + k)] = 8.0f * cases::pattern(row, k);
  }
  for (int k = 0; k < kDepth; ++k) {
    for (int column = 0; column < kTile; ++column)
      weight[static_cast<size_t>(k * kTile + column)] = 8.0f * cases::pattern(3 * k + 1, column);
  }
  std::vector<int> ids(kTile);
  for (int row = 0; row < kTile; ++row) ids[static_cast<size_t>(row)] = row * 7 % (kTableRows + 1) - 1;
  Buffer<Element> device_table("table", table), device_weight("weight", weight);
  Buffer<int> device_ids("ids", ids);
  Buffer<float> out("out", kTile * kTile);
  const auto map = Weight::map(device_weight.get(), kTile, kDepth, kTile);
  const size_t shared = kStages * Gathered::kBytes + kSteps * Weight::kBytes + 1024;
  launch("gathered_product", gathered_product, LaunchShape{dim3(1), dim3(160), shared}, nullptr, map,
         device_table.get(), device_ids.get(), out.get(), plant);
  for (int row = 0; row < kTile; ++row) {
    for (int column = 0; column < kTile; ++column) {
      const int id = ids[static_cast<size_t>(row)];
      float sum = 0.0f;  // of integers below 2^24
      for (int k = 0; id >= 0 && k < kDepth; ++k) {
        if (k == kMissing) continue;
        sum += float(table[static_cast<size_t>(id * kDepth + k)]) *
               float(weight[static_cast<size_t>(k * kTile + column)]);
      }
      const auto index = static_cast<size_t>(row * kTile + column);
      expect("out", index, out.result()[index], sum);
    }
  }
}

#define ARGUS_PLANT(NAME)      \
  ARGUS_CASE(fault_##NAME) {   \
    run_gathered(Plant::NAME); \
  }
ARGUS_CASE(gathered_product) {
  run_gathered(Plant::none);
}
ARGUS_PLANT(gathered_without_proxy_fence)
ARGUS_PLANT(fenced_before_the_copies_landed)
ARGUS_PLANT(announced_before_the_copies_landed)
ARGUS_PLANT(announced_before_the_other_lanes)
ARGUS_PLANT(gathered_into_a_stage_in_use)
ARGUS_PLANT(padding_cleared_without_proxy_fence)

}  // namespace
