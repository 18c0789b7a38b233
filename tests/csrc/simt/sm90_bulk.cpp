// Bulk copies and turns one by one: what an add computes, and small chains of blocks with one planted fault
// at a time, beside the same without it.
#include <bit>
#include <limits>

#include "cases.h"
#include "common/cuda/sm90/bulk.cuh"
#include "common/cuda/sm90/turns.cuh"

namespace {

using argus::launch;
using argus::LaunchShape;
using cases::Buffer;
using cases::expect;
namespace ptx = argus::ptx;

constexpr int kFloats = 12;
constexpr LaunchShape kOneThread{dim3(1), dim3(1)};

LaunchShape in_order(dim3 grid, dim3 block, size_t dynamic_shared = 0) {
  return {.grid = grid, .block = block, .dynamic_shared = dynamic_shared, .in_order = true};
}

enum class Cleared { no, fenced, fenced_for_shared_memory };

__global__ void add_once(const float* parts, float* sums, int shift, Cleared cleared) {
  ARGUS_SHARED(float, part, [kFloats]);
  for (int i = 0; i < kFloats && cleared != Cleared::no; ++i) sums[i] = 0.0f;
  if (cleared == Cleared::fenced) ptx::fence_proxy_async_global();
  for (int i = 0; i < kFloats; ++i) part[i] = parts[i];
  ptx::fence_proxy_async();
  ptx::bulk_add(sums + shift, part, sizeof(part));
  ptx::tma_store_commit();
  ptx::tma_store_wait<0>();
}

ARGUS_CASE(bulk_add_rounds_once_and_takes_subnormals_for_zero) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kTiny = std::numeric_limits<float>::min(),
                  kInfinity = std::numeric_limits<float>::infinity();
  const std::vector<float> parts{1.0f / 3,   0x1p-24f,   -kTiny / 2, kTiny, kNan, 1.0f,
                                 -kInfinity, -kTiny / 2, kTiny,      -0.0f, 2.0f, 3.0f};
  const std::vector<float> before{2.0f / 7,  1.0f,  -kTiny / 4, -1.5f * kTiny, 1.0f, kNan,
                                  kInfinity, kTiny, -kTiny / 2, -0.0f,         1.0f, -3.0f};
  // The tie of 1 + 2^-24 goes to even; a subnormal sum becomes a 0 of its sign.
  const std::vector<float> after{
      1.0f / 3 + 2.0f / 7, 1.0f, -0.0f, -0.0f, kNan, kNan, kNan, kTiny, kTiny, -0.0f, 3.0f, 0.0f};
  Buffer<float> device_parts("parts", parts), sums("sums", before);
  launch("add_once", add_once, kOneThread, nullptr, device_parts.get(), sums.get(), 0, Cleared::no);
  for (size_t i = 0; i < after.size(); ++i) {
    const float found = sums.result()[i];
    if (after[i] != after[i]) {
      expect("is NaN", i, found != found, true);
    } else {
      expect("sums", i, std::bit_cast<uint32_t>(found), std::bit_cast<uint32_t>(after[i]));
    }
  }
}

ARGUS_CASE(fault_bulk_add_to_misaligned_bytes) {
  Buffer<float> parts("parts", kFloats), sums("sums", 2 * kFloats);
  launch("add_once", add_once, kOneThread, nullptr, parts.get(), sums.get(), 1, Cleared::no);
}

ARGUS_CASE(fault_bulk_add_past_the_end) {
  Buffer<float> parts("parts", kFloats), sums("sums", kFloats);
  launch("add_once", add_once, kOneThread, nullptr, parts.get(), sums.get(), 4, Cleared::no);
}

void add_to_cleared(Cleared cleared) {
  Buffer<float> parts("parts", kFloats, 2.0f), sums("sums", kFloats, 1.0f);
  launch("add_once", add_once, kOneThread, nullptr, parts.get(), sums.get(), 0, cleared);
  for (size_t i = 0; i < kFloats; ++i) expect("sums", i, sums.result()[i], 2.0f);
}

ARGUS_CASE(bulk_add_to_cleared_bytes) {
  add_to_cleared(Cleared::fenced);
}
ARGUS_CASE(fault_bulk_add_fenced_for_shared_memory) {
  add_to_cleared(Cleared::fenced_for_shared_memory);
}

enum class Fence { by_the_writer, between, before_the_write, none };

