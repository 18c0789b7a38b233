// What the product loop's kernels of sampled softmax on sm_90 know of the rows and candidates of a
// warpgroup's half of a tile of scores, 64 × 256, in shared memory, and which of its scores may be left out.
#pragma once

#include "common/cuda/sm90/capability.cuh"
#include "common/cuda/sm90/product_loop.cuh"
#include "sampled_softmax_loss/tile_scores.cuh"

namespace argus::sampled_softmax_loss {

constexpr float kLog2E = 1.44269504f;
constexpr int kLoopColumns = static_cast<int>(CudaPlan::kLoopColumns);
template <class T>
using ScoreLoop = sm90::ProductLoop<T, ptx::Major::k, ptx::Major::k, kLoopColumns>;
constexpr int kLoopThreads = 128;  // of a warpgroup

// Which of the two halves the threads of a warpgroup compute. The producers, who ask too, have no use for it.
ARGUS_DEVICE int loop_half() {
  return static_cast<int>(threadIdx.x) / kLoopThreads == 2 ? 1 : 0;
}

struct LoopKeys {
  static constexpr int kRows = 64;
  // A piece is 8 rows × 64 candidates, 16 scores of each of a warp's threads.
  static constexpr int kPieceRows = 8, kPieceColumns = 64, kPieces = kLoopColumns / kPieceColumns;
  static constexpr int kPlaces = 2048;
  int64_t row_id[kRows], row_owner[kRows];
  float product[kRows], log_q[kLoopColumns];
  // A byte a place, a bit a group of kPieceRows rows: one of their ids or owners has this place.
  uint32_t places[kPlaces / 4];
  // A bit a piece, bit kRows / kPieceRows · p + g of the p-th 64 candidates and the g-th 8 rows: one of these
  // candidates is left out by one of these rows, or does not exist. Rows that do not exist have the id 0.
  uint32_t left_out;
  // A byte a group of rows and candidate, group by group: a bit a row that leaves it out.
  uint32_t rows_that_leave_out[kRows / kPieceRows * kLoopColumns / 4];
  static_assert(kPieces * kRows / kPieceRows == 32 && kRows / kPieceRows * kLoopColumns == kPlaces);

  // Of the warpgroup that holds the keys, whose lanes may have branched.
  ARGUS_DEVICE static void synchronize() {
    __syncwarp();
    ptx::named_barrier_sync(sm90::kPolicyBarrier + loop_half(), kLoopThreads);
  }
  // The remainder without a sign: loops that may begin below 0 would have a third turn in the code.
  ARGUS_DEVICE static int thread() { return static_cast<int>(threadIdx.x % kLoopThreads); }

  // Everything of a tile, for take() to read after a synchronize(). Comparing every pair costs more than its
  // exponential: each candidate is looked up among the rows once, and a bit a pair remains. Few pieces leave
  // anything out.
  template <class T>
  ARGUS_DEVICE void load(const Kernel<T>& k, int local, int column) {
    Candidate candidates[kTurns];
    // Nobody reads the keys of the tile before any more.
    synchronize();
    load_columns(k, column, candidates);
    load_rows(k, local);
#pragma unroll
    for (int i = thread(); i < kPlaces / 4; i += kLoopThreads) places[i] = rows_that_leave_out[i] = 0;
    if (thread() == 0) left_out = 0;
    synchronize();
    if (thread() < kRows) enter(thread());
    synchronize();
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int i = thread() + turn * kLoopThreads;
      const uint32_t groups =
          column + i < k.in.drawn ? groups_that_leave_out(i, candidates[turn]) : nothing_there(i);
      if (groups != 0) atomicOr(&left_out, groups << kRows / kPieceRows * (i / kPieceColumns));
    }
  }

  // Whether one of the 8 rows that begin at `first` leaves out a candidate of a piece.
  ARGUS_DEVICE bool any_left_out(int first, int piece) const {
    return (left_out >> (kRows / kPieceRows * piece + first / kPieceRows) & 1) != 0;
  }

 private:
  static constexpr int kTurns = kLoopColumns / kLoopThreads;
  struct Candidate {
    int64_t id, owner;
  };

