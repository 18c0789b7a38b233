// The arguments of every sampled softmax kernel, and the data of a tile's rows and candidates.
#pragma once

#include "common/cuda/reduce.cuh"
#include "common/cuda/tile_product.cuh"
#include "sampled_softmax_loss/sampled_softmax_loss_cuda.h"

namespace argus::sampled_softmax_loss {

using tile::held_column;
using tile::held_row;
using tile::kHeld;
using tile::kTile;
using tile::Sums;

template <class T>
struct Kernel {
  Inputs in;
  Outputs out;
  Gradients gradients;
  CudaPlan plan;
  Workspace work;
  bool aligned;        // rows of width elements are aligned to 16 bytes
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
  // Rows of weight 0 read as zero.
  ARGUS_DEVICE tile::Matrix<T> queries() const {
    return {query(), in.rows, in.width, in.width, aligned, weights()};
  }
  ARGUS_DEVICE tile::Matrix<T> candidates() const {
    return {static_cast<const T*>(in.candidates), in.drawn, in.width, in.width, aligned};
  }
};

constexpr float kInfinity = __builtin_huge_valf();

ARGUS_DEVICE int64_t global_warp() {
  return (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / kWarpSize;
}

// One warp per row: ⟨query, positive⟩.
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

// The data of a tile's rows and candidates, in shared memory.
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

// The same for any row and candidate.
template <class T>
ARGUS_DEVICE bool stays(const Kernel<T>& k, int64_t row, int64_t candidate) {
  if (k.in.candidate_ids[candidate] == k.in.positive_ids[row]) return false;
  if (k.in.query_owner == nullptr || k.in.candidate_owner == nullptr) return true;
  const int64_t owner = k.in.candidate_owner[candidate];
  return owner < 0 || owner != k.in.query_owner[row];
}

// sums += ⟨query, candidate⟩ for the tile that begins at this row and candidate.
template <class T>
ARGUS_DEVICE void add_tile_product(Sums& sums, unsigned char* shared, const Kernel<T>& k, int64_t query,
                                   int64_t candidate) {
  const tile::Matrix<T> queries = k.queries(), candidates = k.candidates();
  const tile::Operand<T, false, tile::Matrix<T>> left{queries, query, 0}, right{candidates, candidate, 0};
  tile::add_product<T>(sums, shared, left, right, tile::stages_of<T>(k.in.width));
}

// Candidate tiles [begin, end) of a chunk.
template <class T>
ARGUS_DEVICE void chunk_tiles(const Kernel<T>& k, int64_t chunk, int64_t chunks, int64_t& begin,
                              int64_t& end) {
  const int64_t tiles = (k.in.drawn + kTile - 1) / kTile;
  begin = tiles * chunk / chunks;
  end = tiles * (chunk + 1) / chunks;
}

}  // namespace argus::sampled_softmax_loss
