// The rows of a table that a list of gradients touches, one after the other, each with the sum of its
// gradients in the order given.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/cpu/element.h"
#include "common/cpu/row_order.h"
#include "common/cpu/simd.h"

namespace argus::row_runs {

ARGUS_INLINE void prefetch(const void* from, int64_t bytes) {
  constexpr int64_t kLineBytes = 64;
  const char* line = static_cast<const char*>(from);
  for (int64_t offset = 0; offset < bytes; offset += kLineBytes) __builtin_prefetch(line + offset, 1);
}

// The sum of the run's gradients [width] into `sum`.
template <class G, class A>
ARGUS_INLINE void sum_gradients(const G* gradients, int64_t width, const RowOrder& order, int64_t run,
                                A* sum) {
  const G* first = gradients + order.position(order.begin(run)) * width;
  for (int64_t column = 0; column < width; ++column) sum[column] = load(first[column]);
  for (int64_t i = order.begin(run) + 1; i < order.begin(run + 1); ++i) {
    const G* next = gradients + order.position(i) * width;
    for (int64_t column = 0; column < width; ++column) sum[column] += static_cast<A>(load(next[column]));
  }
}

// Calls update(row) for the runs [first, last), with the sum of the row's gradients in `sum`. Rows and
// gradients lie at random addresses: prefetch_row(row), which prefetches what update touches, is called eight
// runs ahead.
template <class G, class A, class Prefetch, class Update>
ARGUS_INLINE void for_each_run(const G* gradients, int64_t width, const RowOrder& order, int64_t first,
                               int64_t last, A* sum, const Prefetch& prefetch_row, const Update& update) {
  constexpr int64_t kAhead = 8;
  const auto prefetch_run = [&](int64_t run) ARGUS_INLINE_LAMBDA {
    prefetch_row(order.rows()[run]);
    prefetch(gradients + order.position(order.begin(run)) * width, width * sizeof(G));
  };
  for (int64_t run = first; run < std::min(first + kAhead, last); ++run) prefetch_run(run);
  for (int64_t run = first; run < last; ++run) {
    if (run + kAhead < last) prefetch_run(run + kAhead);
    sum_gradients(gradients, width, order, run, sum);
    update(order.rows()[run]);
  }
}

}  // namespace argus::row_runs
