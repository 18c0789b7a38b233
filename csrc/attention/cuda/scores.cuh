// From products q · k to masked scores: what both passes do to a warp's tile of
// pairs. The forward pass and that of d_q hold queries in the rows of the tile
// and keys in its columns, that of d_k and d_v the other way round.
#pragma once

#include <type_traits>

#include "attention/cuda/relative_bias.cuh"
#include "attention/cuda/tiles.cuh"

namespace argus::attention {

// What a warp keeps of the rows of its tile. Rows past the user's end count as causal and as of time 0. It
// lies in shared memory, because registers are scarce and tiles without a mask do not read it.
template <int kRowTiles>
struct RowSide {
  int first;
  int* visible;    // of queries, [16 · kRowTiles]
  int64_t* time;   // of either, [16 · kRowTiles]
  TimeSpan* span;  // of the rows within the history
};

// The same for the columns, in shared memory.
struct ColumnSide {
  int first;
  int end;             // the user's events
  const int* visible;  // of queries, null where all before them is visible
  const int64_t* time;
};

// Whether all pairs of a tile share their entries of the tables.
struct SharedEntries {
  bool position = true;
  int time = 0;  // the bucket, −1 where they differ
};

template <bool kQueryRows, int kRowTiles>
ARGUS_DEVICE int query_minus_key(const RowSide<kRowTiles>& rows, const ColumnSide& columns, int r, int n,
                                 int i) {
  const int difference = rows.first + row_within(r, i) - columns.first - column_within(n, i);
  return kQueryRows ? difference : -difference;
}

// What the backward pass needs of a query: softmax's statistics; SiLU needs none.
struct RowStatistics {
  float log_sum_exp;
  float delta;       // Σ_j weight · d_weight − d_log_sum_exp
  float correction;  // corrects weights for the rounding of log_sum_exp;
                     // float32 only
};

// visit(number, r, n, i) for every number that a lane holds of a tile.
template <class Number, int kRowTiles, int kTiles, class Visit>
ARGUS_DEVICE void for_each(Number (&numbers)[kRowTiles][kTiles][4], Visit visit) {
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) visit(numbers[r][n][i], r, n, i);
}

template <int kRowTiles>
ARGUS_DEVICE int bucket_of(const Bias& bias, const RowSide<kRowTiles>& rows, const ColumnSide& columns, int r,
                           int n, int i) {
  return time_bucket(bias, time_distance(rows.time[row_within(r, i)], columns.time[column_within(n, i)]));
}

struct KeepNothing {
  ARGUS_DEVICE void operator()(int, int, int, int) const {}
};

// Whether unrolling the look-ups of more than four pairs would spill, beside the sums of a wide head. Found
// by compiling: the forward pass of heads of 128 spills without the limit for sm_80, with it for sm_100.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
template <int kRowTiles, int kTiles, class Keep>
constexpr bool kFewLookUps = kTiles <= 4 && !(kRowTiles == 2 && std::is_same_v<Keep, KeepNothing>);
#else
template <int kRowTiles, int kTiles, class Keep>
constexpr bool kFewLookUps = kTiles <= 4;
#endif

// scores = scale · scores + biases. Where the pairs' time buckets differ,
// `keep(r, n, i, bucket)` gets them.
template <bool kQueryRows, int kRowTiles, int kTiles, class Keep>
ARGUS_DEVICE SharedEntries add_bias(float (&scores)[kRowTiles][kTiles][4], float scale, const Bias& bias,
                                    const RowSide<kRowTiles>& rows, const ColumnSide& columns, Keep keep) {
  SharedEntries shared;
  float constant = 0.0f;
  if (bias.last_position >= 0) {
    const int nearest = kQueryRows ? rows.first - (columns.first + 8 * kTiles - 1)
                                   : columns.first - (rows.first + 16 * kRowTiles - 1);
    shared.position = nearest >= bias.last_position;
    if (shared.position) constant = bias.position[bias.last_position];
  }
  if (bias.last_time >= 0) {
    shared.time = shared_bucket<8 * kTiles>(bias, *rows.span, columns.time);
    if (shared.time >= 0) constant += bias.time[shared.time];
  }
  for_each(scores, [&](float& score, int, int, int) { score = fmaf(score, scale, constant); });
  if (!shared.position) {
    for_each(scores, [&](float& score, int r, int n, int i) {
      const int apart = query_minus_key<kQueryRows>(rows, columns, r, n, i);
      score += bias.position[max(0, min(apart, bias.last_position))];
    });
  }
  if (shared.time < 0) {
    for_each(scores, [&](float& score, int r, int n, int i) {
      const int bucket = bucket_of(bias, rows, columns, r, n, i);
      score += bias.time[bucket];
      keep(r, n, i, bucket);
      if (kFewLookUps<kRowTiles, kTiles, Keep> && i == 3) __syncwarp();
    });
  }
  return shared;
}

// Applies the mask, and hides columns past the user's end.
template <bool kQueryRows, int kRowTiles, int kTiles>
ARGUS_DEVICE void hide(float (&scores)[kRowTiles][kTiles][4], float hidden, int window,
                       const RowSide<kRowTiles>& rows, const ColumnSide& columns) {
  for_each(scores, [&](float& score, int r, int n, int i) {
    const int row = rows.first + row_within(r, i), within = column_within(n, i);
    const int column = columns.first + within;
    bool seen = column < columns.end;
    if constexpr (kQueryRows) {
      seen = seen && is_seen(row, column, rows.visible[row_within(r, i)], window);
    } else {
      const int visible = columns.visible == nullptr ? column : columns.visible[within];
      seen = seen && is_seen(column, row, visible, window);
    }
    if (!seen) score = hidden;
  });
}

// Shared memory for the rows of a block.
template <int kWarps, int kRowTiles>
struct RowSmem {
  int64_t time[kWarps][16 * kRowTiles];
  int visible[kWarps][16 * kRowTiles];
  TimeSpan span[kWarps];
};

// The rows of a warp whose first is `first`, queries or keys, out of a user's
// `length` events from `begin` on; a barrier must follow.
template <bool kQueryRows, int kWarps, int kRowTiles>
ARGUS_DEVICE RowSide<kRowTiles> load_rows(const Arguments& given, int begin, int length, int first,
                                          RowSmem<kWarps, kRowTiles>& room) {
  constexpr int kRows = 16 * kRowTiles;
  static_assert(kRows <= kWarpSize);
  const int warp = warp_index(), lane = lane_index(), place = first + lane;
  const RowSide<kRowTiles> rows{first, room.visible[warp], room.time[warp], &room.span[warp]};
  if (kQueryRows && lane < kRows)
    rows.visible[lane] = place < length ? visible_of(given, begin, place) : place;
  if (given.time_bias == nullptr) return rows;
  const int64_t* time = (kQueryRows ? given.query_time : given.key_time) + begin;
  if (lane < kRows) rows.time[lane] = place < length ? time[place] : 0;
  // A warp past the user's end takes part in the block's products, and its scores would read buckets that are
  // not stored.
  const TimeSpan span =
      first < length ? warp_time_span(time + first, min(kRows, length - first)) : TimeSpan{0, 0};
  if (lane == 0) *rows.span = span;
  return rows;
}

}  // namespace argus::attention
