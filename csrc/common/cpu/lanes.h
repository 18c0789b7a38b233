// Sixteen lanes held in registers, for kernels where plain loops over local arrays would keep the sums in
// memory.
//
// map_lanes(f, x, y …) applies f to each lane. It is a loop of sixteen steps that the compiler vectorises at
// every level of ForEachIsa; vector operators would be split into scalars for the portable level before they
// are inlined into the others. f must compute both values first and then select (`c ? a : b`): the compiler
// does not remove a branch.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/cpu/element.h"
#include "common/cpu/vector_math.h"

namespace argus {

// Vector operators, for sums and products only.
template <class E>
using LaneVector __attribute__((vector_size(kLanes * sizeof(E)))) = E;

template <class E>
struct Lanes {
  LaneVector<E> vector;

  static ARGUS_INLINE Lanes load(const E* from) {
    Lanes x;
    std::memcpy(&x.vector, from, sizeof x.vector);
    return x;
  }
  ARGUS_INLINE void store(E* to) const { std::memcpy(to, &vector, sizeof vector); }
};

// Without the pragma the loop is unrolled before it can be vectorised.
template <class R, class F, class X>
ARGUS_INLINE Lanes<R> map_lanes(F&& f, Lanes<X> x) {
  X a[kLanes];
  R found[kLanes];
  x.store(a);
#pragma GCC unroll 1
  for (int64_t i = 0; i < kLanes; ++i) found[i] = f(a[i]);
  return Lanes<R>::load(found);
}

template <class R, class F, class X, class Y>
ARGUS_INLINE Lanes<R> map_lanes(F&& f, Lanes<X> x, Lanes<Y> y) {
  X a[kLanes];
  Y b[kLanes];
  R found[kLanes];
  x.store(a);
  y.store(b);
#pragma GCC unroll 1
  for (int64_t i = 0; i < kLanes; ++i) found[i] = f(a[i], b[i]);
  return Lanes<R>::load(found);
}

template <class R, class F, class X, class Y, class Z>
ARGUS_INLINE Lanes<R> map_lanes(F&& f, Lanes<X> x, Lanes<Y> y, Lanes<Z> z) {
  X a[kLanes];
  Y b[kLanes];
  Z c[kLanes];
  R found[kLanes];
  x.store(a);
  y.store(b);
  z.store(c);
#pragma GCC unroll 1
  for (int64_t i = 0; i < kLanes; ++i) found[i] = f(a[i], b[i], c[i]);
  return Lanes<R>::load(found);
}

template <class E>
ARGUS_INLINE Lanes<E> zero_lanes() {
  constexpr E zeros[kLanes] = {};
  return Lanes<E>::load(zeros);
}

// The lanes' sum, halves added to halves.
template <class E>
ARGUS_INLINE E sum_of_lanes(Lanes<E> x) {
  E lane[kLanes];
  x.store(lane);
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) lane[i] += lane[i + half];
  }
  return lane[0];
}

}  // namespace argus
