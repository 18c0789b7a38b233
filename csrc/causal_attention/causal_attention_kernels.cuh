// The softmax policy of attention over histories. Scores are in units of ln 2, because the hardware's
// exponential is 2^x. The forward pass keeps a row's largest score so far and the running sum of its weights,
// and scales down earlier sums whenever the largest score grows.
#pragma once

#include "attention/cuda/backward.cuh"
#include "attention/cuda/forward.cuh"

namespace argus::causal_attention {

struct Softmax {
  static constexpr float kFactor = 1.4426950408889634f;  // 1 / ln 2
  static constexpr float kHidden = -INFINITY;
  static constexpr bool kNormalised = true;

  ARGUS_DEVICE explicit Softmax(const attention::Arguments&) {}

  // A row's running maximum and a lane's share of its sum; the four lanes of a row hold the rest.
  template <class T, int kRowTiles>
  struct Sums {
    float largest[kRowTiles][2], total[kRowTiles][2];

    ARGUS_DEVICE Sums() {
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
        for (int half = 0; half < 2; ++half) largest[r][half] = -INFINITY, total[r][half] = 0.0f;
    }
  };

  // A scale of 1, which costs no instruction.
  struct One {};

  template <class T>
  static ARGUS_DEVICE float exponential(float x, T) {
    return ptx::exp2_approx(x);
  }
  static ARGUS_DEVICE float exponential(float x, float) { return exp2f(x); }

  static ARGUS_DEVICE float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, 1));
    return fmaxf(x, __shfl_xor_sync(kFullWarp, x, 2));
  }
  static ARGUS_DEVICE float row_sum(float x) {
    x += __shfl_xor_sync(kFullWarp, x, 1);
    return x + __shfl_xor_sync(kFullWarp, x, 2);
  }

  static ARGUS_DEVICE float relative(float score, float base, One) { return score - base; }
  static ARGUS_DEVICE float relative(float score, float base, float scale) {
    return fmaf(score, scale, -base);
  }
  static ARGUS_DEVICE float scaled(float score, One) { return score; }
  static ARGUS_DEVICE float scaled(float score, float scale) { return score * scale; }

  // Turns a row's scores, times `scale` > 0, into weights relative to its largest score so far. Earlier sums
  // must be multiplied by what it returns.
  template <class T, int kRowTiles, int kTiles, class Scale>
  static ARGUS_DEVICE float weigh_row(float (&scores)[kRowTiles][kTiles][4], Sums<T, kRowTiles>& sums, int r,
                                      int half, Scale by) {
    float largest = -INFINITY;
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
      largest = fmaxf(largest, fmaxf(scores[r][n][2 * half], scores[r][n][2 * half + 1]));
    largest = row_max(fmaxf(sums.largest[r][half], scaled(largest, by)));
    // A row that has seen no key yet.
    const float base = largest == -INFINITY ? 0.0f : largest;
    const float scale = exponential(sums.largest[r][half] - base, T{});
    float total = sums.total[r][half] * scale;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        scores[r][n][i] = exponential(relative(scores[r][n][i], base, by), T{});
        total += scores[r][n][i];
      }
    }
    sums.largest[r][half] = largest;
    sums.total[r][half] = total;
    return scale;
  }

  // A row of `out` times what weigh_row returned.
  template <int kRowTiles, int kOut>
  static ARGUS_DEVICE void rescale_row(float (&out)[kRowTiles][kOut][4], float scale, int r, int half) {
#pragma unroll
    for (int n = 0; n < kOut; ++n) {
      out[r][n][2 * half] *= scale;
      out[r][n][2 * half + 1] *= scale;
    }
  }

  // Turns scores into weights and scales `out` to them.
  template <class T, int kRowTiles, int kTiles, int kOut>
  ARGUS_DEVICE void weigh(float (&scores)[kRowTiles][kTiles][4], Sums<T, kRowTiles>& sums,
                          float (&out)[kRowTiles][kOut][4]) const {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int half = 0; half < 2; ++half) rescale_row(out, weigh_row(scores, sums, r, half, One{}), r, half);
    }
  }

  // The factor of a row's weighted sum of values. A row whose scores are all −∞ becomes NaN.
  static ARGUS_DEVICE float factor(float total) { return 1.0f / total; }

  // The same for a row of `out`; it also reduces the row's total.
  template <class T, int kRowTiles>
  ARGUS_DEVICE float finish(Sums<T, kRowTiles>& sums, int r, int half) const {
    const float total = row_sum(sums.total[r][half]);
    sums.total[r][half] = total;
    return factor(total);
  }

  template <class T, int kRowTiles>
  ARGUS_DEVICE float log_sum_exp(const Sums<T, kRowTiles>& sums, int r, int half) const {
    constexpr float kLn2 = 0.6931471805599453f;
    return sums.largest[r][half] * kLn2 + logf(sums.total[r][half]);
  }

  template <class T>
  static ARGUS_DEVICE float weight(float score, const attention::RowStatistics& row, T) {
    return exponential(fmaf(row.log_sum_exp, -kFactor, score), T{});
  }

  // For loops that get the gradients of weights after the weights: the weight of a score, times `by`, from
  // −log_sum_exp / ln 2; the score becomes what gradient_of() takes.
  template <class T>
  static ARGUS_DEVICE float weight_of(float& score, float shift, float by, T) {
    return score = exponential(fmaf(score, by, shift), T{});
  }
  template <class T>
  static ARGUS_DEVICE float weight_of(float& score, float shift, T) {
    return score = exponential(score + shift, T{});
  }
  static ARGUS_DEVICE float gradient_of(float weight, float gradient, float delta) {
    return weight * (gradient - delta);
  }
  // Of all gradients that follow from these.
  ARGUS_DEVICE float gradient_factor() const { return 1.0f; }

  // The weight of a score and, from that of the weight, the gradient of the score.
  template <class T>
  ARGUS_DEVICE void differentiate(float& score, float& gradient, const attention::RowStatistics& row,
                                  T) const {
    float weight = Softmax::weight(score, row, T{});
    if constexpr (sizeof(T) == 4) weight *= row.correction;
    score = weight;
    gradient = weight * (gradient - row.delta);
  }
  // The same before what gradient_factor() is left with: nothing.
  template <class T>
  ARGUS_DEVICE void differentiate_undivided(float& score, float& gradient,
                                            const attention::RowStatistics& row, T) const {
    differentiate(score, gradient, row, T{});
  }
};

}  // namespace argus::causal_attention
