// A pipeline of two blocks of a cluster that share an operand, with one planted fault at a time, beside the
// same without it. Each block multiplies rows of its own by the same columns; it brings half of the columns,
// and TMA copies them into both.
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
  no_cluster_barrier_after_init,
  released_at_the_own_block_only,
  other_block_not_awaited,
  mask_without_the_other_block,
  mask_of_too_many_blocks,
  half_of_the_bytes_expected,
  other_half_not_waited_for,
  both_halves_at_one_offset,
  half_of_the_other_rank,
  released_at_an_uninitialised_barrier,
  released_beyond_the_cluster,
  exit_without_cluster_barrier,
  exit_before_the_last_multicast,
};

constexpr int kTile = 64, kStages = 2, kSteps = 5, kConsumerWarps = 4;
constexpr unsigned kBlocks = 2;
using TileA = argus::sm90::OperandTile<__nv_bfloat16, Major::k, 128, kTile, kTile>;
using TileB = TileA;
using HalfOfB = argus::sm90::OperandTile<__nv_bfloat16, Major::k, 128, kTile / 2, kTile>;

// `bare` is never initialised. `own` counts what a block brings for itself, `full` what both bring.
struct Stages {
  uint64_t *own, *full, *empty, *bare;
  unsigned char* tiles;

  __device__ unsigned char* a(int step) const {
    return tiles + step % kStages * (TileA::kBytes + TileB::kBytes);
  }
  __device__ unsigned char* b(int step) const { return a(step) + TileA::kBytes; }
  __device__ static uint32_t parity(int step) { return static_cast<uint32_t>(step / kStages % 2); }
};

__device__ void produce(const Stages& stages, const TensorMap& map_a, const TensorMap& map_b, Plant plant) {
  const int rank = static_cast<int>(ptx::cluster_rank()), first_row = static_cast<int>(blockIdx.x) * kTile;
  for (int step = 0; step < kSteps; ++step) {
    const int stage = step % kStages;
    ptx::mbarrier_wait(stages.empty + stage, Stages::parity(step) ^ 1);
    ptx::mbarrier_arrive_expect(stages.own + stage, TileA::kBytes);
    const uint32_t bytes =
        plant == Plant::half_of_the_bytes_expected ? uint32_t{HalfOfB::kBytes} : uint32_t{TileB::kBytes};
    ptx::mbarrier_arrive_expect(stages.full + stage, bytes);
    TileA::load(stages.a(step), map_a, first_row, kTile * step, stages.own + stage);
    uint16_t mask = 3;
    if (plant == Plant::mask_without_the_other_block) mask = static_cast<uint16_t>(1 << rank);
    if (plant == Plant::mask_of_too_many_blocks) mask = 7;
    const int column = (plant == Plant::half_of_the_other_rank ? 1 - rank : rank) * kTile / 2;
    const int place = plant == Plant::both_halves_at_one_offset ? 0 : rank;
    HalfOfB::load_multicast(stages.b(step) + place * HalfOfB::kBytes, map_b, column, kTile * step,
                            stages.full + stage, mask);
  }
}

__device__ void release(const Stages& stages, int step, Plant plant) {
  uint64_t* empty = stages.empty + step % kStages;
  const uint32_t lane = static_cast<uint32_t>(argus::lane_index());
  if (plant == Plant::released_at_the_own_block_only || plant == Plant::other_block_not_awaited) {
    if (lane == 0) ptx::mbarrier_arrive(empty);
    return;
  }
  if (plant == Plant::released_at_an_uninitialised_barrier && lane == 0)
    ptx::mbarrier_arrive_cluster(stages.bare, 1 - ptx::cluster_rank());
  const uint32_t first = plant == Plant::released_beyond_the_cluster ? 1 : 0;
  if (lane < kBlocks) ptx::mbarrier_arrive_cluster(empty, first + lane);
}