// Block 0 writes plainly, block 1 does no more than to take its turn, block 2 adds.
__global__ void chain(float* data, int32_t* turn, Fence fence) {
  ARGUS_SHARED(float, ones, [kFloats]);
  const int block = static_cast<int>(blockIdx.x);
  ptx::wait_turn(turn, block);
  if (block == 0) {
    if (fence == Fence::before_the_write) ptx::fence_proxy_async_global();
    for (int i = 0; i < kFloats; ++i) data[i] = static_cast<float>(i);
    if (fence == Fence::by_the_writer) ptx::fence_proxy_async_global();
  } else if (block == 1) {
    if (fence == Fence::between) ptx::fence_proxy_async_global();
  } else {
    for (float& one : ones) one = 1.0f;
    ptx::fence_proxy_async();
    ptx::bulk_add(data, ones, sizeof(ones));
    ptx::tma_store_commit();
    ptx::tma_store_wait<0>();
  }
  ptx::pass_turn(turn, block + 1);
}

void run_chain(Fence fence) {
  Buffer<float> data("data", kFloats);
  Buffer<int32_t> turn("turn", 1);
  launch("chain", chain, in_order(dim3(3), dim3(1)), nullptr, data.get(), turn.get(), fence);
  for (size_t i = 0; i < kFloats; ++i) expect("data", i, data.result()[i], static_cast<float>(i + 1));
}

ARGUS_CASE(chain_fenced_by_the_writer) {
  run_chain(Fence::by_the_writer);
}
ARGUS_CASE(chain_fenced_by_a_block_in_between) {
  run_chain(Fence::between);
}
ARGUS_CASE(fault_chain_fenced_before_the_write) {
  run_chain(Fence::before_the_write);
}
ARGUS_CASE(fault_chain_without_a_fence) {
  run_chain(Fence::none);
}

enum class Note { before_the_turn, after_the_turn, by_another_warp, before_the_barrier };

// Each block's note is read by all blocks after it, by another warp than the one that waits.
__global__ void notes_kernel(int* notes, int* sums, int32_t* turn, Note note) {
  const int block = static_cast<int>(blockIdx.x);
  const bool first = threadIdx.x == 0, last = threadIdx.x == 63;
  if (first) ptx::wait_turn(turn, block);
  __syncthreads();
  if (last) {
    int sum = 0;
    for (int other = 0; other < block; ++other) sum += notes[other];
    sums[block] = sum;
  }
  if (note == Note::before_the_barrier && last) notes[block] = block + 1;
  if (note == Note::before_the_barrier) __syncthreads();
  if (note == Note::by_another_warp && last) notes[block] = block + 1;
  if (note == Note::before_the_turn && first) notes[block] = block + 1;
  if (first) ptx::pass_turn(turn, block + 1);
  if (note == Note::after_the_turn && first) notes[block] = block + 1;
}

void run_notes(Note note) {
  constexpr int kBlocks = 5;
  Buffer<int> notes("notes", kBlocks), sums("sums", kBlocks);
  Buffer<int32_t> turn("turn", 1);
  launch("notes", notes_kernel, in_order(dim3(kBlocks), dim3(64)), nullptr, notes.get(), sums.get(),
         turn.get(), note);
  for (int block = 0; block < kBlocks; ++block)
    expect("sums", static_cast<size_t>(block), sums.result()[static_cast<size_t>(block)],
           block * (block + 1) / 2);
}

ARGUS_CASE(notes_before_the_turn) {
  run_notes(Note::before_the_turn);
}
ARGUS_CASE(notes_before_the_barrier) {
  run_notes(Note::before_the_barrier);
}
ARGUS_CASE(fault_note_after_the_turn) {
  run_notes(Note::after_the_turn);
}
ARGUS_CASE(fault_note_by_another_warp) {
  run_notes(Note::by_another_warp);
}

// Blocks 0 and 1 read what block 2 writes, by a load or by TMA; block 1 lets block 2 know of block 0's read
// only if it acquires it.
__global__ void rewrite(const __grid_constant__ ptx::TensorMap map, float* data, float* seen, int32_t* turn,
                        bool by_tma, bool acquires) {
  ARGUS_SHARED(uint64_t, full, [1]);
  ARGUS_DYNAMIC_SHARED(float, tile);
  const int block = static_cast<int>(blockIdx.x);
  if (block < 2 && by_tma) {
    ptx::mbarrier_init(full, 1);
    ptx::fence_mbarrier_init();
    ptx::mbarrier_arrive_expect(full, 4 * sizeof(float));
    ptx::tma_load(tile, map, 0, 0, full);
    ptx::mbarrier_wait(full, 0);
  }
  if (block < 2) seen[block] = by_tma ? tile[0] : data[0];
  if (block == 0) ptx::pass_turn(turn, 1);
  if (block == 1) {
    if (acquires) ptx::wait_turn(turn, 1);
    ptx::pass_turn(turn + 1, 1);
  }
  if (block == 2) {
    ptx::wait_turn(turn + 1, 1);
    data[0] = 5.0f;
  }
}

