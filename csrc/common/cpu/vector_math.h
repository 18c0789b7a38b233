// Elementwise mathematics of the CPU kernels, without branches or calls, so that plain loops over it are
// vectorised at every level of ForEachIsa; the bits are the same at each level.
//
// The comment of each float function states its largest error over the whole range, which
// tests/csrc/native/test_vector_math.py checks. double functions are the C library's: they serve gradient
// checks, not speed.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "common/cpu/simd.h"

namespace argus {

// One rounding at every level; the portable level calls the C library for it, slowly, to the same bits.
ARGUS_INLINE float fma(float a, float b, float c) {
  return __builtin_fmaf(a, b, c);
}
ARGUS_INLINE double fma(double a, double b, double c) {
  return __builtin_fma(a, b, c);
}

// e^(x - power · ln 2), for the integer nearest to x / ln 2 as `power`.
ARGUS_INLINE float exp_fraction(float x, float power) {
  // ln 2 in two parts, the first short enough that its product with `power` is exact.
  const float r = fma(power, -1.42860682e-6f, fma(power, -0.693145752f, x));
  float q = 0.0013814599f;
  q = fma(q, r, 0.008368717f);
  q = fma(q, r, 0.04166839f);
  q = fma(q, r, 0.16666521f);
  q = fma(q, r, 0.49999994f);
  return fma(q, r * r, r) + 1.0f;
}

// e^x within 2 units in the last place; 0 below -86.6 (where it is under 2.5e-38), infinity above 88.72, NaN
// for NaN.
ARGUS_INLINE float fast_exp(float x) {
  constexpr float kLargest = 88.722839f, kSmallest = -86.6f;
  constexpr float kToInteger =
      12582912.0f;  // 1.5 · 2²³: adding it leaves the nearest integer in the low bits
  const float inside = x > kLargest ? kLargest : (x < kSmallest ? kSmallest : x);
  const float shifted = fma(inside, 1.44269504f, kToInteger);
  const float power = shifted - kToInteger;
  const float fraction = exp_fraction(inside, power);
  // 2^power in two factors: 2¹²⁸ is not a float.
  const int32_t exponent = std::bit_cast<int32_t>(shifted) - std::bit_cast<int32_t>(kToInteger);
  const float scale = std::bit_cast<float>((exponent - 1 + 127) << 23);
  const float result = fraction * scale * 2.0f;
  const float bounded =
      x > kLargest ? std::numeric_limits<float>::infinity() : (x < kSmallest ? 0.0f : result);
  return x != x ? x : bounded;
}
ARGUS_INLINE double fast_exp(double x) {
  return std::exp(x);
}

// fast_exp, to the bit, for x of at most 1 and NaN: a softmax's weights, whose scores have the largest taken
// off. Below -86.6 the bits before the last line mean nothing.
ARGUS_INLINE float exp_up_to_one(float x) {
  constexpr float kSmallest = -86.6f, kToInteger = 12582912.0f;
  const float shifted = fma(x, 1.44269504f, kToInteger);
  const float fraction = exp_fraction(x, shifted - kToInteger);
  // The exponent is in the low bits; the shift leaves nothing of kToInteger's.
  const float scale = std::bit_cast<float>((std::bit_cast<uint32_t>(shifted) << 23) + (uint32_t{127} << 23));
  return x < kSmallest ? 0.0f : fraction * scale;
}
ARGUS_INLINE double exp_up_to_one(double x) {
  return std::exp(x);
}

// ln(1 + u) for u in [0, 1] within 2 units in the last place.
ARGUS_INLINE float log1p_of_fraction(float u) {
  float p = -0.0032440256f;
  p = fma(p, u, 0.019851465f);
  p = fma(p, u, -0.056959543f);
  p = fma(p, u, 0.10603656f);
  p = fma(p, u, -0.15305594f);
  p = fma(p, u, 0.1967594f);
  p = fma(p, u, -0.24954134f);
  p = fma(p, u, 0.33329964f);
  p = fma(p, u, -0.49999902f);
  return fma(p * u, u, u);
}
ARGUS_INLINE double log1p_of_fraction(double u) {
  return std::log1p(u);
}

// ln(1 + e^x), also -log σ(-x), within 3 units in the last place; exact in the limits.
template <class A>
ARGUS_INLINE A softplus(A x) {
  const A positive = x > A{0} ? x : A{0};
  return positive + log1p_of_fraction(fast_exp(x > A{0} ? -x : x));
}

// 1 / (1 + e^-x) within 4 units in the last place; both tails keep their relative accuracy.
template <class A>
ARGUS_INLINE A sigmoid(A x) {
  const A e = fast_exp(x > A{0} ? -x : x);
  return (x > A{0} ? A{1} : e) / (A{1} + e);
}

// erf(x) within 2 units in the last place. Up to 1 an odd polynomial, a weighted minimax fit of erf(x) / x in
// x²; above it 1 − e^p(|x|) with p a fit of ln erfc on [1, 3.93], where erf rounds to 1.
ARGUS_INLINE float fast_erf(float x) {
  constexpr float kOne = 3.93f;
  const float distance = x < 0.0f ? -x : x;
  const float square = x * x;
  float p = 7.85384327e-05f;
  p = fma(p, square, -0.000801018963f);
  p = fma(p, square, 0.00518832728f);
  p = fma(p, square, -0.0268538129f);
  p = fma(p, square, 0.112835854f);
  p = fma(p, square, -0.37612626f);
  p = fma(p, square, 0.128379166f);
  const float near = fma(p, x, x);
  const float t = distance > kOne ? kOne : distance;
  float q = 0.0001863793f;
  q = fma(q, t, -0.00294765923f);
  q = fma(q, t, 0.021838069f);
  q = fma(q, t, -0.103106767f);
  q = fma(q, t, -0.638144851f);
  q = fma(q, t, -1.12708914f);
  q = fma(q, t, -0.000341521285f);
  const float far = 1.0f - fast_exp(q);
  const float signed_far = x < 0.0f ? -far : far;
  return distance > 1.0f ? signed_far : near;
}
ARGUS_INLINE double fast_erf(double x) {
  return std::erf(x);
}

// x · Φ(x), Φ the normal distribution function: torch's GELU without approximation.
template <class A>
ARGUS_INLINE A gelu(A x) {
  return A{0.5} * x * (A{1} + fast_erf(x * static_cast<A>(0.70710678118654752440)));
}

// Lanes of the kernels' loops: one AVX-512 register or two AVX2 registers of float.
constexpr int64_t kLanes = 16;

// Σ x[0, count) in 16 lanes added in a fixed order: the same bits at every level.
template <class A>
ARGUS_INLINE A lane_sum(const A* x, int64_t count) {
  A lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += x[i + lane];
  }
  for (int64_t lane = 0; i + lane < count; ++lane) lanes[lane] += x[i + lane];
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

// max(start, x[0, count)); a NaN in x is ignored.
template <class A>
ARGUS_INLINE A lane_max(const A* x, int64_t count, A start) {
  A lanes[kLanes];
  for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] = start;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane)
      lanes[lane] = x[i + lane] > lanes[lane] ? x[i + lane] : lanes[lane];
  }
  for (int64_t lane = 0; i + lane < count; ++lane)
    lanes[lane] = x[i + lane] > lanes[lane] ? x[i + lane] : lanes[lane];
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t lane = 0; lane < half; ++lane)
      lanes[lane] = lanes[lane + half] > lanes[lane] ? lanes[lane + half] : lanes[lane];
  }
  return lanes[0];
}

}  // namespace argus
