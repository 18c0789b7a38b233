// Blocks that add their parts to tiles of sums in a fixed order, by bulk adds and turns: run on the executor
// by sm90_turn_faults.cpp with one planted fault at a time, compiled by nvcc from sm90_turns.cu.
#pragma once

#include "common/cuda/sm90/bulk.cuh"
#include "common/cuda/sm90/turns.cuh"

namespace sm90_turns {

namespace ptx = argus::ptx;

enum class Plant {
  none,
  turn_not_waited_for,
  adds_in_no_order,
  wrong_predecessor,
  turn_passed_when_only_read,
  turn_passed_before_the_wait,
  turn_passed_by_another_thread,
  source_overwritten_early,
  no_proxy_fence_before_the_add,
  no_global_fence_after_plain_writes,
  launch_not_in_order,
  exit_before_the_add_is_read,
  added_to_fresh_memory,
  bytes_not_in_chunks,
  sums_read_without_a_barrier,
};

// How the first part of a tile comes to memory, and which side fences plain writes.
enum class First { bulk_store, plain_fenced_by_writer, plain_fenced_by_adder };

constexpr int kTile = 256, kStages = 2, kWriters = 128,
              kThreads = 160;  // a tile's floats; the last warp adds
constexpr uint32_t kTileBytes = kTile * sizeof(float);

// `causal`: the blocks of the grid are parts `blocks` − 1, …, 0, and part j goes to the tiles from j on. Else
// each part goes to all tiles. The block behind the last one reads the sums.
struct Work {
  int blocks, tiles;
  bool causal;
  First first;

  ARGUS_HOST_DEVICE int part_of(int block) const { return causal ? blocks - 1 - block : block; }
  ARGUS_HOST_DEVICE int first_tile(int block) const { return causal ? part_of(block) : 0; }
  // Parts that come before the block's, and all of them.
  ARGUS_HOST_DEVICE int turn_of(int block, int tile) const { return causal ? tile - part_of(block) : block; }
  ARGUS_HOST_DEVICE int last_turn(int tile) const { return causal ? min(tile + 1, blocks) : blocks; }
};

struct Memory {
  float* sums;     // [tiles, kTile]
  int32_t* turns;  // [tiles], 0
  float* notes;    // [blocks]
  float* read;     // the sums and notes that the last block has read
};

struct Stages {
  uint64_t *full, *empty;
  float* tiles;

