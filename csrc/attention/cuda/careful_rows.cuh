// Recomputes rows of attention's results pair by pair where the tiles gave NaN.
//
// A tile multiplies a hidden pair by a weight of 0, and 0 · NaN and 0 · ∞ are NaN; a float32 of ∞ has no low
// part for TF32 (∞ − ∞). Such an error becomes NaN in the register sums and stays NaN. So a warp that stores
// a NaN recomputes those rows from global memory, over the visible pairs only. What is NaN after that is NaN
// by definition of the op. All other results keep their bits.
//
// For scores and weights each lane takes one pair, 32 pairs at a time; for the row's sum it takes the
// elements lane, lane + 32, …. A row stops early once all its elements are NaN, so a batch full of NaN costs
// 32 pairs per row. One copy of these functions serves both masks.
#pragma once

#include "attention/cuda/dropout.cuh"
#include "attention/cuda/rows.cuh"
#include "attention/cuda/rule.cuh"
#include "attention/cuda/scores.cuh"
#include "attention/cuda/shapes.h"
#include "attention/cuda/tables.cuh"

namespace argus::attention::careful {

// The elements lane, lane + 32, … of a row, those of the block's part of the width.
template <int kPart>
struct Slice {
  static constexpr int kCount = kPart / kWarpSize;
  int begin, width;

  // visit(i, element) for those that the row has.
  template <class Visit>
  ARGUS_DEVICE void for_each(Visit visit) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int element = begin + lane_index() + i * kWarpSize;
      if (element < width) visit(i, element);
    }
  }
  // Every lane of the warp must call the next three functions.
  template <class T>
  ARGUS_DEVICE bool any_nan(const T* row) const {
    bool found = false;
    for_each([&](int, int element) { found = found || is_nan(to_float(row[element])); });
    return __any_sync(kFullWarp, found) != 0;
  }
  ARGUS_DEVICE bool all_nan(const float (&sums)[kCount]) const {
    bool all = true;
    for_each([&](int i, int) { all = all && is_nan(sums[i]); });
    return __all_sync(kFullWarp, all) != 0;
  }
  template <class T>
  ARGUS_DEVICE void replace_nan(T* row, const float (&sums)[kCount], float by) const {
    for_each([&](int i, int element) {
      if (is_nan(to_float(row[element]))) from_float(row[element], sums[i] * by);
    });
  }
  template <class T>
  ARGUS_DEVICE void add(float (&sums)[kCount], float weight, const T* row) const {
    for_each([&](int i, int element) { sums[i] = fmaf(weight, to_float(row[element]), sums[i]); });
  }
};

// What a block of threads has computed.
struct Place {
  Block block;
  int head, part;  // the head of the rows; the first element of its part of the width
};

// Grids of (blocks of rows, heads, parts of the width); the one of queries begins with the last block.
template <class Tiles>
struct QueryGrid : Tiles {
  static ARGUS_DEVICE Place place(const Arguments& given) {
    return {find_block<Tiles::kShape.rows>(queries_in(given), static_cast<int>(gridDim.x - 1 - blockIdx.x)),
            static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.z) * Tiles::kPart};
  }
};
template <class Tiles>
struct KeyGrid : Tiles {
  static ARGUS_DEVICE Place place(const Arguments& given) {
    return {find_block<Tiles::kShape.rows>(keys_in(given), static_cast<int>(blockIdx.x)),
            static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.z) * Tiles::kPart};
  }
};

// The rows of the calling warp. Functions that are not inlined recompute them: kept from the start of the
// kernel they would take registers of the main loop, and on sm_100 kernels of both ops spilled 8 to 16 bytes.
struct Rows : Place {
  int first, last;

  ARGUS_DEVICE Rows(const Place& place, int warp_rows)
      : Place(place),
        first(block.first + warp_index() * warp_rows),
        last(min(first + warp_rows, block.length)) {}
};

// visit(lane) for every lane whose pair is visible, in the order of lanes.
template <class Visit>
ARGUS_DEVICE void for_each_seen(bool seen, Visit visit) {
  for (unsigned left = __ballot_sync(kFullWarp, seen); left != 0; left &= left - 1)
    visit(__ffs(static_cast<int>(left)) - 1);
}

template <class T>
ARGUS_DEVICE const T* row_of(const tile::Source<T>& source, int row) {
  return source.data + row * source.stride;
}

