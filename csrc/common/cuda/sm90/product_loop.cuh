// A persistent product on sm_90: D = A Bᵀ in tiles of 128 × kColumns sums, of bfloat16 or half, each operand
// K-major or MN-major, or of float32 as tf32, K-major; what becomes of a tile's sums is the policy's.
//
// A block has three warpgroups. One thread of the first brings tiles of A and B by TMA, 128 bytes deep, into
// a ring of four stages; the other two multiply 64 rows each by wgmma. `full` counts a stage's bytes, `empty`
// the eight consumer warps that are done with it. One group of wgmma stays under way: the stage before it is
// released when its successor has been issued. Rows, columns and depth past the matrices' ends are zeros of
// TMA. Where a tile's depth fits the ring, the two warpgroups take turns: one multiplies while the policy of
// the other works on its sums. Deeper tiles would wait for each other's stages, and have no turns.
//
//   columns   shared memory            registers of a thread (of 64 K: 128 · producer + 256 · consumer)
//   128       4 · (16 + 16) KB = 128   24 · 128 + 240 · 256 = 64,512; 64 of a consumer's are sums
//   256       4 · (16 + 32) KB = 192   the same; 128 of a consumer's are sums
#pragma once

#include "common/cuda/sm90/operand_tile.cuh"

namespace argus::sm90 {

// Named barriers, one a warpgroup: of the turns, and of a policy.
constexpr uint32_t kTurnBarrier = 1, kPolicyBarrier = 3;

template <class T, ptx::Major kA, ptx::Major kB, int kColumns>
struct ProductLoop {
  static constexpr int kStages = 4, kRows = 128, kDepth = 128 / static_cast<int>(sizeof(T));
  static constexpr int kThreads = 384, kConsumerWarps = 8, kHalfThreads = 128;
  static constexpr int kProducerRegisters = 24, kConsumerRegisters = 240;
  using TileA = OperandTile<T, kA, 128, kRows, kDepth>;
  using TileB = OperandTile<T, kB, 128, kColumns, kDepth>;
  using HalfOfA = OperandTile<T, kA, 128, kRows / 2, kDepth>;
  static constexpr int kStageBytes = TileA::kBytes + TileB::kBytes;
  static constexpr size_t kShared = kStages * kStageBytes + kPatternBytes;

  // What a block computes at a time: the sums that begin at (row, column), over `steps` of the depth.
  struct Tile {
    int row, column, split, first_step, steps;
  };

  // D is [rows, columns], or [splits, rows, columns] if the depth is cut into at most steps() parts. Blocks
  // take tiles in turn, those of one column of tiles one after the other, so that their part of B stays in
  // the L2.
  struct Shape {
    int rows, columns, depth, splits = 1;

    ARGUS_HOST_DEVICE int row_tiles() const { return (rows + kRows - 1) / kRows; }
    ARGUS_HOST_DEVICE int column_tiles() const { return (columns + kColumns - 1) / kColumns; }
    ARGUS_HOST_DEVICE int tiles() const { return row_tiles() * column_tiles() * splits; }
    ARGUS_HOST_DEVICE int steps() const { return (depth + kDepth - 1) / kDepth; }
    // The warpgroups take turns.
    ARGUS_HOST_DEVICE bool turns() const { return (steps() + splits - 1) / splits <= kStages; }

    ARGUS_DEVICE Tile tile(int index) const {
      const int split = index / (row_tiles() * column_tiles()), first = steps() * split / splits;
      return {index % row_tiles() * kRows, index / row_tiles() % column_tiles() * kColumns, split, first,
              steps() * (split + 1) / splits - first};
    }
  };

  struct Ring {
    uint64_t *full, *empty;
    unsigned char* stages;

    ARGUS_DEVICE unsigned char* a(int step) const { return stages + step % kStages * kStageBytes; }
    ARGUS_DEVICE unsigned char* b(int step) const { return a(step) + TileA::kBytes; }
    ARGUS_DEVICE static uint32_t parity(int step) { return static_cast<uint32_t>(step / kStages % 2); }
  };

  ARGUS_DEVICE static void produce(const Ring& ring, const ptx::TensorMap& map_a, const ptx::TensorMap& map_b,
                                   const Shape& shape) {
    int step = 0;
    for (int index = static_cast<int>(blockIdx.x); index < shape.tiles();
         index += static_cast<int>(gridDim.x)) {
      const Tile tile = shape.tile(index);
      for (int i = 0; i < tile.steps; ++i, ++step) {
        const int depth = (tile.first_step + i) * kDepth;
        uint64_t* full = ring.full + step % kStages;
        ptx::mbarrier_wait(ring.empty + step % kStages, Ring::parity(step) ^ 1);
        ptx::mbarrier_arrive_expect(full, kStageBytes);
        TileA::load(ring.a(step), map_a, tile.row, depth, full);
        TileB::load(ring.b(step), map_b, tile.column, depth, full);
      }
    }
  }

