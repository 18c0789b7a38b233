// SGD, Adagrad and Adam on the rows of a table that a step has touched, in place. With g the sum of the
// gradients given for a row, in the order given:
//
//   SGD      g = g + weight_decay · row;  row = row − lr · g
//   Adagrad  g = g + weight_decay · row;  sum = sum + g²;  row = row − lr · g / (√sum + eps)
//   Adam     m = m + (1 − beta1) · (g − m);  v = v + (1 − beta2) · (g² − v);  row = row − lr · m / (√v + eps)
//
// with Adam's corrections of both means in its lr. Arithmetic and states are float32, float64 for a float64
// table. Rows that are not given are neither read nor written.
#pragma once

#include <cstdint>

#include "common/cpu/row_order.h"
#include "common/torch/dtype.h"

namespace argus::row_optimizers {

enum class Rule { sgd, adagrad, adam };

struct Params {
  Rule rule;
  void* table;            // [rows, width], rows table_stride elements apart
  void* first_state;      // [rows, width]: sum or m; null for SGD
  void* second_state;     // [rows, width]: v; null for SGD and Adagrad
  const void* gradients;  // [count, width]
  int64_t table_stride, width;
  Dtype dtype;  // of table and gradients
  double lr, eps, weight_decay, beta1, beta2;
};

// Updates the rows of the runs [first, last) of `order`, whose positions index the gradients.
void update_rows_cpu(const Params& params, const RowOrder& order, int64_t first, int64_t last);

}  // namespace argus::row_optimizers
