// Packing of operands for matmul.h. Everything is moved in words of 32 bits, a float or a pair of bfloat16 of
// neighbouring depths; where the depth is the contiguous dimension, blocks of 16 × 16 words are transposed in
// registers.
#include <algorithm>
#include <bit>
#include <cstring>

#include "common/cpu/matmul.h"
#include "common/cpu/simd.h"

namespace argus::matmul {
namespace {

constexpr int64_t kBlock = 16;
typedef uint32_t Words __attribute__((vector_size(64)));

template <class Operand>
constexpr int64_t kPerWord = std::is_same_v<Operand, BFloat16> ? 2 : 1;

template <class Stored>
ARGUS_INLINE uint32_t bfloat16_bits(Stored x) {
  if constexpr (std::is_same_v<Stored, BFloat16>) {
    return x.bits;
  } else {
    BFloat16 rounded;
    store(rounded, load(x));
    return rounded.bits;
  }
}

// words[0, count) from `elements` values that lie side by side along the depth; the rest is zero.
template <class Operand, class Stored>
ARGUS_INLINE void words_along_depth(uint32_t* words, const Stored* from, int64_t elements, int64_t count) {
  if constexpr (std::is_same_v<Operand, BFloat16>) {
    const int64_t pairs = elements / 2;
    for (int64_t j = 0; j < pairs; ++j)
      words[j] = bfloat16_bits(from[2 * j]) | bfloat16_bits(from[2 * j + 1]) << 16;
    if (elements % 2 != 0) words[pairs] = bfloat16_bits(from[elements - 1]);
    for (int64_t j = (elements + 1) / 2; j < count; ++j) words[j] = 0;
  } else {
    for (int64_t j = 0; j < elements; ++j) words[j] = std::bit_cast<uint32_t>(load(from[j]));
    for (int64_t j = elements; j < count; ++j) words[j] = 0;
  }
}

// words[i] from row[i] and, for bfloat16, from next[i], the next depth (null past the end); zero from
// `count`.
template <class Operand, class Stored>
ARGUS_INLINE void words_across_depth(uint32_t* words, const Stored* row, const Stored* next, int64_t count,
                                     int64_t padded) {
  if constexpr (std::is_same_v<Operand, BFloat16>) {
    if (next != nullptr) {
      for (int64_t i = 0; i < count; ++i) words[i] = bfloat16_bits(row[i]) | bfloat16_bits(next[i]) << 16;
    } else {
      for (int64_t i = 0; i < count; ++i) words[i] = bfloat16_bits(row[i]);
    }
  } else {
    for (int64_t i = 0; i < count; ++i) words[i] = std::bit_cast<uint32_t>(load(row[i]));
  }
  for (int64_t i = count; i < padded; ++i) words[i] = 0;
}

// One stage: rows a and a + distance exchange the halves of their groups of 2 · distance words.
template <int distance>
ARGUS_INLINE void exchange(Words* rows) {
  Words low{}, high{};
  for (int lane = 0; lane < kBlock; ++lane) {
    const bool second = (lane & distance) != 0;
    low[lane] = static_cast<uint32_t>(second ? lane - distance + kBlock : lane);
    high[lane] = static_cast<uint32_t>(second ? lane + kBlock : lane + distance);
  }
  for (int row = 0; row < kBlock; ++row) {
    if ((row & distance) != 0) continue;
    const Words a = rows[row], b = rows[row + distance];
    rows[row] = __builtin_shuffle(a, b, low);
    rows[row + distance] = __builtin_shuffle(a, b, high);
  }
}

ARGUS_INLINE void transpose(const uint32_t (*from)[kBlock], uint32_t* to, int64_t to_stride, int64_t rows) {
  Words block[kBlock];
  std::memcpy(block, from, sizeof block);
  exchange<8>(block);
  exchange<4>(block);
  exchange<2>(block);
  exchange<1>(block);
  if (rows >= kBlock) {
    for (int64_t row = 0; row < kBlock; ++row) std::memcpy(to + row * to_stride, block + row, sizeof(Words));
  } else {
    for (int64_t row = 0; row < rows; ++row) std::memcpy(to + row * to_stride, block + row, sizeof(Words));
  }
}

// A panel whose depth is contiguous in memory.
template <class Operand, class Stored>
ARGUS_INLINE void panel_along_depth(uint32_t* panel, const Stored* from, int64_t columns, int64_t depth,
                                    int64_t words, int64_t column_stride) {
  constexpr int64_t per = kPerWord<Operand>;
  uint32_t block[kBlock][kBlock];
  for (int64_t half = 0; half < kColumns; half += kBlock) {
    for (int64_t word = 0; word < words; word += kBlock) {
      const int64_t count = std::min(kBlock, words - word);
      const int64_t elements = std::clamp<int64_t>(depth - word * per, 0, kBlock * per);
      for (int64_t column = 0; column < kBlock; ++column) {
        const bool inside = half + column < columns;
        const Stored* line = inside ? from + (half + column) * column_stride + word * per : from;
        if (inside && elements == kBlock * per) {
          words_along_depth<Operand>(block[column], line, kBlock * per, kBlock);
        } else {
          words_along_depth<Operand>(block[column], line, inside ? elements : 0, kBlock);
        }
      }
      transpose(block, panel + word * kColumns + half, kColumns, count);
    }
  }
}

// A panel whose columns are contiguous in memory.
template <class Operand, class Stored>
ARGUS_INLINE void panel_across_depth(uint32_t* panel, const Stored* from, int64_t columns, int64_t depth,
                                     int64_t words, int64_t depth_stride) {
  constexpr int64_t per = kPerWord<Operand>;
  for (int64_t word = 0; word < words; ++word) {
    const int64_t k = word * per;
    const Stored* row = from + k * depth_stride;
    const Stored* next = k + 1 < depth ? row + depth_stride : nullptr;
    uint32_t* line = panel + word * kColumns;
    if (k >= depth) {
      words_across_depth<Operand>(line, from, next, 0, kColumns);
    } else if (columns >= kColumns) {
      words_across_depth<Operand>(line, row, next, kColumns, kColumns);
    } else {
      words_across_depth<Operand>(line, row, next, columns, kColumns);
    }
  }
}

template <class Operand, class Stored>
ARGUS_INLINE void panel_anyhow(Operand* panel, const Stored* from, int64_t columns, int64_t depth,
                               int64_t padded, int64_t column_stride, int64_t depth_stride) {
  constexpr int64_t per = kPerWord<Operand>;
  for (int64_t k = 0; k < padded; ++k) {
    for (int64_t n = 0; n < kColumns; ++n) {
      const bool inside = k < depth && n < columns;
      Operand& to = panel[k / per * per * kColumns + n * per + k % per];
      if (inside) {
        store(to, load(from[n * column_stride + k * depth_stride]));
      } else {
        to = Operand{};
      }
    }
  }
}

template <class Operand, class Stored>
ARGUS_INLINE void pack_right_body(Operand* to, const Stored* from, int64_t columns, int64_t depth,
                                  int64_t column_stride, int64_t depth_stride) {
  const int64_t padded = padded_depth<Operand>(depth);
  for (int64_t first = 0; first < columns; first += kColumns) {
    Operand* panel = to + first * padded;
    const Stored* source = from + first * column_stride;
    const int64_t width = std::min(kColumns, columns - first);
    if constexpr (!std::is_same_v<Operand, double>) {
      const int64_t words = padded / kPerWord<Operand>;
      uint32_t* lines = reinterpret_cast<uint32_t*>(panel);
      if (column_stride == 1) {
        panel_across_depth<Operand>(lines, source, width, depth, words, depth_stride);
        continue;
      }
      if (depth_stride == 1) {
        panel_along_depth<Operand>(lines, source, width, depth, words, column_stride);
        continue;
      }
    }
    panel_anyhow<Operand>(panel, source, width, depth, padded, column_stride, depth_stride);
  }
}

// A left operand whose rows are not contiguous: 16 rows at a time are transposed.
template <class Operand, class Stored>
ARGUS_INLINE void rows_across_depth(uint32_t* to, const Stored* from, int64_t rows, int64_t depth,
                                    int64_t words, int64_t depth_stride) {
  constexpr int64_t per = kPerWord<Operand>;
  uint32_t block[kBlock][kBlock], transposed[kBlock][kBlock];
  for (int64_t first = 0; first < rows; first += kBlock) {
    const int64_t height = std::min(kBlock, rows - first);
    for (int64_t word = 0; word < words; word += kBlock) {
      for (int64_t j = 0; j < kBlock; ++j) {
        const int64_t k = (word + j) * per;
        const Stored* row = k < depth ? from + first + k * depth_stride : nullptr;
        const Stored* next = k + 1 < depth ? row + depth_stride : nullptr;
        if (row != nullptr && height == kBlock) {
          words_across_depth<Operand>(block[j], row, next, kBlock, kBlock);
        } else {
          words_across_depth<Operand>(block[j], row, next, row == nullptr ? 0 : height, kBlock);
        }
      }
      if (words - word >= kBlock) {
        transpose(block, to + first * words + word, words, height);
      } else {
        transpose(block, transposed[0], kBlock, kBlock);
        for (int64_t i = 0; i < height; ++i)
          std::memcpy(to + (first + i) * words + word, transposed[i], static_cast<size_t>(words - word) * 4);
      }
    }
  }
}

template <class Operand, class Stored>
ARGUS_INLINE void pack_left_body(Operand* to, const Stored* from, int64_t rows, int64_t depth,
                                 int64_t row_stride, int64_t depth_stride) {
  const int64_t padded = padded_depth<Operand>(depth);
  if constexpr (!std::is_same_v<Operand, double>) {
    const int64_t words = padded / kPerWord<Operand>;
    uint32_t* lines = reinterpret_cast<uint32_t*>(to);
    if (depth_stride == 1) {
      for (int64_t i = 0; i < rows; ++i)
        words_along_depth<Operand>(lines + i * words, from + i * row_stride, depth, words);
      return;
    }
    if (row_stride == 1) return rows_across_depth<Operand>(lines, from, rows, depth, words, depth_stride);
  }
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t k = 0; k < padded; ++k) {
      if (k < depth) {
        store(to[i * padded + k], load(from[i * row_stride + k * depth_stride]));
      } else {
        to[i * padded + k] = Operand{};
      }
    }
  }
}

}  // namespace

template <class Operand, class Stored>
void pack_right(Operand* to, const Stored* from, int64_t columns, int64_t depth, int64_t column_stride,
                int64_t depth_stride) {
  ForEachIsa<&pack_right_body<Operand, Stored>>::call(to, from, columns, depth, column_stride, depth_stride);
}

template <class Operand, class Stored>
void pack_left(Operand* to, const Stored* from, int64_t rows, int64_t depth, int64_t row_stride,
               int64_t depth_stride) {
  ForEachIsa<&pack_left_body<Operand, Stored>>::call(to, from, rows, depth, row_stride, depth_stride);
}

#define ARGUS_PACK(Operand, Stored)                                                      \
  template void pack_right(Operand*, const Stored*, int64_t, int64_t, int64_t, int64_t); \
  template void pack_left(Operand*, const Stored*, int64_t, int64_t, int64_t, int64_t);

ARGUS_PACK(float, float)
ARGUS_PACK(float, BFloat16)
ARGUS_PACK(float, Float16)
ARGUS_PACK(BFloat16, float)
ARGUS_PACK(BFloat16, BFloat16)
ARGUS_PACK(BFloat16, Float16)
ARGUS_PACK(double, double)
#undef ARGUS_PACK

}  // namespace argus::matmul
