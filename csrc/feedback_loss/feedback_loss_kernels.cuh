// The feedback losses on the GPU. A block of 256 threads takes 64 rows at a time.
//
// Projection: 64 × 32 pieces of hidden pass through shared memory with the matching rows of weight. A lane
// owns two rows, a warp an eighth of the piece's depth; each lane keeps 12 columns of sums in registers. Task
// losses and residuals dz: one thread per (row, task), on the tile's logits in shared memory. Backward then
// gives every thread a column d of hidden: with 12 columns of weight and 12 sums of d_weight in registers it
// loops over the rows, reading hidden (from the cache) and writing d_hidden coalesced with its neighbours.
// d_weight is summed over a block's tiles and then over the blocks in order, without atomics.
#pragma once

#include "common/cuda/device.cuh"
#include "feedback_loss/feedback_loss_cuda.h"

namespace argus::feedback_loss {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kRows = static_cast<int>(kCudaTileRows);
constexpr int kRowsPerLane = kRows / kWarpSize;
constexpr int kDepth = 32;    // of the piece of hidden in shared memory
constexpr int kColumns = 12;  // in registers at once
constexpr int kDepthPerWarp = kDepth / kWarps;
// Padded by one element, so that the 32 rows that a warp reads lie in different banks.
constexpr int kHiddenStride = kDepth + 1;

// The tile's shared memory. Logits, later residuals: [row][stride].
struct Tile {
  float* logits;   // [kRows, stride]
  float* hidden;   // [kRows, kHiddenStride]
  float* weight;   // [kDepth, kColumns]
  float* partial;  // [kWarps, kRows, kColumns]
  float* counts;   // [kRows], 1 if a row counts for any task
  int stride;
};

constexpr int kHiddenFloats = (kRows * kHiddenStride + 3) / 4 * 4;
constexpr int kFixedFloats = kHiddenFloats + kDepth * kColumns + kWarps * kRows * kColumns + kRows;

// Columns of the logits in shared memory: whole groups, so that a group's residuals are three 16-byte reads.
__host__ __device__ inline int logit_stride(int columns) {
  return (columns + kColumns - 1) / kColumns * kColumns;
}

ARGUS_DEVICE Tile tile_in(float* shared, int columns) {
  Tile tile;
  tile.stride = logit_stride(columns);
  tile.logits = shared;
  tile.hidden = tile.logits + kRows * tile.stride;
  tile.weight = tile.hidden + kHiddenFloats;
  tile.partial = tile.weight + kDepth * kColumns;
  tile.counts = tile.partial + kWarps * kRows * kColumns;
  return tile;
}

ARGUS_DEVICE float weight_of_row(const CudaParams& params, int64_t row) {
  return params.row_weight == nullptr ? 1.0f : params.row_weight[row];
}

// w if (row, task) counts; else 0, and `target` is −1. A target outside the classes counts as not observed:
// it would index another task's logits.
ARGUS_DEVICE float observe(const CudaParams& params, int64_t row, int task, int64_t& target) {
  target = row < params.rows ? params.targets[row * params.tasks + task] : -1;
  const int64_t classes = params.classes[task] > 2 ? params.classes[task] : 2;
  const float weight = target >= 0 && target < classes ? weight_of_row(params, row) : 0.0f;
  if (weight == 0.0f) target = -1;
  return weight;
}

ARGUS_DEVICE void mark_rows(const CudaParams& params, int64_t first, const Tile& tile) {
  if (threadIdx.x < kRows) {
    bool counts = false;
    for (int task = 0; task < params.tasks; ++task) {
      int64_t target;
      counts = counts || observe(params, first + threadIdx.x, task, target) != 0.0f;
    }
    tile.counts[threadIdx.x] = counts ? 1.0f : 0.0f;
  }
  __syncthreads();
}

// Rows of weight 0 are read as zeros, whatever they hold.
template <class T>
ARGUS_DEVICE float hidden_at(const CudaParams& params, const Tile& tile, int64_t first, int row, int64_t d) {
  if (tile.counts[row] == 0.0f) return 0.0f;
  return to_float(static_cast<const T*>(params.hidden)[(first + row) * params.width + d]);
}

template <class T>
ARGUS_DEVICE float weight_at(const CudaParams& params, int64_t d, int column) {
  if (d >= params.width || column >= params.columns) return 0.0f;
  return to_float(static_cast<const T*>(params.weight)[d * params.columns + column]);
}

template <class T>
ARGUS_DEVICE void stage(const CudaParams& params, const Tile& tile, int64_t first, int64_t depth,
                        int column) {
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kDepth; i += kThreads) {
    const int row = i / kDepth, d = i % kDepth;
    tile.hidden[row * kHiddenStride + d] =
        depth + d < params.width ? hidden_at<T>(params, tile, first, row, depth + d) : 0.0f;
  }
  for (int i = static_cast<int>(threadIdx.x); i < kDepth * kColumns; i += kThreads)
    tile.weight[i] = weight_at<T>(params, depth + i / kColumns, column + i % kColumns);
  __syncthreads();
}