template <class T>
ARGUS_DEVICE float dot(const T* x, const T* y, int width) {
  float sum = 0.0f;
#pragma unroll 1
  for (int i = 0; i < width; ++i) sum = fmaf(to_float(x[i]), to_float(y[i]), sum);
  return sum;
}

// The pairs of one user and query head; queries and keys are numbered by their places.
template <class Weights, class T>
struct Pairs {
  const Arguments& given;
  Bias bias;
  UserNumbers user;
  int head, queries, keys;  // the first packed rows
  float scale;
  Dropout dropout;
  tile::Source<T> q, k, v;

  // room: of the block's tables in shared memory.
  ARGUS_DEVICE Pairs(const Arguments& given, unsigned char* room, int user_index, int head)
      : given(given),
        bias(bias_in(given, room)),
        user(user_numbers(given, user_index, given.offsets[user_index + 1] - given.offsets[user_index],
                          given.key_offsets[user_index + 1] - given.key_offsets[user_index])),
        head(head),
        queries(given.offsets[user_index]),
        keys(given.key_offsets[user_index]),
        scale(static_cast<float>(given.scale) * Weights::kFactor),
        dropout(given, user_index, head),
        q(source_of<T>(given.q, given, queries, head)),
        k(source_of<T>(given.k, given, keys, key_head())),
        v(source_of<T>(given.v, given, keys, key_head())) {}

  ARGUS_DEVICE int key_head() const { return head / (given.heads / given.key_heads); }
  ARGUS_DEVICE QueryNumbers query(int place) const { return numbers_of(given, user, queries + place, place); }
  ARGUS_DEVICE int position_of(const QueryNumbers& query, int key) const {
    return max(0, min(query.position - key, bias.last_position));
  }
  ARGUS_DEVICE int bucket_of(int place, int key) const {
    return time_bucket(bias, time_distance(given.query_time[queries + place], given.key_time[keys + key]));
  }
  // The tables in shared memory may be another head's.
  ARGUS_DEVICE float entry(const void* table, int columns, int column) const {
    return __fmul_rn(floats(table)[static_cast<int64_t>(head) * columns + column], Weights::kFactor);
  }
  ARGUS_DEVICE float score(int place, const QueryNumbers& query, int key) const {
    float score = dot(row_of(q, place), row_of(k, key), given.width) * scale;
    if (bias.last_position >= 0)
      score += entry(given.position_bias, given.positions, position_of(query, key));
    if (bias.last_time >= 0) score += entry(given.time_bias, given.times, bucket_of(place, key));
    return score;
  }
  ARGUS_DEVICE float largest_score(int place, const QueryNumbers& query) const {
    // A score of NaN makes the row NaN, whatever the largest score is.
    float largest = -INFINITY, last = 0.0f;
#pragma unroll 1
    for (int key = query.begin() + lane_index(); key < query.end() && !is_nan(last); key += kWarpSize) {
      if (!query.sees(key)) continue;
      last = score(place, query, key);
      largest = fmaxf(largest, last);
    }
    return warp_max(largest);
  }
};

