// Sampled softmax on the GPU.
//
//   rows_kernel          a warp a row: ⟨query, positive⟩
//   log_sum_exp_kernel   a block a tile of rows and a chunk of the candidates: scores in registers, online
//   peak
//                        and sum of each row; chunks let few rows fill the machine
//   finish_loss_kernel   a thread a row: the chunks in order, then loss, lse and the statistics
//   row_gradients_kernel, amplify_kernel   what the backward pass wants of each row
//   d_scores_kernel      scores once more, their gradients dS of a strip of rows into memory, row sums
//   d_query_kernel       dS · C, split over the candidates; d_candidates_kernel: dSᵀ · Q, added strip by
//   strip finish_rows_kernel   a warp a row: the splits in order, then d_query, d_positive; sum_kernel:
//   d_scale
//
// Every sum runs in an order that the sizes alone decide; nothing is added atomically.
#pragma once

#include "common/reduce.cuh"
#include "sampled_softmax_loss/sampled_softmax_loss_cuda.h"
#include "sampled_softmax_loss/tile_product.cuh"

namespace argus::sampled_softmax_loss {

template <class T>
struct Kernel {
  Inputs in;
  Outputs out;
  Gradients gradients;
  CudaPlan plan;
  Workspace work;
  bool aligned;        // rows of width elements begin at 16 bytes
  int64_t first_row;   // of the strip
  int64_t strip_rows;  // in this strip

  ARGUS_DEVICE const T* query() const { return static_cast<const T*>(in.query); }
  ARGUS_DEVICE const T* positive() const { return static_cast<const T*>(in.positive); }
  ARGUS_DEVICE const float* weights() const { return static_cast<const float*>(in.row_weight); }
  ARGUS_DEVICE float weight(int64_t row) const { return in.row_weight == nullptr ? 1.0f : weights()[row]; }
  ARGUS_DEVICE float scale() const { return *static_cast<const float*>(in.scale); }
  ARGUS_DEVICE float log_q(int64_t m) const { return static_cast<const float*>(in.log_q)[m]; }
  ARGUS_DEVICE float positive_log_q(int64_t row) const {
    return in.positive_log_q == nullptr ? 0.0f : static_cast<const float*>(in.positive_log_q)[row];
  }
  ARGUS_DEVICE float statistic(int which, int64_t row) const {
    return static_cast<const float*>(gradients.statistics)[which * in.rows + row];
  }
  ARGUS_DEVICE Operand<T> queries(int64_t first) const {
    return {query(), in.width, first, in.rows, in.width, weights(), aligned};
  }
  ARGUS_DEVICE Operand<T> candidates(int64_t first) const {
    return {static_cast<const T*>(in.candidates), in.width, first, in.drawn, in.width, nullptr, aligned};
  }
};

constexpr float kInfinity = __builtin_huge_valf();

ARGUS_DEVICE int64_t global_warp() {
  return (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / kWarpSize;
}

template <class T>
__global__ void rows_kernel(Kernel<T> k) {
  const int64_t row = global_warp();
  if (row >= k.in.rows) return;
  float sum = 0.0f;
  if (k.weight(row) != 0.0f) {
    for (int64_t column = lane_index(); column < k.in.width; column += kWarpSize)
      sum = fmaf(to_float(k.query()[row * k.in.width + column]),
                 to_float(k.positive()[row * k.in.width + column]), sum);
  }
  sum = warp_sum(sum);
  if (lane_index() == 0) k.work.product[row] = sum;
}

// What a tile of scores needs of its rows and candidates, in shared memory.
struct TileKeys {
  int64_t row_id[kTile], row_owner[kTile], column_id[kTile], column_owner[kTile];
  float product[kTile], log_q[kTile];
  float whole[kTile], factor[kTile];  // of the backward pass
};

template <class T>
ARGUS_DEVICE void load_row_keys(TileKeys& keys, const Kernel<T>& k, int64_t first) {
  const int i = static_cast<int>(threadIdx.x);
  if (i >= kTile) return;
  const bool real = first + i < k.in.rows;
  keys.row_id[i] = real ? k.in.positive_ids[first + i] : 0;
  keys.row_owner[i] = real && k.in.query_owner != nullptr ? k.in.query_owner[first + i] : -1;
  keys.product[i] = real ? k.work.product[first + i] : 0.0f;
}

template <class T>
ARGUS_DEVICE void load_column_keys(TileKeys& keys, const Kernel<T>& k, int64_t first) {
  const int j = static_cast<int>(threadIdx.x);
  if (j >= kTile) return;
  const bool real = first + j < k.in.drawn;
  keys.column_id[j] = real ? k.in.candidate_ids[first + j] : 0;
  keys.column_owner[j] = real && k.in.candidate_owner != nullptr ? k.in.candidate_owner[first + j] : -1;
  keys.log_q[j] = real ? k.log_q(first + j) : 0.0f;
}

ARGUS_DEVICE bool stays(const TileKeys& keys, int row, int column) {
  const bool own = keys.column_owner[column] >= 0 && keys.column_owner[column] == keys.row_owner[row];
  return keys.column_id[column] != keys.row_id[row] && !own;
}

// Candidate tiles [begin, end) of a chunk.
template <class T>
ARGUS_DEVICE void chunk_tiles(const Kernel<T>& k, int64_t chunk, int64_t chunks, int64_t& begin,
                              int64_t& end) {
  const int64_t tiles = (k.in.drawn + kTile - 1) / kTile;
  begin = tiles * chunk / chunks;
  end = tiles * (chunk + 1) / chunks;
}

// A row's log-sum-exp so far, and how many candidates it holds.
struct Online {
  float peak, total;
  int kept;

  ARGUS_DEVICE void add(const Online& other) {
    const float highest = fmaxf(peak, other.peak);
    const float shift = highest == -kInfinity ? 0.0f : highest;
    total = total * expf(peak - shift) + other.total * expf(other.peak - shift);
    peak = highest;
    kept += other.kept;
  }
};

// Adds a tile's scores to the thread's part of its rows.
ARGUS_DEVICE void add_scores(Online (&online)[kHeld], Sums& sums, const TileKeys& keys, float scale,
                             int64_t columns) {
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    Online tile{-kInfinity, 0.0f, 0};
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      const int column = held_column(j);
      const bool here = column < columns && stays(keys, held_row(i), column);
      const float relative = fmaf(scale, sums.at(i, j) - keys.product[held_row(i)], -keys.log_q[column]);
      sums.at(i, j) = here ? relative : -kInfinity;
      tile.peak = fmaxf(tile.peak, sums.at(i, j));
      tile.kept += here ? 1 : 0;
    }
    const float shift = tile.peak == -kInfinity ? 0.0f : tile.peak;
#pragma unroll
    for (int j = 0; j < kHeld; ++j) tile.total += expf(sums.at(i, j) - shift);
    online[i].add(tile);
  }
}

