// The two matrix products of a tile of rows with a weight of few columns, shapes too thin for
// common/cpu/matmul.h: its panels are 32 columns wide, while a like, a dislike, a skip and eight bins of a
// share are 11 columns.
#pragma once

#include <cstdint>

#include "common/cpu/matmul.h"

namespace argus::feedback_loss {

constexpr int64_t kTileRows = 32;
constexpr int64_t kLine = 16;        // columns of a packed row of the projection's weight
constexpr int64_t kWidthStep = 32;   // rows are read in a whole number of steps of this many elements
constexpr int64_t kMaxColumns = 12;  // columns of weight whose gradients stay in registers
constexpr int64_t kColumnStep = 4;   // gradients are made for a multiple of this many columns

// Operands are float, double, or BFloat16 if matmul.h says that this machine multiplies it directly; sums,
// bias and residuals are matmul::Sum<Operand>.
using matmul::Sum;

// Where element (d, c) of a packed line lies, and (c, d) of a packed column: bfloat16 operands are stored in
// pairs of neighbouring summation indices, which one instruction multiplies together.
template <class Operand>
constexpr int64_t kPair = std::is_same_v<Operand, BFloat16> ? 2 : 1;

template <class Operand>
constexpr int64_t place_in_line(int64_t d, int64_t c) {
  constexpr int64_t pair = kPair<Operand>;
  return (d / pair * kLine + c) * pair + d % pair;
}
template <class Operand>
constexpr int64_t place_in_column(int64_t c, int64_t d, int64_t width) {
  constexpr int64_t pair = kPair<Operand>;
  return (c / pair * width + d) * pair + c % pair;
}

// Rows that a later tile reads, for prefetching: several rows are read in parallel, a pattern that the
// hardware does not predict. Addresses, not pointers: those of the last tiles are past the end of the tensor.
struct Ahead {
  uintptr_t from;       // of the row that takes the place of the tile's first
  uintptr_t row_bytes;  // from one row to the next
};

// to[c · kTileRows + r] = bias[c] + Σ_d rows[r][d] · weight[place_in_line(d, c)] for c < columns ≤ kLine.
template <class Operand>
void project_tile(const Operand* const* rows, Ahead ahead, const Operand* weight, const Sum<Operand>* bias,
                  int64_t width, int64_t columns, Sum<Operand>* to);

// With dz[c · kTileRows + r] the residuals of `columns` columns, a multiple of kColumnStep up to
// kMaxColumns, weight by place_in_column and d_weight column after column, `width` elements apart:
//
//   d_rows[r][d] (+)= Σ_c dz[c][r] · weight[c][d],  d_weight[c][d] += Σ_r dz[c][r] · rows[r][d]
//
// BFloat16 does not accumulate: its d_rows are rounded.
template <class Operand>
void spread_tile(const Operand* const* rows, Operand* const* d_rows, const Sum<Operand>* dz,
                 const Operand* weight, Sum<Operand>* d_weight, int64_t width, int64_t columns,
                 bool accumulate);

}  // namespace argus::feedback_loss
