// A tile of scores, kTileRows rows by kBlock candidates, and the elementwise work on it between two matrix
// products. Rows are summed in 16 lanes that are combined in a fixed order, so the bits do not depend on the
// instruction set.
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

#include "common/cpu/element.h"
#include "common/cpu/vector_math.h"
#include "sampled_softmax_loss/workspace.h"

namespace argus::sampled_softmax_loss {

constexpr int64_t kTileRows = 96;
constexpr int64_t kBlock = 512;
static_assert(kBlock % 32 == 0 && kBlock % kLanes == 0);

template <class A>
constexpr A kMinusInfinity = -std::numeric_limits<A>::infinity();

template <class A>
struct ScoreTile {
  A* scores;  // ⟨query, candidate⟩, rows kBlock apart; −∞ where left out
  int64_t rows;
  int64_t columns;
  const A* positive_product;  // of the rows
  const A* log_q;             // of the candidates, readable to a whole number of vectors
  A scale;
};

// Past the last candidate: −∞ to the end of the vector.
template <class A>
ARGUS_INLINE void close_row(A* row, int64_t columns, int64_t end) {
  for (int64_t c = columns; c < end; ++c) row[c] = kMinusInfinity<A>;
}

// The shift of a log-sum-exp's terms: its peak, or 0 if the peak is infinite, since ∞ − ∞ is NaN. Then a
// score of +∞ gives an infinite sum, and scores that are all −∞ give a sum of 0.
template <class A>
ARGUS_INLINE A shift_of(A peak) {
  constexpr A kMax = std::numeric_limits<A>::max();
  return peak >= -kMax && peak <= kMax ? peak : A{0};
}

// Adds the tile's candidates to each row's log-sum-exp, kept as a peak and a sum relative to it.
template <class A>
ARGUS_INLINE void add_to_log_sum_exp_body(ScoreTile<A> tile, A* peak, A* total) {
  const int64_t end = round_up(tile.columns, kLanes);
  for (int64_t i = 0; i < tile.rows; ++i) {
    A* row = tile.scores + i * kBlock;
    const A origin = tile.positive_product[i];
    close_row(row, tile.columns, end);
    A lanes[kLanes];
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] = peak[i];
    for (int64_t c = 0; c < end; c += kLanes) {
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const A relative = fma(tile.scale, row[c + lane] - origin, -tile.log_q[c + lane]);
        row[c + lane] = relative;
        lanes[lane] = relative > lanes[lane] ? relative : lanes[lane];
      }
    }
    const A highest = lane_max(lanes, kLanes, peak[i]);
    const A shift = shift_of(highest);
    A sums[kLanes] = {};
    for (int64_t c = 0; c < end; c += kLanes) {
      for (int64_t lane = 0; lane < kLanes; ++lane) sums[lane] += fast_exp(row[c + lane] - shift);
    }
    total[i] = total[i] * fast_exp(peak[i] - shift) + lane_sum(sums, kLanes);
    peak[i] = highest;
  }
}

// The inputs of the backward pass per row, and its sums over the candidates.
template <class A>
struct RowShares {
  const A* whole;   // log of the shares' denominator; +∞ if no candidate remains
  const A* factor;  // gradient of a score = factor · share
  A* share;         // Σ share
  A* moment;        // Σ share · (⟨query, candidate⟩ − ⟨query, positive⟩)
  A* d_score;       // Σ factor · share, rounded as in the products
};

// to[c] = values[c] rounded to the operand type of the products; leaves the rounded values in `values`.
template <class P, class A>
ARGUS_INLINE void store_rounded(P* to, A* values, int64_t count) {
  for (int64_t c = 0; c < count; ++c) store(to[c], values[c]);
  if constexpr (!std::is_same_v<P, A>) {
    for (int64_t c = 0; c < count; ++c) values[c] = static_cast<A>(load(to[c]));
  }
}

// The gradients of the tile's scores, as the left operand of a product: rows kBlock apart, zero past the last
// candidate up to a multiple of 32.
template <class P, class A>
ARGUS_INLINE void share_gradients_body(ScoreTile<A> tile, RowShares<A> rows, P* d_scores) {
  const int64_t end = round_up(tile.columns, int64_t{32});
  for (int64_t i = 0; i < tile.rows; ++i) {
    A* row = tile.scores + i * kBlock;
    P* out = d_scores + i * kBlock;
    const A origin = tile.positive_product[i], whole = rows.whole[i], factor = rows.factor[i];
    close_row(row, tile.columns, end);
    A share[kBlock];
    for (int64_t c = 0; c < end; ++c) {
      const A product = row[c] - origin;
      share[c] = fast_exp(fma(tile.scale, product, -tile.log_q[c]) - whole);
      // A product of −∞ has a share of 0 and adds nothing to the moment.
      row[c] = product < std::numeric_limits<A>::lowest() ? std::numeric_limits<A>::lowest() : product;
    }
    rows.share[i] += lane_sum(share, end);
    for (int64_t c = 0; c < end; ++c) row[c] *= share[c];
    rows.moment[i] += lane_sum(row, end);
    for (int64_t c = 0; c < end; ++c) share[c] *= factor;
    store_rounded(out, share, end);
    rows.d_score[i] += lane_sum(share, end);
  }
}

}  // namespace argus::sampled_softmax_loss
