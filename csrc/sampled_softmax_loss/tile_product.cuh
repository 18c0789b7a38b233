// A block's product of two matrices in global memory, 128 × 128 sums held in registers:
//
//   sums[r, n] += Σ_k left[r, k] · right[n, k]
//
// 256 threads, 8 warps of 64 × 32 sums each. Operands come in stages of 64 bytes of depth through cp.async,
// one stage being multiplied while the next is on its way. An operand is stored either along the depth
// (element [index, k] at index · stride + k: rows that a score's sum runs through) or across it (at k ·
// stride + index). 16-bit elements are multiplied by mma.m16n8k16; float32 by multiply-adds, exactly, in the
// same layout of the sums: a thread holds 8 rows × 8 columns.
#pragma once

#include <type_traits>

#include "common/ptx.cuh"

namespace argus::sampled_softmax_loss {

constexpr int kTile = 128;  // rows and columns of a block
constexpr int kThreads = 256;
constexpr int kWarpColumns = 4;  // warps side by side
constexpr int kHeld = 8;         // rows, and columns, that a thread holds

template <class T>
constexpr int kChunk = 16 / static_cast<int>(sizeof(T));  // elements of one copy
template <class T>
constexpr int kStageDepth = 64 / static_cast<int>(sizeof(T));

// Rows of a stage in shared memory are 16 bytes longer than their content, which keeps the eight rows that an
// ldmatrix reads at once in different banks.
template <class T>
constexpr int kAlongStride = kStageDepth<T> + kChunk<T>;
template <class T>
constexpr int kAcrossStride = kTile + kChunk<T>;
template <class T>
constexpr int kStageElements = kTile * kAlongStride<T>;

template <class T>
struct Stages {
  T left[2][kStageElements<T>];
  T right[2][kStageElements<T>];
};

// `count` is the extent along the index, `depth` along the sum. Memory rows whose `weight` is 0 read as zero.
template <class T>
struct Operand {
  const T* data;
  int64_t stride;
  int64_t first;  // index of the tile's first row or column
  int64_t count;
  int64_t depth;
  const float* weight;  // by memory row, or null
  bool aligned;         // every memory row begins at 16 bytes
};

// D in mma's layout: sums[i][j] is the 16 × 8 tile i below and j beside the warp's first.
struct Sums {
  float tile[4][4][4];

  ARGUS_DEVICE void clear() {
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) tile[i][j][e] = 0.0f;
  }
  // Of the thread's row i and column j of 8.
  ARGUS_DEVICE float& at(int i, int j) { return tile[i / 2][j / 2][i % 2 * 2 + j % 2]; }
};

ARGUS_DEVICE int lane_index() {
  return static_cast<int>(threadIdx.x) % kWarpSize;
}
ARGUS_DEVICE int warp_row() {
  return static_cast<int>(threadIdx.x) / kWarpSize / kWarpColumns;
}
ARGUS_DEVICE int warp_column() {
  return static_cast<int>(threadIdx.x) / kWarpSize % kWarpColumns;
}
// Where in the block's tile the thread's row i, or column j, lies. Columns come in pairs of neighbours.
ARGUS_DEVICE int held_row(int i) {
  return 64 * warp_row() + 8 * i + lane_index() / 4;
}
ARGUS_DEVICE int held_column(int j) {
  return 32 * warp_column() + 8 * (j / 2) + lane_index() % 4 * 2 + j % 2;
}

// Copies one chunk of a memory row: elements [column, column + chunk), those past `columns` zero.
template <class T>
ARGUS_DEVICE void copy_chunk(T* to, const Operand<T>& from, int64_t row, int64_t rows, int64_t column,
                             int64_t columns) {
  const bool real = row < rows && column < columns && (from.weight == nullptr || from.weight[row] != 0.0f);
  const int64_t left = real ? min(columns - column, static_cast<int64_t>(kChunk<T>)) : 0;
  const T* source = from.data + (real ? row * from.stride + column : 0);
  if (from.aligned) {
    ptx::cp_async<16>(to, source, static_cast<int>(left) * static_cast<int>(sizeof(T)));
    return;
  }
  T zero;
  from_float(zero, 0.0f);
#pragma unroll
  for (int e = 0; e < kChunk<T>; ++e) to[e] = e < left ? source[e] : zero;
}

// Starts the copies of depth [k, k + kStageDepth) of an operand's tile.
template <class T, bool kAcross>
ARGUS_DEVICE void load_stage(T* to, const Operand<T>& from, int64_t k) {
  constexpr int kChunksInRow = kAcross ? kTile / kChunk<T> : 4;
  constexpr int kRows = kAcross ? kStageDepth<T> : kTile;
  static_assert(kRows * kChunksInRow % kThreads == 0);
#pragma unroll
  for (int part = 0; part < kRows * kChunksInRow / kThreads; ++part) {
    const int at = part * kThreads + static_cast<int>(threadIdx.x);
    const int row = at / kChunksInRow, column = at % kChunksInRow * kChunk<T>;
    if constexpr (kAcross) {
      copy_chunk(to + row * kAcrossStride<T> + column, from, k + row, from.depth, from.first + column,
                 from.count);
    } else {
      copy_chunk(to + row * kAlongStride<T> + column, from, from.first + row, from.count, k + column,
                 from.depth);
    }
  }
}