  __device__ float* tile(int step) const { return tiles + step % kStages * kTile; }
  __device__ static uint32_t parity(int step) { return static_cast<uint32_t>(step / kStages % 2); }
};

// Sums of these round, so that another order gives other bits.
ARGUS_HOST_DEVICE float part_value(int part, int tile, int i) {
  return 1.0f / static_cast<float>(3 + 7 * part + 5 * tile + i % 113);
}

__device__ inline void write_parts(const Stages& stages, const Work& work, int block, Plant plant) {
  const int first = work.first_tile(block);
  for (int step = 0; first + step < work.tiles; ++step) {
    ptx::mbarrier_wait(stages.empty + step % kStages, Stages::parity(step) ^ 1);
    for (int i = static_cast<int>(threadIdx.x); i < kTile; i += kWriters)
      stages.tile(step)[i] = part_value(work.part_of(block), first + step, i);
    if (plant != Plant::no_proxy_fence_before_the_add) ptx::fence_proxy_async();
    __syncwarp();
    if (argus::lane_index() == 0) ptx::mbarrier_arrive(stages.full + step % kStages);
  }
}

// By one thread, once it has the turn.
__device__ inline void issue(const Stages& stages, float* sums, int step, bool store, Plant plant) {
  const uint32_t bytes = plant == Plant::bytes_not_in_chunks ? kTileBytes - 8 : kTileBytes;
  if (store && plant != Plant::added_to_fresh_memory && plant != Plant::adds_in_no_order) {
    ptx::bulk_store(sums, stages.tile(step), bytes);
  } else {
    ptx::bulk_add(sums, stages.tile(step), bytes);
  }
  ptx::tma_store_commit();
}

__device__ inline void write_plainly(const Stages& stages, float* sums, int step, First first) {
  for (int i = argus::lane_index(); i < kTile; i += 32) sums[i] = stages.tile(step)[i];
  if (first == First::plain_fenced_by_writer) ptx::fence_proxy_async_global();
}

__device__ inline void take_turn(const int32_t* turn, int awaited, const Work& work, Plant plant) {
  const bool wrong = plant == Plant::wrong_predecessor && awaited > 0;
  if (plant != Plant::turn_not_waited_for && plant != Plant::adds_in_no_order)
    ptx::wait_turn(turn, awaited + (wrong ? 1 : 0));
  const bool fences = work.first == First::plain_fenced_by_adder;
  if (fences && plant != Plant::no_global_fence_after_plain_writes) ptx::fence_proxy_async_global();
}

// The turn is passed by the thread that waited, or by another that comes after it.
__device__ inline void pass(int32_t* turn, int value, bool by_another, Plant plant) {
  if (plant == Plant::turn_passed_by_another_thread) {
    __shfl_sync(argus::kFullWarp, value, 0);
  } else {
    __syncwarp();
  }
  if (argus::lane_index() == (by_another ? 1 : 0) && plant != Plant::adds_in_no_order)
    ptx::pass_turn(turn, value);
}

__device__ inline void add_parts(const Stages& stages, const Memory& memory, const Work& work, int block,
                                 Plant plant) {
  const int first = work.first_tile(block), lane = argus::lane_index();
  const bool by_another = !work.causal;
  if (lane == 0) memory.notes[block] = static_cast<float>(block + 1);
  for (int step = 0; first + step < work.tiles; ++step) {
    const int tile = first + step, awaited = work.turn_of(block, tile);
    float* sums = memory.sums + tile * kTile;
    uint64_t* empty = stages.empty + step % kStages;
    ptx::mbarrier_wait(stages.full + step % kStages, Stages::parity(step));
    // The stage is freed by one lane, and a phase that it lets begin must not end before all have waited.
    __syncwarp();
    if (awaited == 0 && work.first != First::bulk_store) {
      write_plainly(stages, sums, step, work.first);
      __syncwarp();
      if (lane == 0) ptx::mbarrier_arrive(empty);
    } else if (lane == 0) {
      take_turn(memory.turns + tile, awaited, work, plant);
      issue(stages, sums, step, awaited == 0, plant);
      if (plant == Plant::exit_before_the_add_is_read && tile + 1 == work.tiles) return;
      if (plant == Plant::turn_passed_before_the_wait) ptx::pass_turn(memory.turns + tile, awaited + 1);
      if (plant != Plant::source_overwritten_early) ptx::tma_store_wait_read<0>();
      ptx::mbarrier_arrive(empty);
      if (plant != Plant::turn_passed_when_only_read) ptx::tma_store_wait<0>();
    }
    if (plant != Plant::turn_passed_before_the_wait)
      pass(memory.turns + tile, awaited + 1, by_another, plant);
  }
}

// One thread waits for the last turn of every tile, the others for it.
__device__ inline void read_sums(uint64_t* over, const Memory& memory, const Work& work, Plant plant) {
  if (threadIdx.x == kWriters) {
    for (int tile = 0; tile < work.tiles; ++tile) ptx::wait_turn(memory.turns + tile, work.last_turn(tile));
    ptx::mbarrier_arrive(over);
  }
  if (plant != Plant::sums_read_without_a_barrier) ptx::mbarrier_wait(over, 0);
  const int count = work.tiles * kTile;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) memory.read[i] = memory.sums[i];
  for (int i = static_cast<int>(threadIdx.x); i < work.blocks; i += kThreads)
    memory.read[count + i] = memory.notes[i];
}

__global__ void __launch_bounds__(kThreads) add_in_turns(Memory memory, Work work, Plant plant) {
  ARGUS_SHARED(uint64_t, full, [kStages]);
  ARGUS_SHARED(uint64_t, empty, [kStages]);
  ARGUS_SHARED(uint64_t, over, [1]);
  ARGUS_SHARED(float, tiles, [kStages * kTile]);
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      ptx::mbarrier_init(full + stage, kWriters / 32);
      ptx::mbarrier_init(empty + stage, 1);
    }
    ptx::mbarrier_init(over, 1);
  }
  __syncthreads();
  const int block = static_cast<int>(blockIdx.x);
  const Stages stages{full, empty, tiles};
  if (block == work.blocks) {
    read_sums(over, memory, work, plant);
  } else if (threadIdx.x < kWriters) {
    write_parts(stages, work, block, plant);
  } else {
    add_parts(stages, memory, work, block, plant);
  }
}

}  // namespace sm90_turns