// Adds this warp's eighth of the piece to the lane's sums.
ARGUS_DEVICE void multiply_piece(const Tile& tile, int warp, int lane,
                                 float (&sums)[kRowsPerLane][kColumns]) {
#pragma unroll
  for (int step = 0; step < kDepthPerWarp; ++step) {
    const int d = warp * kDepthPerWarp + step;
    float hidden[kRowsPerLane];
#pragma unroll
    for (int i = 0; i < kRowsPerLane; ++i)
      hidden[i] = tile.hidden[(lane + i * kWarpSize) * kHiddenStride + d];
#pragma unroll
    for (int group = 0; group < kColumns; group += 4) {
      const float4 four = *reinterpret_cast<const float4*>(tile.weight + d * kColumns + group);
#pragma unroll
      for (int i = 0; i < kRowsPerLane; ++i) {
        sums[i][group] = fmaf(hidden[i], four.x, sums[i][group]);
        sums[i][group + 1] = fmaf(hidden[i], four.y, sums[i][group + 1]);
        sums[i][group + 2] = fmaf(hidden[i], four.z, sums[i][group + 2]);
        sums[i][group + 3] = fmaf(hidden[i], four.w, sums[i][group + 3]);
      }
    }
  }
  __syncthreads();
}

// The logits of the tile's rows; those of rows that count for nothing are the bias.
template <class T>
ARGUS_DEVICE void project(const CudaParams& params, const Tile& tile, int64_t first) {
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize,
            lane = static_cast<int>(threadIdx.x) % kWarpSize;
  for (int column = 0; column < params.columns; column += kColumns) {
    float sums[kRowsPerLane][kColumns] = {};
    for (int64_t depth = 0; depth < params.width; depth += kDepth) {
      stage<T>(params, tile, first, depth, column);
      multiply_piece(tile, warp, lane, sums);
    }
#pragma unroll
    for (int i = 0; i < kRowsPerLane; ++i) {
      float* to = tile.partial + (warp * kRows + lane + i * kWarpSize) * kColumns;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) to[c] = sums[i][c];
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kRows * kColumns; i += kThreads) {
      const int row = i / kColumns, c = i % kColumns;
      float logit =
          column + c < params.columns ? to_float(static_cast<const T*>(params.bias)[column + c]) : 0.0f;
      for (int part = 0; part < kWarps; ++part) logit += tile.partial[(part * kRows + row) * kColumns + c];
      tile.logits[row * tile.stride + column + c] = logit;
    }
    __syncthreads();
  }
}

ARGUS_DEVICE float log_of_one_plus_exp(float x) {
  return fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x)));
}

ARGUS_DEVICE float largest_of(const float* logits, int classes) {
  float most = logits[0];
  for (int c = 1; c < classes; ++c) most = fmaxf(most, logits[c]);
  return most;
}

