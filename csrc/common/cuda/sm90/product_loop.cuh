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
// Two blocks of a cluster may share B: they take the tiles of 256 rows between them, each brings A for its
// own rows and half of B, and TMA copies that half into both. A step of 256 columns takes 32 KB from the L2
// instead of 48. A stage is free once the consumers of both blocks are done with it. Where the tiles of rows
// are odd, one block's last tile is past the end: it takes part, and its policy stores nothing.
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
  static constexpr uint32_t kCluster = 2;  // blocks that share B
  using TileA = OperandTile<T, kA, 128, kRows, kDepth>;
  using TileB = OperandTile<T, kB, 128, kColumns, kDepth>;
  using HalfOfA = OperandTile<T, kA, 128, kRows / 2, kDepth>;
  using HalfOfB = OperandTile<T, kB, 128, kColumns / 2, kDepth>;
  static constexpr int kStageBytes = TileA::kBytes + TileB::kBytes;
  static constexpr size_t kShared = kStages * kStageBytes + kPatternBytes;

  // What a block computes at a time: the sums that begin at (row, column), over `steps` of the depth.
  struct Tile {
    int row, column, split, first_step, steps;
  };

  // D is [rows, columns], or [splits, rows, columns] if the depth is cut into at most steps() parts. Blocks,
  // or clusters of 2, take tiles in turn, those of one column of tiles one after the other, so that their
  // part of B stays in the L2. `cluster` is that of the launch.
  struct Shape {
    int rows, columns, depth, splits = 1, cluster = 1;

    ARGUS_HOST_DEVICE int cluster_rows() const { return kRows * cluster; }
    ARGUS_HOST_DEVICE int row_tiles() const { return (rows + cluster_rows() - 1) / cluster_rows(); }
    ARGUS_HOST_DEVICE int column_tiles() const { return (columns + kColumns - 1) / kColumns; }
    // What the blocks, or clusters, share out among them.
    ARGUS_HOST_DEVICE int tiles() const { return row_tiles() * column_tiles() * splits; }
    ARGUS_HOST_DEVICE int steps() const { return (depth + kDepth - 1) / kDepth; }
    // The warpgroups take turns.
    ARGUS_HOST_DEVICE bool turns() const { return (steps() + splits - 1) / splits <= kStages; }

    ARGUS_DEVICE int first_tile() const { return static_cast<int>(blockIdx.x) / cluster; }
    ARGUS_DEVICE int tile_stride() const { return static_cast<int>(gridDim.x) / cluster; }
  };

  // A block's tiles, one after the other. Each is placed by a step from the one before: the divisions that
  // place an index stand on the way to the tile's product.
  struct Walk {
    struct Place {
      int row, column, split;  // in tiles
    };
    const Shape& shape;
    int left;  // tiles from the current one on, of all blocks
    Place at, step;

    ARGUS_DEVICE explicit Walk(const Shape& given)
        : shape(given),
          left(given.tiles() - given.first_tile()),
          at(place(given.first_tile())),
          step(place(given.tile_stride())) {}

    ARGUS_DEVICE Place place(int index) const {
      const int column = index / shape.row_tiles();
      return {index % shape.row_tiles(), column % shape.column_tiles(), column / shape.column_tiles()};
    }
    ARGUS_DEVICE bool done() const { return left <= 0; }
    ARGUS_DEVICE bool last() const { return left <= shape.tile_stride(); }
    ARGUS_DEVICE void next() {
      left -= shape.tile_stride();
      at = {at.row + step.row, at.column + step.column, at.split + step.split};
      if (at.row >= shape.row_tiles()) {
        at.row -= shape.row_tiles();
        ++at.column;
      }
      if (at.column >= shape.column_tiles()) {
        at.column -= shape.column_tiles();
        ++at.split;
      }
    }
    ARGUS_DEVICE Tile tile() const {
      const int rank = static_cast<int>(blockIdx.x) % shape.cluster;
      Tile found{at.row * shape.cluster_rows() + rank * kRows, at.column * kColumns, at.split, 0,
                 shape.steps()};
      if (shape.splits > 1) {
        found.first_step = shape.steps() * at.split / shape.splits;
        found.steps = shape.steps() * (at.split + 1) / shape.splits - found.first_step;
      }
      return found;
    }
  };

  // Of B, whose lines are `pitch` elements apart.
  static ptx::TensorMap map_b(const T* base, const Shape& shape, uint64_t pitch) {
    const auto columns = static_cast<uint64_t>(shape.columns), depth = static_cast<uint64_t>(shape.depth);
    return shape.cluster == 1 ? TileB::map(base, columns, depth, pitch)
                              : HalfOfB::map(base, columns, depth, pitch);
  }

  struct Ring {
    uint64_t *full, *empty;
    unsigned char* stages;
    int cluster;

    ARGUS_DEVICE unsigned char* a(int step) const { return stages + step % kStages * kStageBytes; }
    ARGUS_DEVICE unsigned char* b(int step) const { return a(step) + TileA::kBytes; }
    ARGUS_DEVICE static uint32_t parity(int step) { return static_cast<uint32_t>(step / kStages % 2); }
  };

  ARGUS_DEVICE static void produce(const Ring& ring, const ptx::TensorMap& map_a, const ptx::TensorMap& map_b,
                                   const Shape& shape) {
    int step = 0;
    for (Walk walk(shape); !walk.done(); walk.next()) {
      const Tile tile = walk.tile();
      for (int i = 0; i < tile.steps; ++i, ++step) {
        const int depth = (tile.first_step + i) * kDepth;
        uint64_t* full = ring.full + step % kStages;
        ptx::mbarrier_wait(ring.empty + step % kStages, Ring::parity(step) ^ 1);
        ptx::mbarrier_arrive_expect(full, kStageBytes);
        TileA::load(ring.a(step), map_a, tile.row, depth, full);
        load_b(ring.b(step), map_b, tile.column, depth, full, shape);
      }
    }
    // The other block's consumers arrive here until they are done with the last stages; a block that had
    // exited would not be there for them.
    if (shape.cluster == 1) return;
    for (const int end = step + kStages; step < end; ++step)
      ptx::mbarrier_wait(ring.empty + step % kStages, Ring::parity(step) ^ 1);
  }

  ARGUS_DEVICE static void load_b(unsigned char* b, const ptx::TensorMap& map, int column, int depth,
                                  uint64_t* full, const Shape& shape) {
    if (shape.cluster == 1) {
      TileB::load(b, map, column, depth, full);
      return;
    }
    static_assert(HalfOfB::kBytes * kCluster == TileB::kBytes);
    constexpr uint16_t kAll = (1 << kCluster) - 1;
    const int rank = static_cast<int>(ptx::cluster_rank());
    HalfOfB::load_multicast(b + rank * HalfOfB::kBytes, map, column + rank * kColumns / 2, depth, full, kAll);
  }

  // To the blocks that bring its operands.
  ARGUS_DEVICE static void release(const Ring& ring, int step) {
    uint64_t* empty = ring.empty + step % kStages;
    const auto lane = static_cast<uint32_t>(lane_index());
    if (ring.cluster == 1) {
      if (lane == 0) ptx::mbarrier_arrive(empty);
    } else if (lane < kCluster) {
      ptx::mbarrier_arrive_cluster(empty, lane);
    }
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

  // The barriers, usable by all who count on them.
  ARGUS_DEVICE static void make_barriers(const Ring& ring) {
    if (threadIdx.x == 0) {
      for (int stage = 0; stage < kStages; ++stage) {
        ptx::mbarrier_init(ring.full + stage, 1);
        ptx::mbarrier_init(ring.empty + stage, static_cast<uint32_t>(kConsumerWarps * ring.cluster));
      }
      ptx::fence_mbarrier_init();
    }
    if (ring.cluster == 1) {
      __syncthreads();
    } else {
      ptx::cluster_arrive();
      ptx::cluster_wait();
    }
  }

  // What a kernel of kThreads threads runs, launched in clusters of shape.cluster blocks, 1 or 2. Of each
  // tile a warpgroup calls `policy.begin(tile)` with its first row and the first column, before the product,
  // and `policy.take(sums, tile)` with its sums after; both may lie past the end.
  template <class Policy>
  ARGUS_DEVICE static void run(const ptx::TensorMap& map_a, const ptx::TensorMap& map_b, const Shape& shape,
                               Policy& policy) {
    ARGUS_SHARED(uint64_t, full, [kStages]);
    ARGUS_SHARED(uint64_t, empty, [kStages]);
    ARGUS_DYNAMIC_SHARED(unsigned char, buffer);
    const Ring ring{full, empty, align_to_pattern(buffer), shape.cluster};
    make_barriers(ring);
    const int group = static_cast<int>(threadIdx.x) / 128;
    if (group == 0) {
      ptx::decrease_registers<kProducerRegisters>();
      if (threadIdx.x == 0) produce(ring, map_a, map_b, shape);
      return;
    }
    ptx::increase_registers<kConsumerRegisters>();
    const int half = group - 1;
    const bool turns = shape.turns();
    int step = 0;
    Walk walk(shape);
    if (turns && half == 1 && !walk.done()) ptx::named_barrier_arrive(kTurnBarrier, 2 * kHalfThreads);
    for (; !walk.done(); walk.next()) {
      Tile tile = walk.tile();
      tile.row += half * kRows / 2;
      policy.begin(tile);
      // It may have branched by lanes; named barriers and wgmma are for whole warps.
      __syncwarp();
      if (turns) ptx::named_barrier_sync(kTurnBarrier + half, 2 * kHalfThreads);
      float sums[kColumns / 2];
      multiply(ring, half, tile.steps, step, sums);
      // Every turn is waited for: after the last tile of the second half there is none.
      if (turns && (half == 0 || !walk.last()))
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
