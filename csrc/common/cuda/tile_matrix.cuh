// Products of small matrices on the tensor cores: a warp's 16 × 8 tiles of float32 sums, operands in shared
// memory or in other sums. Two products are all that attention needs:
//
//   rows      sums[r, n] += Σ_k left[r, k] · right[n, k]     right is a tile's rows, as scores q · k
//   columns   sums[r, n] += Σ_k left[r, k] · right[k, n]     right is a tile's columns, as weights · v
//
// 16-bit elements go through ldmatrix and mma.m16n8k16. float32 goes through mma.m16n8k8 in TF32: each number
// is split into two TF32 numbers, high + low, exact except sometimes for the last of 24 bits, and all four
// products of the parts are taken. Every step's sum is added to the others outside the tensor core, because
// that addition rounds to nearest while the tensor core truncates.
//
// A tile's rows are cut into 16-byte chunks XOR-swizzled by row, so that the eight rows that an
// ldmatrix reads at once, or the four that float32 fragments read, lie in different banks.
#pragma once

#include "common/cuda/ptx.cuh"

namespace argus::tile {

template <class T>
constexpr int kDepth = sizeof(T) == 2 ? 16 : 8;  // of one mma

// Where element [row, column] of a [*, kWidth] tile lies.
template <class T, int kWidth>
ARGUS_DEVICE int offset(int row, int column) {
  constexpr int kChunks = kWidth / kChunk<T>;
  static_assert(kChunks == 4 || kChunks % 8 == 0);
  int turn = 0;
  if constexpr (sizeof(T) == 4) {
    turn = ((row & 3) ^ (row >> 2 & 1)) << 1;
  } else if constexpr (kChunks == 4) {
    turn = row >> 1 & 3;
  } else {
    turn = row & 7;
  }
  return row * kWidth + (column / kChunk<T> ^ turn) * kChunk<T> + column % kChunk<T>;
}

// The same where `row` is a multiple of 8 and `column` one of kDepth, counted from an element at `lane`,
// which lies in the first 8 rows and kDepth columns (16 rows for 16-bit elements). The constants are added
// separately, because nvcc otherwise keeps the address of every operand in its own register.
template <class T, int kWidth>
ARGUS_DEVICE int offset_from(int lane, int row, int column) {
  constexpr int kTurned = kWidth < 8 * kChunk<T> ? kWidth : 8 * kChunk<T>;
  return (lane ^ column % kTurned) + column / kTurned * kTurned + row * kWidth;
}

// A matrix in global memory: rows `stride` elements apart, each of `width` elements, aligned to 16 bytes.
template <class T>
struct Source {
  const T* data;
  int64_t stride;
  int width;
};

// Starts the copies of rows [first, first + kRows) of `source` into a tile; rows outside [0, rows) and
// columns past the width are zero and not read.
template <class T, int kWidth, int kRows, int kThreads>
ARGUS_DEVICE void copy_async(T* to, const Source<T>& source, int first, int rows) {
  constexpr int kChunks = kWidth / kChunk<T>, kStep = kThreads / kChunks;
  static_assert(kThreads % kChunks == 0 && kRows % kStep == 0);
  const int thread = static_cast<int>(threadIdx.x);
  const int row = thread / kChunks, column = thread % kChunks * kChunk<T>;
  const bool inside = column < source.width;
  const int64_t begin = (first + row) * source.stride + column;
  // Unrolling would spill at head width 128.
#pragma unroll 1
  for (int i = 0; i < kRows; i += kStep) {
    const bool real = inside && first + row + i < rows;
    const T* from = real ? source.data + (begin + i * source.stride) : source.data;
    ptx::cp_async<16>(to + offset<T, kWidth>(row + i, column), from, real ? 16 : 0);
  }
}

// The left operand of one mma, [16, kDepth], and the right operand of two mma, [kDepth, 16].
template <class T>
struct Left {
  uint32_t words[4];
};
template <class T>
struct Right {
  uint32_t words[4];
};
template <>
struct Left<float> {
  uint32_t high[4], low[4];
};
template <>
struct Right<float> {
  uint32_t high[4], low[4];
};

// x = high + low, high rounded to TF32's 11 bits; the remainder has 13 bits, of which the tensor core takes
// 11.
ARGUS_DEVICE void split(uint32_t& high, uint32_t& low, float x) {
  high = (__float_as_uint(x) + 0x1000u) & 0xffffe000u;
  low = __float_as_uint(x - __uint_as_float(high));
}

// Where a lane's elements of an operand lie in the tile's first rows and columns. In float32 the k-th pair of
// columns goes to columns k and k + 4 of both operands, so that a lane's two elements are neighbours in
// memory.
template <class T, int kWidth>
ARGUS_DEVICE int left_offset() {
  const int lane = lane_index();
  if constexpr (sizeof(T) == 2) return offset<T, kWidth>(lane % 16, lane / 16 * 8);
  return offset<T, kWidth>(lane / 4, lane % 4 * 2);
}
template <class T, int kWidth>
ARGUS_DEVICE int right_rows_offset() {
  const int lane = lane_index();
  if constexpr (sizeof(T) == 2) return offset<T, kWidth>(lane / 16 * 8 + lane % 8, lane / 8 % 2 * 8);
  return offset<T, kWidth>(lane / 4, lane % 4 * 2);
}
template <class T, int kWidth>
ARGUS_DEVICE int right_columns_offset(int odd) {
  const int lane = lane_index();
  if constexpr (sizeof(T) == 2) return offset<T, kWidth>(lane % 16, lane / 16 * 8);
  return offset<T, kWidth>(lane % 4 * 2 + odd, lane / 4);
}

template <class T, int kWidth>
ARGUS_DEVICE void load_left(Left<T>& left, const T* tile, int lane, int row, int k) {
  if constexpr (sizeof(T) == 2) {
    ptx::ldmatrix(left.words, tile + offset_from<T, kWidth>(lane, row, k));
  } else {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const T* from = tile + offset_from<T, kWidth>(lane, row + 8 * half, k);
      const float2 pair = *reinterpret_cast<const float2*>(from);
      split(left.high[half], left.low[half], pair.x);
      split(left.high[half + 2], left.low[half + 2], pair.y);
    }
  }
}

