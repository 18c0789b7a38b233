// From products q · k to masked scores: what both passes do to a warp's tile of
// pairs. The forward pass and that of d_q hold queries in the rows of the tile
// and keys in its columns, that of d_k and d_v the other way round.
#pragma once

#include <type_traits>

#include "attention/cuda/relative_bias.cuh"
#include "attention/cuda/tiles.cuh"

namespace argus::attention {

// What a warp keeps of the rows of its tile. Rows past the user's end are of time 0. It lies in shared
// memory, because registers are scarce and tiles without a mask do not read it.
template <class Mask, int kRowTiles>
struct RowSide {
  int first;
  typename Mask::RowNumbers numbers;  // of queries
  int64_t* time;                      // of either, [16 · kRowTiles]
  TimeSpan* span;                     // of the rows within the history
};

// The same for the columns, in shared memory.
template <class Mask>
struct ColumnSide {
  int first;
  int end;                               // how many of them the user has
  typename Mask::ColumnNumbers numbers;  // of queries
  const int64_t* time;
};

// Whether all pairs of a tile share their entries of the tables.
struct SharedEntries {
  bool position = true;
  int time = 0;  // the bucket, −1 where they differ
};

// From the key of a pair to its query's position.
template <bool kQueryRows, class Mask, int kRowTiles>
ARGUS_DEVICE int distance_of(const RowSide<Mask, kRowTiles>& rows, const ColumnSide<Mask>& columns, int r,
                             int n, int i) {
  const int row = row_within(r, i), column = column_within(n, i);
  if constexpr (kQueryRows)
    return Mask::row_position(rows.numbers, row, rows.first + row) - columns.first - column;
  return Mask::column_position(columns.numbers, column, columns.first + column) - rows.first - row;
}

// The least distance of all pairs of a tile, or a number below it.
template <bool kQueryRows, int kTiles, class Mask, int kRowTiles>
ARGUS_DEVICE int least_distance(const RowSide<Mask, kRowTiles>& rows, const ColumnSide<Mask>& columns) {
  if constexpr (kQueryRows)
    return Mask::least_row_position(rows.numbers, rows.first) - (columns.first + 8 * kTiles - 1);
  return Mask::least_column_position(columns.numbers, columns.first) - (rows.first + 16 * kRowTiles - 1);
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

template <class Mask, int kRowTiles>
ARGUS_DEVICE int bucket_of(const Bias& bias, const RowSide<Mask, kRowTiles>& rows,
                           const ColumnSide<Mask>& columns, int r, int n, int i) {
  return time_bucket(bias, time_distance(rows.time[row_within(r, i)], columns.time[column_within(n, i)]));
}

struct KeepNothing {
  ARGUS_DEVICE void operator()(int, int, int, int) const {}
};

// Whether unrolling the look-ups of more than four pairs would spill, beside the sums of a wide head or
// beside as many scores as wgmma gives; found by compiling.
template <int kTiles>
constexpr bool kManyScores = kTiles >= 16;
template <int kTiles>
constexpr bool kFewLookUps = kTiles <= 4 || kManyScores<kTiles>;

// scores = scale · scores + biases. Where the pairs' time buckets differ,
// `keep(r, n, i, bucket)` gets them.
template <bool kQueryRows, class Mask, int kRowTiles, int kTiles, class Keep>
ARGUS_DEVICE SharedEntries add_bias(float (&scores)[kRowTiles][kTiles][4], float scale, const Bias& bias,
                                    const RowSide<Mask, kRowTiles>& rows, const ColumnSide<Mask>& columns,
                                    Keep keep) {
  SharedEntries shared;
  float constant = 0.0f;
  if (bias.last_position >= 0) {
    shared.position = least_distance<kQueryRows, kTiles>(rows, columns) >= bias.last_position;
    if (shared.position) constant = bias.position[bias.last_position];
  }
  if (bias.last_time >= 0) {
    shared.time = shared_bucket<8 * kTiles>(bias, *rows.span, columns.time);
    if (shared.time >= 0) constant += bias.time[shared.time];
  }
  for_each(scores, [&](float& score, int, int, int) { score = fmaf(score, scale, constant); });
  if (!shared.position) {
    for_each(scores, [&](float& score, int r, int n, int i) {
      const int apart = distance_of<kQueryRows>(rows, columns, r, n, i);
      score += bias.position[max(0, min(apart, bias.last_position))];
      if (kManyScores<kTiles> && i == 3) __syncwarp();
    });
  }
  if (shared.time < 0) {
    for_each(scores, [&](float& score, int r, int n, int i) {
      const int bucket = bucket_of(bias, rows, columns, r, n, i);
      score += bias.time[bucket];
      keep(r, n, i, bucket);
      if (kFewLookUps<kTiles> && i == 3) __syncwarp();
    });
  }
  return shared;
}

// Whether a pair is visible.
template <bool kQueryRows, class Mask, int kRowTiles>
ARGUS_DEVICE bool sees(int window, const RowSide<Mask, kRowTiles>& rows, const ColumnSide<Mask>& columns,
                       int row, int column) {
  const int in_row = rows.first + row, in_column = columns.first + column;
  if constexpr (kQueryRows) return Mask::row_sees(rows.numbers, row, in_row, in_column, columns.end, window);
  return Mask::column_sees(columns.numbers, column, in_column, in_row, columns.end, window);
}

// One bit for each number that a lane holds of a tile. For what is long to work out for a pair: loops that
// fill it need not be unrolled, which compilers are slow on.
template <int kRowTiles, int kTiles>
struct PairBits {
  static constexpr int kPairs = 4 * kRowTiles * kTiles;
  static_assert(kPairs <= 64);
  using Bits = std::conditional_t<(kPairs <= 32), uint32_t, uint64_t>;
  Bits bits = 0;

  ARGUS_DEVICE void set(int r, int n, int i, bool bit) {
    bits |= static_cast<Bits>(bit) << (4 * (r * kTiles + n) + i);
  }
  ARGUS_DEVICE bool operator()(int r, int n, int i) const {
    return (bits >> (4 * (r * kTiles + n) + i) & 1) != 0;
  }
};

// Which pairs of a tile are visible; a column past the user's end is not.
template <bool kQueryRows, int kTiles, class Mask, int kRowTiles>
ARGUS_DEVICE PairBits<kRowTiles, kTiles> seen_pairs(int window, const RowSide<Mask, kRowTiles>& rows,
                                                    const ColumnSide<Mask>& columns) {
  PairBits<kRowTiles, kTiles> seen;
#pragma unroll 1
  for (int half = 0; half < 2 * kRowTiles; ++half) {
    const int r = half / 2, row = row_within(r, half % 2 * 2);
#pragma unroll 1
    for (int pair = 0; pair < 2 * kTiles; ++pair) {
      const int n = pair / 2, i = half % 2 * 2 + pair % 2, column = column_within(n, i);
      seen.set(r, n, i, sees<kQueryRows>(window, rows, columns, row, column));
    }
  }
  return seen;
}

// Applies the mask, and hides columns past the user's end.
template <bool kQueryRows, class Mask, int kRowTiles, int kTiles>
ARGUS_DEVICE void hide(float (&scores)[kRowTiles][kTiles][4], float hidden, int window,
                       const RowSide<Mask, kRowTiles>& rows, const ColumnSide<Mask>& columns) {
  if constexpr (Mask::kGeneral) {
    const auto seen = seen_pairs<kQueryRows, kTiles>(window, rows, columns);
    for_each(scores, [&](float& score, int r, int n, int i) {
      if (!seen(r, n, i)) score = hidden;
    });
  } else {
    for_each(scores, [&](float& score, int r, int n, int i) {
      if (!sees<kQueryRows>(window, rows, columns, row_within(r, i), column_within(n, i))) score = hidden;
    });
  }
}

// Shared memory for the rows of a block.
template <int kWarps, int kRowTiles>
struct RowSmem {
  int64_t time[kWarps][16 * kRowTiles];
  TimeSpan span[kWarps];
};

// The rows of a warp whose first is `first`, out of a user's queries or keys; `times` are those of all users.
// A barrier must follow.
template <class Mask, int kWarps, int kRowTiles>
ARGUS_DEVICE RowSide<Mask, kRowTiles> load_rows(const Arguments& given,
                                                const typename Mask::RowNumbers& numbers,
                                                const int64_t* times, const Side& side, int first,
                                                RowSmem<kWarps, kRowTiles>& room) {
  constexpr int kRows = 16 * kRowTiles;
  static_assert(kRows <= kWarpSize);
  const int warp = warp_index(), lane = lane_index(), place = first + lane;
  const RowSide<Mask, kRowTiles> rows{first, numbers, room.time[warp], &room.span[warp]};
  if (given.time_bias == nullptr) return rows;
  const int64_t* time = times + side.begin;
  const int length = side.length;
  if (lane < kRows) rows.time[lane] = place < length ? time[place] : 0;
  // A warp past the user's end takes part in the block's products, and its scores would read buckets that are
  // not stored.
  const TimeSpan span =
      first < length ? warp_time_span(time + first, min(kRows, length - first)) : TimeSpan{0, 0};
  if (lane == 0) *rows.span = span;
  return rows;
}

}  // namespace argus::attention
