// A row's columns in blocks of vectors of sixteen lanes of the arithmetic type, and the sum of four vectors
// at once. The order of every sum is fixed, so the bits are the same at every level of ForEachIsa.
#pragma once

#include <bit>
#include <cstring>

#include "common/cpu/lanes.h"

namespace argus::column_blocks {

template <class A>
using Quad __attribute__((vector_size(4 * sizeof(A)))) = A;

template <class A>
ARGUS_INLINE LaneVector<A> load_lanes(const A* from) {
  return Lanes<A>::load(from).vector;
}

// How a block of a row's columns lies in vectors: column c of the block in lane lane(c), counted over all of
// them.
template <class T>
struct Block {
  static constexpr int64_t kVectors = 1, kColumns = kLanes;
  static constexpr int64_t lane(int64_t column) { return column; }
  static ARGUS_INLINE void load(const T* from, LaneVector<Arithmetic<T>> (&x)[kVectors]) {
    x[0] = load_lanes(from);
  }
};

// Two columns per word: a shift and a mask put the even ones into one vector and the odd ones into another.
// Widening sixteen columns to one vector takes longer.
template <>
struct Block<BFloat16> {
  static constexpr int64_t kVectors = 2, kColumns = 2 * kLanes;
  static constexpr int64_t lane(int64_t column) { return column % 2 * kLanes + column / 2; }
  static ARGUS_INLINE void load(const BFloat16* from, LaneVector<float> (&x)[kVectors]) {
    uint32_t words[kLanes];
    float even[kLanes], odd[kLanes];
    std::memcpy(words, from, sizeof(words));
    // Plain loops, which become one instruction at each instruction-set level: GCC splits operators of vector
    // types into scalars before it knows the level.
#pragma GCC unroll 1
    for (int64_t lane = 0; lane < kLanes; ++lane) even[lane] = std::bit_cast<float>(words[lane] << 16);
#pragma GCC unroll 1
    for (int64_t lane = 0; lane < kLanes; ++lane) odd[lane] = std::bit_cast<float>(words[lane] & 0xffff0000u);
    x[0] = load_lanes(even);
    x[1] = load_lanes(odd);
  }
};

// In integers, exact for every bit pattern: GCC 12 does not vectorise its own conversion.
template <>
ARGUS_INLINE void Block<Float16>::load(const Float16* from, LaneVector<float> (&x)[kVectors]) {
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
  x[0] = load_lanes(converted);
}

// The first `count` columns of a block, the others zero.
template <class T>
ARGUS_INLINE void load_part(const T* from, int64_t count,
                            LaneVector<Arithmetic<T>> (&x)[Block<T>::kVectors]) {
  T part[Block<T>::kColumns] = {};
  for (int64_t column = 0; column < count; ++column) part[column] = from[column];
  Block<T>::load(part, x);
}

template <class A>
ARGUS_INLINE Quad<A> fold_to_quad(LaneVector<A> x) {
  const auto low = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7);
  const auto high = __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
  const auto eight = low + high;
  return __builtin_shufflevector(eight, eight, 0, 1, 2, 3) +
         __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
}

// The sums of the lanes of four vectors, x [4, kLanes]: each adds lane i and i + 8, then i and i + 4, i and i
// + 2, i and i + 1.
template <class A>
ARGUS_INLINE Quad<A> sums_of_four(const A* x) {
  const Quad<A> a = fold_to_quad<A>(load_lanes(x)), b = fold_to_quad<A>(load_lanes(x + kLanes));
  const Quad<A> c = fold_to_quad<A>(load_lanes(x + 2 * kLanes)),
                d = fold_to_quad<A>(load_lanes(x + 3 * kLanes));
  const Quad<A> ab = __builtin_shufflevector(a, b, 0, 1, 4, 5) + __builtin_shufflevector(a, b, 2, 3, 6, 7);
  const Quad<A> cd = __builtin_shufflevector(c, d, 0, 1, 4, 5) + __builtin_shufflevector(c, d, 2, 3, 6, 7);
  return __builtin_shufflevector(ab, cd, 0, 2, 4, 6) + __builtin_shufflevector(ab, cd, 1, 3, 5, 7);
}

}  // namespace argus::column_blocks