// Joins the four lanes, then the four warps, that hold parts of a row. `parts` is [kWarpColumns][kTile].
ARGUS_DEVICE void join_row(Online& online) {
#pragma unroll
  for (int distance = 1; distance <= 2; distance *= 2) {
    const Online other{__shfl_xor_sync(kFullWarp, online.peak, distance),
                       __shfl_xor_sync(kFullWarp, online.total, distance),
                       __shfl_xor_sync(kFullWarp, online.kept, distance)};
    // The same order in both lanes, so that they agree.
    const bool second = (lane_index() & distance) != 0;
    Online first = second ? other : online;
    first.add(second ? online : other);
    online = first;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 1) log_sum_exp_kernel(Kernel<T> k) {
  ARGUS_SHARED(Stages<T>, stages, [1]);
  ARGUS_SHARED(TileKeys, keys, [1]);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kTile, chunk = blockIdx.y;
  int64_t begin = 0, end = 0;
  chunk_tiles(k, chunk, k.plan.forward_chunks, begin, end);
  load_row_keys(keys[0], k, first);
  Online online[kHeld];
#pragma unroll
  for (int i = 0; i < kHeld; ++i) online[i] = {-kInfinity, 0.0f, 0};
  for (int64_t tile = begin; tile < end; ++tile) {
    __syncthreads();
    load_column_keys(keys[0], k, tile * kTile);
    __syncthreads();
    Sums sums;
    sums.clear();
    add_product<T, false, false>(sums, stages[0], k.queries(first), k.candidates(tile * kTile), 0,
                                 k.in.width);
    add_scores(online, sums, keys[0], k.scale(), k.in.drawn - tile * kTile);
  }
  __syncthreads();
  Online* parts = reinterpret_cast<Online*>(&stages[0]);
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    join_row(online[i]);
    if (lane_index() % 4 == 0) parts[warp_column() * kTile + held_row(i)] = online[i];
  }
  __syncthreads();
  const int row = static_cast<int>(threadIdx.x);
  if (row < kTile && first + row < k.in.rows) {
    Online whole = parts[row];
    for (int part = 1; part < kWarpColumns; ++part) whole.add(parts[part * kTile + row]);
    const int64_t at = chunk * k.in.rows + first + row;
    k.work.peak[at] = whole.peak;
    k.work.total[at] = whole.total;
    k.work.kept[at] = whole.kept;
  }
}

