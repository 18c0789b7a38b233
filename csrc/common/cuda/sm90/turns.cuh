// Turns between blocks of one launch, with host twins (simt/turns.h): a word of global memory that one block
// passes on and the next waits for.
//
//   One thread of a block waits, does the block's part or lets others do it, and passes the turn on. Whoever
//   has waited sees what the thread that passed the turn had seen, and so do threads that synchronise with
//   the one that waited. Bulk copies must have arrived before the turn is passed: tma_store_wait.
//   A block may wait only for blocks before it in the grid, which a GPU starts first; LaunchShape::in_order
//   says so. Words hold a value before the launch, and a turn that is awaited must not be passed twice
//   before.
#pragma once

#include "common/cuda/device.cuh"

#if !defined(__CUDACC__)
#include "simt/turns.h"
#endif

namespace argus::ptx {

#if defined(__CUDACC__)

// Polls without __nanosleep: the blocks in line wait for each other, so a sleep would delay all after it,
// and one thread a block with one load under way leaves the L2 alone.
ARGUS_DEVICE void wait_turn(const int32_t* turn, int32_t value) {
  int32_t found;
  do {
    asm volatile("ld.acquire.gpu.global.b32 %0, [%1];"
                 : "=r"(found)
                 : "l"(__cvta_generic_to_global(turn))
                 : "memory");
  } while (found != value);
}
ARGUS_DEVICE void pass_turn(int32_t* turn, int32_t value) {
  asm volatile("st.release.gpu.global.b32 [%0], %1;" ::"l"(__cvta_generic_to_global(turn)), "r"(value)
               : "memory");
}

#else

inline void wait_turn(const int32_t* turn, int32_t value, simt::Site site = simt::Site::current()) {
  simt::wait_turn(turn, value, site);
}
inline void pass_turn(int32_t* turn, int32_t value) {
  simt::pass_turn(turn, value);
}

#endif

}  // namespace argus::ptx
