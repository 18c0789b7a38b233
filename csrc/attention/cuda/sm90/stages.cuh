// What the loops of attention on TMA and wgmma have in common: stages of shared memory that one warp fills
// and others read, and registers as wgmma takes them.
#pragma once

#include "attention/cuda/tiles.cuh"
#include "common/cuda/sm90/mbarrier.cuh"

namespace argus::attention {

// mbarriers of a ring of stages: `full` counts a stage's bytes, or the warps that fill it, `empty` those that
// are done with it.
template <int kStages>
struct StageBarriers {
  uint64_t full[kStages], empty[kStages];

  ARGUS_DEVICE void init(int consumer_warps) { init(1, consumer_warps); }
  ARGUS_DEVICE void init(int producers, int consumers) {
    for (int stage = 0; stage < kStages; ++stage) {
      ptx::mbarrier_init(full + stage, static_cast<uint32_t>(producers));
      ptx::mbarrier_init(empty + stage, static_cast<uint32_t>(consumers));
    }
  }
  ARGUS_DEVICE static uint32_t parity(int step) { return static_cast<uint32_t>(step / kStages % 2); }
  ARGUS_DEVICE void wait_empty(int step) { ptx::mbarrier_wait(empty + step % kStages, parity(step) ^ 1); }
  ARGUS_DEVICE uint64_t* expect(int step, int bytes) {
    uint64_t* barrier = full + step % kStages;
    ptx::mbarrier_arrive_expect(barrier, static_cast<uint32_t>(bytes));
    return barrier;
  }
  // Until the step itself is released, of those who cannot fill a stage while another one is read.
  ARGUS_DEVICE void wait_released(int step) { ptx::mbarrier_wait(empty + step % kStages, parity(step)); }
  ARGUS_DEVICE void wait_full(int step) { ptx::mbarrier_wait(full + step % kStages, parity(step)); }
  // A warp that has written its part of a stage, or one that has read it.
  ARGUS_DEVICE void fill(int step) { arrive(full + step % kStages); }
  ARGUS_DEVICE void release(int step) { arrive(empty + step % kStages); }

 private:
  ARGUS_DEVICE static void arrive(uint64_t* barrier) {
    __syncwarp();
    if (lane_index() == 0) ptx::mbarrier_arrive(barrier);
  }
};

// Hides from the compiler what a number or an address is: it would work out what depends on it before a loop,
// and keep that in registers.
template <class Number>
ARGUS_DEVICE Number anew(Number number) {
#if defined(__CUDACC__)
  if constexpr (sizeof(Number) == 8) {
    asm volatile("" : "+l"(number));
  } else {
    asm volatile("" : "+r"(number));
  }
#endif
  return number;
}

// A warp's tile as the registers of wgmma.
template <class Array>
ARGUS_DEVICE auto& flat(Array& array) {
  return reinterpret_cast<float (&)[sizeof(Array) / sizeof(float)]>(array);
}

// A warp's tile, 16 rows, as wgmma's left operand: 16 columns a step.
template <class T, int kTiles>
ARGUS_DEVICE void pack(uint32_t (&packed)[kTiles / 2][4], const float (&tile)[1][kTiles][4], T) {
#pragma unroll
  for (int i = 0; i < kTiles / 2; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float (&pair)[4] = tile[0][2 * i + j / 2];
      packed[i][j] = argus::packed(pair[j % 2 * 2], pair[j % 2 * 2 + 1], T{});
    }
  }
}

}  // namespace argus::attention
