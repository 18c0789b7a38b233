// The gradients of a row and of a candidate from the partial sums of the work items.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/cpu/element.h"
#include "sampled_softmax_loss/score_tile.h"

namespace argus::sampled_softmax_loss {

template <class T, class A>
struct RowGradients {
  const T* query;
  const T* positive;
  const A* partial;  // of d_query: [groups, width], groups partial_stride apart
  int64_t partial_stride, groups, width;
  A correction, positive_factor, query_factor;
  T* d_query;     // null where not wanted
  T* d_positive;  // null where not wanted
};

template <class T, class A>
ARGUS_INLINE void write_row_body(RowGradients<T, A> row) {
  if (row.d_query != nullptr) {
    for (int64_t column = 0; column < row.width; column += kLanes) {
      const int64_t count = std::min(kLanes, row.width - column);
      A sum[kLanes] = {};
      for (int64_t group = 0; group < row.groups; ++group) {
        const A* partial = row.partial + group * row.partial_stride + column;
        for (int64_t lane = 0; lane < count; ++lane) sum[lane] += partial[lane];
      }
      for (int64_t lane = 0; lane < count; ++lane) {
        const A own = row.positive_factor * load(row.positive[column + lane]);
        store(row.d_query[column + lane], sum[lane] * row.correction + own);
      }
    }
  }
  if (row.d_positive != nullptr) {
    for (int64_t column = 0; column < row.width; ++column)
      store(row.d_positive[column], row.query_factor * load(row.query[column]));
  }
}

// Adds the sections of one candidate's gradient in order and rounds once.
template <class T, class A>
ARGUS_INLINE void write_candidate_body(T* to, A* from, int64_t sections, int64_t stride, int64_t width) {
  for (int64_t section = 1; section < sections; ++section) {
    for (int64_t column = 0; column < width; ++column) from[column] += from[section * stride + column];
  }
  for (int64_t column = 0; column < width; ++column) store(to[column], from[column]);
}

}  // namespace argus::sampled_softmax_loss
