// Products of tiles that lie in a core's cache, float32 accumulators for float32 and 16-bit operands.
//
//   to[i, n] (+)= Σ_k left[i, k] · right[k, n]
//
// The CPU kernels cut their work into tiles, spread them over threads and call these single-threaded
// functions between their fused passes. `right` is packed once into panels of 32 columns and reused by many
// rows; `left` is read row by row, for float32 and float64 straight from the caller's tensor.
//
// 16-bit results of torch's own products carry 8 bits of a score; these carry 24. On processors with AMX or
// AVX-512 bfloat16 instructions a bfloat16 operand stays bfloat16 (Operand BFloat16), elsewhere it is
// multiplied as float32. An element's sum runs over k in order, in float32 in pieces (piece_depth); its
// rounding depends on the instruction set, not on the tile's other rows and columns.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/cpu/element.h"

namespace argus::matmul {

constexpr int64_t kColumns = 32;  // of a panel of the right operand

template <class Operand>
using Sum = std::conditional_t<std::is_same_v<Operand, double>, double, float>;

enum class BFloat16Unit { none, avx512, amx };

// The instructions that multiply bfloat16 on this machine. Once per process each instruction set is tested
// with a product, and used only if the result is right; ARGUS_CPU_ISA=portable|avx2|avx512|avx512_bf16 lowers
// it.
BFloat16Unit bfloat16_unit();
const char* bfloat16_unit_name();

// Calls visit.operator()<Operand>() with the type in which products of stored T are computed here.
template <class T, class Visit>
auto with_operand(Visit&& visit) {
  if constexpr (std::is_same_v<T, double>) {
    return visit.template operator()<double>();
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    if (bfloat16_unit() != BFloat16Unit::none) return visit.template operator()<BFloat16>();
    return visit.template operator()<float>();
  } else {
    return visit.template operator()<float>();
  }
}

// A float32 sum over a long depth is taken in equal pieces, as torch's own products are: its rounding error
// grows with its length. A single sum of 256 products errs 1.4 times as much as torch's two of 128.
constexpr int64_t kMaxPiece = 192;
constexpr int64_t piece_depth(int64_t depth) {
  const int64_t pieces = (depth + kMaxPiece - 1) / kMaxPiece;
  return pieces < 2 ? kMaxPiece : (depth + pieces - 1) / pieces;
}

// Depth of packed operands is a multiple of this, the depth of the widest instruction.
template <class Operand>
constexpr int64_t padded_depth(int64_t depth) {
  constexpr int64_t step = std::is_same_v<Operand, BFloat16> ? 32 : 1;
  return (depth + step - 1) / step * step;
}

// Elements of a packed right operand.
template <class Operand>
constexpr int64_t right_size(int64_t columns, int64_t depth) {
  return (columns + kColumns - 1) / kColumns * kColumns * padded_depth<Operand>(depth);
}

// right[k, n] = from[n · column_stride + k · depth_stride], zero past depth and columns. One of the strides
// should be 1 for speed. Defined for Operand and Stored in float, BFloat16 and for Stored Float16; double to
// double.
template <class Operand, class Stored>
void pack_right(Operand* to, const Stored* from, int64_t columns, int64_t depth, int64_t column_stride,
                int64_t depth_stride);

// Rows of padded_depth elements: to[i, k] = from[i · row_stride + k · depth_stride], zero past depth.
template <class Operand, class Stored>
void pack_left(Operand* to, const Stored* from, int64_t rows, int64_t depth, int64_t row_stride,
               int64_t depth_stride);

// to[i · to_stride + n] (+)= Σ_k left[i · left_stride + k] · right[k, n] for i < rows, n < columns. A
// BFloat16 left must hold finite values up to padded_depth.
template <class Operand>
void multiply(Sum<Operand>* to, int64_t to_stride, const Operand* left, int64_t left_stride,
              const Operand* right, int64_t rows, int64_t columns, int64_t depth, bool accumulate);

}  // namespace argus::matmul
