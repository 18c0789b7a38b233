// The rows that count: rows of weight zero are removed before any computation.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "common/cpu/element.h"
#include "common/cpu/vector_math.h"
#include "sampled_softmax_loss/sampled_softmax_loss.h"

namespace argus::sampled_softmax_loss {

template <class A>
std::vector<int64_t> kept_rows(const Inputs& inputs) {
  const A* weight = static_cast<const A*>(inputs.row_weight);
  std::vector<int64_t> rows;
  rows.reserve(static_cast<size_t>(inputs.rows));
  for (int64_t n = 0; n < inputs.rows; ++n) {
    if (weight == nullptr || weight[n] != A{0}) rows.push_back(n);
  }
  return rows;
}

// to[i] = from[rows[i]], rows of `width` elements.
template <class T>
void gather_rows(T* to, const void* from, const int64_t* rows, int64_t count, int64_t width) {
  const size_t bytes = static_cast<size_t>(width) * sizeof(T);
  // At width 0 the pointers may be null, which memcpy does not allow.
  if (bytes == 0) return;
  for (int64_t i = 0; i < count; ++i)
    std::memcpy(to + i * width, static_cast<const T*>(from) + rows[i] * width, bytes);
}

// ⟨a, b⟩ in float64: it is subtracted from every score of the row, so its error would be common to all of
// them.
template <class T>
ARGUS_INLINE double inner_product(const T* a, const T* b, int64_t width) {
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane)
      lanes[lane] += static_cast<double>(load(a[i + lane])) * static_cast<double>(load(b[i + lane]));
  }
  for (int64_t lane = 0; i + lane < width; ++lane)
    lanes[lane] += static_cast<double>(load(a[i + lane])) * static_cast<double>(load(b[i + lane]));
  return lane_sum(lanes, kLanes);
}

// to[i] = ⟨query, positive⟩ of rows[i].
template <class T, class A>
ARGUS_INLINE void positive_products_body(A* to, const T* query, const T* positive, const int64_t* rows,
                                         int64_t count, int64_t width) {
  for (int64_t i = 0; i < count; ++i)
    to[i] = static_cast<A>(inner_product(query + rows[i] * width, positive + rows[i] * width, width));
}

template <class T, class A>
void positive_products(A* to, const Inputs& inputs, const int64_t* rows, int64_t count) {
  ForEachIsa<&positive_products_body<T, A>>::call(to, static_cast<const T*>(inputs.query),
                                                  static_cast<const T*>(inputs.positive), rows, count,
                                                  inputs.width);
}

// log_q, with zeros up to a whole number of vectors past the last candidate.
template <class A>
std::vector<A> padded_log_q(const Inputs& inputs, int64_t size) {
  std::vector<A> to(static_cast<size_t>(size));
  const A* from = static_cast<const A*>(inputs.log_q);
  for (int64_t m = 0; m < inputs.drawn; ++m) to[static_cast<size_t>(m)] = from[m];
  return to;
}

}  // namespace argus::sampled_softmax_loss