__device__ void consume(const Stages& stages, float (&sums)[kTile / 2], Plant plant) {
  const bool leaves = plant == Plant::exit_before_the_last_multicast && ptx::cluster_rank() == 1;
  for (int step = 0; step < (leaves ? kSteps - 1 : kSteps); ++step) {
    ptx::mbarrier_wait(stages.own + step % kStages, Stages::parity(step));
    if (plant != Plant::other_half_not_waited_for)
      ptx::mbarrier_wait(stages.full + step % kStages, Stages::parity(step));
    ptx::wgmma_fence();
    for (int k = 0; k < TileA::kSteps; ++k) {
      ptx::wgmma<Major::k, Major::k>(sums, TileA::descriptor(stages.a(step), k),
                                     TileB::descriptor(stages.b(step), k), step + k > 0, __nv_bfloat16{});
    }
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>(sums);
    release(stages, step, plant);
  }
}

__device__ void make_barriers(const Stages& stages, Plant plant) {
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      ptx::mbarrier_init(stages.own + stage, 1);
      ptx::mbarrier_init(stages.full + stage, 1);
      ptx::mbarrier_init(stages.empty + stage,
                         plant == Plant::other_block_not_awaited ? kConsumerWarps : kBlocks * kConsumerWarps);
    }
    ptx::fence_mbarrier_init();
  }
  if (plant == Plant::no_cluster_barrier_after_init) {
    __syncthreads();
  } else {
    ptx::cluster_arrive();
    ptx::cluster_wait();
  }
}

__global__ void shared_columns(const __grid_constant__ TensorMap map_a,
                               const __grid_constant__ TensorMap map_b, float* out, Plant plant) {
  ARGUS_SHARED(uint64_t, own, [kStages]);
  ARGUS_SHARED(uint64_t, full, [kStages]);
  ARGUS_SHARED(uint64_t, empty, [kStages]);
  ARGUS_SHARED(uint64_t, bare, [1]);
  ARGUS_DYNAMIC_SHARED(unsigned char, buffer);
  const Stages stages{own, full, empty, bare, argus::sm90::align_to_pattern(buffer)};
  make_barriers(stages, plant);
  if (threadIdx.x == 128) produce(stages, map_a, map_b, plant);
  if (threadIdx.x < 128) {
    float sums[kTile / 2];
    consume(stages, sums, plant);
    float* tile = out + static_cast<size_t>(blockIdx.x) * kTile * kTile;
    sm90_kernels::for_each_of_d<kTile>(
        [&](int i, int row, int column) { tile[row * kTile + column] = sums[i]; });
  }
  if (plant == Plant::exit_without_cluster_barrier || plant == Plant::exit_before_the_last_multicast) return;
  // Other threads of the producer's warp come here first, and some have gone.
  if (threadIdx.x >= 160) return;
  ptx::cluster_arrive();
  ptx::cluster_wait();
}

void run_shared_columns(Plant plant) {
  constexpr int kClusters = 2, kRows = kClusters * static_cast<int>(kBlocks) * kTile, kDepth = kTile * kSteps;
  std::vector<__nv_bfloat16> a(kRows * kDepth), b(kTile * kDepth);
  for (int k = 0; k < kDepth; ++k) {
    for (int row = 0; row < kRows; ++row)
      a[static_cast<size_t>(row * kDepth + k)] = 8.0f * cases::pattern(row, k);
    for (int column = 0; column < kTile; ++column)
      b[static_cast<size_t>(column * kDepth + k)] = 8.0f * cases::pattern(3 * column + 1, 5 * k);
  }
  Buffer<__nv_bfloat16> device_a("a", a), device_b("b", b);
  Buffer<float> out("out", kRows * kTile);
  const auto map_a = TileA::map(device_a.get(), kRows, kDepth, kDepth);
  const auto map_b = HalfOfB::map(device_b.get(), kTile, kDepth, kDepth);
  const size_t shared = kStages * (TileA::kBytes + TileB::kBytes) + 1024;
  launch("shared_columns", shared_columns, LaunchShape{dim3(kClusters * kBlocks), dim3(256), shared, kBlocks},
         nullptr, map_a, map_b, out.get(), plant);
  for (int row = 0; row < kRows; ++row) {
    for (int column = 0; column < kTile; ++column) {
      float sum = 0.0f;  // of integers below 2^24
      for (int k = 0; k < kDepth; ++k)
        sum += float(a[static_cast<size_t>(row * kDepth + k)]) *
               float(b[static_cast<size_t>(column * kDepth + k)]);
      const auto index = static_cast<size_t>(row * kTile + column);
      expect("out", index, out.result()[index], sum);
    }
  }
}