void run_rewrite(bool by_tma, bool acquires) {
  Buffer<float> data("data", 4, 3.0f), seen("seen", 2);
  Buffer<int32_t> turn("turn", 2);
  const auto map = ptx::make_tensor_map(ptx::TensorTile<float>{data.get(), 4, 1, 16, 4, 1, 0});
  launch("rewrite", rewrite, in_order(dim3(3), dim3(1), 128), nullptr, map, data.get(), seen.get(),
         turn.get(), by_tma, acquires);
  expect("data", 0, data.result()[0], 5.0f);
  expect("seen", 1, seen.result()[1], 3.0f);
}

ARGUS_CASE(rewritten_after_all_reads) {
  run_rewrite(false, true);
}
ARGUS_CASE(rewritten_after_all_loads) {
  run_rewrite(true, true);
}
ARGUS_CASE(fault_rewritten_beside_a_read) {
  run_rewrite(false, false);
}
ARGUS_CASE(fault_rewritten_beside_a_load) {
  run_rewrite(true, false);
}

enum class Late { none, second_turn, turn_by_exchange };

// Blocks 0 and 1 leave data each and pass a turn each; block 2 waits for both, and two of its threads read.
__global__ void two_turns(int* data, int* sums, int32_t* turns, Late late) {
  const int block = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  if (block < 2 && thread == 0) {
    data[block] = block + 1;
    ptx::pass_turn(turns + block, late == Late::turn_by_exchange ? 2 : 1);
    if (late == Late::turn_by_exchange) atomicExch(turns + block, 1);
  }
  if (block < 2) return;
  if (thread == 0) ptx::wait_turn(turns, 1);
  if (late == Late::second_turn) __syncthreads();
  if (thread == 0) ptx::wait_turn(turns + 1, 1);
  if (late != Late::second_turn) __syncthreads();
  // A vote comes after the waits and orders nothing.
  __ballot_sync(argus::kFullWarp, true);
  if (thread < 2) sums[thread] = data[0] + data[1];
}

void run_two_turns(Late late) {
  Buffer<int> data("data", 2), sums("sums", 2);
  Buffer<int32_t> turns("turns", 2);
  launch("two_turns", two_turns, in_order(dim3(3), dim3(32)), nullptr, data.get(), sums.get(), turns.get(),
         late);
  for (size_t i = 0; i < 2; ++i) expect("sums", i, sums.result()[i], 3);
}

ARGUS_CASE(turns_of_two_blocks) {
  run_two_turns(Late::none);
}
ARGUS_CASE(fault_second_turn_after_the_barrier) {
  run_two_turns(Late::second_turn);
}
ARGUS_CASE(fault_turn_by_exchange) {
  run_two_turns(Late::turn_by_exchange);
}

__global__ void turn_within(int32_t* turn, int* out) {
  if (threadIdx.x == 32) {
    out[0] = 7;
    ptx::pass_turn(turn, 1);
  }
  if (threadIdx.x == 0) {
    ptx::wait_turn(turn, 1);
    out[0] += 1;
  }
}

ARGUS_CASE(turn_within_a_block) {
  Buffer<int32_t> turn("turn", 1);
  Buffer<int> out("out", 1);
  launch("turn_within", turn_within, in_order(dim3(1), dim3(64)), nullptr, turn.get(), out.get());
  expect("out", 0, out.result()[0], 8);
}

ARGUS_CASE(fault_turn_without_contents) {
  std::vector<int32_t> host(1);
  argus::simt::DeviceBuffer turn("turn", static_cast<void*>(host.data()), sizeof(int32_t),
                                 argus::simt::Contents::fresh);
  Buffer<int> out("out", 1);
  launch("turn_within", turn_within, in_order(dim3(1), dim3(64)), nullptr, turn.as<int32_t>(), out.get());
}

}  // namespace