// The queries of a warp in the forward pass, of a kernel with these tiles. Here and below `room` holds the
// block's tables.
template <class Weights, class T, class Tiles>
ARGUS_RARE void forward_rows(const Forward& call, unsigned char* room) {
  constexpr Shape kShape = Tiles::kShape;
  constexpr int kPart = Tiles::kPart;
  constexpr float kLn2 = 0.6931471805599453f;
  const Rows rows(QueryGrid<Tiles>::place(call.given), kShape.warp_rows);
  const Pairs<Weights, T> pairs(call.given, room, rows.block.user, rows.head);
  const Weights weights(call.given);
  const Slice<kPart> slice{rows.part, call.given.width};
  const Target<T> target = target_of<T>(call.out, call.given, rows.block.begin, rows.head);
  __syncwarp();
#pragma unroll 1
  for (int place = rows.first; place < rows.last; ++place) {
    T* row = target.data + place * target.stride;
    if (!slice.any_nan(row)) continue;
    const QueryNumbers query = pairs.query(place);
    // Weights are relative to the largest score.
    RowStatistics statistics{0.0f, 0.0f, 1.0f};
    if constexpr (Weights::kNormalised) statistics.log_sum_exp = pairs.largest_score(place, query) * kLn2;
    float sums[Slice<kPart>::kCount] = {}, total = 0.0f;
    // log_sum_exp may be a number even if all visible values are NaN.
    const auto done = [&] {
      return slice.all_nan(sums) && (!Weights::kNormalised || __any_sync(kFullWarp, is_nan(total)));
    };
#pragma unroll 1
    for (int key = query.begin(); key < query.end() && !done(); key += kWarpSize) {
      const int own = key + lane_index();
      const bool seen = query.sees(own);
      float weight = 0.0f;
      if (seen) weight = weights.weight(pairs.score(place, query, own), statistics, T{});
      total += weight;
      if (seen) weight *= pairs.dropout.factor(query.position, own);
      for_each_seen(seen, [&](int lane) {
        slice.add(sums, __shfl_sync(kFullWarp, weight, lane), row_of(pairs.v, key + lane));
      });
    }
    total = warp_sum(total);
    slice.replace_nan(row, sums, query.sees_nothing() ? 0.0f : weights.factor(total));
    if constexpr (Weights::kNormalised) {
      float& log_sum_exp = floats(call.log_sum_exp)[rows.head * call.given.rows + rows.block.begin + place];
      if (rows.part == 0 && lane_index() == 0 && !(fabsf(log_sum_exp) < INFINITY))
        log_sum_exp = statistics.log_sum_exp + logf(total);
    }
  }
}

// For one query, with the sum of its weights over the visible pairs; every lane of the warp must call it.
template <class Weights, class T>
ARGUS_DEVICE RowStatistics query_statistics(const Backward& call, const Pairs<Weights, T>& pairs,
                                            const tile::Source<T>& d_out, int64_t at, int place,
                                            const QueryNumbers& query) {
  RowStatistics row{floats(call.log_sum_exp)[at], 0.0f, 1.0f};
  float total = 0.0f, product = 0.0f;
#pragma unroll 1
  for (int key = query.begin() + lane_index(); key < query.end() && !is_nan(total); key += kWarpSize) {
    if (!query.sees(key)) continue;
    const float weight = Weights::weight(pairs.score(place, query, key), row, T{});
    total += weight;
    const float gradient = dot(row_of(d_out, place), row_of(pairs.v, key), pairs.given.width) *
                           pairs.dropout.factor(query.position, key);
    product = fmaf(weight, gradient, product);
  }
  row.correction = 1.0f / warp_sum(total);
  row.delta = warp_sum(product) * row.correction - floats(call.d_log_sum_exp)[at];
  return row;
}

// The weight and the score gradient of a pair that its query sees; `weight` as dropout leaves it.
template <class Weights, class T>
ARGUS_DEVICE void differentiate_pair(float& weight, float& gradient, const Pairs<Weights, T>& pairs,
                                     const tile::Source<T>& d_out, const RowStatistics& statistics, int place,
                                     const QueryNumbers& query, int key) {
  const float factor = pairs.dropout.factor(query.position, key);
  weight = pairs.score(place, query, key);
  gradient = dot(row_of(d_out, place), row_of(pairs.v, key), pairs.given.width) * factor;
  Weights(pairs.given).differentiate(weight, gradient, statistics, T{});
  weight *= factor;
}

// The queries of a warp in a kernel of d_q with this grid.
template <class Weights, class T, class Grid>
ARGUS_RARE void query_gradient_rows(const Backward& call, unsigned char* room) {
  constexpr int kPart = Grid::kPart;
  const Rows rows(Grid::place(call.given), Grid::kShape.warp_rows);
  const Pairs<Weights, T> pairs(call.given, room, rows.block.user, rows.head);
  const Slice<kPart> slice{rows.part, call.given.width};
  const Target<T> target = target_of<T>(call.d_q, call.given, rows.block.begin, rows.head);
  const tile::Source<T> d_out = source_of<T>(call.d_out, call.given, rows.block.begin, rows.head);
  __syncwarp();
#pragma unroll 1
  for (int place = rows.first; place < rows.last; ++place) {
    T* d_q = target.data + place * target.stride;
    if (!slice.any_nan(d_q)) continue;
    const QueryNumbers query = pairs.query(place);
    RowStatistics statistics{0.0f, 0.0f, 1.0f};
    if constexpr (Weights::kNormalised) {
      const int64_t at = rows.head * call.given.rows + rows.block.begin + place;
      statistics = query_statistics(call, pairs, d_out, at, place, query);
      if (rows.part == 0 && lane_index() == 0) {
        if (is_nan(call.delta[at])) call.delta[at] = statistics.delta;
        if (sizeof(T) == 4 && is_nan(call.correction[at])) call.correction[at] = statistics.correction;
      }
    }
    float sums[Slice<kPart>::kCount] = {};
#pragma unroll 1
    for (int key = query.begin(); key < query.end() && !slice.all_nan(sums); key += kWarpSize) {
      const int own = key + lane_index();
      const bool seen = query.sees(own);
      float weight = 0.0f, gradient = 0.0f;
      if (seen) differentiate_pair(weight, gradient, pairs, d_out, statistics, place, query, own);
      for_each_seen(seen, [&](int lane) {
        slice.add(sums, __shfl_sync(kFullWarp, gradient, lane), row_of(pairs.k, key + lane));
      });
    }
    slice.replace_nan(d_q, sums, static_cast<float>(call.given.scale));
  }
}