#define ARGUS_PLANT(NAME)            \
  ARGUS_CASE(fault_##NAME) {         \
    run_shared_columns(Plant::NAME); \
  }
ARGUS_CASE(shared_columns) {
  run_shared_columns(Plant::none);
}
ARGUS_PLANT(no_cluster_barrier_after_init)
ARGUS_PLANT(released_at_the_own_block_only)
ARGUS_PLANT(other_block_not_awaited)
ARGUS_PLANT(mask_without_the_other_block)
ARGUS_PLANT(mask_of_too_many_blocks)
ARGUS_PLANT(half_of_the_bytes_expected)
ARGUS_PLANT(other_half_not_waited_for)
ARGUS_PLANT(both_halves_at_one_offset)
ARGUS_PLANT(half_of_the_other_rank)
ARGUS_PLANT(released_at_an_uninitialised_barrier)
ARGUS_PLANT(released_beyond_the_cluster)
ARGUS_PLANT(exit_without_cluster_barrier)
ARGUS_PLANT(exit_before_the_last_multicast)

// Each block leaves a number in memory for the other, and reads the other's after a barrier.
enum class Meeting {
  of_the_cluster,
  of_the_block,
  at_an_mbarrier,
  arrived_twice,
  not_arrived,
  pointer_handed_over
};

__device__ void meet(uint64_t* met, Meeting meeting) {
  if (meeting == Meeting::of_the_block) return __syncthreads();
  if (meeting == Meeting::at_an_mbarrier) {
    if (threadIdx.x == 0) ptx::mbarrier_arrive_cluster(met, 1 - ptx::cluster_rank());
    return ptx::mbarrier_wait(met, 0);
  }
  if (meeting != Meeting::not_arrived) ptx::cluster_arrive();
  if (meeting == Meeting::arrived_twice) ptx::cluster_arrive();
  ptx::cluster_wait();
}

__global__ void exchange(int* numbers, int* seen, int** pointers, Meeting meeting) {
  ARGUS_SHARED(int, own, [1]);
  ARGUS_SHARED(uint64_t, met, [1]);
  const unsigned other = blockIdx.x ^ 1u;
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(met, 1);
    ptx::fence_mbarrier_init();
  }
  ptx::cluster_arrive();
  ptx::cluster_wait();
  if (threadIdx.x == 0) {
    numbers[blockIdx.x] = own[0] = static_cast<int>(100 + blockIdx.x);
    pointers[blockIdx.x] = own;
  }
  meet(met, meeting);
  if (threadIdx.x == 0)
    seen[blockIdx.x] = meeting == Meeting::pointer_handed_over ? *pointers[other] : numbers[other];
}

void run_exchange(Meeting meeting, unsigned blocks = 4, unsigned threads = 128) {
  Buffer<int> numbers("numbers", blocks), seen("seen", blocks);
  Buffer<int*> pointers("pointers", blocks);
  launch("exchange", exchange, LaunchShape{dim3(blocks), dim3(threads), 0, 2}, nullptr, numbers.get(),
         seen.get(), pointers.get(), meeting);
  for (unsigned block = 0; block < blocks; ++block)
    expect("seen", block, seen.result()[block], static_cast<int>(100 + (block ^ 1u)));
}
ARGUS_CASE(exchange) {
  run_exchange(Meeting::of_the_cluster);
}
ARGUS_CASE(fault_exchange_without_cluster_barrier) {
  run_exchange(Meeting::of_the_block);
}
ARGUS_CASE(fault_exchange_by_arrival_at_an_mbarrier) {
  run_exchange(Meeting::at_an_mbarrier);
}
ARGUS_CASE(fault_cluster_arrived_at_twice) {
  run_exchange(Meeting::arrived_twice);
}
ARGUS_CASE(fault_cluster_not_arrived_at) {
  run_exchange(Meeting::not_arrived);
}
ARGUS_CASE(fault_pointer_handed_over) {
  run_exchange(Meeting::pointer_handed_over);
}
ARGUS_CASE(fault_grid_of_half_a_cluster) {
  run_exchange(Meeting::of_the_cluster, 3);
}
ARGUS_CASE(fault_cluster_of_too_many_threads) {
  run_exchange(Meeting::of_the_cluster, 4, 640);
}

}  // namespace