// Rows [n, n + 16) of the tile, at depth [k, k + kDepth).
template <class T, int kWidth>
ARGUS_DEVICE void load_right_rows(Right<T>& right, const T* tile, int lane, int n, int k) {
  if constexpr (sizeof(T) == 2) {
    ptx::ldmatrix(right.words, tile + offset_from<T, kWidth>(lane, n, k));
  } else {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const T* from = tile + offset_from<T, kWidth>(lane, n + 8 * half, k);
      const float2 pair = *reinterpret_cast<const float2*>(from);
      split(right.high[2 * half], right.low[2 * half], pair.x);
      split(right.high[2 * half + 1], right.low[2 * half + 1], pair.y);
    }
  }
}

// Columns [n, n + 16) of the tile, at depth [k, k + kDepth).
template <class T, int kWidth>
ARGUS_DEVICE void load_right_columns(Right<T>& right, const T* tile, const int (&lane)[2], int k, int n) {
  if constexpr (sizeof(T) == 2) {
    ptx::ldmatrix_transposed(right.words, tile + offset_from<T, kWidth>(lane[0], k, n));
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      split(right.high[i], right.low[i], tile[offset_from<T, kWidth>(lane[i % 2], k, n + i / 2 * 8)]);
  }
}

ARGUS_DEVICE void store_pair(float* to, float x, float y) {
  *reinterpret_cast<float2*>(to) = make_float2(x, y);
}
template <class T>
ARGUS_DEVICE void store_pair(T* to, float x, float y) {
  *reinterpret_cast<uint32_t*>(to) = packed(x, y, T{});
}

