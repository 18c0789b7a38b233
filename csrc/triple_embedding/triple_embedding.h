// Several tables looked up by columns of ids, side by side, and projected:
//
//   out[t] = bias + Σ_k table_of(k)[ids_k[t]] · weight[offset_k : offset_k + width_k]
//
// id -1 reads a row of zeros. A table is served in one of two ways. *Gathered*: its rows become part of a
// tile of events, which is multiplied by the weight. *Projected*: the whole table is multiplied by the weight
// first and rows of the product are added; cheaper if the table has few rows compared to the events. Backward
// likewise: a gathered table's gradient rows come from a product over events; a projected table's gradients
// are summed by row first and then multiplied.
#pragma once

#include <cstdint>
#include <vector>

#include "common/cpu/row_adagrad.h"
#include "common/cpu/row_order.h"
#include "common/torch/dtype.h"

namespace argus::triple_embedding {

struct Table {
  const void* data;
  int64_t rows, width;
  int64_t row_stride, column_stride;
  bool projected;
};

struct Column {
  int table;
  const int64_t* ids;  // [events]
  int64_t offset;      // the first row of the weight for this column
};

struct Problem {
  std::vector<Table> tables;
  std::vector<Column> columns;
  const void* weight;  // [height, width], contiguous
  int64_t events, height, width;
  Dtype table_dtype, dtype;  // of the tables; of weight, bias, output and its gradient
};

// The largest stack of projected tables that is worthwhile. Forward, its rows are read in the order of the
// events and must stay in L2; backward, the sums are computed in slices.
constexpr int64_t kForwardStack = int64_t{1} << 17;
constexpr int64_t kBackwardStack = int64_t{1} << 21;

// Marks the tables to project; once projected they have at most that many elements together. The choice
// depends on sizes only, so that dense and row-sparse gradients agree.
void choose_projected(Problem& problem, int64_t most_elements);

// output [events, width]; bias [width] or null.
void forward_cpu(const Problem& problem, const void* bias, void* output);

// The gradient of a table: order.runs() rows are written, one per row that was read. Fused, they are applied
// by row-wise Adagrad instead: `values` is then the table, and a row's gradient is rounded to the table's
// type first, as the two separate steps do.
struct RowGradients {
  RowOrder order;
  void* values;  // row `order.rows()[u]` of a dense gradient of zeros or of the table, or row u
  bool dense;
  void* state = nullptr;  // fused: [rows] in the type of the arithmetic, else null
  row_adagrad::Settings settings = {};
};

struct Backward {
  const void* gradient;            // [events, width], contiguous
  bool tables, weight, bias;       // which gradients are wanted
  std::vector<RowGradients> rows;  // of each table; for projected ones `order` may be empty
  void* d_weight;                  // [height, width]
  void* d_bias;                    // [width]
};

// The rows of the table that its columns read, in the order of columns, then events.
RowOrder order_rows(const Problem& problem, int table);

void backward_cpu(const Problem& problem, Backward& backward);

}  // namespace argus::triple_embedding
