// Sampled softmax on the GPU, backward, after rows_kernel.
//
//   row_gradients_kernel   a thread per row: the terms of its scores' gradients amplify_kernel         one
//   block: the power of two that keeps 16-bit dS in range d_scores_kernel        recomputes scores; stores
//   their gradients dS for a strip of rows, and row sums d_query_kernel         dS · C, split over the
//   candidates d_candidates_kernel    dSᵀ · Q, added strip by strip finish_rows_kernel     a warp per row:
//   the splits in order, then d_query and d_positive sum_kernel             one block: d_scale
//
// The order of every sum depends on the sizes alone; nothing is added atomically.
#pragma once

#include "sampled_softmax_loss/tile_scores.cuh"

namespace argus::sampled_softmax_loss {

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
  // Shares of an infinite sum are NaN, like ∞ / ∞.
  const float whole = k.statistic(1, row);
  k.work.whole[row] = !counts ? kInfinity : whole == kInfinity ? NAN : whole;
}

// One block: the power of two that scales the largest gradient of a row to between 2⁷ and 2⁸, and its
// inverse.
template <class T>
__global__ void amplify_kernel(Kernel<T> k) {
  ARGUS_SHARED(float, partial, [kWarpSize]);
  float largest = 0.0f;
  for (int64_t row = threadIdx.x; row < k.in.rows; row += blockDim.x) {
    const float size = fabsf(k.scale() * k.work.row_scale[row]);
    if (size < kInfinity) largest = fmaxf(largest, size);
  }
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
ARGUS_DEVICE void load_row_gradients(TileKeys& keys, const Kernel<T>& k, int64_t local) {
  const int i = static_cast<int>(threadIdx.x);
  if (i >= kTile) return;
  const bool real = local + i < k.strip_rows;
  keys.whole[i] = real ? k.work.whole[k.first_row + local + i] : kInfinity;
  keys.factor[i] = real ? k.scale() * k.work.row_scale[k.first_row + local + i] * k.work.amplify[0] : 0.0f;
}

// Writes the gradients of a tile of scores, whose first is at `to`, and adds to the sums of rows. Of the
// eight rows that four lanes hold together, lane q keeps the sums of rows 2 q and 2 q + 1: keeping all eight
// would spill.
template <class T>
ARGUS_DEVICE void store_d_scores(RowSums (&rows)[2], Sums& sums, const TileKeys& keys, float scale, T* to,
                                 int64_t stride, int64_t tile_rows, int64_t tile_columns) {
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int row = held_row(i);
    RowSums found{};
#pragma unroll
    for (int j = 0; j < kHeld; j += 2) {
      tile::Pair<T> pair;
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int column = held_column(j + e);
        const bool here = column < tile_columns && stays(keys, row, column);
        const float product = sums.at(i, j + e) - keys.product[row];
        const float share = here ? expf(fmaf(scale, product, -keys.log_q[column]) - keys.whole[row]) : 0.0f;
        T& stored = e == 0 ? pair.x : pair.y;
        from_float(stored, keys.factor[row] * share);
        found.add({share, share * product, to_float(stored)});
      }
      // The stride is even: a pair that begins inside a row ends inside it.
      if (row < tile_rows && held_column(j) < tile_columns)
        *reinterpret_cast<tile::Pair<T>*>(to + row * stride + held_column(j)) = pair;
    }
    found.join_lanes();
    if (lane_index() % 4 == i / 2) rows[i % 2].add(found);
  }
}

template <class T>
ARGUS_DEVICE float d_score_of(const Kernel<T>& k, int64_t local, int64_t candidate) {
  return to_float(static_cast<const T*>(k.work.d_scores)[local * k.plan.score_stride + candidate]);
}