// Columns [kDepth · step, kDepth · (step + 1)) of a row of sums, rounded to T.
template <class T, int kTiles>
ARGUS_DEVICE void left_of(Left<T>& left, const float (&sums)[kTiles][4], int step) {
  if constexpr (sizeof(T) == 2) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float (&from)[4] = sums[2 * step + half];
      left.words[2 * half] = packed(from[0], from[1], T{});
      left.words[2 * half + 1] = packed(from[2], from[3], T{});
    }
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int place = i / 2 + i % 2 * 2;
      split(left.high[place], left.low[place], sums[step][i]);
    }
  }
}

// sums[0] and sums[1] are neighbours, 8 columns each.
template <class T>
ARGUS_DEVICE void multiply(float (&sums)[4], const Left<T>& left, const Right<T>& right, int half) {
  if constexpr (sizeof(T) == 2) {
    const uint32_t words[2] = {right.words[2 * half], right.words[2 * half + 1]};
    ptx::mma_m16n8k16(sums, left.words, words, T{});
  } else {
    const uint32_t high[2] = {right.high[2 * half], right.high[2 * half + 1]};
    const uint32_t low[2] = {right.low[2 * half], right.low[2 * half + 1]};
    float product[4] = {};
    ptx::mma_m16n8k8_tf32(product, left.low, low);
    ptx::mma_m16n8k8_tf32(product, left.low, high);
    ptx::mma_m16n8k8_tf32(product, left.high, low);
    ptx::mma_m16n8k8_tf32(product, left.high, high);
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[i] += product[i];
  }
}

template <int kRowTiles, int kTiles>
ARGUS_DEVICE void clear(float (&sums)[kRowTiles][kTiles][4]) {
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[r][n][i] = 0.0f;
}

// sums += left · rightᵀ, left a tile of 16 · kRowTiles rows, right one of 8 · kTiles.
template <class T, int kWidth, int kRowTiles, int kTiles>
ARGUS_DEVICE void add_rows_product(float (&sums)[kRowTiles][kTiles][4], const T* left_tile,
                                   const T* right_tile) {
  const int left_lane = left_offset<T, kWidth>(), right_lane = right_rows_offset<T, kWidth>();
  // Unrolled as far as no kernel spills: splitting float32 takes registers, and so does the loop counter
  // beside the sums of two rows of tiles.
#pragma unroll(sizeof(T) == 4 ? 2 : kRowTiles == 2 ? 8 : 4)
  for (int k = 0; k < kWidth; k += kDepth<T>) {
    Left<T> left[kRowTiles];
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) load_left<T, kWidth>(left[r], left_tile, left_lane, 16 * r, k);
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      Right<T> right;
      load_right_rows<T, kWidth>(right, right_tile, right_lane, 8 * n, k);
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        multiply(sums[r][n], left[r], right, 0);
        multiply(sums[r][n + 1], left[r], right, 1);
      }
    }
  }
}

// sums += left · right, left the [16 · kRowTiles, 8 · kInner] sums of an earlier product rounded to T, right
// the first 8 · kTiles columns of a [8 · kInner, kWidth] tile; it may begin at a multiple of 128 columns.
template <class T, int kWidth, int kRowTiles, int kInner, int kTiles>
ARGUS_DEVICE void add_columns_product(float (&sums)[kRowTiles][kTiles][4],
                                      const float (&left_sums)[kRowTiles][kInner][4], const T* right_tile) {
  const int lane[2] = {right_columns_offset<T, kWidth>(0), right_columns_offset<T, kWidth>(1)};
#pragma unroll
  for (int k = 0; k < 8 * kInner; k += kDepth<T>) {
    Left<T> left[kRowTiles];
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) left_of(left[r], left_sums[r], k / kDepth<T>);
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      Right<T> right;
      load_right_columns<T, kWidth>(right, right_tile, lane, k, 8 * n);
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        multiply(sums[r][n], left[r], right, 0);
        multiply(sums[r][n + 1], left[r], right, 1);
      }
    }
  }
}

}  // namespace argus::tile
