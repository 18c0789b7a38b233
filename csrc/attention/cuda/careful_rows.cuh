// Recomputes rows of attention's results pair by pair where the tiles gave NaN.
//
// A tile multiplies a hidden pair by a weight of 0, and 0 · NaN and 0 · ∞ are NaN; a float32 of ∞ has no low
// part for TF32 (∞ − ∞). Such an error becomes NaN in the register sums and stays NaN. So a warp that stores
// a NaN recomputes those rows from global memory, over the visible pairs only. What is NaN after that is NaN
// by definition of the op. All other results keep their bits.
//
// For scores and weights each lane takes one pair, 32 pairs at a time; for the row's sum it takes the
// elements lane, lane + 32, …. A row stops early once all its elements are NaN, so a batch full of NaN costs
// 32 pairs per row.
#pragma once

#include "attention/cuda/rows.cuh"
#include "attention/cuda/scores.cuh"
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

// The rows of the calling warp and the addresses of its block's tables. Functions that are not inlined
// recompute them: kept from the start of the kernel they would take registers of the main loop, and on sm_100
// kernels of both ops spilled 8 to 16 bytes.
template <class Smem>
struct Rows {
  Bias bias;
  Block block;
  int head, part, first, last;

  ARGUS_DEVICE Rows(const Arguments& given, unsigned char* room, int block_index)
      : bias(bias_in(given, room + Smem::kBias)),
        block(find_block<Smem::kShape.rows>(given, block_index)),
        head(static_cast<int>(blockIdx.y)),
        part(static_cast<int>(blockIdx.z) * Smem::kPart),
        first(block.first + warp_index() * Smem::kShape.warp_rows),
        last(min(first + Smem::kShape.warp_rows, block.length)) {}
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

// The pairs of one user and head; queries and keys are numbered by their position in the history.
template <class Weights, class T>
struct Pairs {
  const Arguments& given;
  const Bias& bias;
  int begin;
  float scale;
  tile::Source<T> q, k, v;

  ARGUS_DEVICE Pairs(const Arguments& given, const Bias& bias, int begin, int head)
      : given(given),
        bias(bias),
        begin(begin),
        scale(static_cast<float>(given.scale) * Weights::kFactor),
        q(source_of<T>(given.q, given, begin, head)),
        k(source_of<T>(given.k, given, begin, head)),
        v(source_of<T>(given.v, given, begin, head)) {}