// The kernels multiply a candidate that a row leaves out by a share and a dS of 0, but 0 · NaN and 0 · ∞ are
// NaN, and so is every sum that contains them. So the next three functions recompute each NaN result over the
// remaining pairs only. What is NaN after that is NaN by definition of the op.
template <class T>
ARGUS_DEVICE RowSums sums_of_what_stays(const Kernel<T>& k, int64_t local, int64_t begin, int64_t end) {
  const int64_t row = k.first_row + local;
  const T* query = k.query() + row * k.in.width;
  RowSums sums{};
#pragma unroll 1
  for (int64_t m = begin; m < end && !is_nan(sums.share); ++m) {
    if (!stays(k, row, m)) continue;
    const T* candidate = k.candidates().data + m * k.in.width;
    float product = 0.0f;
#pragma unroll 1
    for (int64_t column = 0; column < k.in.width; ++column)
      product = fmaf(to_float(query[column]), to_float(candidate[column]), product);
    product -= k.work.product[row];
    const float share = expf(fmaf(k.scale(), product, -k.log_q(m)) - k.work.whole[row]);
    sums.add({share, share * product, d_score_of(k, local, m)});
  }
  return sums;
}

template <class T>
ARGUS_DEVICE float d_query_of_what_stays(const Kernel<T>& k, int64_t local, int64_t column, int64_t begin,
                                         int64_t end) {
  float sum = 0.0f;
#pragma unroll 1
  for (int64_t m = begin; m < end && !is_nan(sum); ++m) {
    if (stays(k, k.first_row + local, m))
      sum = fmaf(d_score_of(k, local, m), to_float(k.candidates().data[m * k.in.width + column]), sum);
  }
  return sum;
}

template <class T>
ARGUS_DEVICE float d_candidate_of_what_stays(const Kernel<T>& k, int64_t candidate, int64_t column) {
  float sum = 0.0f;
#pragma unroll 1
  for (int64_t local = 0; local < k.strip_rows && !is_nan(sum); ++local) {
    const int64_t row = k.first_row + local;
    if (k.work.whole[row] != kInfinity && stays(k, row, candidate))
      sum = fmaf(d_score_of(k, local, candidate), to_float(k.query()[row * k.in.width + column]), sum);
  }
  return sum;
}

template <class T>
__global__ void __launch_bounds__(tile::kThreads, 2) d_scores_kernel(Kernel<T> k) {
  ARGUS_DYNAMIC_SHARED(unsigned char, shared);
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
    add_tile_product(sums, shared, k, first, tile * kTile);
    T* to = static_cast<T*>(k.work.d_scores) + local * k.plan.score_stride + tile * kTile;
    store_d_scores(rows, sums, keys[0], k.scale(), to, k.plan.score_stride, k.strip_rows - local,
                   k.in.drawn - tile * kTile);
  }
  __syncthreads();
  RowSums* parts = reinterpret_cast<RowSums*>(shared);
  const int kept = lane_index() % 4 * 2;
#pragma unroll
  for (int i = 0; i < 2; ++i) parts[tile::warp_column() * kTile + held_row(kept + i)] = rows[i];
  __syncthreads();
  const int row = static_cast<int>(threadIdx.x);
  if (row < kTile && local + row < k.strip_rows) {
    RowSums whole = parts[row];
    for (int part = 1; part < tile::kWarpColumns; ++part) whole.add(parts[part * kTile + row]);
    if (is_nan(whole.moment) || is_nan(whole.d_score))
      whole = sums_of_what_stays(k, local + row, begin * kTile, min(end * kTile, k.in.drawn));
    float* to = k.work.sums + chunk * 3 * k.plan.strip_rows + local + row;
    to[0] = whole.share;
    to[k.plan.strip_rows] = whole.moment;
    to[2 * k.plan.strip_rows] = whole.d_score;
  }
}

template <class T>
ARGUS_DEVICE tile::Matrix<T> d_scores_of(const Kernel<T>& k) {
  return {static_cast<const T*>(k.work.d_scores), k.strip_rows, k.in.drawn, k.plan.score_stride, true};
}