ARGUS_DEVICE float sum_of_exponentials(const float* logits, int classes, float most) {
  float sum = 0.0f;
  for (int c = 0; c < classes; ++c) sum += expf(logits[c] - most);
  return sum;
}

ARGUS_DEVICE float task_loss(const float* logits, int classes, int64_t target) {
  if (classes == 1) return log_of_one_plus_exp(target > 0 ? -logits[0] : logits[0]);
  const float most = largest_of(logits, classes);
  return (most - logits[target]) + logf(sum_of_exponentials(logits, classes, most));
}

// Replaces the logits by dz; 0 if the task does not count.
ARGUS_DEVICE void put_residuals(float* logits, int classes, int64_t target, float factor) {
  if (target < 0) {
    for (int c = 0; c < classes; ++c) logits[c] = 0.0f;
    return;
  }
  if (classes == 1) {
    const float x = target > 0 ? -logits[0] : logits[0];
    const float e = expf(-fabsf(x));
    const float wrong = (x > 0.0f ? 1.0f : e) / (1.0f + e);
    logits[0] = factor * (target > 0 ? -wrong : wrong);
    return;
  }
  const float most = largest_of(logits, classes);
  const float sum = sum_of_exponentials(logits, classes, most);
  for (int c = 0; c < classes; ++c) {
    const float share = expf(logits[c] - most) / sum;
    logits[c] = factor * (c == target ? share - 1.0f : share);
  }
}

// The sum of x over the warp, in double, in every lane.
ARGUS_DEVICE double warp_sum_of_doubles(double x) {
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2)
    x += __shfl_xor_sync(kFullWarp, x, distance);
  return x;
}

// The sum of x over the block, in double, for every task in turn; thread 0 adds it to `to`.
ARGUS_DEVICE void add_block_sum(double x, double* to) {
  ARGUS_SHARED(double, sums, [kWarps]);
  x = warp_sum_of_doubles(x);
  if (threadIdx.x % kWarpSize == 0) sums[threadIdx.x / kWarpSize] = x;
  __syncthreads();
  if (threadIdx.x == 0) {
    double total = *to;
    for (int warp = 0; warp < kWarps; ++warp) total += sums[warp];
    *to = total;
  }
  __syncthreads();
}

ARGUS_DEVICE int64_t tiles_of(const CudaParams& params) {
  return (params.rows + kRows - 1) / kRows;
}

// Σ w of one task over the rows of a tile, and with `tile` Σ w · l, added to the block's sums.
ARGUS_DEVICE void add_task(const CudaParams& params, const Tile* tile, int64_t first, int task, int column) {
  const int64_t place = static_cast<int64_t>(blockIdx.x) * params.tasks + task;
  const int row = static_cast<int>(threadIdx.x);
  int64_t target = -1;
  const float weight = row < kRows ? observe(params, first + row, task, target) : 0.0f;
  if (tile != nullptr) {
    float loss = 0.0f;
    if (target >= 0) {
      const float* logits = tile->logits + row * tile->stride + column;
      loss = weight * task_loss(logits, params.classes[task], target);
    }
    add_block_sum(static_cast<double>(loss), params.part_loss + place);
  }
  add_block_sum(static_cast<double>(weight), params.part_weight + place);
}

