// The two matrix products of a tile of rows with a weight of few columns, shapes too thin for
// common/matmul.h: its panels are 32 columns wide, a like, a dislike, a skip and eight bins of a share
// are 11.
#pragma once

#include <cstdint>

namespace argus::feedback_loss {

constexpr int64_t kTileRows = 32;
constexpr int64_t kLine = 16;  // columns of a packed line of the projection's weight; elements of a step
constexpr int64_t kMostColumns = 12;  // columns of weight whose gradients stay in registers
constexpr int64_t kColumnStep = 4;    // gradients are made for a multiple of this many columns

// to[c · kTileRows + r] = bias[c] + Σ_d rows[r][d] · weight[d · kLine + c] for c < columns ≤ kLine.
template <class A>
void project_tile(const A* const* rows, const A* weight, const A* bias, int64_t width, int64_t columns,
                  A* to);

// With dz[c · kTileRows + r] the residuals of `columns` columns, a multiple of kColumnStep up to
// kMostColumns, and weight and d_weight column after column, `width` (a multiple of kLine) elements apart:
//
//   d_rows[r][d] (+)= Σ_c dz[c][r] · weight[c][d],  d_weight[c][d] += Σ_r dz[c][r] · rows[r][d]
template <class A>
void spread_tile(const A* const* rows, A* const* d_rows, const A* dz, const A* weight, A* d_weight,
                 int64_t width, int64_t columns, bool accumulate);

}  // namespace argus::feedback_loss
