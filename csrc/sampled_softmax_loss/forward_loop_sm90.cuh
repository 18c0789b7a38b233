// The scores of sampled softmax's forward pass on the product loop of sm_90, of bfloat16 and half.
//
// A tile is 128 rows × 256 candidates. While its first stages arrive, the consumer threads bring the ids,
// owners and logs of its rows and candidates to shared memory; its sums stay in registers and become each
// row's peak, sum and number of candidates, which the four lanes of a row join. A tile's results are one
// chunk of its rows, which finish_loss_kernel adds in order: no order depends on the number of blocks.
#pragma once

#include "common/cuda/sm90/capability.cuh"
#include "common/cuda/sm90/product_loop.cuh"
#include "sampled_softmax_loss/forward_kernels.cuh"

namespace argus::sampled_softmax_loss {

constexpr float kLog2E = 1.44269504f;
constexpr int kLoopColumns = static_cast<int>(CudaPlan::kLoopColumns);
template <class T>
using ScoreLoop = sm90::ProductLoop<T, ptx::Major::k, ptx::Major::k, kLoopColumns>;

// Of a warpgroup's half of a tile.
struct LoopKeys {
  static constexpr int kRows = 64;
  int64_t row_id[kRows], row_owner[kRows];
  int64_t column_id[kLoopColumns], column_owner[kLoopColumns];
  float product[kRows], log_q[kLoopColumns];
};

template <class T>
struct LogSumExpOfTile {
  using Loop = ScoreLoop<T>;
  const Kernel<T>& k;
  LoopKeys& keys;

  ARGUS_DEVICE static int half() { return static_cast<int>(threadIdx.x) / Loop::kHalfThreads - 1; }
  ARGUS_DEVICE static void synchronize() {
    ptx::named_barrier_sync(Loop::kPolicyBarrier + half(), Loop::kHalfThreads);
  }

  ARGUS_DEVICE void begin(int row, int column) const {
    const int thread = static_cast<int>(threadIdx.x) % Loop::kHalfThreads;
    // Nobody reads the keys of the tile before any more.
    synchronize();
#pragma unroll
    for (int i = thread; i < kLoopColumns; i += Loop::kHalfThreads) {
      const int64_t candidate = int64_t{column} + i;
      const bool real = candidate < k.in.drawn;
      const int64_t owner = real && k.in.candidate_owner != nullptr ? k.in.candidate_owner[candidate] : -1;
      keys.column_id[i] = real ? k.in.candidate_ids[candidate] : 0;
      // Nobody's candidate matches no row: one comparison decides.
      keys.column_owner[i] = owner < 0 ? -2 : owner;
      keys.log_q[i] = real ? k.log_q(candidate) : 0.0f;
    }
    if (thread >= LoopKeys::kRows) return;
    const int64_t at = int64_t{row} + thread;
    const bool real = at < k.in.rows;
    const int64_t owner = real && k.in.query_owner != nullptr ? k.in.query_owner[at] : -1;
    keys.row_id[thread] = real ? k.in.positive_ids[at] : 0;
    keys.row_owner[thread] = owner < 0 ? -1 : owner;
    keys.product[thread] = real ? k.work.product[at] : 0.0f;
  }

  // The sums become the scores of both of the thread's rows, −∞ where a candidate is left out. A candidate's
  // keys are read once for both: held for a second pass they would spill.
  ARGUS_DEVICE void score(float (&sums)[kLoopColumns / 2], Online (&found)[2], int columns) const {
    const float scale = k.scale();
    int64_t id[2], owner[2];
    float product[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int own = sm90::row_of_sum(2 * half);
      id[half] = keys.row_id[own], owner[half] = keys.row_owner[own], product[half] = keys.product[own];
    }
#pragma unroll
    for (int i = 0; i < kLoopColumns / 2; i += i % 2 == 0 ? 1 : 3) {
      const int column = sm90::column_of_sum(i);
      const int64_t column_id = keys.column_id[column], column_owner = keys.column_owner[column];
      const float log_q = keys.log_q[column];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float& sum = sums[i + 2 * half];
        const bool here = column < columns && column_id != id[half] && column_owner != owner[half];
        const float relative = fmaf(scale, sum - product[half], -log_q);
        sum = here ? relative : -kInfinity;
        found[half].peak = fmaxf(found[half].peak, sum);
        found[half].kept += here ? 1 : 0;
      }
    }
  }

  ARGUS_DEVICE void take(float (&sums)[kLoopColumns / 2], int row, int column) const {
    synchronize();
    Online found[2] = {{-kInfinity, 0.0f, 0}, {-kInfinity, 0.0f, 0}};
    score(sums, found, static_cast<int>(min(k.in.drawn - column, int64_t{kLoopColumns})));
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float shift = shift_of(found[half].peak);
#pragma unroll
      for (int i = 2 * half; i < kLoopColumns / 2; i += i % 2 == 0 ? 1 : 3)
        found[half].total += ptx::exp2_approx((sums[i] - shift) * kLog2E);
      join_row(found[half]);
      const int own = sm90::row_of_sum(2 * half);
      if (lane_index() % 4 == 0 && row + own < k.in.rows) {
        const int64_t at = column / kLoopColumns * k.in.rows + row + own;
        k.work.peak[at] = found[half].peak;
        k.work.total[at] = found[half].total;
        k.work.kept[at] = found[half].kept;
      }
    }
  }
};

template <class T>
__global__ void __launch_bounds__(ScoreLoop<T>::kThreads, 1)
    loop_log_sum_exp_kernel(const __grid_constant__ ptx::TensorMap queries,
                            const __grid_constant__ ptx::TensorMap candidates,
                            const __grid_constant__ Kernel<T> k) {
#if defined(ARGUS_SM90A_CODE)
  ARGUS_SHARED(LoopKeys, keys, [2]);
  // The producer has no use for them.
  LogSumExpOfTile<T> policy{k, keys[LogSumExpOfTile<T>::half() == 1]};
  const typename ScoreLoop<T>::Shape shape{static_cast<int>(k.in.rows), static_cast<int>(k.in.drawn),
                                           static_cast<int>(k.in.width)};
  ScoreLoop<T>::run(queries, candidates, shape, policy);
#endif
}

// One block per multiprocessor; its number decides no result.
template <class T>
void launch_score_loop(const char* op, const Kernel<T>& k, void* stream) {
  using Loop = ScoreLoop<T>;
  const auto rows = static_cast<uint64_t>(k.in.rows), width = static_cast<uint64_t>(k.in.width);
  const auto drawn = static_cast<uint64_t>(k.in.drawn);
  const auto queries = Loop::TileA::map(k.query(), rows, width, width);
  const auto candidates = Loop::TileB::map(k.candidates().data, drawn, width, width);
  const int64_t tiles = (k.in.rows + Loop::kRows - 1) / Loop::kRows * k.plan.forward_chunks;
  const LaunchShape shape{dim3(static_cast<unsigned>(std::clamp(k.plan.slots / 2, int64_t{1}, tiles))),
                          dim3(Loop::kThreads), Loop::kShared};
  launch(op, loop_log_sum_exp_kernel<T>, shape, stream, queries, candidates, k);
}

}  // namespace argus::sampled_softmax_loss
