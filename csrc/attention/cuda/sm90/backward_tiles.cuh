// Tiles and scratch of the backward pass on TMA and wgmma, for its three kernels.
#pragma once

#include <type_traits>

#include "attention/cuda/careful_rows.cuh"
#include "attention/cuda/sm90/forward_loop.cuh"

namespace argus::attention {

template <class Kind>
struct BackwardTiles {
  using Mask = typename Kind::Mask;
  static constexpr int kWidth = Kind::kWidth;
  // Found by compiling: with biases, the whole mask rule or SiLU the scores of 128 queries spill.
  static constexpr bool kManyQueries =
      kWidth <= 64 && !Kind::kBiases && !Mask::kGeneral && Kind::Weights::kNormalised;
  static constexpr int kQueries = kManyQueries ? 128 : 64, kKeys = 128;
  static constexpr int kGroups = 2, kConsumerWarps = 4 * kGroups, kWarps = kConsumerWarps + 4;
  static constexpr int kThreads = 32 * kWarps, kStages = 2;
  static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
  // A warpgroup's part of a tile of d_q: its rows, 64 of them, or its columns.
  static constexpr bool kByRows = kQueries == 128;
  static constexpr int kPartColumns = kByRows ? kWidth : kWidth / kGroups;
  static constexpr int kPartFloats = 64 * kPartColumns, kTileFloats = kGroups * kPartFloats;
};

// Where the sums of a tile of d_q lie while blocks of keys add to them: a thread's registers, four by four,
// beside those of the next thread.
template <class Tiles>
struct QuerySums {
  static constexpr int kRegisters = Tiles::kPartFloats / 128;

  static ARGUS_DEVICE int64_t tile(const Backward& call, int block, int head) {
    return int64_t{block} * call.given.heads + head;
  }
  static ARGUS_DEVICE float* of_tile(const Backward& call, int64_t tile) {
    return call.query_sums + tile * Tiles::kTileFloats;
  }
  // Of the calling thread's registers in a warpgroup's part, and from there of its i-th, a multiple of 4.
  static ARGUS_DEVICE int place(int group) {
    return group * Tiles::kPartFloats + static_cast<int>(threadIdx.x % 128) * 4;
  }
  static ARGUS_DEVICE int after(int i) { return i * 128; }
};

}  // namespace argus::attention
