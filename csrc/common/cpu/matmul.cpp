// The inner kernels of matmul.h: AMX, AVX-512 (with and without bfloat16), AVX2 and plain C++, a panel of 32
// columns at a time, each holding its block of sums in registers over the whole depth.
#include "common/cpu/matmul.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "common/cpu/simd.h"

#if ARGUS_X86
#include <cpuid.h>
#include <immintrin.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#define ARGUS_TARGET(names) __attribute__((target(names)))
#endif

namespace argus::matmul {
namespace {

// One panel: to[rows, width] (+)= left[rows, depth] · panel[depth, 32].
template <class Operand>
struct Tile {
  Sum<Operand>* to;
  int64_t to_stride;
  const Operand* left;
  int64_t left_stride;
  const Operand* panel;
  int64_t rows;
  int64_t width;
  int64_t depth;
  bool accumulate;

  Tile from_row(int64_t row, int64_t count) const {
    Tile part = *this;
    part.to += row * to_stride;
    part.left += row * left_stride;
    part.rows = count;
    return part;
  }
};

constexpr int64_t kPlainRows = 4;

template <class Operand>
ARGUS_INLINE void plain_rows(const Tile<Operand>& tile, int64_t row, int64_t count) {
  using A = Sum<Operand>;
  A sums[kPlainRows][kColumns] = {};
  for (int64_t k = 0; k < tile.depth; ++k) {
    const Operand* right = tile.panel + k * kColumns;
    for (int64_t i = 0; i < count; ++i) {
      const A factor = tile.left[(row + i) * tile.left_stride + k];
      for (int64_t n = 0; n < kColumns; ++n) sums[i][n] += factor * right[n];
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    A* to = tile.to + (row + i) * tile.to_stride;
    for (int64_t n = 0; n < tile.width; ++n) to[n] = tile.accumulate ? to[n] + sums[i][n] : sums[i][n];
  }
}

template <class Operand>
ARGUS_INLINE void plain_tile(const Tile<Operand>& tile) {
  int64_t row = 0;
  for (; row + kPlainRows <= tile.rows; row += kPlainRows) plain_rows(tile, row, kPlainRows);
  if (row < tile.rows) plain_rows(tile, row, tile.rows - row);
}

#if ARGUS_X86

#define ARGUS_AVX512 "avx512f,avx512bw,avx512dq,avx512vl"

// Adds to or overwrites the sums of one row, one per column of the panel.
ARGUS_TARGET(ARGUS_AVX512)
inline void put_row(float* to, __m512 low, __m512 high, __mmask16 low_mask, __mmask16 high_mask,
                    bool accumulate) {
  if (accumulate) {
    low = _mm512_add_ps(low, _mm512_maskz_loadu_ps(low_mask, to));
    high = _mm512_add_ps(high, _mm512_maskz_loadu_ps(high_mask, to + 16));
  }
  _mm512_mask_storeu_ps(to, low_mask, low);
  _mm512_mask_storeu_ps(to + 16, high_mask, high);
}

struct Masks {
  __mmask16 low, high;
  explicit Masks(int64_t width)
      : low(static_cast<__mmask16>((1u << std::min<int64_t>(width, 16)) - 1)),
        high(static_cast<__mmask16>((1u << std::clamp<int64_t>(width - 16, 0, 16)) - 1)) {}
};

// 24 sums, two lines of the panel and a factor fill the 32 registers.
constexpr int kRows512 = 12;

template <int rows>
ARGUS_TARGET(ARGUS_AVX512)
void float_rows_512(const Tile<float>& tile) {
  __m512 low[rows], high[rows];
#pragma GCC unroll 12
  for (int i = 0; i < rows; ++i) low[i] = high[i] = _mm512_setzero_ps();
  const float* left = tile.left;
  const float* right = tile.panel;
  const int64_t stride = tile.left_stride;
  for (int64_t k = 0; k < tile.depth; ++k, right += kColumns, ++left) {
    const __m512 first = _mm512_loadu_ps(right), second = _mm512_loadu_ps(right + 16);
#pragma GCC unroll 12
    for (int i = 0; i < rows; ++i) {
      const __m512 factor = _mm512_set1_ps(left[i * stride]);
      low[i] = _mm512_fmadd_ps(factor, first, low[i]);
      high[i] = _mm512_fmadd_ps(factor, second, high[i]);
    }
  }
  const Masks masks(tile.width);
#pragma GCC unroll 12
  for (int i = 0; i < rows; ++i)
    put_row(tile.to + i * tile.to_stride, low[i], high[i], masks.low, masks.high, tile.accumulate);
}

template <int rows>
ARGUS_TARGET(ARGUS_AVX512 ",avx512bf16")
void bfloat16_rows_512(const Tile<BFloat16>& tile) {
  __m512 low[rows], high[rows];
#pragma GCC unroll 12
  for (int i = 0; i < rows; ++i) low[i] = high[i] = _mm512_setzero_ps();
  const BFloat16* left = tile.left;
  const BFloat16* right = tile.panel;
  const int64_t stride = tile.left_stride;
  for (int64_t k = 0; k < tile.depth; k += 2, right += 2 * kColumns, left += 2) {
    const __m512bh first = (__m512bh)_mm512_loadu_si512(right);
    const __m512bh second = (__m512bh)_mm512_loadu_si512(right + kColumns);
#pragma GCC unroll 12
    for (int i = 0; i < rows; ++i) {
      int32_t pair;
      std::memcpy(&pair, left + i * stride, sizeof pair);
      const __m512bh factor = (__m512bh)_mm512_set1_epi32(pair);
      low[i] = _mm512_dpbf16_ps(low[i], factor, first);
      high[i] = _mm512_dpbf16_ps(high[i], factor, second);
    }
  }
  const Masks masks(tile.width);
#pragma GCC unroll 12
  for (int i = 0; i < rows; ++i)
    put_row(tile.to + i * tile.to_stride, low[i], high[i], masks.low, masks.high, tile.accumulate);
}

// 12 sums of 8, two lines and a factor fill the 16 registers: half a panel at a time.
constexpr int kRowsAvx2 = 6;

template <int rows>
ARGUS_TARGET("avx2,fma")
void float_rows_avx2(const Tile<float>& tile) {
  for (int64_t half = 0; half < tile.width; half += 16) {
    __m256 low[rows], high[rows];
#pragma GCC unroll 6
    for (int i = 0; i < rows; ++i) low[i] = high[i] = _mm256_setzero_ps();
    const float* right = tile.panel + half;
    const float* left = tile.left;
    for (int64_t k = 0; k < tile.depth; ++k, right += kColumns, ++left) {
      const __m256 first = _mm256_loadu_ps(right), second = _mm256_loadu_ps(right + 8);
#pragma GCC unroll 6
      for (int i = 0; i < rows; ++i) {
        const __m256 factor = _mm256_broadcast_ss(left + i * tile.left_stride);
        low[i] = _mm256_fmadd_ps(factor, first, low[i]);
        high[i] = _mm256_fmadd_ps(factor, second, high[i]);
      }
    }
    const int64_t width = std::min<int64_t>(16, tile.width - half);
    for (int i = 0; i < rows; ++i) {
      float line[16];
      _mm256_storeu_ps(line, low[i]);
      _mm256_storeu_ps(line + 8, high[i]);
      float* to = tile.to + i * tile.to_stride + half;
      for (int64_t n = 0; n < width; ++n) to[n] = tile.accumulate ? to[n] + line[n] : line[n];
    }
  }
}

// Calls kernel<rows>, rows ≤ most known at compile time.
#define ARGUS_BY_ROWS(kernel, most)                                  \
  template <int rows = most>                                         \
  void kernel##_by_rows(const auto& tile) {                          \
    if constexpr (rows > 1) {                                        \
      if (tile.rows < rows) return kernel##_by_rows<rows - 1>(tile); \
    }                                                                \
    kernel<rows>(tile);                                              \
  }

ARGUS_BY_ROWS(float_rows_512, kRows512)
ARGUS_BY_ROWS(bfloat16_rows_512, kRows512)
ARGUS_BY_ROWS(float_rows_avx2, kRowsAvx2)

// AMX: tile registers of 16 rows of 64 bytes; 32 rows × 32 columns of sums in four of them.
constexpr int64_t kAmxRows = 32;
constexpr int64_t kAmxDepth = 32;

struct alignas(64) TileShapes {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  // Registers 0–3 sums, 4–5 rows of left, 6–7 lines of the panel.
  TileShapes(int64_t upper, int64_t lower) {
    const int64_t heights[8] = {upper, upper, lower, lower, upper, lower, 16, 16};
    for (int i = 0; i < 8; ++i) {
      rows[i] = static_cast<uint8_t>(heights[i]);
      row_bytes[i] = heights[i] > 0 ? 64 : 0;
    }
  }
};

// `lower` says whether rows past the first 16 exist. Sums start from `to` where accumulate is set.
template <bool lower>
ARGUS_TARGET("amx-tile,amx-bf16")
void amx_block(float* to, int64_t to_stride, const Tile<BFloat16>& tile, bool accumulate) {
  const int64_t to_bytes = to_stride * 4, left_bytes = tile.left_stride * 2;
  if (accumulate) {
    _tile_loadd(0, to, to_bytes);
    _tile_loadd(1, to + 16, to_bytes);
    if constexpr (lower) {
      _tile_loadd(2, to + 16 * to_stride, to_bytes);
      _tile_loadd(3, to + 16 * to_stride + 16, to_bytes);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (lower) {
      _tile_zero(2);
      _tile_zero(3);
    }
  }
  for (int64_t k = 0; k < tile.depth; k += kAmxDepth) {
    const BFloat16* right = tile.panel + k * kColumns;
    _tile_loadd(4, tile.left + k, left_bytes);
    _tile_loadd(6, right, 4 * kColumns);
    _tile_loadd(7, right + kColumns, 4 * kColumns);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (lower) {
      _tile_loadd(5, tile.left + 16 * tile.left_stride + k, left_bytes);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, to, to_bytes);
  _tile_stored(1, to + 16, to_bytes);
  if constexpr (lower) {
    _tile_stored(2, to + 16 * to_stride, to_bytes);
    _tile_stored(3, to + 16 * to_stride + 16, to_bytes);
  }
}

ARGUS_TARGET("amx-tile,amx-bf16")
void amx_rows(const Tile<BFloat16>& tile) {
  const bool lower = tile.rows > 16;
  if (tile.width == kColumns) {
    return lower ? amx_block<true>(tile.to, tile.to_stride, tile, tile.accumulate)
                 : amx_block<false>(tile.to, tile.to_stride, tile, tile.accumulate);
  }
  float block[kAmxRows * kColumns];
  lower ? amx_block<true>(block, kColumns, tile, false) : amx_block<false>(block, kColumns, tile, false);
  for (int64_t i = 0; i < tile.rows; ++i) {
    float* to = tile.to + i * tile.to_stride;
    for (int64_t n = 0; n < tile.width; ++n)
      to[n] = tile.accumulate ? to[n] + block[i * kColumns + n] : block[i * kColumns + n];
  }
}

// Tile shapes are set once for the full blocks and once for the remainder.
ARGUS_TARGET("amx-tile,amx-bf16")
void multiply_amx(const Tile<BFloat16>& whole, int64_t columns) {
  const int64_t full = whole.rows / kAmxRows * kAmxRows;
  auto panels = [&](int64_t first, int64_t last) ARGUS_TARGET("amx-tile,amx-bf16") {
    for (int64_t column = 0; column < columns; column += kColumns) {
      Tile<BFloat16> panel = whole;
      panel.to += column;
      panel.panel += column * padded_depth<BFloat16>(whole.depth);
      panel.width = std::min(kColumns, columns - column);
      for (int64_t row = first; row < last; row += kAmxRows)
        amx_rows(panel.from_row(row, std::min(kAmxRows, last - row)));
    }
  };
  if (full > 0) {
    const TileShapes shapes(16, 16);
    _tile_loadconfig(&shapes);
    panels(0, full);
  }
  if (full < whole.rows) {
    const int64_t left_over = whole.rows - full;
    const TileShapes shapes(std::min<int64_t>(16, left_over), std::max<int64_t>(0, left_over - 16));
    _tile_loadconfig(&shapes);
    panels(full, whole.rows);
  }
  _tile_release();
}

#endif  // ARGUS_X86

void multiply_tile(const Tile<double>& tile) {
  ForEachIsa<&plain_tile<double>>::template call<const Tile<double>&>(tile);
}

void multiply_piece(const Tile<float>& tile) {
#if ARGUS_X86
  const Isa level = isa();
  if (level != Isa::portable) {
    const int64_t most = level == Isa::avx512 ? kRows512 : kRowsAvx2;
    for (int64_t row = 0; row < tile.rows; row += most) {
      const Tile<float> part = tile.from_row(row, std::min(most, tile.rows - row));
      level == Isa::avx512 ? float_rows_512_by_rows(part) : float_rows_avx2_by_rows(part);
    }
    return;
  }
#endif
  plain_tile(tile);
}

void multiply_tile(const Tile<float>& tile) {
  Tile<float> piece = tile;
  const int64_t step = piece_depth(tile.depth);
  for (int64_t first = 0; first == 0 || first < tile.depth; first += step) {
    piece.left = tile.left + first;
    piece.panel = tile.panel + first * kColumns;
    piece.depth = std::min(step, tile.depth - first);
    piece.accumulate = tile.accumulate || first > 0;
    multiply_piece(piece);
  }
}

#if ARGUS_X86
void multiply_tile(const Tile<BFloat16>& tile) {
  for (int64_t row = 0; row < tile.rows; row += kRows512)
    bfloat16_rows_512_by_rows(tile.from_row(row, std::min<int64_t>(kRows512, tile.rows - row)));
}
#endif

template <class Operand>
void multiply_panels(const Tile<Operand>& whole, int64_t columns) {
  for (int64_t column = 0; column < columns; column += kColumns) {
    Tile<Operand> panel = whole;
    panel.to += column;
    panel.panel += column * padded_depth<Operand>(whole.depth);
    panel.width = std::min(kColumns, columns - column);
    multiply_tile(panel);
  }
}

#if ARGUS_X86

// Linux grants the tile registers on request.
bool amx_granted() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

bool cpu_has(unsigned leaf, unsigned subleaf, char part, int bit) {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(leaf, subleaf, &a, &b, &c, &d) == 0) return false;
  return ((part == 'a' ? a : d) >> bit & 1u) != 0;
}

// A product of small integers, exact in every order of summation.
template <class Multiply>
bool multiplies_rightly(Multiply&& product) {
  constexpr int64_t rows = 37, columns = 45, depth = 70, padded = padded_depth<BFloat16>(depth);
  std::vector<float> a(rows * depth), b(depth * columns), expected(rows * columns, 1.0f);
  for (size_t i = 0; i < a.size(); ++i) a[i] = static_cast<float>(static_cast<int>(i * 7 % 13) - 6);
  for (size_t i = 0; i < b.size(); ++i) b[i] = static_cast<float>(static_cast<int>(i * 5 % 11) - 5);
  std::vector<BFloat16> left(rows * padded), right(right_size<BFloat16>(columns, depth));
  pack_left(left.data(), a.data(), rows, depth, depth, 1);
  pack_right(right.data(), b.data(), columns, depth, 1, columns);
  std::vector<float> found = expected;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t k = 0; k < depth; ++k) {
      for (int64_t n = 0; n < columns; ++n)
        expected[i * columns + n] += a[i * depth + k] * b[k * columns + n];
    }
  }
  product(Tile<BFloat16>{found.data(), columns, left.data(), padded, right.data(), rows, 0, padded, true},
          columns);
  return found == expected;
}

BFloat16Unit find_bfloat16_unit() {
  const char* asked = std::getenv("ARGUS_CPU_ISA");
  const auto is = [&](const char* name) { return asked != nullptr && std::strcmp(asked, name) == 0; };
  if (isa() != Isa::avx512 || is("avx512") || !cpu_has(7, 1, 'a', 5)) return BFloat16Unit::none;
  if (!multiplies_rightly(&multiply_panels<BFloat16>)) return BFloat16Unit::none;
  const bool amx = !is("avx512_bf16") && cpu_has(7, 0, 'd', 24) && cpu_has(7, 0, 'd', 22) && amx_granted();
  return amx && multiplies_rightly(&multiply_amx) ? BFloat16Unit::amx : BFloat16Unit::avx512;
}

#endif

}  // namespace

