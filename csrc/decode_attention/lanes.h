// Sixteen lanes of the arithmetic type, whatever the stored one: loads, the sum of four vectors at once. The
// order of every sum is fixed, so the bits are the same at every level of ForEachIsa.
#pragma once

#include <cstring>

#include "common/element.h"
#include "common/simd.h"

namespace argus::decode_attention {

constexpr int64_t kLanes = 16;

template <class A>
using Lanes __attribute__((vector_size(kLanes * sizeof(A)))) = A;
template <class A>
using Quad __attribute__((vector_size(4 * sizeof(A)))) = A;

// A plain loop, which becomes one conversion of the level it is compiled for: vector types would be taken
// apart before they get there.
template <class T>
ARGUS_INLINE Lanes<Arithmetic<T>> load_lanes(const T* from) {
  Arithmetic<T> converted[kLanes];
  for (int64_t lane = 0; lane < kLanes; ++lane) converted[lane] = load(from[lane]);
  Lanes<Arithmetic<T>> lanes;
  std::memcpy(&lanes, converted, sizeof(lanes));
  return lanes;
}

// The same for float16 in integers, exact for every bit pattern: GCC 12 makes no vector code of its own
// conversion.
ARGUS_INLINE Lanes<float> load_lanes(const Float16* from) {
  constexpr uint32_t kSmallest = 0x38800000u;  // 2⁻¹⁴, float16's smallest normal number
  uint16_t bits[kLanes];
  std::memcpy(bits, from, sizeof(bits));
  float converted[kLanes];
#pragma GCC unroll 1
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    const uint32_t half = bits[lane];
    const uint32_t magnitude = (half & 0x7fffu) << 13;
    const uint32_t normal = magnitude + (magnitude >= 0x0f800000u ? 0x70000000u : 0x38000000u);
    const float subnormal = std::bit_cast<float>(magnitude + kSmallest) - std::bit_cast<float>(kSmallest);
    const uint32_t found = magnitude < 0x00800000u ? std::bit_cast<uint32_t>(subnormal) : normal;
    converted[lane] = std::bit_cast<float>(found | ((half & 0x8000u) << 16));
  }
  Lanes<float> lanes;
  std::memcpy(&lanes, converted, sizeof(lanes));
  return lanes;
}

// The first `count` lanes, below kLanes, the others zero.
template <class T>
ARGUS_INLINE Lanes<Arithmetic<T>> load_lanes(const T* from, int64_t count) {
  T padded[kLanes] = {};
  for (int64_t lane = 0; lane < count; ++lane) padded[lane] = from[lane];
  return load_lanes(padded);
}

template <class A>
ARGUS_INLINE Quad<A> fold_to_quad(Lanes<A> x) {
  const auto low = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7);
  const auto high = __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
  const auto eight = low + high;
  return __builtin_shufflevector(eight, eight, 0, 1, 2, 3) +
         __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
}

// The sums of four vectors' lanes: each adds lane i and i + 8, then i and i + 4, i and i + 2, i and i + 1.
template <class A>
ARGUS_INLINE Quad<A> sums_of_four(const Lanes<A> (&x)[4]) {
  const Quad<A> a = fold_to_quad<A>(x[0]), b = fold_to_quad<A>(x[1]);
  const Quad<A> c = fold_to_quad<A>(x[2]), d = fold_to_quad<A>(x[3]);
  const Quad<A> ab = __builtin_shufflevector(a, b, 0, 1, 4, 5) + __builtin_shufflevector(a, b, 2, 3, 6, 7);
  const Quad<A> cd = __builtin_shufflevector(c, d, 0, 1, 4, 5) + __builtin_shufflevector(c, d, 2, 3, 6, 7);
  return __builtin_shufflevector(ab, cd, 0, 2, 4, 6) + __builtin_shufflevector(ab, cd, 1, 3, 5, 7);
}

}  // namespace argus::decode_attention