// log(e^a + e^b); either may be −∞.
ARGUS_DEVICE float log_add(float a, float b) {
  const float high = fmaxf(a, b), low = fminf(a, b);
  return high == -kInfinity ? high : high + log1pf(expf(low - high));
}

template <class T>
__global__ void finish_loss_kernel(Kernel<T> k) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row >= k.in.rows) return;
  Online whole{-kInfinity, 0.0f, 0};
  for (int64_t chunk = 0; chunk < k.plan.forward_chunks; ++chunk) {
    const int64_t at = chunk * k.in.rows + row;
    whole.add({k.work.peak[at], k.work.total[at], k.work.kept[at]});
  }
  // A peak of NaN is passed over by fmaxf, the sum is not.
  const float negatives = whole.total == 0.0f ? -kInfinity : whole.peak + logf(whole.total);
  const float log_q = k.positive_log_q(row), weight = k.weight(row);
  float denominator = 0.0f, loss = 0.0f;
  if (k.in.refined) {
    denominator = negatives + log1pf(-expf(log_q)) - logf(static_cast<float>(max(whole.kept, 1)));
    loss = denominator == -kInfinity ? 0.0f : denominator / (1.0f + expf(-denominator));
  } else {
    loss = denominator = log_add(-log_q, negatives);
  }
  const bool counts = weight != 0.0f;
  static_cast<float*>(k.out.loss)[row] = counts ? weight * loss : 0.0f;
  static_cast<float*>(k.out.lse)[row] = counts ? denominator + k.scale() * k.work.product[row] : 0.0f;
  float* statistics = static_cast<float*>(k.out.statistics);
  statistics[row] = counts ? denominator : 0.0f;
  statistics[k.in.rows + row] = counts ? (k.in.refined ? negatives : denominator) : 0.0f;
}

template <class T>
__global__ void row_gradients_kernel(Kernel<T> k) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row >= k.in.rows) return;
  const float denominator = k.statistic(0, row);
  float weight = k.weight(row);
  const bool counts = weight != 0.0f && denominator != -kInfinity;
  if (k.in.refined) weight /= 1.0f + expf(-denominator);
  const float d_loss = static_cast<const float*>(k.gradients.d_loss)[row];
  const float d_lse = static_cast<const float*>(k.gradients.d_lse)[row];
  k.work.row_scale[row] = counts ? weight * d_loss + d_lse : 0.0f;
  k.work.whole[row] = counts ? k.statistic(1, row) : kInfinity;
}

// One block: the power of two that takes the largest gradient of a row to between 2⁷ and 2⁸, and its inverse.
template <class T>
__global__ void amplify_kernel(Kernel<T> k) {
  ARGUS_SHARED(float, partial, [kWarpSize]);
  float largest = 0.0f;
  for (int64_t row = threadIdx.x; row < k.in.rows; row += blockDim.x)
    largest = fmaxf(largest, fabsf(k.scale() * k.work.row_scale[row]));
  largest = warp_max(largest);
  if (lane_index() == 0) partial[threadIdx.x / kWarpSize] = largest;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int warp = 1; warp < static_cast<int>(blockDim.x) / kWarpSize; ++warp)
    largest = fmaxf(largest, partial[warp]);
  const int exponent = static_cast<int>(__float_as_uint(largest) >> 23) - 127;
  const int wanted = largest > 0.0f ? min(max(7 - exponent, -100), 100) : 0;
  k.work.amplify[0] = __uint_as_float(static_cast<unsigned>(127 + wanted) << 23);
  k.work.amplify[1] = __uint_as_float(static_cast<unsigned>(127 - wanted) << 23);
}

// A row's sums over the candidates, as Workspace::sums holds them.
struct RowSums {
  float share, moment, d_score;

  ARGUS_DEVICE void add(const RowSums& other) {
    share += other.share;
    moment += other.moment;
    d_score += other.d_score;
  }
  ARGUS_DEVICE void join_lanes() {
#pragma unroll
    for (int distance = 1; distance <= 2; distance *= 2) {
      share += __shfl_xor_sync(kFullWarp, share, distance);
      moment += __shfl_xor_sync(kFullWarp, moment, distance);
      d_score += __shfl_xor_sync(kFullWarp, d_score, distance);
    }
  }
};

template <class T>
struct alignas(2 * sizeof(T)) Neighbours {
  T first, second;
};