BFloat16Unit bfloat16_unit() {
#if ARGUS_X86
  static const BFloat16Unit unit = find_bfloat16_unit();
  return unit;
#else
  return BFloat16Unit::none;
#endif
}

const char* bfloat16_unit_name() {
  switch (bfloat16_unit()) {
    case BFloat16Unit::amx:
      return "amx";
    case BFloat16Unit::avx512:
      return "avx512_bf16";
    default:
      return "none";
  }
}

template <>
void multiply(double* to, int64_t to_stride, const double* left, int64_t left_stride, const double* right,
              int64_t rows, int64_t columns, int64_t depth, bool accumulate) {
  multiply_panels(Tile<double>{to, to_stride, left, left_stride, right, rows, 0, depth, accumulate}, columns);
}

template <>
void multiply(float* to, int64_t to_stride, const float* left, int64_t left_stride, const float* right,
              int64_t rows, int64_t columns, int64_t depth, bool accumulate) {
  multiply_panels(Tile<float>{to, to_stride, left, left_stride, right, rows, 0, depth, accumulate}, columns);
}

template <>
void multiply(float* to, int64_t to_stride, const BFloat16* left, int64_t left_stride, const BFloat16* right,
              int64_t rows, int64_t columns, int64_t depth, bool accumulate) {
#if ARGUS_X86
  const Tile<BFloat16> whole{
      to, to_stride, left, left_stride, right, rows, 0, padded_depth<BFloat16>(depth), accumulate};
  if (bfloat16_unit() == BFloat16Unit::amx) return multiply_amx(whole, columns);
  multiply_panels(whole, columns);
#endif
}

}  // namespace argus::matmul
