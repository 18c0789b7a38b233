// The pairwise loss on the GPU. A block owns 32 neighbouring events in the order of time, one per lane. Its
// eight warps share the range that holds the partners of all of them: each warp takes every eighth event and
// reads it once for 32 lanes. An event's sums stay in its lane: no atomics, one fixed order of additions.
//
// Σ log(1 + e) takes one logarithm for 60 pairs: p ← p + e + p·e keeps Π (1 + e) − 1 to full relative
// accuracy, and 60 factors of at most 2 fit a float.
#pragma once

#include "common/cuda/device.cuh"
#include "pairwise_loss/pairwise_loss_cuda.h"

namespace argus::pairwise_loss {

constexpr int kSlices = 8;
constexpr int kPairThreads = kSlices * kWarpSize;
constexpr int kTotalThreads = 256;
constexpr int kStepsPerLogarithm = 60;

static_assert(kBlockEvents == kWarpSize);

template <class T>
ARGUS_DEVICE T sum_of_warp(T x) {
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2)
    x += __shfl_xor_sync(kFullWarp, x, distance);
  return x;
}

ARGUS_DEVICE int32_t max_of_warp(int32_t x) {
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2)
    x = max(x, __shfl_xor_sync(kFullWarp, x, distance));
  return x;
}

// The first event after (user, time), or not before it, in the order (user, time).
ARGUS_DEVICE int32_t search(const CudaParams& params, int32_t user, int64_t time, bool after) {
  int64_t low = 0, high = params.count;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    const int32_t its_user = params.sorted_users[middle];
    const int64_t its_time = params.sorted_times[middle];
    const bool before =
        its_user < user || (its_user == user && (its_time < time || (after && its_time == time)));
    if (before) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return static_cast<int32_t>(low);
}

// The events in their order, and the range of each one's partners.
template <class T>
__global__ void order_kernel(CudaParams params) {
  const int64_t k = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (k >= params.count) return;
  const int64_t row = params.order[k];
  const bool inside = row >= 0 && row < params.count;
  params.sorted_scores[k] = inside ? to_float(static_cast<const T*>(params.scores)[row]) : 0.0f;
  params.sorted_grades[k] = inside ? params.grades[row] : -1;
  const int32_t user = params.sorted_users[k];
  int32_t begin = 0, end = 0;
  if (inside && user < params.users) {
    constexpr int64_t kFirst = INT64_MIN, kLast = INT64_MAX;
    const int64_t time = params.sorted_times[k], window = params.window;
    begin = search(params, user, time < kFirst + window ? kFirst : time - window, false);
    end = search(params, user, time > kLast - window ? kLast : time + window, true);
  }
  params.begin[k] = begin;
  params.end[k] = end;
}

// The event of this lane. A lane past the end has no partner.
struct LaneEvent {
  int64_t place;
  float score = 0.0f;
  int64_t grade = -1;
  int32_t begin = 0, end = 0;

  ARGUS_DEVICE explicit LaneEvent(const CudaParams& params)
      : place(static_cast<int64_t>(blockIdx.x) * kBlockEvents + threadIdx.x % kWarpSize) {
    if (place >= params.count) return;
    score = params.sorted_scores[place];
    grade = params.sorted_grades[place];
    begin = params.begin[place];
    end = params.end[place];
  }
};

struct PairSums {
  double loss = 0.0;
  int64_t pairs = 0, concordant = 0;
  float product = 0.0f, linear = 0.0f;

  ARGUS_DEVICE void add(float margin) {
    const float e = expf(-fabsf(margin));
    product = fmaf(product, e, product + e);
    linear += margin > 0.0f ? 0.0f : -margin;
    ++pairs;
    concordant += margin > 0.0f ? 1 : 0;
  }

  ARGUS_DEVICE void fold() {
    loss += static_cast<double>(linear) + static_cast<double>(log1pf(product));
    product = 0.0f;
    linear = 0.0f;
  }
};

