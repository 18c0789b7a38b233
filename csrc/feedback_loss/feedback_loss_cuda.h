// Parameters and launchers of the CUDA kernels of feedback_loss.
#pragma once

#include <cstdint>

#include "common/torch/dtype.h"

namespace argus::feedback_loss {

constexpr int kMaxTasks = 32;
constexpr int64_t kMaxLogits = 128;

// All pointers are to device memory, except `classes`.
struct CudaParams {
  const void* hidden;        // [rows, width], contiguous
  const void* weight;        // [width, columns], contiguous
  const void* bias;          // [columns]
  const int64_t* targets;    // [rows, tasks], contiguous; a target outside the classes counts as not observed
  const float* task_weight;  // [tasks] or null for 1
  const float* row_weight;   // [rows] or null for 1
  int64_t rows;
  int64_t width;
  int32_t columns;
  int32_t tasks;
  Dtype dtype;
  int32_t classes[kMaxTasks];

  // Scratch: a block's sums of w · l and of w for each task; the scales v_f / Σ w from them, times d_loss in
  // the backward pass.
  double* part_loss;    // [cuda_parts(rows), tasks]
  double* part_weight;  // [cuda_parts(rows), tasks]
  float* scale;         // [tasks]

  float* loss;  // [tasks]; forward

  // Backward. A block's sums for d_weight are stored column after column.
  const float* d_loss;   // [tasks]
  float* d_weight_part;  // [cuda_parts(rows), columns, width]
  float* d_bias_part;    // [cuda_parts(rows), columns]
  void* d_hidden;        // [rows, width]
  void* d_weight;        // [width, columns]
  void* d_bias;          // [columns]
};

// Tiles of rows are assigned to the blocks in turn. The number of blocks depends on the rows alone, so that
// every GPU adds in the same order.
constexpr int64_t kCudaTileRows = 64;
constexpr int64_t kMaxParts = 528;

inline int64_t cuda_parts(int64_t rows) {
  const int64_t tiles = (rows + kCudaTileRows - 1) / kCudaTileRows;
  return tiles < kMaxParts ? tiles : kMaxParts;
}

// Enqueue on `stream`, a cudaStream_t; rows ≥ 1 and tasks ≥ 1.
void launch_forward_cuda(const CudaParams& params, void* stream);
void launch_backward_cuda(const CudaParams& params, void* stream);

}  // namespace argus::feedback_loss
