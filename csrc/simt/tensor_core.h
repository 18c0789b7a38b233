// What the twins of mma and wgmma share: the numbers that tensor cores read, and how they sum products.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <numeric>

#include "simt/arithmetic.h"
#include "simt/numbers.h"

namespace argus::simt {

template <class T>
double narrow_bits(uint16_t bits) {
  T value;
  value.bits = bits;
  return static_cast<double>(static_cast<float>(value));
}

// Element `half` of a 32-bit register of two elements.
template <class T>
double narrow(uint32_t word, int half) {
  return narrow_bits<T>(static_cast<uint16_t>(word >> (16 * half)));
}

// The device ignores the 13 low bits of a float32.
inline double tf32(uint32_t word) {
  return static_cast<double>(std::bit_cast<float>(word & 0xffffe000u));
}

// Tensor cores align their summands to the largest one and truncate the rest (Fasi, Higham, Mikaitis,
// Pranesh: Numerical behavior of NVIDIA tensor cores, 2021, which found two or three bits more than here).
template <int kCount>
float truncated_sum(const double (&terms)[kCount]) {
  double largest = 0.0;
  for (const double term : terms) {
    if (!std::isfinite(term)) return static_cast<float>(std::accumulate(terms, terms + kCount, 0.0));
    largest = std::max(largest, std::abs(term));
  }
  if (largest == 0.0) return 0.0f;
  const int last_bit = std::max(std::ilogb(largest) - 23, -149);
  double sum = 0.0;
  for (const double term : terms) sum += std::trunc(std::ldexp(term, -last_bit));
  // Rounds an integer of at most 2^24 · 17 to float32, toward zero.
  const float rounded = static_cast<float>(std::ldexp(sum, last_bit));
  const bool too_large = std::abs(static_cast<double>(rounded)) > std::abs(std::ldexp(sum, last_bit));
  return too_large ? std::nextafterf(rounded, 0.0f) : rounded;
}

// d + Σ a[k] b[k · stride].
template <int kDepth>
float sum_of_products(float d, const double* a, const double* b, int stride) {
  double terms[kDepth + 1] = {static_cast<double>(d)};
  for (int k = 0; k < kDepth; ++k) terms[k + 1] = a[k] * b[k * stride];
  if (arithmetic() == Arithmetic::pessimistic) return truncated_sum(terms);
  return static_cast<float>(std::accumulate(terms, terms + kDepth + 1, 0.0));
}

}  // namespace argus::simt
