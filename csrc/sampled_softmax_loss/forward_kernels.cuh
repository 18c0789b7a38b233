// Sampled softmax on the GPU, forward, after rows_kernel.
//
//   log_sum_exp_kernel   a block per tile of rows and chunk of the candidates: scores in registers, online
//                        peak and sum of each row; chunks let few rows fill the machine
//   finish_loss_kernel   a thread per row: the chunks in order, then loss, lse and the statistics
//
// The order of every sum depends on the sizes alone; nothing is added atomically.
#pragma once

#include "sampled_softmax_loss/tile_scores.cuh"

namespace argus::sampled_softmax_loss {

// The shift of a log-sum-exp's terms: its peak, or 0 if the peak is infinite, since ∞ − ∞ is NaN.
ARGUS_DEVICE float shift_of(float peak) {
  return fabsf(peak) == kInfinity ? 0.0f : peak;
}

// A row's running log-sum-exp, and the number of candidates in it.
struct Online {
  float peak, total;
  int kept;

  ARGUS_DEVICE void add(const Online& other) {
    const float highest = fmaxf(peak, other.peak);
    const float shift = shift_of(highest);
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
    const float shift = shift_of(tile.peak);
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
__global__ void __launch_bounds__(tile::kThreads) log_sum_exp_kernel(Kernel<T> k) {
  ARGUS_DYNAMIC_SHARED(unsigned char, shared);
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
    add_tile_product(sums, shared, k, first, tile * kTile);
    add_scores(online, sums, keys[0], k.scale(), k.in.drawn - tile * kTile);
  }
  __syncthreads();
  Online* parts = reinterpret_cast<Online*>(shared);
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    join_row(online[i]);
    if (lane_index() % 4 == 0) parts[tile::warp_column() * kTile + held_row(i)] = online[i];
  }
  __syncthreads();
  const int row = static_cast<int>(threadIdx.x);
  if (row < kTile && first + row < k.in.rows) {
    Online whole = parts[row];
    for (int part = 1; part < tile::kWarpColumns; ++part) whole.add(parts[part * kTile + row]);
    const int64_t at = chunk * k.in.rows + first + row;
    k.work.peak[at] = whole.peak;
    k.work.total[at] = whole.total;
    k.work.kept[at] = whole.kept;
  }
}

// log(e^a + e^b); either may be infinite.
ARGUS_DEVICE float log_add(float a, float b) {
  // fmaxf and fminf ignore NaN.
  if (is_nan(a) || is_nan(b)) return a + b;
  const float high = fmaxf(a, b), low = fminf(a, b);
  return fabsf(high) == kInfinity ? high : high + log1pf(expf(low - high));
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
  // fmaxf ignores a peak of NaN; the sum keeps it.
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
  // An empty sum gives −∞, whatever the positive's score.
  const float lse = denominator == -kInfinity ? denominator : denominator + k.scale() * k.work.product[row];
  static_cast<float*>(k.out.lse)[row] = counts ? lse : 0.0f;
  float* statistics = static_cast<float*>(k.out.statistics);
  statistics[row] = counts ? denominator : 0.0f;
  statistics[k.in.rows + row] = counts ? (k.in.refined ? negatives : denominator) : 0.0f;
}

}  // namespace argus::sampled_softmax_loss
