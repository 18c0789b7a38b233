// HSTU's pointwise weights over tiles of scores.
//
//   forward    weights = s · σ(s) / divisor, s the scores
//   backward   d_scores = d_weights / divisor · σ(s)(1 + s(1 - σ(s)))
#pragma once

#include <cstdint>

#include "attention/cpu/problem.h"
#include "common/cpu/simd.h"
#include "common/cpu/vector_math.h"

namespace argus::hstu_attention {

using attention::Block;
using attention::KeyTile;
using attention::kQueries;

template <class A>
ARGUS_INLINE void weigh_body(A* scores, int64_t keys, int64_t columns, A factor, A share) {
  for (int64_t j = 0; j < keys; ++j) {
    A* line = scores + j * kQueries;
    for (int64_t c = 0; c < columns; ++c) {
      const A score = line[c] * factor;
      line[c] = score * sigmoid(score) * share;
    }
  }
}

template <class A>
ARGUS_INLINE void differentiate_body(A* scores, A* d_weights, int64_t keys, int64_t columns, A factor,
                                     A share) {
  for (int64_t j = 0; j < keys; ++j) {
    A* line = scores + j * kQueries;
    A* d_line = d_weights + j * kQueries;
    for (int64_t c = 0; c < columns; ++c) {
      const A score = line[c] * factor, gate = sigmoid(score);
      line[c] = score * gate * share;
      d_line[c] *= share * gate * fma(score, A{1} - gate, A{1});
    }
  }
}

template <class A>
class SiluRule {
 public:
  // Far below every score, and finite: its weight and its slope are exactly 0.
  static constexpr A kHidden = A{-1e30f};

  explicit SiluRule(double divisor) : share_(static_cast<A>(1.0 / divisor)) {
    for (A& factor : factors_) factor = A{1};
  }

  void begin() {}
  void weigh(A* scores, const Block& block, const KeyTile& tile, A factor) {
    ForEachIsa<&weigh_body<A>>::call(scores, tile.size(), block.columns, factor, share_);
  }
  void correct(A*, int64_t, int64_t) {}
  const A* factors() { return factors_; }
  A statistic(int64_t) const { return A{0}; }
  void see_nothing(int64_t) {}
  void begin_backward(const A*, const A*, int64_t) {}
  void see_nothing_backward(int64_t) {}
  void differentiate(A* scores, A* d_weights, const Block& block, const KeyTile& tile, A factor) {
    ForEachIsa<&differentiate_body<A>>::call(scores, d_weights, tile.size(), block.columns, factor, share_);
  }

 private:
  A share_;
  alignas(64) A factors_[kQueries];
};

}  // namespace argus::hstu_attention
