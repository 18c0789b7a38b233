// The scores of sampled softmax's forward pass on the product loop of sm_90, of bfloat16 and half.
//
// A tile is 128 rows × 256 candidates, 64 rows a warpgroup. Before its product a warpgroup brings the logs of
// its candidates to shared memory and finds out which rows leave them out; the sums stay in registers and
// become each row's peak, sum and number of candidates, which the four lanes of a row join. A tile's results
// are one chunk of its rows, which finish_loss_kernel adds in order: no order depends on the number of
// blocks.
#pragma once

#include "sampled_softmax_loss/forward_kernels.cuh"
#include "sampled_softmax_loss/loop_keys_sm90.cuh"

namespace argus::sampled_softmax_loss {

template <class T>
struct LogSumExpOfTile {
  using Tile = typename ScoreLoop<T>::Tile;
  const Kernel<T>& k;
  LoopKeys& keys;

  ARGUS_DEVICE void begin(const Tile& tile) const { keys.load(k, tile.row, tile.column); }

  // The sums of a piece become the scores of both of the thread's rows, −∞ where a candidate is left out, if
  // any may be.
  template <int kPiece, bool kSomeLeftOut>
  ARGUS_DEVICE void score(float (&sums)[kLoopColumns / 2], Online (&found)[2], const LoopRow (&rows)[2],
                          float scale) const {
    constexpr int kSums = 2 * LoopKeys::kPieceColumns / 4;
#pragma unroll
    for (int i = kPiece * kSums; i < (kPiece + 1) * kSums; i += i % 2 == 0 ? 1 : 3) {
      const float log_q = keys.log_q[sm90::column_of_sum(i)];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float& sum = sums[i + 2 * half];
        const bool here = !kSomeLeftOut || rows[half].keeps(rows[half].pair(i), i % 2);
        const float relative = fmaf(scale, sum - rows[half].product, -log_q);
        sum = here ? relative : -kInfinity;
        found[half].kept += here ? 1 : 0;
        found[half].peak = fmaxf(found[half].peak, sum);
      }
    }
  }

  template <int kPiece>
  ARGUS_DEVICE void score_pieces(float (&sums)[kLoopColumns / 2], Online (&found)[2],
                                 const LoopRow (&rows)[2], float scale) const {
    if (keys.any_left_out(sm90::row_of_sum(0), kPiece) || keys.any_left_out(sm90::row_of_sum(2), kPiece)) {
      score<kPiece, true>(sums, found, rows, scale);
    } else {
      score<kPiece, false>(sums, found, rows, scale);
    }
    if constexpr (kPiece + 1 < LoopKeys::kPieces) score_pieces<kPiece + 1>(sums, found, rows, scale);
  }

  ARGUS_DEVICE void take(float (&sums)[kLoopColumns / 2], const Tile& tile) const {
    LoopKeys::synchronize();
    Online found[2] = {{-kInfinity, 0.0f, 0}, {-kInfinity, 0.0f, 0}};
    const LoopRow rows[2] = {LoopRow::of(keys, 0), LoopRow::of(keys, 1)};
    score_pieces<0>(sums, found, rows, k.scale());
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float shift = shift_of(found[half].peak);
#pragma unroll
      for (int i = 2 * half; i < kLoopColumns / 2; i += i % 2 == 0 ? 1 : 3)
        found[half].total += ptx::exp2_approx((sums[i] - shift) * kLog2E);
      join_row(found[half]);
      const int own = sm90::row_of_sum(2 * half);
      if (lane_index() % 4 == 0 && tile.row + own < k.in.rows) {
        const int64_t at = tile.column / kLoopColumns * k.in.rows + tile.row + own;
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
                            const __grid_constant__ Kernel<T> k,
                            const __grid_constant__ typename ScoreLoop<T>::Shape shape) {
#if defined(ARGUS_SM90A_CODE)
  ARGUS_SHARED(LoopKeys, keys, [2]);
  LogSumExpOfTile<T> policy{k, keys[loop_half()]};
  ScoreLoop<T>::run(queries, candidates, shape, policy);
#endif
}

template <class T>
void launch_score_loop(const char* op, const Kernel<T>& k, void* stream) {
  using Loop = ScoreLoop<T>;
  const auto rows = static_cast<uint64_t>(k.in.rows), drawn = static_cast<uint64_t>(k.in.drawn);
  const auto width = static_cast<uint64_t>(k.in.width);
  const auto shape = product_of<Loop>(rows, drawn, width);
  const auto queries = Loop::TileA::map(k.query(), rows, width, width);
  const auto candidates = Loop::map_b(k.candidates().data, shape, width);
  launch(op, loop_log_sum_exp_kernel<T>, loop_shape<Loop>(k, shape), stream, queries, candidates, k, shape);
}

}  // namespace argus::sampled_softmax_loss
