// Softmax over tiles of scores (keys × queries): each query's statistics are in its lane.
//
//   forward    largest = max(largest, scores), weights = e^(scores - largest), total += weights;
//              what was summed before is multiplied with e^(largest before - largest now)
//   backward   weights = e^(scores - log_sum_exp), d_scores = weights · (d_weights - delta)
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "attention/cpu/problem.h"
#include "common/cpu/simd.h"
#include "common/cpu/vector_math.h"

namespace argus::causal_attention {

using attention::Block;
using attention::KeyTile;
using attention::kQueries;

// Columns that both loops over a tile's keys keep in registers.
constexpr int64_t kStrip = 2 * kLanes;

// most[c] = the largest of the strip's scores, factor included; NaN is ignored.
template <class A>
ARGUS_INLINE void largest_scores(A* most, const A* strip, int64_t keys, A factor) {
  for (int64_t c = 0; c < kStrip; ++c) most[c] = -std::numeric_limits<A>::infinity();
  // Rounding is monotonic: the largest product is the product of the largest.
  if (factor > A{0}) {
    for (int64_t j = 0; j < keys; ++j) {
      for (int64_t c = 0; c < kStrip; ++c) {
        const A score = strip[j * kQueries + c];
        most[c] = score > most[c] ? score : most[c];
      }
    }
    for (int64_t c = 0; c < kStrip; ++c) most[c] *= factor;
  } else {
    for (int64_t j = 0; j < keys; ++j) {
      for (int64_t c = 0; c < kStrip; ++c) {
        const A score = strip[j * kQueries + c] * factor;
        most[c] = score > most[c] ? score : most[c];
      }
    }
  }
}

// The tile's weights are summed before they are added to the total: one float32 sum over 8,192 keys errs 2.1
// times as much as the error rule allows.
template <class A>
ARGUS_INLINE void weigh_body(A* scores, A* largest, A* total, A* correction, int64_t keys, int64_t columns,
                             A factor) {
  constexpr A kNothing = -std::numeric_limits<A>::infinity();
  for (int64_t first = 0; first < columns; first += kStrip) {
    A* strip = scores + first;
    A most[kStrip], base[kStrip], sum[kStrip];
    largest_scores(most, strip, keys, factor);
    for (int64_t c = 0; c < kStrip; ++c) {
      const A before = largest[first + c];
      const A now = most[c] > before ? most[c] : before;
      largest[first + c] = now;
      // Scores that are all −∞ so far have weight 0; −∞ − −∞ would be NaN.
      base[c] = now == kNothing ? A{0} : now;
      correction[first + c] = fast_exp(before - base[c]);
      total[first + c] *= correction[first + c];
      sum[c] = A{0};
    }
    for (int64_t j = 0; j < keys; ++j) {
      A* line = strip + j * kQueries;
      for (int64_t c = 0; c < kStrip; ++c) {
        const A weight = exp_up_to_one(fma(line[c], factor, -base[c]));
        line[c] = weight;
        sum[c] += weight;
      }
    }
    for (int64_t c = 0; c < kStrip; ++c) total[first + c] += sum[c];
  }
}

template <class A>
ARGUS_INLINE void correct_body(A* sums, const A* correction, int64_t width, int64_t columns) {
  for (int64_t d = 0; d < width; ++d) {
    for (int64_t c = 0; c < columns; ++c) sums[d * kQueries + c] *= correction[c];
  }
}

template <class A>
ARGUS_INLINE void differentiate_body(A* scores, A* d_weights, const A* log_sum_exp, const A* delta,
                                     int64_t keys, int64_t columns, A factor) {
  for (int64_t j = 0; j < keys; ++j) {
    A* line = scores + j * kQueries;
    A* d_line = d_weights + j * kQueries;
    for (int64_t c = 0; c < columns; ++c) {
      line[c] = fast_exp(fma(line[c], factor, -log_sum_exp[c]));
      d_line[c] = line[c] * (d_line[c] - delta[c]);
    }
  }
}

template <class A>
class SoftmaxRule {
 public:
  static constexpr A kHidden = -std::numeric_limits<A>::infinity();

  void begin() {
    for (int64_t c = 0; c < kQueries; ++c) {
      largest_[c] = -std::numeric_limits<A>::infinity();
      total_[c] = A{0};
    }
  }

  void weigh(A* scores, const Block& block, const KeyTile& tile, A factor) {
    ForEachIsa<&weigh_body<A>>::call(scores, static_cast<A*>(largest_), static_cast<A*>(total_),
                                     static_cast<A*>(correction_), tile.size(), block.columns, factor);
  }

  // Rescales the sums over earlier tiles to the current largest score.
  void correct(A* sums, int64_t width, int64_t columns) {
    bool needed = false;
    for (int64_t c = 0; c < columns; ++c) needed |= correction_[c] != A{1};
    if (!needed) return;
    ForEachIsa<&correct_body<A>>::call(sums, static_cast<const A*>(correction_), width, columns);
  }

  // The factor that the sums are multiplied by at the end.
  const A* factors() {
    for (int64_t c = 0; c < kQueries; ++c) correction_[c] = A{1} / total_[c];
    return correction_;
  }

  // NaN, like the output, if all scores are −∞; −∞ if the query sees nothing.
  A statistic(int64_t c) const {
    if (total_[c] == std::numeric_limits<A>::infinity() && largest_[c] == kHidden) return kHidden;
    return total_[c] == A{0} ? std::numeric_limits<A>::quiet_NaN() : largest_[c] + std::log(total_[c]);
  }

  // Its output is 0, whatever hidden keys have added to its sums but NaN.
  void see_nothing(int64_t c) {
    total_[c] = std::numeric_limits<A>::infinity();
    largest_[c] = -std::numeric_limits<A>::infinity();
  }

  // It gives no gradient.
  void see_nothing_backward(int64_t c) {
    largest_[c] = std::numeric_limits<A>::infinity();
    total_[c] = A{0};
  }

  // Columns past `count` get weights of 0.
  void begin_backward(const A* log_sum_exp, const A* delta, int64_t count) {
    for (int64_t c = 0; c < kQueries; ++c) {
      largest_[c] = c < count ? log_sum_exp[c] : std::numeric_limits<A>::infinity();
      total_[c] = c < count ? delta[c] : A{0};
    }
  }

  void differentiate(A* scores, A* d_weights, const Block& block, const KeyTile& tile, A factor) {
    ForEachIsa<&differentiate_body<A>>::call(scores, d_weights, static_cast<const A*>(largest_),
                                             static_cast<const A*>(total_), tile.size(), block.columns,
                                             factor);
  }

 private:
  alignas(64) A largest_[kQueries];  // log_sum_exp in the backward pass
  alignas(64) A total_[kQueries];    // delta in the backward pass
  alignas(64) A correction_[kQueries];
};

}  // namespace argus::causal_attention
