// The causal mask on a warp's tile of scores with as many columns as wgmma gives: fewer registers than hide()
// of scores.cuh takes.
#pragma once

#include "attention/cuda/causal_mask.cuh"
#include "attention/cuda/scores.cuh"
#include "attention/cuda/sm90/user_box.cuh"

namespace argus::attention {

// hide() of the causal mask, a row after the other: all pairs of a tile at once spilled 200 bytes at 160
// registers.
template <int kTiles>
ARGUS_DEVICE void hide_causal(float (&scores)[1][kTiles][4], float hidden, int window,
                              const RowSide<CausalMask, 1>& rows, const ColumnSide<CausalMask>& columns) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    // Keys from the lane's first column on.
    const int within = row_within(0, 2 * half), origin = columns.first + column_within(0, 0);
    const int query = rows.first + within - origin;
    const int visible = min(rows.numbers.visible[within], columns.end) - origin;
    const int oldest = window == kNoWindow ? -kLastRow : query - window + 1;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int key = 8 * n + i;
        if (key < oldest || (key >= visible && key != query)) scores[0][n][2 * half + i] = hidden;
      }
    }
  }
}

// hide() of the causal mask with keys in the rows, a row after the other: all pairs of a tile at once spilled
// 70 to 170 bytes.
template <int kTiles>
ARGUS_DEVICE void hide_causal_transposed(float (&scores)[1][kTiles][4], float hidden, int window,
                                         const RowSide<CausalMask, 1>& rows,
                                         const ColumnSide<CausalMask>& columns) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int key = rows.first + row_within(0, 2 * half);
    // Queries from the lane's first column on.
    const int first = columns.first + column_within(0, 0), own = key - first;
    const int end = (window < columns.end - key ? key + window : columns.end) - first;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      int2 visible{};
      if (columns.numbers.visible != nullptr)
        visible = *reinterpret_cast<const int2*>(columns.numbers.visible + column_within(n, 0));
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int query = 8 * n + i;
        const bool before =
            columns.numbers.visible == nullptr ? query > own : key < (i == 0 ? visible.x : visible.y);
        if (query >= end || !(query == own || before)) scores[0][n][2 * half + i] = hidden;
      }
    }
  }
}

}  // namespace argus::attention
