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

constexpr int kFloats = 8;
constexpr LaunchShape kOneThread{dim3(1), dim3(1)};

__global__ void add_once(const float* parts, float* sums, int shift) {
  ARGUS_SHARED(float, part, [kFloats]);
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
  const std::vector<float> parts{1.0f / 3, 0x1p-24f, -kTiny / 2, kTiny, kNan, 1.0f, -kInfinity, -0.0f};
  const std::vector<float> before{2.0f / 7, 1.0f, -kTiny / 4, -1.5f * kTiny, 1.0f, kNan, kInfinity, -0.0f};
  // The ties of 1 + 2^-24 go to even; a subnormal sum becomes a 0 of its sign.
  const std::vector<float> after{1.0f / 3 + 2.0f / 7, 1.0f, -0.0f, -0.0f, kNan, kNan, kNan, -0.0f};
  Buffer<float> device_parts("parts", parts), sums("sums", before);
  launch("add_once", add_once, kOneThread, nullptr, device_parts.get(), sums.get(), 0);
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
  launch("add_once", add_once, kOneThread, nullptr, parts.get(), sums.get(), 1);
}

ARGUS_CASE(fault_bulk_add_past_the_end) {
  Buffer<float> parts("parts", kFloats), sums("sums", kFloats);
  launch("add_once", add_once, kOneThread, nullptr, parts.get(), sums.get(), 4);
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
  launch("chain", chain, LaunchShape{dim3(3), dim3(1), 0, true}, nullptr, data.get(), turn.get(), fence);
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
  launch("notes", notes_kernel, LaunchShape{dim3(kBlocks), dim3(64), 0, true}, nullptr, notes.get(),
         sums.get(), turn.get(), note);
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

// Blocks 0 and 1 read what block 2 writes; whether block 1 lets block 2 know of block 0's read.
__global__ void rewrite(int* data, int* sums, int32_t* turn, bool acquires) {
  const int block = static_cast<int>(blockIdx.x);
  if (block < 2) sums[block] = data[0];
  if (block == 0) ptx::pass_turn(turn, 1);
  if (block == 1) {
    if (acquires) ptx::wait_turn(turn, 1);
    ptx::pass_turn(turn + 1, 1);
  }
  if (block == 2) {
    ptx::wait_turn(turn + 1, 1);
    data[0] = 5;
  }
}

void run_rewrite(bool acquires) {
  Buffer<int> data("data", 1, 3), sums("sums", 2);
  Buffer<int32_t> turn("turn", 2);
  launch("rewrite", rewrite, LaunchShape{dim3(3), dim3(1), 0, true}, nullptr, data.get(), sums.get(),
         turn.get(), acquires);
  expect("data", 0, data.result()[0], 5);
  expect("sums", 1, sums.result()[1], 3);
}

ARGUS_CASE(rewritten_after_all_reads) {
  run_rewrite(true);
}
ARGUS_CASE(fault_rewritten_beside_a_read) {
  run_rewrite(false);
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
  launch("turn_within", turn_within, LaunchShape{dim3(1), dim3(64), 0, true}, nullptr, turn.get(), out.get());
  expect("out", 0, out.result()[0], 8);
}

ARGUS_CASE(fault_turn_without_contents) {
  std::vector<int32_t> host(1);
  argus::simt::DeviceBuffer turn("turn", static_cast<void*>(host.data()), sizeof(int32_t),
                                 argus::simt::Contents::fresh);
  Buffer<int> out("out", 1);
  launch("turn_within", turn_within, LaunchShape{dim3(1), dim3(64), 0, true}, nullptr, turn.as<int32_t>(),
         out.get());
}

}  // namespace