ARGUS_DEVICE void clear_sums(const CudaParams& params) {
  if (threadIdx.x != 0) return;
  for (int task = 0; task < params.tasks; ++task) {
    params.part_loss[static_cast<int64_t>(blockIdx.x) * params.tasks + task] = 0.0;
    params.part_weight[static_cast<int64_t>(blockIdx.x) * params.tasks + task] = 0.0;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) forward_kernel(CudaParams params) {
  ARGUS_DYNAMIC_SHARED(float, shared);
  const Tile tile = tile_in(shared, params.columns);
  clear_sums(params);
  for (int64_t index = blockIdx.x; index < tiles_of(params); index += gridDim.x) {
    mark_rows(params, index * kRows, tile);
    project<T>(params, tile, index * kRows);
    for (int task = 0, column = 0; task < params.tasks; column += params.classes[task++])
      add_task(params, &tile, index * kRows, task, column);
  }
}

// Four blocks per multiprocessor: for eight, ptxas limits itself to 32 registers and spills on sm_80.
__global__ void __launch_bounds__(kThreads, 4) weights_kernel(CudaParams params) {
  clear_sums(params);
  for (int64_t index = blockIdx.x; index < tiles_of(params); index += gridDim.x) {
    for (int task = 0; task < params.tasks; ++task) add_task(params, nullptr, index * kRows, task, 0);
  }
}

// One warp per task adds up the blocks' sums: the loss, or in the backward pass the factor of the residuals.
// The order depends on the number of blocks, which depends on the rows alone.
__global__ void scale_kernel(CudaParams params, int64_t parts, bool backward) {
  const int task = warp_index();
  if (task >= params.tasks) return;
  double loss = 0.0, weight = 0.0;
  for (int64_t part = lane_index(); part < parts; part += kWarpSize) {
    loss += params.part_loss[part * params.tasks + task];
    weight += params.part_weight[part * params.tasks + task];
  }
  loss = warp_sum_of_doubles(loss);
  weight = warp_sum_of_doubles(weight);
  if (lane_index() != 0) return;
  const double given = params.task_weight == nullptr ? 1.0 : static_cast<double>(params.task_weight[task]);
  const double scale = weight > 0.0 ? given / weight : 0.0;
  if (backward) {
    params.scale[task] = static_cast<float>(scale * static_cast<double>(params.d_loss[task]));
  } else {
    params.loss[task] = scale == 0.0 ? 0.0f : static_cast<float>(loss * scale);
  }
}

ARGUS_DEVICE void residuals_of_tile(const CudaParams& params, const Tile& tile, int64_t first) {
  const int row = static_cast<int>(threadIdx.x) % kRows;
  int column = 0;
  for (int task = 0; task < params.tasks; column += params.classes[task++]) {
    if (task % (kThreads / kRows) != static_cast<int>(threadIdx.x) / kRows) continue;
    int64_t target;
    const float weight = observe(params, first + row, task, target);
    put_residuals(tile.logits + row * tile.stride + column, params.classes[task], target,
                  weight * params.scale[task]);
  }
  if (static_cast<int>(threadIdx.x) < kRows) {
    for (int c = params.columns; c < tile.stride; ++c) tile.logits[row * tile.stride + c] = 0.0f;
  }
  __syncthreads();
}

struct Residuals {
  float of[kColumns];

  ARGUS_DEVICE explicit Residuals(const float* row) {
#pragma unroll
    for (int group = 0; group < kColumns; group += 4) {
      const float4 four = *reinterpret_cast<const float4*>(row + group);
      of[group] = four.x;
      of[group + 1] = four.y;
      of[group + 2] = four.z;
      of[group + 3] = four.w;
    }
  }
};

// Column d of hidden against up to kColumns columns of weight from `column` on. With kAlone these are all
// columns, and d_hidden is written in the same pass; otherwise add_hidden_gradients writes it.
template <class T, bool kAlone>
ARGUS_DEVICE void spread_group(const CudaParams& params, const Tile& tile, int64_t first, int64_t d,
                               int column, bool first_tile, float* d_weight) {
  float weight[kColumns], sums[kColumns];
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    weight[c] = kAlone ? weight_at<T>(params, d, column + c) : 0.0f;
    const bool before = !first_tile && column + c < params.columns;
    sums[c] = before ? d_weight[(column + c) * params.width + d] : 0.0f;
  }
  const int rows = static_cast<int>(params.rows - first < kRows ? params.rows - first : kRows);
  const T* hidden = static_cast<const T*>(params.hidden) + first * params.width + d;
  T* to = static_cast<T*>(params.d_hidden) + first * params.width + d;
  const float* line = tile.logits + column;
#pragma unroll 1
  for (int row = 0; row < rows; ++row, hidden += params.width, to += params.width, line += tile.stride) {
    const Residuals residuals(line);
    const float x = tile.counts[row] == 0.0f ? 0.0f : to_float(*hidden);
    float d_hidden = 0.0f;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      sums[c] = fmaf(residuals.of[c], x, sums[c]);
      if constexpr (kAlone) d_hidden = fmaf(residuals.of[c], weight[c], d_hidden);
    }
    if constexpr (kAlone) from_float(*to, d_hidden);
  }
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    if (column + c < params.columns) d_weight[(column + c) * params.width + d] = sums[c];
  }
}