  ARGUS_DEVICE int first_key(int query) const { return max(0, query - given.window + 1); }
  ARGUS_DEVICE bool sees(int query, int key) const {
    return key <= query && is_seen(query, key, visible_of(given, begin, query), given.window);
  }
  ARGUS_DEVICE int position_of(int query, int key) const { return min(query - key, bias.last_position); }
  ARGUS_DEVICE int bucket_of(int query, int key) const {
    return time_bucket(bias, time_distance(given.query_time[begin + query], given.key_time[begin + key]));
  }
  ARGUS_DEVICE float score(int query, int key) const {
    float score = dot(row_of(q, query), row_of(k, key), given.width) * scale;
    if (bias.last_position >= 0) score += bias.position[position_of(query, key)];
    if (bias.last_time >= 0) score += bias.time[bucket_of(query, key)];
    return score;
  }
  ARGUS_DEVICE float largest_score(int query) const {
    // A score of NaN makes the row NaN, whatever the largest score is.
    float largest = -INFINITY, last = 0.0f;
#pragma unroll 1
    for (int key = first_key(query) + lane_index(); key <= query && !is_nan(last); key += kWarpSize) {
      if (!sees(query, key)) continue;
      last = score(query, key);
      largest = fmaxf(largest, last);
    }
    return warp_max(largest);
  }
};

// The queries of a warp in the forward pass.
template <class Weights, class T, class Smem>
ARGUS_RARE void forward_rows(const Forward& call, unsigned char* room) {
  const Rows<Smem> rows(call.given, room, static_cast<int>(gridDim.x - 1 - blockIdx.x));
  constexpr float kLn2 = 0.6931471805599453f;
  const Pairs<Weights, T> pairs(call.given, rows.bias, rows.block.begin, rows.head);
  const Weights weights(call.given);
  const Slice<Smem::kPart> slice{rows.part, call.given.width};
  const Target<T> target = target_of<T>(call.out, call.given, rows.block.begin, rows.head);
  __syncwarp();
#pragma unroll 1
  for (int query = rows.first; query < rows.last; ++query) {
    T* row = target.data + query * target.stride;
    if (!slice.any_nan(row)) continue;
    // Weights are relative to the largest score.
    RowStatistics statistics{0.0f, 0.0f, 1.0f};
    if constexpr (Weights::kNormalised) statistics.log_sum_exp = pairs.largest_score(query) * kLn2;
    float sums[Slice<Smem::kPart>::kCount] = {}, total = 0.0f;
    // log_sum_exp may be a number even if all visible values are NaN.
    const auto done = [&] {
      return slice.all_nan(sums) && (!Weights::kNormalised || __any_sync(kFullWarp, is_nan(total)));
    };
#pragma unroll 1
    for (int key = pairs.first_key(query); key <= query && !done(); key += kWarpSize) {
      const bool seen = pairs.sees(query, key + lane_index());
      float weight = 0.0f;
      if (seen) weight = weights.weight(pairs.score(query, key + lane_index()), statistics, T{});
      total += weight;
      for_each_seen(seen, [&](int lane) {
        slice.add(sums, __shfl_sync(kFullWarp, weight, lane), row_of(pairs.v, key + lane));
      });
    }
    total = warp_sum(total);
    slice.replace_nan(row, sums, weights.factor(total));
    if constexpr (Weights::kNormalised) {
      float& log_sum_exp = floats(call.log_sum_exp)[rows.head * call.given.rows + rows.block.begin + query];
      if (rows.part == 0 && lane_index() == 0 && !(fabsf(log_sum_exp) < INFINITY))
        log_sum_exp = statistics.log_sum_exp + logf(total);
    }
  }
}

// For one query, with the sum of its weights over the visible pairs; every lane of the warp must call it.
template <class Weights, class T>
ARGUS_DEVICE RowStatistics query_statistics(const Backward& call, const Pairs<Weights, T>& pairs,
                                            const tile::Source<T>& d_out, int64_t at, int query) {
  RowStatistics row{floats(call.log_sum_exp)[at], 0.0f, 1.0f};
  float total = 0.0f, product = 0.0f;
#pragma unroll 1
  for (int key = pairs.first_key(query) + lane_index(); key <= query && !is_nan(total); key += kWarpSize) {
    if (!pairs.sees(query, key)) continue;
    const float weight = Weights::weight(pairs.score(query, key), row, T{});
    total += weight;
    product = fmaf(weight, dot(row_of(d_out, query), row_of(pairs.v, key), pairs.given.width), product);
  }
  row.correction = 1.0f / warp_sum(total);
  row.delta = warp_sum(product) * row.correction - floats(call.d_log_sum_exp)[at];
  return row;
}

// The queries of a warp in the first kernel of the backward pass.
template <class Weights, class T, class Smem>
ARGUS_RARE void query_gradient_rows(const Backward& call, unsigned char* room) {
  const Rows<Smem> rows(call.given, room, static_cast<int>(gridDim.x - 1 - blockIdx.x));
  const Pairs<Weights, T> pairs(call.given, rows.bias, rows.block.begin, rows.head);
  const Weights weights(call.given);
  const Slice<Smem::kPart> slice{rows.part, call.given.width};
  const Target<T> target = target_of<T>(call.d_q, call.given, rows.block.begin, rows.head);
  const tile::Source<T> d_out = source_of<T>(call.d_out, call.given, rows.block.begin, rows.head);
  __syncwarp();
#pragma unroll 1
  for (int query = rows.first; query < rows.last; ++query) {
    T* d_q = target.data + query * target.stride;
    if (!slice.any_nan(d_q)) continue;
    RowStatistics statistics{0.0f, 0.0f, 1.0f};
    if constexpr (Weights::kNormalised) {
      const int64_t at = rows.head * call.given.rows + rows.block.begin + query;
      statistics = query_statistics(call, pairs, d_out, at, query);
      if (rows.part == 0 && lane_index() == 0) {
        if (is_nan(call.delta[at])) call.delta[at] = statistics.delta;
        if (sizeof(T) == 4 && is_nan(call.correction[at])) call.correction[at] = statistics.correction;
      }
    }
    float sums[Slice<Smem::kPart>::kCount] = {};
#pragma unroll 1
    for (int key = pairs.first_key(query); key <= query && !slice.all_nan(sums); key += kWarpSize) {
      const int own = key + lane_index();
      const bool seen = pairs.sees(query, own);
      float score = 0.0f, gradient = 0.0f;
      if (seen) {
        score = pairs.score(query, own);
        gradient = dot(row_of(d_out, query), row_of(pairs.v, own), call.given.width);
        weights.differentiate(score, gradient, statistics, T{});
      }
      for_each_seen(seen, [&](int lane) {
        slice.add(sums, __shfl_sync(kFullWarp, gradient, lane), row_of(pairs.k, key + lane));
      });
    }
    slice.replace_nan(d_q, sums, static_cast<float>(call.given.scale));
  }
}

// The weight and the score gradient of a pair, from the statistics in memory.
template <class Weights, class T>
ARGUS_DEVICE void differentiate_pair(float& score, float& gradient, const Backward& call,
                                     const Pairs<Weights, T>& pairs, const tile::Source<T>& d_out, int head,
                                     int query, int key) {
  RowStatistics statistics{0.0f, 0.0f, 1.0f};
  if constexpr (Weights::kNormalised) {
    const int64_t at = head * call.given.rows + pairs.begin + query;
    statistics = {floats(call.log_sum_exp)[at], call.delta[at], 1.0f};
    if constexpr (sizeof(T) == 4) statistics.correction = call.correction[at];
  }
  score = pairs.score(query, key);
  gradient = dot(row_of(d_out, query), row_of(pairs.v, key), call.given.width);
  Weights(call.given).differentiate(score, gradient, statistics, T{});
}

// The keys of a warp in the second kernel of the backward pass.
template <class Weights, class T, class Smem>
ARGUS_RARE void key_gradient_rows(const Backward& call, unsigned char* room) {
  const Rows<Smem> rows(call.given, room, static_cast<int>(blockIdx.x));
  const Pairs<Weights, T> pairs(call.given, rows.bias, rows.block.begin, rows.head);
  const Slice<Smem::kPart> slice{rows.part, call.given.width};
  const Target<T> d_k_target = target_of<T>(call.d_k, call.given, rows.block.begin, rows.head);
  const Target<T> d_v_target = target_of<T>(call.d_v, call.given, rows.block.begin, rows.head);
  const tile::Source<T> d_out = source_of<T>(call.d_out, call.given, rows.block.begin, rows.head);
  __syncwarp();
#pragma unroll 1
  for (int key = rows.first; key < rows.last; ++key) {
    T* d_k = d_k_target.data + key * d_k_target.stride;
    T* d_v = d_v_target.data + key * d_v_target.stride;
    if (!slice.any_nan(d_k) && !slice.any_nan(d_v)) continue;
    const int end = key + min(call.given.window, rows.block.length - key);
    float d_k_sums[Slice<Smem::kPart>::kCount] = {}, d_v_sums[Slice<Smem::kPart>::kCount] = {};
#pragma unroll 1
    for (int query = key; query < end && !(slice.all_nan(d_k_sums) && slice.all_nan(d_v_sums));
         query += kWarpSize) {
      const int own = query + lane_index();
      const bool seen = own < end && pairs.sees(own, key);
      float weight = 0.0f, gradient = 0.0f;
      if (seen) differentiate_pair(weight, gradient, call, pairs, d_out, rows.head, own, key);
      for_each_seen(seen, [&](int lane) {
        slice.add(d_v_sums, __shfl_sync(kFullWarp, weight, lane), row_of(d_out, query + lane));
        slice.add(d_k_sums, __shfl_sync(kFullWarp, gradient, lane), row_of(pairs.q, query + lane));
      });
    }
    slice.replace_nan(d_k, d_k_sums, static_cast<float>(call.given.scale));
    slice.replace_nan(d_v, d_v_sums, 1.0f);
  }
}

// Shared memory of the next function.
template <int kThreads>
struct TablePairs {
  float gradient[kThreads];
  int position[kThreads], time[kThreads];  // entries of the block's part, −1 where there is none
};

// Recomputes the NaN entries in the block's part of the bias tables' gradients; every thread of the block
// must call it, after a barrier.
template <class Weights, class T, class Smem>
ARGUS_RARE void add_table_part(const Backward& call, unsigned char* room) {
  const Rows<Smem> rows(call.given, room, static_cast<int>(gridDim.x - 1 - blockIdx.x));
  const Arguments& given = call.given;
  const Pairs<Weights, T> pairs(given, rows.bias, rows.block.begin, rows.head);
  const tile::Source<T> d_out = source_of<T>(call.d_out, given, rows.block.begin, rows.head);
  constexpr int kThreads = Smem::kShape.threads;
  using Shared = TablePairs<kThreads>;
  static_assert(sizeof(Shared) <= Smem::kShape.warps * Smem::Tables::kPairs * 4);
  Shared& shared = *reinterpret_cast<Shared*>(room + Smem::kBias + BiasSmem(given).bytes);
  float* part = table_part(call, static_cast<int>(gridDim.x - 1 - blockIdx.x), rows.head);
  const int thread = static_cast<int>(threadIdx.x), entries = table_entries(given);
  unsigned mine = 0;  // of the entries thread, thread + kThreads, …
  for (int n = 0, entry = thread; entry < entries; ++n, entry += kThreads) {
    if (!is_nan(part[entry])) continue;
    mine |= 1u << n;
    part[entry] = 0.0f;
  }
#pragma unroll 1
  for (int query = rows.block.first; query < rows.block.first + rows.block.rows; ++query) {
#pragma unroll 1
    for (int first = pairs.first_key(query); first <= query; first += kThreads) {
      const int key = first + thread;
      float score = 0.0f, gradient = 0.0f;
      int position = -1, time = -1;
      if (pairs.sees(query, key)) {
        differentiate_pair(score, gradient, call, pairs, d_out, rows.head, query, key);
        if (rows.bias.last_position >= 0) position = pairs.position_of(query, key);
        if (rows.bias.last_time >= 0) time = used_positions(given) + pairs.bucket_of(query, key);
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
