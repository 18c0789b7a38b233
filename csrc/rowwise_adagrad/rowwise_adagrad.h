// Row-wise Adagrad: one accumulator per table row.
//
//   g        = sum of the gradients given for row r + weight_decay · table[r]
//   state[r] = state[r] + mean(g²)
//   table[r] = table[r] − lr · g / (√state[r] + eps)
//
// Only the given rows are read or written. Gradients of one row are added in the order in which they are
// given.
#pragma once

#include <cstdint>

namespace argus::rowwise_adagrad {

constexpr int64_t kSkipped = -1;

enum class Dtype { float32, float64, bfloat16, float16 };

struct Params {
  void* table;            // [table_rows, width], rows table_stride elements apart
  void* state;            // [table_rows]
  const void* gradients;  // [count, width], contiguous
  const int64_t* rows;    // [count], ascending
  const int64_t* order;   // [count], where the gradient of rows[i] stands; equal rows keep the given order
  int64_t table_rows;
  int64_t table_stride;
  int64_t count;
  int64_t width;
  Dtype table_dtype;
  Dtype state_dtype;
  Dtype gradient_dtype;
  double lr;
  double eps;
  double weight_decay;
};

// Updates the rows at [first, last) of params.rows; the range must not cut a run of equal rows nor hold a
// skipped one.
void update_rows_cpu(const Params& params, int64_t first, int64_t last);

// Enqueues the whole update on `stream`, a cudaStream_t. Rows outside the table are left out.
void launch_cuda(const Params& params, void* stream);

}  // namespace argus::rowwise_adagrad
