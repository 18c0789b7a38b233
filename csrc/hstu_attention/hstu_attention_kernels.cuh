// The SiLU policy of attention over histories: the weight of a pair is SiLU(score) / divisor, independent of
// other pairs.
#pragma once

#include "attention/cuda/backward.cuh"
#include "attention/cuda/forward.cuh"

namespace argus::hstu_attention {

struct Silu {
  static constexpr float kFactor = 1.0f;
  // Its SiLU is 0, and so is its slope.
  static constexpr float kHidden = -1e30f;
  static constexpr bool kNormalised = false;

  float inverse;  // of the divisor

  ARGUS_DEVICE explicit Silu(const attention::Arguments& given)
      : inverse(1.0f / static_cast<float>(given.divisor)) {}

  // SiLU keeps no running state.
  template <class T, int kRowTiles>
  struct Sums {};

  // One instruction of the hardware, exact to 2⁻¹¹: a quarter of bfloat16's own rounding.
  static ARGUS_DEVICE float sigmoid(float x, __nv_bfloat16) {
    return fmaf(ptx::tanh_approx(0.5f * x), 0.5f, 0.5f);
  }
  static ARGUS_DEVICE float sigmoid(float x, __half) { return __fdividef(1.0f, 1.0f + __expf(-x)); }
  static ARGUS_DEVICE float sigmoid(float x, float) { return 1.0f / (1.0f + expf(-x)); }

  template <class T, int kRowTiles, int kTiles, int kOut>
  ARGUS_DEVICE void weigh(float (&scores)[kRowTiles][kTiles][4], Sums<T, kRowTiles>&,
                          float (&)[kRowTiles][kOut][4]) const {
    attention::for_each(
        scores, [](float& score, int, int, int) { score = weight(score, attention::RowStatistics{}, T{}); });
  }

  // The factor of a row's weighted sum of values.
  ARGUS_DEVICE float factor(float) const { return inverse; }
  template <class T, int kRowTiles>
  ARGUS_DEVICE float finish(Sums<T, kRowTiles>&, int, int) const {
    return inverse;
  }

  // Before the division by the divisor.
  template <class T>
  static ARGUS_DEVICE float weight(float score, const attention::RowStatistics&, T) {
    return score * sigmoid(score, T{});
  }

  // For loops that get the gradients of weights after the weights: the weight of a score, before the
  // division; the score becomes what gradient_of() takes, the slope.
  template <class T>
  static ARGUS_DEVICE float weight_of(float& score, float, T) {
    const float share = sigmoid(score, T{}), weight = score * share;
    score = share * fmaf(score, 1.0f - share, 1.0f);
    return weight;
  }
  static ARGUS_DEVICE float gradient_of(float slope, float gradient, float) { return slope * gradient; }
  // Of all gradients that follow from these.
  ARGUS_DEVICE float gradient_factor() const { return inverse; }

  // The weight of a score and, from that of the weight, the gradient of the score.
  template <class T>
  ARGUS_DEVICE void differentiate(float& score, float& gradient, const attention::RowStatistics&, T) const {
    const float share = sigmoid(score, T{});
    gradient *= inverse * share * fmaf(score, 1.0f - share, 1.0f);
    score *= share * inverse;
  }

  // The same before the division, which is left to gradient_factor().
  template <class T>
  static ARGUS_DEVICE void differentiate_undivided(float& score, float& gradient,
                                                   const attention::RowStatistics&, T) {
    const float share = sigmoid(score, T{});
    gradient *= share * fmaf(score, 1.0f - share, 1.0f);
    score *= share;
  }
};

}  // namespace argus::hstu_attention