template <class T>
ARGUS_DEVICE void load_row_gradients(TileKeys& keys, const Kernel<T>& k, int64_t local) {
  const int i = static_cast<int>(threadIdx.x);
  if (i >= kTile) return;
  const bool real = local + i < k.strip_rows;
  keys.whole[i] = real ? k.work.whole[k.first_row + local + i] : kInfinity;
  keys.factor[i] = real ? k.scale() * k.work.row_scale[k.first_row + local + i] * k.work.amplify[0] : 0.0f;
}

// Writes the gradients of a tile of scores, whose first is at `to`, and adds to the sums of rows. Of the
// eight rows that four lanes hold together, lane q keeps the sums of 2 q and 2 q + 1: eight would spill.
template <class T>
ARGUS_DEVICE void store_d_scores(RowSums (&rows)[2], Sums& sums, const TileKeys& keys, float scale, T* to,
                                 int64_t stride, int64_t tile_rows, int64_t tile_columns) {
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int row = held_row(i);
    RowSums found{};
#pragma unroll
    for (int j = 0; j < kHeld; j += 2) {
      Neighbours<T> pair;
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int column = held_column(j + e);
        const bool here = column < tile_columns && stays(keys, row, column);
        const float product = sums.at(i, j + e) - keys.product[row];
        const float share = here ? expf(fmaf(scale, product, -keys.log_q[column]) - keys.whole[row]) : 0.0f;
        T& stored = e == 0 ? pair.first : pair.second;
        from_float(stored, keys.factor[row] * share);
        found.add({share, share * product, to_float(stored)});
      }
      // The stride is even: a pair that begins inside a row of memory lies inside.
      if (row < tile_rows && held_column(j) < tile_columns)
        *reinterpret_cast<Neighbours<T>*>(to + row * stride + held_column(j)) = pair;
    }
    found.join_lanes();
    if (lane_index() % 4 == i / 2) rows[i % 2].add(found);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 1) d_scores_kernel(Kernel<T> k) {
  ARGUS_SHARED(Stages<T>, stages, [1]);
  ARGUS_SHARED(TileKeys, keys, [1]);
  const int64_t local = static_cast<int64_t>(blockIdx.x) * kTile, chunk = blockIdx.y;
  const int64_t first = k.first_row + local;
  int64_t begin = 0, end = 0;
  chunk_tiles(k, chunk, k.plan.chunks, begin, end);
  load_row_keys(keys[0], k, first);
  load_row_gradients(keys[0], k, local);
  RowSums rows[2] = {};
  for (int64_t tile = begin; tile < end; ++tile) {
    __syncthreads();
    load_column_keys(keys[0], k, tile * kTile);
    __syncthreads();
    Sums sums;
    sums.clear();
    add_product<T, false, false>(sums, stages[0], k.queries(first), k.candidates(tile * kTile), 0,
                                 k.in.width);
    T* to = static_cast<T*>(k.work.d_scores) + local * k.plan.score_stride + tile * kTile;
    store_d_scores(rows, sums, keys[0], k.scale(), to, k.plan.score_stride, k.strip_rows - local,
                   k.in.drawn - tile * kTile);
  }
  __syncthreads();
  RowSums* parts = reinterpret_cast<RowSums*>(&stages[0]);
  const int kept = lane_index() % 4 * 2;
#pragma unroll
  for (int i = 0; i < 2; ++i) parts[warp_column() * kTile + held_row(kept + i)] = rows[i];
  __syncthreads();
  const int row = static_cast<int>(threadIdx.x);
  if (row < kTile && local + row < k.strip_rows) {
    RowSums whole = parts[row];
    for (int part = 1; part < kWarpColumns; ++part) whole.add(parts[part * kTile + row]);
    float* to = k.work.sums + chunk * 3 * k.plan.strip_rows + local + row;
    to[0] = whole.share;
    to[k.plan.strip_rows] = whole.moment;
    to[2 * k.plan.strip_rows] = whole.d_score;
  }
}

// The strip's dS; as a left operand along the candidates or across them.
template <class T>
ARGUS_DEVICE Operand<T> d_scores_of(const Kernel<T>& k, int64_t first, int64_t count, int64_t depth) {
  return {static_cast<const T*>(k.work.d_scores), k.plan.score_stride, first, count, depth, nullptr, true};
}

