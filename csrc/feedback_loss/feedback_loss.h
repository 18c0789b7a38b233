// The losses of all feedback tasks from one projection, and their gradients.
//
//   z = hidden · weight + bias;  task f owns classes[f] neighbouring columns of z
//   l = softplus(±z)                one class, the sign that of the target
//   l = logsumexp_c z_c − z_target  more classes
//   loss_f = v_f · Σ_n w_n l_nf / Σ_n w_n over the rows that observed task f
//
// A target of −1 was not observed; such a (row, task) pair and a row of weight 0 contribute nothing, whatever
// they hold.
#pragma once

#include <cstdint>

#include "common/torch/dtype.h"
#include "feedback_loss/products.h"

namespace argus::feedback_loss {

// Row weights, bias, d_loss … are in the arithmetic type: float, and double for float64 hidden states.
struct Params {
  const void* hidden;      // [rows, width], rows hidden_stride elements apart
  const void* weight;      // [width, columns], contiguous
  const void* bias;        // [columns]
  const int64_t* targets;  // [rows, tasks], contiguous
  const int64_t* classes;  // [tasks], on the host
  const void* row_weight;  // [rows] or null for 1
  int64_t rows;
  int64_t hidden_stride;
  int64_t width;
  int64_t columns;
  int64_t tasks;
  Dtype dtype;
};

// The cut of rows into blocks depends only on their number, and sums run block by block: the bits are the
// same for any number of threads.
constexpr int64_t kMaxBlocks = 64;

inline int64_t block_rows(int64_t rows) {
  constexpr int64_t kMin = 512;
  const int64_t even = (rows + kMaxBlocks - 1) / kMaxBlocks;
  const int64_t tiles = ((even > kMin ? even : kMin) + kTileRows - 1) / kTileRows;
  return tiles * kTileRows;
}

inline int64_t block_count(int64_t rows) {
  return (rows + block_rows(rows) - 1) / block_rows(rows);
}

// The highest target of a task.
inline int64_t highest_target(int64_t classes) {
  return classes > 2 ? classes - 1 : 1;
}

// Whether every target of blocks [first, last) is -1 or a class of its task.
bool targets_fit_cpu(const Params& params, int64_t first, int64_t last);

// Σ w of the rows of blocks [first, last) that observed each task: weights[block · tasks + f].
void sum_weights_cpu(const Params& params, int64_t first, int64_t last, double* weights);

// Σ w · l of the same rows: losses[block · tasks + f].
void forward_cpu(const Params& params, int64_t first, int64_t last, double* losses);

// Gradients of blocks [first, last). `factors` [tasks], as double, multiply (residual · w). d_hidden [rows,
// width] is written. d_weight and d_bias get one partial sum per block, in the arithmetic type:
// gradient_columns(columns) columns of padded_width(width) elements, and gradient_columns(columns) elements.
void backward_cpu(const Params& params, const double* factors, int64_t first, int64_t last, void* d_hidden,
                  void* d_weight_parts, void* d_bias_parts);

inline int64_t padded_width(int64_t width) {
  return (width + kWidthStep - 1) / kWidthStep * kWidthStep;
}
inline int64_t gradient_columns(int64_t columns) {
  return (columns + kColumnStep - 1) / kColumnStep * kColumnStep;
}

}  // namespace argus::feedback_loss