// d_hidden if there are more columns than fit in registers.
template <class T>
ARGUS_DEVICE void add_hidden_gradients(const CudaParams& params, const Tile& tile, int64_t first, int64_t d) {
  const int64_t rows = params.rows - first < kRows ? params.rows - first : kRows;
  for (int64_t row = 0; row < rows; ++row) {
    float d_hidden = 0.0f;
    for (int c = 0; c < params.columns; ++c)
      d_hidden = fmaf(tile.logits[row * tile.stride + c], weight_at<T>(params, d, c), d_hidden);
    from_float(static_cast<T*>(params.d_hidden)[(first + row) * params.width + d], d_hidden);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) backward_kernel(CudaParams params) {
  ARGUS_DYNAMIC_SHARED(float, shared);
  const Tile tile = tile_in(shared, params.columns);
  float* d_weight = params.d_weight_part + static_cast<int64_t>(blockIdx.x) * params.columns * params.width;
  float* d_bias = params.d_bias_part + static_cast<int64_t>(blockIdx.x) * params.columns;
  for (int64_t index = blockIdx.x; index < tiles_of(params); index += gridDim.x) {
    const int64_t first = index * kRows;
    const bool first_tile = index == static_cast<int64_t>(blockIdx.x);
    mark_rows(params, first, tile);
    project<T>(params, tile, first);
    residuals_of_tile(params, tile, first);
    for (int c = static_cast<int>(threadIdx.x); c < params.columns; c += kThreads) {
      float sum = first_tile ? 0.0f : d_bias[c];
      for (int row = 0; row < kRows; ++row) sum += tile.logits[row * tile.stride + c];
      d_bias[c] = sum;
    }
    for (int64_t d = threadIdx.x; d < params.width; d += kThreads) {
      if (params.columns <= kColumns) {
        spread_group<T, true>(params, tile, first, d, 0, first_tile, d_weight);
        continue;
      }
      for (int column = 0; column < params.columns; column += kColumns)
        spread_group<T, false>(params, tile, first, d, column, first_tile, d_weight);
      add_hidden_gradients<T>(params, tile, first, d);
    }
    __syncthreads();
  }
}

// d_weight and d_bias from the blocks' sums, in order; one thread per element, the last `columns` threads for
// d_bias.
template <class T>
__global__ void __launch_bounds__(kThreads) weight_kernel(CudaParams params, int64_t parts) {
  const int64_t size = params.columns * params.width;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  double sum = 0.0;
  if (i < size) {
    for (int64_t part = 0; part < parts; ++part) sum += params.d_weight_part[part * size + i];
    const int64_t column = i / params.width, d = i % params.width;
    from_float(static_cast<T*>(params.d_weight)[d * params.columns + column], static_cast<float>(sum));
  } else if (i < size + params.columns) {
    for (int64_t part = 0; part < parts; ++part)
      sum += params.d_bias_part[part * params.columns + (i - size)];
    from_float(static_cast<T*>(params.d_bias)[i - size], static_cast<float>(sum));
  }
}

}  // namespace argus::feedback_loss
