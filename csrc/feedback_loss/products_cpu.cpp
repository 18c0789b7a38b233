// The inner kernels of products.h: AVX-512, its bfloat16 instructions, AVX2 and plain C++. Sums stay in
// registers. The projection keeps 8 rows of 16 columns and broadcasts the elements of hidden. The gradients
// keep up to 12 columns of d_weight, and as many of weight, and loop over the tile's rows, computing each
// row's d_hidden in the same pass.
#include "feedback_loss/products.h"

#include <algorithm>
#include <cstring>

#include "common/cpu/simd.h"
#include "common/cpu/vector_math.h"

#if ARGUS_X86
// GCC 12 warns about undefined vectors in its own headers.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#define ARGUS_TARGET(names) __attribute__((target(names)))
#endif

namespace argus::feedback_loss {
namespace {

// The pieces of a sum, as in matmul.h, in whole steps. The bias is added to their sums.
ARGUS_INLINE int64_t projection_piece(int64_t width) {
  return (matmul::piece_depth(width) + kWidthStep - 1) / kWidthStep * kWidthStep;
}

template <class A>
ARGUS_INLINE void project_plain(const A* const* rows, const A* weight, const A* bias, int64_t width,
                                int64_t columns, A* to) {
  const int64_t piece = projection_piece(width);
  for (int64_t r = 0; r < kTileRows; ++r) {
    A totals[kLine];
    std::copy(bias, bias + kLine, totals);
    for (int64_t begin = 0; begin < width; begin += piece) {
      A sums[kLine] = {};
      for (int64_t d = begin; d < std::min(width, begin + piece); ++d) {
        for (int64_t c = 0; c < kLine; ++c) sums[c] += rows[r][d] * weight[d * kLine + c];
      }
      for (int64_t c = 0; c < kLine; ++c) totals[c] += sums[c];
    }
    for (int64_t c = 0; c < columns; ++c) to[c * kTileRows + r] = totals[c];
  }
}

template <class A>
ARGUS_INLINE void spread_plain(const A* const* rows, A* const* d_rows, const A* dz, const A* weight,
                               A* d_weight, int64_t width, int64_t columns, bool accumulate) {
  for (int64_t r = 0; r < kTileRows; ++r) {
    if (!accumulate) std::fill(d_rows[r], d_rows[r] + width, A{0});
    for (int64_t c = 0; c < columns; ++c) {
      const A residual = dz[c * kTileRows + r];
      const A* column = weight + c * width;
      A* d_column = d_weight + c * width;
      for (int64_t d = 0; d < width; ++d) d_rows[r][d] += residual * column[d];
      for (int64_t d = 0; d < width; ++d) d_column[d] += residual * rows[r][d];
    }
  }
}

#if ARGUS_X86

#define ARGUS_AVX512 "avx512f,avx512bw,avx512dq,avx512vl"
#define ARGUS_AVX512_BF16 ARGUS_AVX512 ",avx512bf16"
#define ARGUS_AVX2 "avx2,fma"

constexpr int kRows512 = 8;
constexpr int kRowsAvx2 = 4;

constexpr int64_t kCacheLine = 64;

// Prefetches a cache line for each of kRows rows from `first` on, as the product reaches its `step`-th line
// of the rows. Rows without gaps are prefetched in the order of their addresses, which takes a sixth less
// time than line by line of eight rows.
template <int kRows>
ARGUS_INLINE void prefetch_rows(const Ahead& ahead, int64_t first, int64_t step, int64_t lines) {
  const bool gaps = ahead.row_bytes != static_cast<uintptr_t>(lines * kCacheLine);
  const uintptr_t line = static_cast<uintptr_t>((gaps ? step : step * kRows) * kCacheLine);
  const uintptr_t from = ahead.from + static_cast<uintptr_t>(first) * ahead.row_bytes + line;
  const uintptr_t next = gaps ? ahead.row_bytes : kCacheLine;
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
    __builtin_prefetch(reinterpret_cast<const void*>(from + static_cast<uintptr_t>(r) * next));
}

ARGUS_TARGET(ARGUS_AVX512)
void project_512(const float* const* rows, Ahead ahead, const float* weight, const float* bias, int64_t width,
                 int64_t columns, float* to) {
  constexpr int64_t kStep = kCacheLine / sizeof(float);
  const int64_t piece = projection_piece(width);
  for (int64_t first = 0; first < kTileRows; first += kRows512) {
    const float* const* row = rows + first;
    __m512 totals[kRows512];
#pragma GCC unroll 8
    for (int r = 0; r < kRows512; ++r) totals[r] = _mm512_loadu_ps(bias);
    for (int64_t begin = 0; begin < width; begin += piece) {
      __m512 sums[kRows512] = {};
      for (int64_t start = begin; start < std::min(width, begin + piece); start += kStep) {
        prefetch_rows<kRows512>(ahead, first, start / kStep, width / kStep);
        for (int64_t d = start; d < start + kStep; ++d) {
          const __m512 line = _mm512_loadu_ps(weight + d * kLine);
#pragma GCC unroll 8
          for (int r = 0; r < kRows512; ++r)
            sums[r] = _mm512_fmadd_ps(_mm512_set1_ps(row[r][d]), line, sums[r]);
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows512; ++r) totals[r] = _mm512_add_ps(totals[r], sums[r]);
    }
    alignas(64) float lane[kRows512][kLine];
#pragma GCC unroll 8
    for (int r = 0; r < kRows512; ++r) _mm512_store_ps(lane[r], totals[r]);
    for (int64_t c = 0; c < columns; ++c) {
      for (int r = 0; r < kRows512; ++r) to[c * kTileRows + first + r] = lane[r][c];
    }
  }
}

ARGUS_TARGET(ARGUS_AVX2)
void project_avx2(const float* const* rows, Ahead ahead, const float* weight, const float* bias,
                  int64_t width, int64_t columns, float* to) {
  constexpr int64_t kStep = kCacheLine / sizeof(float);
  const int64_t piece = projection_piece(width);
  for (int64_t first = 0; first < kTileRows; first += kRowsAvx2) {
    const float* const* row = rows + first;
    // In memory: the sums of a piece fill the registers.
    float lane[kRowsAvx2][kLine];
    for (int r = 0; r < kRowsAvx2; ++r) std::copy(bias, bias + kLine, lane[r]);
    for (int64_t begin = 0; begin < width; begin += piece) {
      __m256 low[kRowsAvx2] = {}, high[kRowsAvx2] = {};
      for (int64_t d = begin; d < std::min(width, begin + piece); ++d) {
        if (d % kStep == 0) prefetch_rows<kRowsAvx2>(ahead, first, d / kStep, width / kStep);
        const __m256 left = _mm256_loadu_ps(weight + d * kLine);
        const __m256 right = _mm256_loadu_ps(weight + d * kLine + 8);
#pragma GCC unroll 4
        for (int r = 0; r < kRowsAvx2; ++r) {
          const __m256 factor = _mm256_broadcast_ss(row[r] + d);
          low[r] = _mm256_fmadd_ps(factor, left, low[r]);
          high[r] = _mm256_fmadd_ps(factor, right, high[r]);
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < kRowsAvx2; ++r) {
        _mm256_storeu_ps(lane[r], _mm256_add_ps(_mm256_loadu_ps(lane[r]), low[r]));
        _mm256_storeu_ps(lane[r] + 8, _mm256_add_ps(_mm256_loadu_ps(lane[r] + 8), high[r]));
      }
    }
    for (int64_t c = 0; c < columns; ++c) {
      for (int r = 0; r < kRowsAvx2; ++r) to[c * kTileRows + first + r] = lane[r][c];
    }
  }
}

template <int columns, bool accumulate>
ARGUS_TARGET(ARGUS_AVX512)
void spread_512(const float* const* rows, float* const* d_rows, const float* dz, const float* weight,
                float* d_weight, int64_t width) {
  for (int64_t d = 0; d < width; d += kLine) {
    __m512 factor[columns], sums[columns];
#pragma GCC unroll 12
    for (int c = 0; c < columns; ++c) {
      factor[c] = _mm512_loadu_ps(weight + c * width + d);
      sums[c] = _mm512_loadu_ps(d_weight + c * width + d);
    }
    for (int64_t r = 0; r < kTileRows; ++r) {
      const __m512 hidden = _mm512_loadu_ps(rows[r] + d);
      __m512 d_hidden = accumulate ? _mm512_loadu_ps(d_rows[r] + d) : _mm512_setzero_ps();
#pragma GCC unroll 12
      for (int c = 0; c < columns; ++c) {
        const __m512 residual = _mm512_set1_ps(dz[c * kTileRows + r]);
        d_hidden = _mm512_fmadd_ps(residual, factor[c], d_hidden);
        sums[c] = _mm512_fmadd_ps(residual, hidden, sums[c]);
      }
      _mm512_storeu_ps(d_rows[r] + d, d_hidden);
    }
#pragma GCC unroll 12
    for (int c = 0; c < columns; ++c) _mm512_storeu_ps(d_weight + c * width + d, sums[c]);
  }
}

// 4 columns: 16 registers of 8 lanes hold no more.
template <bool accumulate>
ARGUS_TARGET(ARGUS_AVX2)
void spread_avx2(const float* const* rows, float* const* d_rows, const float* dz, const float* weight,
                 float* d_weight, int64_t width) {
  for (int64_t d = 0; d < width; d += 8) {
    __m256 factor[kColumnStep], sums[kColumnStep];
#pragma GCC unroll 4
    for (int c = 0; c < kColumnStep; ++c) {
      factor[c] = _mm256_loadu_ps(weight + c * width + d);
      sums[c] = _mm256_loadu_ps(d_weight + c * width + d);
    }
    for (int64_t r = 0; r < kTileRows; ++r) {
      const __m256 hidden = _mm256_loadu_ps(rows[r] + d);
      __m256 d_hidden = accumulate ? _mm256_loadu_ps(d_rows[r] + d) : _mm256_setzero_ps();
#pragma GCC unroll 4
      for (int c = 0; c < kColumnStep; ++c) {
        const __m256 residual = _mm256_broadcast_ss(dz + c * kTileRows + r);
        d_hidden = _mm256_fmadd_ps(residual, factor[c], d_hidden);
        sums[c] = _mm256_fmadd_ps(residual, hidden, sums[c]);
      }
      _mm256_storeu_ps(d_rows[r] + d, d_hidden);
    }
#pragma GCC unroll 4
    for (int c = 0; c < kColumnStep; ++c) _mm256_storeu_ps(d_weight + c * width + d, sums[c]);
  }
}

template <int columns>
void spread_512_columns(const float* const* rows, float* const* d_rows, const float* dz, const float* weight,
                        float* d_weight, int64_t width, bool accumulate) {
  accumulate ? spread_512<columns, true>(rows, d_rows, dz, weight, d_weight, width)
             : spread_512<columns, false>(rows, d_rows, dz, weight, d_weight, width);
}

// Two neighbouring bfloat16 as one 32-bit word, the instruction's operand.
ARGUS_INLINE int pair_at(const void* from) {
  int word;
  std::memcpy(&word, from, sizeof word);
  return word;
}

ARGUS_TARGET(ARGUS_AVX512_BF16)
void project_bfloat16(const BFloat16* const* rows, Ahead ahead, const BFloat16* weight, const float* bias,
                      int64_t width, int64_t columns, float* to) {
  constexpr int64_t kStep = kCacheLine / sizeof(BFloat16);
  for (int64_t first = 0; first < kTileRows; first += kRows512) {
    const BFloat16* const* row = rows + first;
    __m512 sums[kRows512];
#pragma GCC unroll 8
    for (int r = 0; r < kRows512; ++r) sums[r] = _mm512_loadu_ps(bias);
    for (int64_t start = 0; start < width; start += kStep) {
      prefetch_rows<kRows512>(ahead, first, start / kStep, width / kStep);
      for (int64_t d = start; d < start + kStep; d += 2) {
        const __m512bh line = (__m512bh)_mm512_loadu_si512(weight + d * kLine);
#pragma GCC unroll 8
        for (int r = 0; r < kRows512; ++r) {
          const __m512bh pair = (__m512bh)_mm512_set1_epi32(pair_at(row[r] + d));
          sums[r] = _mm512_dpbf16_ps(sums[r], pair, line);
        }
      }
    }
    alignas(64) float lane[kRows512][kLine];
#pragma GCC unroll 8
    for (int r = 0; r < kRows512; ++r) _mm512_store_ps(lane[r], sums[r]);
    for (int64_t c = 0; c < columns; ++c) {
      for (int r = 0; r < kRows512; ++r) to[c * kTileRows + first + r] = lane[r][c];
    }
  }
}

// Residuals rounded to bfloat16: in pairs of rows for d_weight, in pairs of columns for d_hidden.
struct PairedResiduals {
  alignas(64) uint32_t of_rows[kMaxColumns][kTileRows / 2];
  alignas(64) uint32_t of_columns[kMaxColumns / 2][kTileRows];
};

ARGUS_TARGET(ARGUS_AVX512_BF16)
void pair_residuals(const float* dz, int64_t columns, PairedResiduals& to) {
  static_assert(kTileRows == 32);
  for (int64_t c = 0; c < columns; c += 2) {
    const float *even = dz + c * kTileRows, *odd = even + kTileRows;
    const __m512i first = (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(even + 16), _mm512_loadu_ps(even));
    const __m512i second = (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(odd + 16), _mm512_loadu_ps(odd));
    _mm512_store_si512(to.of_rows[c], first);
    _mm512_store_si512(to.of_rows[c + 1], second);
    for (int64_t half = 0; half < 2; ++half) {
      const __m512i low = _mm512_cvtepu16_epi32(half == 0 ? _mm512_castsi512_si256(first)
                                                          : _mm512_extracti64x4_epi64(first, 1));
      const __m512i high = _mm512_cvtepu16_epi32(half == 0 ? _mm512_castsi512_si256(second)
                                                           : _mm512_extracti64x4_epi64(second, 1));
      _mm512_store_si512(to.of_columns[c / 2] + half * 16, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
  }
}

template <int columns>
ARGUS_TARGET(ARGUS_AVX512_BF16)
void spread_bfloat16(const BFloat16* const* rows, BFloat16* const* d_rows, const float* dz,
                     const BFloat16* weight, float* d_weight, int64_t width) {
  constexpr int kPairs = columns / 2;
  PairedResiduals residuals;
  pair_residuals(dz, columns, residuals);
  for (int64_t d = 0; d < width; d += kLine) {
    __m512bh factor[kPairs];
    __m512 sums[columns];
#pragma GCC unroll 6
    for (int c = 0; c < kPairs; ++c) factor[c] = (__m512bh)_mm512_loadu_si512(weight + (c * width + d) * 2);
#pragma GCC unroll 12
    for (int c = 0; c < columns; ++c) sums[c] = _mm512_loadu_ps(d_weight + c * width + d);
    for (int64_t r = 0; r < kTileRows; r += 2) {
      const __m512i even = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(rows[r] + d)));
      const __m512i odd = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(rows[r + 1] + d)));
      const __m512bh hidden = (__m512bh)_mm512_or_si512(even, _mm512_slli_epi32(odd, 16));
      __m512 d_even = _mm512_setzero_ps(), d_odd = _mm512_setzero_ps();
#pragma GCC unroll 6
      for (int c = 0; c < kPairs; ++c) {
        const uint32_t* pair = residuals.of_columns[c] + r;
        d_even = _mm512_dpbf16_ps(d_even, (__m512bh)_mm512_set1_epi32(pair_at(pair)), factor[c]);
        d_odd = _mm512_dpbf16_ps(d_odd, (__m512bh)_mm512_set1_epi32(pair_at(pair + 1)), factor[c]);
      }
#pragma GCC unroll 12
      for (int c = 0; c < columns; ++c) {
        const __m512bh pair = (__m512bh)_mm512_set1_epi32(pair_at(residuals.of_rows[c] + r / 2));
        sums[c] = _mm512_dpbf16_ps(sums[c], pair, hidden);
      }
      _mm256_storeu_si256((__m256i*)(d_rows[r] + d), (__m256i)_mm512_cvtneps_pbh(d_even));
      _mm256_storeu_si256((__m256i*)(d_rows[r + 1] + d), (__m256i)_mm512_cvtneps_pbh(d_odd));
    }
#pragma GCC unroll 12
    for (int c = 0; c < columns; ++c) _mm512_storeu_ps(d_weight + c * width + d, sums[c]);
  }
}

#endif  // ARGUS_X86

}  // namespace

template <>
void project_tile(const BFloat16* const* rows, Ahead ahead, const BFloat16* weight, const float* bias,
                  int64_t width, int64_t columns, float* to) {
#if ARGUS_X86
  project_bfloat16(rows, ahead, weight, bias, width, columns, to);
#endif
}

template <>
void spread_tile(const BFloat16* const* rows, BFloat16* const* d_rows, const float* dz,
                 const BFloat16* weight, float* d_weight, int64_t width, int64_t columns, bool) {
#if ARGUS_X86
  if (columns == 12) return spread_bfloat16<12>(rows, d_rows, dz, weight, d_weight, width);
  if (columns == 8) return spread_bfloat16<8>(rows, d_rows, dz, weight, d_weight, width);
  spread_bfloat16<4>(rows, d_rows, dz, weight, d_weight, width);
#endif
}

template <>
void project_tile(const double* const* rows, Ahead, const double* weight, const double* bias, int64_t width,
                  int64_t columns, double* to) {
  ForEachIsa<&project_plain<double>>::call(rows, weight, bias, width, columns, to);
}

template <>
void project_tile(const float* const* rows, Ahead ahead, const float* weight, const float* bias,
                  int64_t width, int64_t columns, float* to) {
#if ARGUS_X86
  if (isa() == Isa::avx512) return project_512(rows, ahead, weight, bias, width, columns, to);
  if (isa() == Isa::avx2) return project_avx2(rows, ahead, weight, bias, width, columns, to);
#endif
  project_plain(rows, weight, bias, width, columns, to);
}

template <>
void spread_tile(const double* const* rows, double* const* d_rows, const double* dz, const double* weight,
                 double* d_weight, int64_t width, int64_t columns, bool accumulate) {
  ForEachIsa<&spread_plain<double>>::call(rows, d_rows, dz, weight, d_weight, width, columns, accumulate);
}

template <>
void spread_tile(const float* const* rows, float* const* d_rows, const float* dz, const float* weight,
                 float* d_weight, int64_t width, int64_t columns, bool accumulate) {
#if ARGUS_X86
  if (isa() == Isa::avx512) {
    if (columns == 12) return spread_512_columns<12>(rows, d_rows, dz, weight, d_weight, width, accumulate);
    if (columns == 8) return spread_512_columns<8>(rows, d_rows, dz, weight, d_weight, width, accumulate);
    return spread_512_columns<4>(rows, d_rows, dz, weight, d_weight, width, accumulate);
  }
  if (isa() == Isa::avx2) {
    for (int64_t c = 0; c < columns; c += kColumnStep) {
      const float *residuals = dz + c * kTileRows, *factors = weight + c * width;
      if (accumulate || c > 0) {
        spread_avx2<true>(rows, d_rows, residuals, factors, d_weight + c * width, width);
      } else {
        spread_avx2<false>(rows, d_rows, residuals, factors, d_weight + c * width, width);
      }
    }
    return;
  }
#endif
  spread_plain(rows, d_rows, dz, weight, d_weight, width, columns, accumulate);
}

}  // namespace argus::feedback_loss

#if ARGUS_X86
#pragma GCC diagnostic pop
#endif