// One partial sum per block, over the pairs whose earlier event belongs to the block.
__global__ void forward_kernel(CudaParams params) {
  ARGUS_SHARED(double, losses, [kSlices]);
  ARGUS_SHARED(int64_t, pairs, [kSlices]);
  ARGUS_SHARED(int64_t, concordant, [kSlices]);
  const int slice = static_cast<int>(threadIdx.x) / kWarpSize,
            lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const LaneEvent own(params);
  const int32_t last = max_of_warp(own.end);
  PairSums sums;
  int steps = 0;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kBlockEvents + 1;
  for (int64_t other = first + slice; other < last; other += kSlices) {
    const float score = params.sorted_scores[other];
    const int64_t grade = params.sorted_grades[other];
    if (other > own.place && other < own.end && grade != own.grade) {
      const float difference = score - own.score;
      sums.add(grade > own.grade ? difference : -difference);
    }
    if (++steps == kStepsPerLogarithm) {
      sums.fold();
      steps = 0;
    }
  }
  sums.fold();
  const double loss = sum_of_warp(sums.loss);
  const int64_t found = sum_of_warp(sums.pairs), right = sum_of_warp(sums.concordant);
  if (lane == 0) {
    losses[slice] = loss;
    pairs[slice] = found;
    concordant[slice] = right;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  double total = 0.0;
  int64_t all = 0, all_right = 0;
  for (int i = 0; i < kSlices; ++i) {
    total += losses[i];
    all += pairs[i];
    all_right += concordant[i];
  }
  params.part_loss[blockIdx.x] = total;
  params.part_pairs[blockIdx.x] = all;
  params.part_concordant[blockIdx.x] = all_right;
}

// The sums over all blocks, by one block, in a fixed order.
__global__ void total_kernel(CudaParams params) {
  constexpr int kWarps = kTotalThreads / kWarpSize;
  ARGUS_SHARED(double, losses, [kWarps]);
  ARGUS_SHARED(int64_t, pairs, [kWarps]);
  ARGUS_SHARED(int64_t, concordant, [kWarps]);
  const int64_t parts = (params.count + kBlockEvents - 1) / kBlockEvents;
  double loss = 0.0;
  int64_t found = 0, right = 0;
  for (int64_t part = threadIdx.x; part < parts; part += kTotalThreads) {
    loss += params.part_loss[part];
    found += params.part_pairs[part];
    right += params.part_concordant[part];
  }
  loss = sum_of_warp(loss);
  found = sum_of_warp(found);
  right = sum_of_warp(right);
  if (threadIdx.x % kWarpSize == 0) {
    losses[threadIdx.x / kWarpSize] = loss;
    pairs[threadIdx.x / kWarpSize] = found;
    concordant[threadIdx.x / kWarpSize] = right;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int warp = 1; warp < kWarps; ++warp) {
    loss += losses[warp];
    found += pairs[warp];
    right += concordant[warp];
  }
  *params.loss = static_cast<float>(loss);
  *params.pairs = found;
  *params.concordant = right;
}

// 1 / (1 + e^-x), accurate in both tails.
ARGUS_DEVICE float logistic(float x) {
  const float e = expf(-fabsf(x));
  return (x > 0.0f ? 1.0f : e) / (1.0f + e);
}

// d_score = Σ σ(s − s_other) over the better partners − Σ σ(s_other − s) over the worse ones, times d_loss.
template <class T>
__global__ void backward_kernel(CudaParams params) {
  ARGUS_SHARED(float, slices, [kSlices][kWarpSize]);
  const int slice = static_cast<int>(threadIdx.x) / kWarpSize,
            lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const LaneEvent own(params);
  // The ranges of neighbouring lanes only move forward, but a lane without partners has an empty range.
  const int32_t last = max_of_warp(own.end);
  const int32_t first = -max_of_warp(own.begin < own.end ? -own.begin : -INT32_MAX);
  double total = 0.0;
  float sum = 0.0f;
  int steps = 0;
  for (int64_t other = static_cast<int64_t>(first) + slice; other < last; other += kSlices) {
    const float score = params.sorted_scores[other];
    const int64_t grade = params.sorted_grades[other];
    if (other >= own.begin && other < own.end && grade != own.grade) {
      const float difference = score - own.score;
      const bool better = own.grade > grade;
      const float share = logistic(better ? difference : -difference);
      sum += better ? -share : share;
    }
    if (++steps == kStepsPerLogarithm) {
      total += static_cast<double>(sum);
      sum = 0.0f;
      steps = 0;
    }
  }
  slices[slice][lane] = static_cast<float>(total + static_cast<double>(sum));
  __syncthreads();
  if (slice != 0 || own.place >= params.count) return;
  float gradient = 0.0f;
  for (int i = 0; i < kSlices; ++i) gradient += slices[i][lane];
  const int64_t row = params.order[own.place];
  if (row < 0 || row >= params.count) return;
  from_float(static_cast<T*>(params.d_scores)[row], gradient * *params.d_loss);
}

}  // namespace argus::pairwise_loss
