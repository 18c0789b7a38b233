// Row-wise Adagrad: one accumulator per table row.
//
//   g        = sum of the gradients given for row r + weight_decay · table[r]
//   state[r] = state[r] + mean(g²)
//   table[r] = table[r] − lr · g / (√state[r] + eps)
//
// Only the given rows are read or written. On the CPU the gradients of one row are added in input order; on
// the GPU in pieces of kPiece, then the pieces, both in input order.
#pragma once

#include <cstdint>

#include "common/torch/dtype.h"

namespace argus {
class RowOrder;
}

namespace argus::rowwise_adagrad {

constexpr int64_t kPiece = 128;

struct Params {
  void* table;            // [table_rows, width], rows table_stride elements apart
  void* state;            // [table_rows]
  const void* gradients;  // [count, width], contiguous
  const int64_t* rows;    // GPU: [count], ascending
  const int64_t* order;   // GPU: [count], the index of rows[i]'s gradient; equal rows keep their input order
  float* piece_sums;      // GPU: [count / kPiece, width]; empty if count < 2 · kPiece
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

// Updates the rows of the runs [first, last) of `order`, whose positions index the gradients.
void update_rows_cpu(const Params& params, const RowOrder& order, int64_t first, int64_t last);

// Enqueues the whole update on `stream`, a cudaStream_t. Rows outside the table are skipped.
void launch_cuda(const Params& params, void* stream);

}  // namespace argus::rowwise_adagrad