// Their deltas alone, in a kernel of 16-bit elements that computes no d_q.
template <class Weights, class T, class Grid>
ARGUS_RARE void delta_rows(const Backward& call, unsigned char* room) {
  const Rows rows(Grid::place(call.given), Grid::kShape.warp_rows);
  const Pairs<Weights, T> pairs(call.given, room, rows.block.user, rows.head);
  const tile::Source<T> d_out = source_of<T>(call.d_out, call.given, rows.block.begin, rows.head);
  __syncwarp();
#pragma unroll 1
  for (int place = rows.first; place < rows.last; ++place) {
    const int64_t at = rows.head * call.given.rows + rows.block.begin + place;
    const bool nan = lane_index() == 0 && is_nan(call.delta[at]);
    if (__any_sync(kFullWarp, nan) == 0) continue;
    const float delta = query_statistics(call, pairs, d_out, at, place, pairs.query(place)).delta;
    if (lane_index() == 0) call.delta[at] = delta;
  }
}

// A query's statistics in memory.
template <class Weights, class T>
ARGUS_DEVICE RowStatistics stored_statistics(const Backward& call, const Pairs<Weights, T>& pairs,
                                             int place) {
  RowStatistics statistics{0.0f, 0.0f, 1.0f};
  if constexpr (Weights::kNormalised) {
    const int64_t at = pairs.head * call.given.rows + pairs.queries + place;
    statistics = {floats(call.log_sum_exp)[at], call.delta[at], 1.0f};
    if constexpr (sizeof(T) == 4) statistics.correction = call.correction[at];
  }
  return statistics;
}

// Adds a key's gradients over the queries of one head; all lanes return once all sums are NaN.
template <class Weights, class T, class Sums, class KeySlice>
ARGUS_DEVICE void add_key_gradients(Sums& d_k, Sums& d_v, const KeySlice& slice, const Backward& call,
                                    const Pairs<Weights, T>& pairs, const tile::Source<T>& d_out, int queries,
                                    int key) {
#pragma unroll 1
  for (int place = 0; place < queries && !(slice.all_nan(d_k) && slice.all_nan(d_v)); place += kWarpSize) {
    const int own = place + lane_index();
    bool seen = false;
    float weight = 0.0f, gradient = 0.0f;
    if (own < queries) {
      const QueryNumbers query = pairs.query(own);
      seen = query.sees(key);
      if (seen)
        differentiate_pair(weight, gradient, pairs, d_out, stored_statistics(call, pairs, own), own, query,
                           key);
    }
    for_each_seen(seen, [&](int lane) {
      slice.add(d_v, __shfl_sync(kFullWarp, weight, lane), row_of(d_out, place + lane));
      slice.add(d_k, __shfl_sync(kFullWarp, gradient, lane), row_of(pairs.q, place + lane));
    });
  }
}

