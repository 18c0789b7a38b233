// A tile of scores that stays in memory between the forward and the backward pass: the forward pass stores
// the exponentials e^{r − shift}, `shift` being the row's running peak; the backward pass scales them to
// shares e^{r − Z}.
#pragma once

#include <cstdint>

#include "common/cpu/vector_math.h"
#include "sampled_softmax_loss/score_tile.h"

namespace argus::sampled_softmax_loss {

// Sums of a row over its candidates so far, relative to e^peak.
template <class A>
struct RunningSums {
  A* peak;
  A* total;   // Σ e^{r − peak}
  A* moment;  // Σ e^{r − peak} · (⟨query, candidate⟩ − ⟨query, positive⟩)
};

// Scores to exponentials, added to the sums; shift[i · shift_stride] receives the shift of row i.
template <class A>
ARGUS_INLINE void store_exponentials_body(ScoreTile<A> tile, RunningSums<A> sums, A* shift,
                                          int64_t shift_stride) {
  constexpr A kLowest = std::numeric_limits<A>::lowest();
  const int64_t end = round_up(tile.columns, kLanes);
  for (int64_t i = 0; i < tile.rows; ++i) {
    A* row = tile.scores + i * kBlock;
    const A origin = tile.positive_product[i];
    close_row(row, tile.columns, end);
    A relative[kBlock], lanes[kLanes];
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] = sums.peak[i];
    for (int64_t c = 0; c < end; c += kLanes) {
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const A product = row[c + lane] - origin;
        const A score = fma(tile.scale, product, -tile.log_q[c + lane]);
        relative[c + lane] = score;
        // A product of −∞ has a share of 0 and adds nothing to the moment.
        row[c + lane] = product < kLowest ? kLowest : product;
        lanes[lane] = score > lanes[lane] ? score : lanes[lane];
      }
    }
    const A highest = lane_max(lanes, kLanes, sums.peak[i]);
    const A from = shift_of(highest);
    A totals[kLanes] = {}, moments[kLanes] = {};
    for (int64_t c = 0; c < end; c += kLanes) {
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const A exponential = fast_exp(relative[c + lane] - from);
        totals[lane] += exponential;
        moments[lane] = fma(exponential, row[c + lane], moments[lane]);
        row[c + lane] = exponential;
      }
    }
    const A earlier = fast_exp(sums.peak[i] - from);
    sums.total[i] = sums.total[i] * earlier + lane_sum(totals, kLanes);
    sums.moment[i] = sums.moment[i] * earlier + lane_sum(moments, kLanes);
    sums.peak[i] = highest;
    shift[i * shift_stride] = from;
  }
}

// Exponentials to the gradients of their scores, in the layout of `share_gradients_body`; moments come from
// RunningSums instead.
template <class P, class A>
ARGUS_INLINE void scale_exponentials_body(ScoreTile<A> tile, RowShares<A> rows, const A* shift,
                                          int64_t shift_stride, P* d_scores) {
  const int64_t end = round_up(tile.columns, int64_t{32});
  for (int64_t i = 0; i < tile.rows; ++i) {
    A* row = tile.scores + i * kBlock;
    const A to_share = fast_exp(shift[i * shift_stride] - rows.whole[i]), factor = rows.factor[i];
    for (int64_t c = tile.columns; c < end; ++c) row[c] = A{0};
    for (int64_t c = 0; c < end; ++c) row[c] *= to_share;
    rows.share[i] += lane_sum(row, end);
    for (int64_t c = 0; c < end; ++c) row[c] *= factor;
    store_rounded(d_scores + i * kBlock, row, end);
    rows.d_score[i] += lane_sum(row, end);
  }
}

}  // namespace argus::sampled_softmax_loss