  ARGUS_DEVICE static void release(const Ring& ring, int step) {
    if (lane_index() == 0) ptx::mbarrier_arrive(ring.empty + step % kStages);
  }

  // The sums of one tile, of the 64 rows that are the warpgroup's; `step` counts on from tile to tile.
  ARGUS_DEVICE static void multiply(const Ring& ring, int half, int steps, int& step,
                                    float (&sums)[kColumns / 2]) {
    for (int i = 0; i < steps; ++i, ++step) {
      ptx::mbarrier_wait(ring.full + step % kStages, Ring::parity(step));
      const unsigned char* a = half_of_a(ring.a(step), half);
      const unsigned char* b = ring.b(step);
      ptx::wgmma_fence();
#pragma unroll
      for (int k = 0; k < TileA::kSteps; ++k) {
        ptx::wgmma<kA, kB>(sums, TileA::descriptor(a, k), TileB::descriptor(b, k), i > 0 || k > 0, T{});
      }
      ptx::wgmma_commit();
      ptx::wgmma_wait<1>();
      if (i > 0) release(ring, step - 1);
    }
    ptx::wgmma_wait<0>(sums);
    release(ring, step - 1);
  }

  // Rows of 128 bytes, or a box of 64 rows.
  ARGUS_DEVICE static const unsigned char* half_of_a(const unsigned char* a, int half) {
    static_assert(HalfOfA::kBytes * 2 == TileA::kBytes);
    return a + half * HalfOfA::kBytes;
  }

  // What a kernel of kThreads threads runs. Of each tile a warpgroup calls `policy.begin(row, column)` with
  // its first row and the first column, before the product, and `policy.take(sums, row, column)` with its
  // sums after.
  template <class Policy>
  ARGUS_DEVICE static void run(const ptx::TensorMap& map_a, const ptx::TensorMap& map_b, const Shape& shape,
                               Policy& policy) {
    ARGUS_SHARED(uint64_t, full, [kStages]);
    ARGUS_SHARED(uint64_t, empty, [kStages]);
    ARGUS_DYNAMIC_SHARED(unsigned char, buffer);
    const Ring ring{full, empty, align_to_pattern(buffer)};
    if (threadIdx.x == 0) {
      for (int stage = 0; stage < kStages; ++stage) {
        ptx::mbarrier_init(full + stage, 1);
        ptx::mbarrier_init(empty + stage, kConsumerWarps);
      }
      ptx::fence_mbarrier_init();
    }
    __syncthreads();
    const int group = static_cast<int>(threadIdx.x) / 128;
    if (group == 0) {
      ptx::decrease_registers<kProducerRegisters>();
      if (threadIdx.x == 0) produce(ring, map_a, map_b, shape);
      return;
    }
    ptx::increase_registers<kConsumerRegisters>();
    const int half = group - 1, blocks = static_cast<int>(gridDim.x);
    const bool turns = shape.turns();
    int step = 0, index = static_cast<int>(blockIdx.x);
    if (turns && half == 1 && index < shape.tiles())
      ptx::named_barrier_arrive(kTurnBarrier, 2 * kHalfThreads);
    for (; index < shape.tiles(); index += blocks) {
      Tile tile = shape.tile(index);
      tile.row += half * kRows / 2;
      policy.begin(tile);
      if (turns) ptx::named_barrier_sync(kTurnBarrier + half, 2 * kHalfThreads);
      float sums[kColumns / 2];
      multiply(ring, half, tile.steps, step, sums);
      // Every turn is waited for: after the last tile of the second half there is none.
      if (turns && (half == 0 || index + blocks < shape.tiles()))
        ptx::named_barrier_arrive(kTurnBarrier + 1 - half, 2 * kHalfThreads);
      policy.take(sums, tile);
    }
  }
};

// The row and the column, from the tile's first ones, of the i-th of a thread's sums.
ARGUS_DEVICE int row_of_sum(int i) {
  return static_cast<int>(threadIdx.x) % 128 / 32 * 16 + lane_index() / 4 + i / 2 % 2 * 8;
}
ARGUS_DEVICE int column_of_sum(int i) {
  return i / 4 * 8 + lane_index() % 4 * 2 + i % 2;
}

}  // namespace argus::sm90