  template <class T>
  ARGUS_DEVICE void load_columns(const Kernel<T>& k, int column, Candidate (&found)[kTurns]) {
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int i = thread() + turn * kLoopThreads;
      const int64_t candidate = int64_t{column} + i;
      const bool real = candidate < k.in.drawn;
      const int64_t owner = real && k.in.candidate_owner != nullptr ? k.in.candidate_owner[candidate] : -1;
      // Nobody's candidate matches no row: one comparison decides.
      found[turn] = {real ? k.in.candidate_ids[candidate] : 0, owner < 0 ? -2 : owner};
      log_q[i] = real ? k.log_q(candidate) : 0.0f;
    }
  }

  // Rows of the strip, from `local` on.
  template <class T>
  ARGUS_DEVICE void load_rows(const Kernel<T>& k, int local) {
    const int i = thread();
    if (i >= kRows) return;
    const bool real = local + i < k.strip_rows;
    const int64_t at = k.first_row + local + i;
    const int64_t owner = real && k.in.query_owner != nullptr ? k.in.query_owner[at] : -1;
    row_id[i] = real ? k.in.positive_ids[at] : 0;
    row_owner[i] = owner < 0 ? -1 : owner;
    product[i] = real ? k.work.product[at] : 0.0f;
  }

  // Of an id or of an owner: keys of any distribution, 11 bits of a multiplicative hash.
  ARGUS_DEVICE static uint32_t place(int64_t key) {
    const auto bits = static_cast<uint64_t>(key);
    return (static_cast<uint32_t>(bits) ^ static_cast<uint32_t>(bits >> 32) * 0x85ebca6bu) * 0x9e3779b1u >>
           21;
  }

  ARGUS_DEVICE void enter(int row) {
    enter(row_id[row], row / kPieceRows);
    if (row_owner[row] >= 0) enter(row_owner[row], row / kPieceRows);
  }
  ARGUS_DEVICE void enter(int64_t key, int group) {
    const uint32_t at = place(key);
    atomicOr(&places[at / 4], 1u << (at % 4 * 8 + static_cast<uint32_t>(group)));
  }

  ARGUS_DEVICE uint32_t groups_at(int64_t key) const {
    const uint32_t at = place(key);
    return places[at / 4] >> at % 4 * 8 & 0xff;
  }

  ARGUS_DEVICE void leave_out(int group, int column, uint32_t rows) {
    reinterpret_cast<uint8_t*>(rows_that_leave_out)[kLoopColumns * group + column] =
        static_cast<uint8_t>(rows);
  }

  // A bit a group of rows. Other keys have a candidate's places, too: the rows of such groups are compared.
  ARGUS_DEVICE uint32_t groups_that_leave_out(int column, const Candidate& candidate) {
    uint32_t maybe = groups_at(candidate.id), found = 0;
    if (candidate.owner >= 0) maybe |= groups_at(candidate.owner);
    for (; maybe != 0; maybe &= maybe - 1) {
      const int group = __ffs(static_cast<int>(maybe)) - 1;
      uint32_t rows = 0;
#pragma unroll
      for (int i = 0; i < kPieceRows; ++i) {
        const int row = kPieceRows * group + i;
        if ((row_id[row] == candidate.id) | (row_owner[row] == candidate.owner)) rows |= 1u << i;
      }
      if (rows == 0) continue;
      leave_out(group, column, rows);
      found |= 1u << group;
    }
    return found;
  }

  // The same of a candidate that does not exist.
  ARGUS_DEVICE uint32_t nothing_there(int column) {
#pragma unroll
    for (int group = 0; group < kRows / kPieceRows; ++group) leave_out(group, column, 0xff);
    return 0xff;
  }
};

// Of the backward pass also the rows' gradients.
struct LoopGradientKeys : LoopKeys {
  float whole[kRows], factor[kRows];

  template <class T>
  ARGUS_DEVICE void load_gradients(const Kernel<T>& k, int local) {
    const int i = thread();
    if (i >= kRows) return;
    const bool real = local + i < k.strip_rows;
    const int64_t at = k.first_row + local + i;
    whole[i] = real ? k.work.whole[at] : kInfinity;
    factor[i] = real ? k.scale() * k.work.row_scale[at] * k.work.amplify[0] : 0.0f;
  }
};

// One of the two rows whose sums a thread holds.
struct LoopRow {
  float product;
  uint32_t bit;             // of the row in its group
  const uint8_t* left_out;  // by the group, from the thread's first candidate on

  ARGUS_DEVICE static LoopRow of(const LoopKeys& keys, int half) {
    const int row = sm90::row_of_sum(2 * half), group = row / LoopKeys::kPieceRows;
    const auto* left_out = reinterpret_cast<const uint8_t*>(keys.rows_that_leave_out);
    return {keys.product[row], 1u << row % LoopKeys::kPieceRows,
            left_out + group * kLoopColumns + sm90::column_of_sum(0)};
  }
  // What keeps() asks about the candidates of the i-th sum and the next, of one row. The first is even.
  ARGUS_DEVICE uint32_t pair(int i) const { return *reinterpret_cast<const uint16_t*>(left_out + i / 4 * 8); }
  ARGUS_DEVICE bool keeps(uint32_t pair, int which) const { return (pair & bit << 8 * which) == 0; }
};

// A product on the loop. Clusters share their operands; one tile of rows would leave half of each idle.
template <class Loop>
typename Loop::Shape product_of(uint64_t rows, uint64_t columns, uint64_t depth, int64_t splits = 1) {
  const bool clusters = rows > Loop::kRows && sm90::may_use_clusters();
  return {static_cast<int>(rows), static_cast<int>(columns), static_cast<int>(depth),
          static_cast<int>(splits), clusters ? static_cast<int>(Loop::kCluster) : 1};
}

// The launch of a kernel on the loop: one block per multiprocessor, in whole clusters. Their number decides
// no result.
template <class Loop, class T>
LaunchShape loop_shape(const Kernel<T>& k, const typename Loop::Shape& shape) {
  const int64_t clusters = std::clamp(k.plan.slots / 2 / shape.cluster, int64_t{1}, int64_t{shape.tiles()});
  const auto cluster = static_cast<unsigned>(shape.cluster);
  return {dim3(static_cast<unsigned>(clusters) * cluster), dim3(Loop::kThreads), Loop::kShared, cluster};
}

}  // namespace argus::sampled_softmax_loss