// Partial d_query [splits, strip_rows, width]: blockIdx is (tile of rows, tile of columns, split).
template <class T>
__global__ void __launch_bounds__(tile::kThreads, 2) d_query_kernel(Kernel<T> k) {
  ARGUS_DYNAMIC_SHARED(unsigned char, shared);
  const int64_t local = static_cast<int64_t>(blockIdx.x) * kTile;
  const int64_t column = static_cast<int64_t>(blockIdx.y) * kTile, split = blockIdx.z;
  int64_t begin = 0, end = 0;
  chunk_tiles(k, split, k.plan.splits, begin, end);
  const tile::Matrix<T> d_scores = d_scores_of(k), candidates = k.candidates();
  const tile::Operand<T, false, tile::Matrix<T>> left{d_scores, local, tile::chunk_of<T>(begin * kTile)};
  const tile::Operand<T, true, tile::Matrix<T>> right{candidates, begin * kTile, tile::chunk_of<T>(column)};
  Sums sums;
  tile::add_product<T>(sums, shared, left, right,
                       tile::stages_of<T>(min(end * kTile, k.in.drawn) - begin * kTile));
  float* to = k.work.d_query + split * k.plan.strip_rows * k.in.width;
  uint64_t nan = 0;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      const int64_t row = local + held_row(i), at = column + held_column(j);
      if (row >= k.strip_rows || at >= k.in.width) continue;
      to[row * k.in.width + at] = sums.at(i, j);
      if (is_nan(sums.at(i, j))) nan |= uint64_t{1} << (kHeld * i + j);
    }
  }
#pragma unroll 1
  for (int element = 0; nan != 0; ++element, nan >>= 1) {
    if ((nan & 1) == 0) continue;
    const int64_t row = local + held_row(element / kHeld), at = column + held_column(element % kHeld);
    to[row * k.in.width + at] =
        d_query_of_what_stays(k, row, at, begin * kTile, min(end * kTile, k.in.drawn));
  }
}

// Adds a strip's part of one element of d_candidates.
template <class T>
ARGUS_DEVICE void add_d_candidate(const Kernel<T>& k, int64_t place, float sum, bool first_strip,
                                  bool last_strip) {
  if (!first_strip) sum += k.work.d_candidates[place];
  if (last_strip) {
    from_float(static_cast<T*>(k.gradients.d_candidates)[place], sum * k.work.amplify[1]);
  } else {
    k.work.d_candidates[place] = sum;
  }
}

// Adds the strip's part of d_candidates; the last strip's blocks round it. blockIdx is (candidates, columns).
template <class T>
__global__ void __launch_bounds__(tile::kThreads, 2)
    d_candidates_kernel(Kernel<T> k, bool first_strip, bool last_strip) {
  ARGUS_DYNAMIC_SHARED(unsigned char, shared);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kTile;
  const int64_t column = static_cast<int64_t>(blockIdx.y) * kTile;
  const tile::Matrix<T> d_scores = d_scores_of(k), queries = k.queries();
  const tile::Operand<T, true, tile::Matrix<T>> left{d_scores, 0, tile::chunk_of<T>(first)};
  const tile::Operand<T, true, tile::Matrix<T>> right{queries, k.first_row, tile::chunk_of<T>(column)};
  Sums sums;
  tile::add_product<T>(sums, shared, left, right, tile::stages_of<T>(k.strip_rows));
  uint64_t nan = 0;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      const int64_t row = first + held_row(i), at = column + held_column(j);
      if (row >= k.in.drawn || at >= k.in.width) continue;
      if (is_nan(sums.at(i, j))) {
        nan |= uint64_t{1} << (kHeld * i + j);
      } else {
        add_d_candidate(k, row * k.in.width + at, sums.at(i, j), first_strip, last_strip);
      }
    }
  }
#pragma unroll 1
  for (int element = 0; nan != 0; ++element, nan >>= 1) {
    if ((nan & 1) == 0) continue;
    const int64_t row = first + held_row(element / kHeld), at = column + held_column(element % kHeld);
    const float sum = d_candidate_of_what_stays(k, row, at);
    add_d_candidate(k, row * k.in.width + at, sum, first_strip, last_strip);
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
  // The shares and the positive's share add up to 1 except for the rounding of `whole`, which this corrects.
  const float correction = sums.share + own > 0.0f ? 1.0f / (sums.share + own) : 0.0f;
  const float d_lse = counts ? static_cast<const float*>(k.gradients.d_lse)[row] : 0.0f;
  const float d_positive_score = d_lse - gradient * sums.share * correction;
  const float restored = correction * k.work.amplify[1];
  const float positive_factor = scale * d_lse - sums.d_score * restored;
  __syncwarp();
  if (lane_index() == 0)
    k.work.row_scale[row] = counts ? gradient * sums.moment * correction + d_lse * k.work.product[row] : 0.0f;
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
