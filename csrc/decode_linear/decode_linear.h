// One linear layer of a few rows, with the LayerNorm, activation and residual around it in a transformer:
//
//   out  =  residual + act( LayerNorm(x) Wᵀ + b )
//
// x [rows, inputs], W [outputs, inputs], out and residual [rows, outputs]; LayerNorm, b, act and residual are
// optional. All tensors are contiguous and of one stored type; arithmetic is in float, or in double for
// double.
#pragma once

#include <cstdint>

#include "common/torch/dtype.h"

namespace argus::decode_linear {

constexpr int64_t kMaxRows = 16;
constexpr int64_t kTileOutputs = 16;

struct Params {
  const void* x;
  const void* weight;
  const void* bias;         // [outputs] or null
  const void* norm_weight;  // [inputs] or null: no LayerNorm
  const void* norm_bias;    // [inputs], with norm_weight
  const void* residual;     // [rows, outputs] or null
  void* out;
  void* prepared;  // scratch of rows · prepared_columns(inputs) doubles
  int64_t rows;
  int64_t inputs;
  int64_t outputs;
  double eps;
  bool gelu;
  Dtype dtype;
};

// Columns of a prepared row: whole blocks of every stored type.
constexpr int64_t prepared_columns(int64_t inputs) {
  return (inputs + 31) / 32 * 32;
}

// Fills `prepared` with the rows in the layout of the products, normalised if a LayerNorm is given.
void prepare_cpu(const Params& params);

// Computes the outputs of tiles [first, last), kTileOutputs each, for all rows.
void multiply_cpu(const Params& params, int64_t first, int64_t last);

}  // namespace argus::decode_linear