// The keys of a warp in a kernel of d_k and d_v with this grid.
template <class Weights, class T, class Grid>
ARGUS_RARE void key_gradient_rows(const Backward& call, unsigned char* room) {
  constexpr int kPart = Grid::kPart;
  const Arguments& given = call.given;
  const Rows rows(Grid::place(given), Grid::kShape.warp_rows);
  const int user = rows.block.user, group = given.heads / given.key_heads;
  const int begin = given.offsets[user], queries = given.offsets[user + 1] - begin;
  const Slice<kPart> slice{rows.part, given.width};
  const Target<T> d_k_target = key_target_of<T>(call.d_k, given, rows.block.begin, rows.head);
  const Target<T> d_v_target = key_target_of<T>(call.d_v, given, rows.block.begin, rows.head);
  __syncwarp();
#pragma unroll 1
  for (int key = rows.first; key < rows.last; ++key) {
    T* d_k = d_k_target.data + key * d_k_target.stride;
    T* d_v = d_v_target.data + key * d_v_target.stride;
    if (!slice.any_nan(d_k) && !slice.any_nan(d_v)) continue;
    float d_k_sums[Slice<kPart>::kCount] = {}, d_v_sums[Slice<kPart>::kCount] = {};
#pragma unroll 1
    for (int head = rows.head * group; head < (rows.head + 1) * group; ++head) {
      const Pairs<Weights, T> pairs(given, room, user, head);
      const tile::Source<T> d_out = source_of<T>(call.d_out, given, begin, head);
      add_key_gradients(d_k_sums, d_v_sums, slice, call, pairs, d_out, queries, key);
    }
    slice.replace_nan(d_k, d_k_sums, static_cast<float>(given.scale));
    slice.replace_nan(d_v, d_v_sums, 1.0f);
  }
}

// Shared memory of the next function, behind the block's tables.
template <int kThreads>
struct TablePairs {
  float gradient[kThreads];
  int position[kThreads], time[kThreads];  // entries of the block's part, −1 where there is none
};

// Recomputes the NaN entries in the block's part of the bias tables' gradients; every thread of the block
// must call it, after a barrier.
template <class Weights, class T, int kWidth>
ARGUS_RARE void add_table_part(const Backward& call, unsigned char* room) {
  using Tiles = QueryTiles<sizeof(T), kWidth>;
  constexpr Shape kShape = Tiles::kShape;
  constexpr int kThreads = kShape.threads;
  const Arguments& given = call.given;
  const Rows rows(QueryGrid<Tiles>::place(given), kShape.warp_rows);
  const Pairs<Weights, T> pairs(given, room, rows.block.user, rows.head);
  const tile::Source<T> d_out = source_of<T>(call.d_out, given, rows.block.begin, rows.head);
  using Shared = TablePairs<kThreads>;
  static_assert(sizeof(Shared) <=
                kShape.warps * TableGradients<kShape.row_tiles, kShape.columns / 8>::kPairs * 4);
  Shared& shared = *reinterpret_cast<Shared*>(room + BiasSmem(given).bytes);
  float* part = table_part(call, static_cast<int>(gridDim.x - 1 - blockIdx.x), rows.head);
  const int thread = static_cast<int>(threadIdx.x), entries = table_entries(given);
  unsigned mine = 0;  // of the entries thread, thread + kThreads, …
  for (int n = 0, entry = thread; entry < entries; ++n, entry += kThreads) {
    if (!is_nan(part[entry])) continue;
    mine |= 1u << n;
    part[entry] = 0.0f;
  }
#pragma unroll 1
  for (int place = rows.block.first; place < rows.block.first + rows.block.rows; ++place) {
    const QueryNumbers query = pairs.query(place);
#pragma unroll 1
    for (int first = query.begin(); first < query.end(); first += kThreads) {
      const int key = first + thread;
      float weight = 0.0f, gradient = 0.0f;
      int position = -1, time = -1;
      if (query.sees(key)) {
        differentiate_pair(weight, gradient, pairs, d_out, stored_statistics(call, pairs, place), place,
                           query, key);
        if (pairs.bias.last_position >= 0) position = pairs.position_of(query, key);
        if (pairs.bias.last_time >= 0) time = used_positions(given) + pairs.bucket_of(place, key);
      }
      shared.gradient[thread] = gradient;
      shared.position[thread] = position;
      shared.time[thread] = time;
      __syncthreads();
      for (unsigned left = mine; left != 0; left &= left - 1) {
        const int entry = thread + (__ffs(static_cast<int>(left)) - 1) * kThreads;
        float sum = 0.0f;
        for (int i = 0; i < kThreads; ++i) {
          if (shared.position[i] == entry || shared.time[i] == entry) sum += shared.gradient[i];
        }
        part[entry] += sum;
        if (is_nan(part[entry])) mine &= ~(left & -left);
      }
      if (!__syncthreads_or(mine != 0)) return;
    }
  }
}

}  // namespace argus::attention::careful
