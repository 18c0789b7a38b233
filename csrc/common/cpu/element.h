// Stored element types of the CPU kernels and their conversion to the type arithmetic is done in: float for
// float32, bfloat16 and float16, double for float64.
#pragma once

#include <bit>
#include <cstdint>

#include "common/cpu/simd.h"

namespace argus {

struct BFloat16 {
  uint16_t bits;
};

// C++ on aarch64 has _Float16 from GCC 13 on; __fp16 is stored and converted in the same way.
#if defined(__aarch64__) && !defined(__clang__) && __GNUC__ < 13
using Half = __fp16;
#else
using Half = _Float16;
#endif

struct Float16 {
  Half value;
};

template <class T>
struct ArithmeticOf {
  using type = float;
};
template <>
struct ArithmeticOf<double> {
  using type = double;
};
template <class T>
using Arithmetic = typename ArithmeticOf<T>::type;

ARGUS_INLINE float load(float x) {
  return x;
}
ARGUS_INLINE double load(double x) {
  return x;
}
ARGUS_INLINE float load(Float16 x) {
  return static_cast<float>(x.value);
}
ARGUS_INLINE float load(BFloat16 x) {
  return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16);
}

ARGUS_INLINE void store(float& to, float x) {
  to = x;
}
ARGUS_INLINE void store(double& to, double x) {
  to = x;
}
ARGUS_INLINE void store(Float16& to, float x) {
  to.value = static_cast<Half>(x);
}

// Round to nearest even; the branch keeps a NaN from rounding up into infinity.
ARGUS_INLINE void store(BFloat16& to, float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  to.bits = static_cast<uint16_t>(x != x ? 0x7fc0u : rounded);
}

}  // namespace argus
