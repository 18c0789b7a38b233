// Row-wise Adagrad on one row whose gradients are summed:
//
//   g     = g + weight_decay · row
//   state = state + mean(g²)
//   row   = row − lr · g / (√state + eps)
//
// The sum of squares runs in 16 lanes that are added in a fixed order, so the bits depend neither on the
// number of threads nor on the instruction set.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/cpu/element.h"
#include "common/cpu/simd.h"

namespace argus::row_adagrad {

struct Settings {
  double lr, eps, weight_decay;
};

template <class A>
ARGUS_INLINE A sum_of_squares(const A* x, int64_t width) {
  constexpr int64_t kLanes = 16;
  A lanes[kLanes] = {};
  int64_t column = 0;
  for (; column + kLanes <= width; column += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += x[column + lane] * x[column + lane];
  }
  for (int64_t lane = 0; column + lane < width; ++lane) lanes[lane] += x[column + lane] * x[column + lane];
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

// `gradient` [width] becomes the gradient with the weight decay.
template <class T, class S>
ARGUS_INLINE void update_row(const Settings& settings, Arithmetic<T>* gradient, int64_t width, T* row,
                             S* state) {
  using A = Arithmetic<T>;
  const A decay = static_cast<A>(settings.weight_decay);
  if (decay != A{0}) {
    for (int64_t column = 0; column < width; ++column) gradient[column] += decay * load(row[column]);
  }
  *state = static_cast<S>(static_cast<A>(*state) + sum_of_squares(gradient, width) / static_cast<A>(width));
  const A denominator = std::sqrt(static_cast<A>(*state)) + static_cast<A>(settings.eps);
  const A step = static_cast<A>(settings.lr) / denominator;
  for (int64_t column = 0; column < width; ++column)
    store(row[column], load(row[column]) - step * gradient[column]);
}

}  // namespace argus::row_adagrad