// The left operand of one mma: rows [m, m + 16), depth [k, k + 16) of a stage.
template <class T, bool kAcross>
ARGUS_DEVICE void load_left(uint32_t (&words)[4], const T* stage, int m, int k) {
  const int lane = lane_index();
  if constexpr (kAcross) {
    const int depth = k + lane / 16 * 8 + lane % 8, row = m + lane / 8 % 2 * 8;
    ptx::ldmatrix_transposed(words, stage + depth * kAcrossStride<T> + row);
  } else {
    ptx::ldmatrix(words, stage + (m + lane % 16) * kAlongStride<T> + k + lane / 16 * 8);
  }
}

// The right operands of two: columns [n, n + 16), words 0 and 1 of the first 8.
template <class T, bool kAcross>
ARGUS_DEVICE void load_right(uint32_t (&words)[4], const T* stage, int n, int k) {
  const int lane = lane_index();
  if constexpr (kAcross) {
    const int depth = k + lane / 8 % 2 * 8 + lane % 8, column = n + lane / 16 * 8;
    ptx::ldmatrix_transposed(words, stage + depth * kAcrossStride<T> + column);
  } else {
    const int column = n + lane / 16 * 8 + lane % 8;
    ptx::ldmatrix(words, stage + column * kAlongStride<T> + k + lane / 8 % 2 * 8);
  }
}

template <class T, bool kAcross>
ARGUS_DEVICE float element(const T* stage, int index, int k) {
  return kAcross ? stage[k * kAcrossStride<T> + index] : stage[index * kAlongStride<T> + k];
}

// Adds one stage's product.
template <class T, bool kLeftAcross, bool kRightAcross>
ARGUS_DEVICE void add_stage(Sums& sums, const T* left, const T* right) {
  if constexpr (std::is_same_v<T, float>) {
#pragma unroll 4
    for (int k = 0; k < kStageDepth<T>; ++k) {
      float row[kHeld], column[kHeld];
#pragma unroll
      for (int i = 0; i < kHeld; ++i) row[i] = element<T, kLeftAcross>(left, held_row(i), k);
#pragma unroll
      for (int j = 0; j < kHeld; ++j) column[j] = element<T, kRightAcross>(right, held_column(j), k);
#pragma unroll
      for (int i = 0; i < kHeld; ++i)
#pragma unroll
        for (int j = 0; j < kHeld; ++j) sums.at(i, j) = fmaf(row[i], column[j], sums.at(i, j));
    }
  } else {
#pragma unroll
    for (int k = 0; k < kStageDepth<T>; k += 16) {
      uint32_t rows[4][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) load_left<T, kLeftAcross>(rows[i], left, 64 * warp_row() + 16 * i, k);
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        uint32_t columns[4];
        load_right<T, kRightAcross>(columns, right, 32 * warp_column() + 16 * pair, k);
        const uint32_t first[2] = {columns[0], columns[1]}, second[2] = {columns[2], columns[3]};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          ptx::mma_m16n8k16(sums.tile[i][2 * pair], rows[i], first, T{});
          ptx::mma_m16n8k16(sums.tile[i][2 * pair + 1], rows[i], second, T{});
        }
      }
    }
  }
}

// Adds the product over depth [begin, end), `begin` a multiple of the stages' depth. All threads call it; it
// ends with a barrier.
template <class T, bool kLeftAcross, bool kRightAcross>
ARGUS_DEVICE void add_product(Sums& sums, Stages<T>& stages, const Operand<T>& left, const Operand<T>& right,
                              int64_t begin, int64_t end) {
  const auto load = [&](int64_t k, int slot) {
    if (k < end) {
      load_stage<T, kLeftAcross>(stages.left[slot], left, k);
      load_stage<T, kRightAcross>(stages.right[slot], right, k);
    }
    ptx::cp_async_commit();
  };
  load(begin, 0);
  int slot = 0;
  for (int64_t k = begin; k < end; k += kStageDepth<T>) {
    load(k + kStageDepth<T>, slot ^ 1);
    ptx::cp_async_wait<1>();
    __syncthreads();
    add_stage<T, kLeftAcross, kRightAcross>(sums, stages.left[slot], stages.right[slot]);
    __syncthreads();
    slot ^= 1;
  }
  ptx::cp_async_wait_all();
}

}  // namespace argus::sampled_softmax_loss