// Partial d_query [splits, strip_rows, width]: blockIdx is (tile of rows, tile of columns, split).
template <class T>
__global__ void __launch_bounds__(kThreads, 1) d_query_kernel(Kernel<T> k) {
  ARGUS_SHARED(Stages<T>, stages, [1]);
  const int64_t local = static_cast<int64_t>(blockIdx.x) * kTile;
  const int64_t column = static_cast<int64_t>(blockIdx.y) * kTile, split = blockIdx.z;
  int64_t begin = 0, end = 0;
  chunk_tiles(k, split, k.plan.splits, begin, end);
  Sums sums;
  sums.clear();
  Operand<T> candidates = k.candidates(column);
  candidates.count = k.in.width;
  candidates.depth = k.in.drawn;
  add_product<T, false, true>(sums, stages[0], d_scores_of(k, local, k.strip_rows, k.in.drawn), candidates,
                              begin * kTile, min(end * kTile, k.in.drawn));
  float* to = k.work.d_query + split * k.plan.strip_rows * k.in.width;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      const int64_t row = local + held_row(i), at = column + held_column(j);
      if (row < k.strip_rows && at < k.in.width) to[row * k.in.width + at] = sums.at(i, j);
    }
  }
}

// Adds the strip's part of d_candidates; the last strip's blocks round it. blockIdx is (candidates, columns).
template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    d_candidates_kernel(Kernel<T> k, bool first_strip, bool last_strip) {
  ARGUS_SHARED(Stages<T>, stages, [1]);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kTile;
  const int64_t column = static_cast<int64_t>(blockIdx.y) * kTile;
  Sums sums;
  sums.clear();
  Operand<T> queries = k.queries(column);
  queries.data += k.first_row * k.in.width;
  if (queries.weight != nullptr) queries.weight += k.first_row;
  queries.count = k.in.width;
  queries.depth = k.strip_rows;
  add_product<T, true, true>(sums, stages[0], d_scores_of(k, first, k.in.drawn, k.strip_rows), queries, 0,
                             k.strip_rows);
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      const int64_t row = first + held_row(i), at = column + held_column(j);
      if (row >= k.in.drawn || at >= k.in.width) continue;
      const int64_t place = row * k.in.width + at;
      const float sum = first_strip ? sums.at(i, j) : k.work.d_candidates[place] + sums.at(i, j);
      if (last_strip) {
        from_float(static_cast<T*>(k.gradients.d_candidates)[place], sum * k.work.amplify[1]);
      } else {
        k.work.d_candidates[place] = sum;
      }
    }
  }
}

template <class T>
__global__ void finish_rows_kernel(Kernel<T> k) {
  const int64_t local = global_warp(), row = k.first_row + local;
  if (local >= k.strip_rows) return;
  RowSums sums{};
  for (int64_t chunk = 0; chunk < k.plan.chunks; ++chunk) {
    const float* from = k.work.sums + chunk * 3 * k.plan.strip_rows + local;
    sums.add({from[0], from[k.plan.strip_rows], from[2 * k.plan.strip_rows]});
  }
  const float whole = k.work.whole[row], gradient = k.work.row_scale[row], scale = k.scale();
  const bool counts = whole != kInfinity;
  const float own = k.in.refined || !counts ? 0.0f : expf(-k.positive_log_q(row) - whole);
  // The shares and the positive's own add up to 1 but for the rounding of `whole`, which this takes back.
  const float correction = sums.share + own > 0.0f ? 1.0f / (sums.share + own) : 0.0f;
  const float d_lse = counts ? static_cast<const float*>(k.gradients.d_lse)[row] : 0.0f;
  const float d_positive_score = d_lse - gradient * sums.share * correction;
  const float restored = correction * k.work.amplify[1];
  const float positive_factor = scale * d_lse - sums.d_score * restored;
  __syncwarp();
  if (lane_index() == 0)
    k.work.row_scale[row] = gradient * sums.moment * correction + d_lse * k.work.product[row];
  for (int64_t column = lane_index(); column < k.in.width; column += kWarpSize) {
    const int64_t at = row * k.in.width + column;
    if (k.gradients.d_query != nullptr) {
      float sum = 0.0f;
      for (int64_t split = 0; split < k.plan.splits; ++split)
        sum += k.work.d_query[(split * k.plan.strip_rows + local) * k.in.width + column];
      const float found = sum * restored + positive_factor * to_float(k.positive()[at]);
      from_float(static_cast<T*>(k.gradients.d_query)[at], counts ? found : 0.0f);
    }
    if (k.gradients.d_positive != nullptr) {
      const float found = scale * d_positive_score * to_float(k.query()[at]);
      from_float(static_cast<T*>(k.gradients.d_positive)[at], counts ? found : 0.0f);
    }
  }
}

// One block: d_scale from the rows' parts.
template <class T>
__global__ void sum_kernel(Kernel<T> k) {
  float sum = 0.0f;
  for (int64_t row = threadIdx.x; row < k.in.rows; row += blockDim.x) sum += k.work.row_scale[row];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *static_cast<float*>(k.gradients.d_scale) = sum;
}

}  // namespace argus::sampled_softmax_loss
