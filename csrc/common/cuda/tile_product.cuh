// The product of a block, 128 × 128 sums in registers:
//
//   sums[r, n] += Σ_k left[r, k] · right[n, k]
//
// 256 threads, 8 warps of 64 × 32 sums each. The depth k is taken in stages of 64 bytes, three of them in
// flight. 16-bit operands are multiplied by mma.m16n8k16, float32 by full-precision multiply-adds, with the
// same layout of sums: a thread holds 8 rows × 8 columns.
//
// Operands come from *sources*, which copy any 16-byte chunk to shared memory: by cp.async if its address is
// aligned to 16 bytes, through registers otherwise. A Matrix is a source; other kinds need the same `copy`. A
// stage lies *along* the depth (128 rows of 4 chunks) or *across* it (one row of 128 elements per element of
// depth), depending on which dimension of the source is contiguous; ldmatrix transposes where needed.
#pragma once

#include <type_traits>

#include "common/cuda/ptx.cuh"

namespace argus::tile {

constexpr int kThreads = 256;
constexpr int kTile = 128;       // rows and columns of a block
constexpr int kWarpColumns = 4;  // warps side by side
constexpr int kHeld = 8;         // rows, and columns, that a thread holds
constexpr int kStages = 3;
constexpr int kStageChunks = 4;  // of depth
constexpr int kStageBytes = kTile * kStageChunks * kChunkBytes;
constexpr size_t kProductBytes = size_t{2} * kStages * kStageBytes;  // of shared memory

template <class T>
constexpr int kStageDepth = kStageChunks * kChunk<T>;
template <class T>
ARGUS_DEVICE int chunk_of(int64_t element) {
  return static_cast<int>(element / kChunk<T>);
}
template <class T>
ARGUS_DEVICE int stages_of(int64_t depth) {
  return static_cast<int>((depth + kStageDepth<T> - 1) / kStageDepth<T>);
}

// Copies `valid` elements of `from`, 0 to a chunk of them and `step` apart, as elements of T; the rest of the
// chunk becomes zero. `aligned`: they are contiguous and aligned to 16 bytes.
template <class T, class Stored>
ARGUS_DEVICE void copy_chunk(void* to, const Stored* from, int64_t step, int valid, bool aligned) {
  if constexpr (std::is_same_v<T, Stored>) {
    if (aligned) {
      ptx::cp_async<kChunkBytes>(to, from, valid * static_cast<int>(sizeof(T)));
      return;
    }
  }
  T* chunk = static_cast<T*>(to);
  if (sizeof(Stored) > sizeof(T) && aligned && valid == kChunk<T>) {
    // float32 rows in a 16-bit product: 16-byte loads, rounded on the way.
    const float4* four = reinterpret_cast<const float4*>(from);
#pragma unroll
    for (int i = 0; i < kChunk<T>; i += 4) {
      const float4 x = four[i / 4];
      from_float(chunk[i], x.x), from_float(chunk[i + 1], x.y);
      from_float(chunk[i + 2], x.z), from_float(chunk[i + 3], x.w);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kChunk<T>; ++i) from_float(chunk[i], i < valid ? to_float(from[i * step]) : 0.0f);
}

ARGUS_DEVICE void clear_chunk(void* to) {
  *static_cast<uint4*>(to) = make_uint4(0, 0, 0, 0);
}

// A dense matrix as a source. Elements outside it read as zero, and so do rows of weight 0, whatever they
// hold.
template <class T>
struct Matrix {
  const T* data;
  int64_t rows, width, stride;  // rows lie `stride` elements apart
  bool aligned;                 // and all are aligned to 16 bytes
  const float* weight = nullptr;

  ARGUS_DEVICE void copy(void* to, int64_t row, int chunk) const {
    const int64_t column = static_cast<int64_t>(chunk) * kChunk<T>;
    const bool real = row < rows && column < width && (weight == nullptr || weight[row] != 0.0f);
    const int64_t left = real ? width - column : 0;
    copy_chunk<T>(to, data + (real ? row * stride + column : 0), 1,
                  left < kChunk<T> ? static_cast<int>(left) : kChunk<T>, aligned);
  }
};

ARGUS_HOST_DEVICE bool lies_on_chunks(const void* data, int64_t row_bytes) {
  return (reinterpret_cast<uintptr_t>(data) | static_cast<uintptr_t>(row_bytes)) % kChunkBytes == 0;
}

// Offset of a chunk in a stage. Chunks are XOR-swizzled by row, so that neither copies nor loads have bank
// conflicts; float32 across the depth is read by rows, which has none.
template <class T, bool kAcross>
ARGUS_DEVICE int chunk_offset(int row, int chunk) {
  if constexpr (kAcross) {
    const int swizzled = sizeof(T) == 2 ? chunk ^ (row & 7) : chunk;
    return (row * (kTile / kChunk<T>)+swizzled) * kChunkBytes;
  } else {
    return (row * kStageChunks + (chunk ^ ((row >> 1) & 3))) * kChunkBytes;
  }
}

// Offset of the bytes 8 · n rows or columns of the product after those at `offset`; n is a constant that
// shares no bit with the chunk at `offset`. A separate function, because nvcc otherwise computes the address
// of every operand anew and keeps it in a register.
template <class T, bool kAcross>
ARGUS_DEVICE int ahead(int offset, int n) {
  if constexpr (!kAcross) return offset + 8 * n * kStageChunks * kChunkBytes;
  if constexpr (sizeof(T) == 2) return offset ^ n * kChunkBytes;
  return offset + 8 * n * static_cast<int>(sizeof(T));
}

// One operand of a block. Its tile begins at row (along) or chunk (across) of the source, its depth at the
// other of the two.
template <class T, bool kAcross, class Source>
struct Operand {
  static constexpr int kRows = kAcross ? kStageDepth<T> : kTile;
  static constexpr int kRowChunks = kAcross ? kTile / kChunk<T> : kStageChunks;
  static_assert(kRows * kRowChunks % kThreads == 0);

  const Source& source;
  int64_t first_row;
  int first_chunk;

  ARGUS_DEVICE void fill(unsigned char* to, int stage) const {
    const int64_t row0 = first_row + (kAcross ? static_cast<int64_t>(stage) * kStageDepth<T> : 0);
    const int chunk0 = first_chunk + (kAcross ? 0 : stage * kStageChunks);
#pragma unroll
    for (int i = 0; i < kRows * kRowChunks / kThreads; ++i) {
      const int slot = i * kThreads + static_cast<int>(threadIdx.x);
      const int row = slot / kRowChunks, chunk = slot % kRowChunks;
      source.copy(to + chunk_offset<T, kAcross>(row, chunk), row0 + row, chunk0 + chunk);
    }
  }
};

ARGUS_DEVICE int warp_row() {
  return warp_index() / kWarpColumns;
}
ARGUS_DEVICE int warp_column() {
  return warp_index() % kWarpColumns;
}
// Position in the block's tile of the thread's row i, or column j, of 8. Columns come in adjacent pairs.
ARGUS_DEVICE int held_row(int i) {
  return 64 * warp_row() + lane_index() / 4 + 8 * i;
}
ARGUS_DEVICE int held_column(int j) {
  return 32 * warp_column() + lane_index() % 4 * 2 + 8 * (j / 2) + j % 2;
}

// Two adjacent elements of a result's row, for one access.
template <class T>
struct alignas(2 * sizeof(T)) Pair {
  T x, y;
};

// A thread's sums as mma lays them out: mma[i][j] is its part of the warp's tile (i, j) of 16 × 8 sums.
struct Sums {
  float mma[4][4][4] = {};

  // The sum at the thread's row i and column j of 8.
  ARGUS_DEVICE float& at(int i, int j) { return mma[i / 2][j / 2][i % 2 * 2 + j % 2]; }

  // visit(row, column, x, y): neighbours in a row of the tile, column even.
  template <class Visit>
  ARGUS_DEVICE void for_each_pair(const Visit& visit) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
#pragma unroll
      for (int j = 0; j < kHeld; j += 2) visit(held_row(i), held_column(j), at(i, j), at(i, j + 1));
    }
  }
};

// Offset of a lane's row of an mma operand [16, 16], the left one or the right ones of two mma, that begins
// at row `first` and at `chunk` of depth.
template <class T, bool kAcross>
ARGUS_DEVICE int left_offset(int first, int chunk) {
  const int lane = lane_index();
  if constexpr (!kAcross) return chunk_offset<T, false>(first + lane % 16, chunk + lane / 16);
  return chunk_offset<T, true>(8 * chunk + lane / 16 * 8 + lane % 8, first / 8 + lane / 8 % 2);
}
template <class T, bool kAcross>
ARGUS_DEVICE int right_offset(int first, int chunk) {
  const int lane = lane_index();
  if constexpr (!kAcross)
    return chunk_offset<T, false>(first + lane / 16 * 8 + lane % 8, chunk + lane / 8 % 2);
  return chunk_offset<T, true>(8 * chunk + lane % 16, first / 8 + lane / 16);
}

template <bool kAcross>
ARGUS_DEVICE void load(uint32_t (&words)[4], const unsigned char* from) {
  if constexpr (kAcross) {
    ptx::ldmatrix_transposed(words, from);
  } else {
    ptx::ldmatrix(words, from);
  }
}

// Adds one stage's product.
template <class T, bool kLeftAcross, bool kRightAcross>
ARGUS_DEVICE void add_stage(Sums& sums, const unsigned char* left, const unsigned char* right) {
#pragma unroll
  for (int chunk = 0; chunk < kStageChunks; chunk += 2) {
    const int left_lane = left_offset<T, kLeftAcross>(64 * warp_row(), chunk);
    const int right_lane = right_offset<T, kRightAcross>(32 * warp_column(), chunk);
    uint32_t rows[4][4], columns[2][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) load<kLeftAcross>(rows[i], left + ahead<T, kLeftAcross>(left_lane, 2 * i));
#pragma unroll
    for (int j = 0; j < 2; ++j)
      load<kRightAcross>(columns[j], right + ahead<T, kRightAcross>(right_lane, 2 * j));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        // Words 0 and 1 are the first eight columns.
        const uint32_t two[2] = {columns[j / 2][j % 2 * 2], columns[j / 2][j % 2 * 2 + 1]};
        ptx::mma_m16n8k16(sums.mma[i][j], rows[i], two, T{});
      }
    }
  }
}

// Elements k and k + 1 of depth, k even, of the row or column at `first`, in float32.
template <bool kAcross>
ARGUS_DEVICE int pair_offset(int first, int k) {
  if constexpr (!kAcross) return chunk_offset<float, false>(first, k / 4) + k % 4 * 4;
  return chunk_offset<float, true>(k, first / 4) + first % 4 * 4;
}
template <bool kAcross>
ARGUS_DEVICE float2 load_pair(const unsigned char* from) {
  if constexpr (!kAcross) return *reinterpret_cast<const float2*>(from);
  const float* row = reinterpret_cast<const float*>(from);
  return make_float2(row[0], row[kTile]);
}

// Two elements of depth at a time: four would take too many registers for two blocks per multiprocessor.
template <bool kLeftAcross, bool kRightAcross>
ARGUS_DEVICE void add_float_stage(Sums& sums, const unsigned char* left, const unsigned char* right) {
#pragma unroll 1
  for (int k = 0; k < kStageDepth<float>; k += 2) {
    const int left_lane = pair_offset<kLeftAcross>(held_row(0), k);
    const int right_lanes[2] = {pair_offset<kRightAcross>(held_column(0), k),
                                pair_offset<kRightAcross>(held_column(1), k)};
    float2 rows[kHeld];
#pragma unroll
    for (int i = 0; i < kHeld; ++i)
      rows[i] = load_pair<kLeftAcross>(left + ahead<float, kLeftAcross>(left_lane, i));
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      const int offset = ahead<float, kRightAcross>(right_lanes[j % 2], j / 2);
      const float2 column = load_pair<kRightAcross>(right + offset);
#pragma unroll
      for (int i = 0; i < kHeld; ++i) sums.at(i, j) = fmaf(rows[i].x, column.x, sums.at(i, j));
#pragma unroll
      for (int i = 0; i < kHeld; ++i) sums.at(i, j) = fmaf(rows[i].y, column.y, sums.at(i, j));
    }
  }
}

// sums += left · right over a depth of `stages` stages; `shared` is kProductBytes of shared memory. All
// threads call it; those that use `shared` for something else afterwards, or call it again, need a barrier.
template <class T, bool kLeftAcross, bool kRightAcross, class Left, class Right>
ARGUS_DEVICE void add_product(Sums& sums, unsigned char* shared, const Operand<T, kLeftAcross, Left>& left,
                              const Operand<T, kRightAcross, Right>& right, int stages) {
  const auto fill = [&](int stage) {
    if (stage < stages) {
      unsigned char* to = shared + stage % kStages * (2 * kStageBytes);
      left.fill(to, stage);
      right.fill(to + kStageBytes, stage);
    }
    ptx::cp_async_commit();
  };
#pragma unroll 1
  for (int stage = 0; stage < kStages - 1; ++stage) fill(stage);
#pragma unroll 1
  for (int stage = 0; stage < stages; ++stage) {
    ptx::cp_async_wait<kStages - 2>();
    // The stage has arrived for all threads, and none still reads the buffer that the next copies write.
    __syncthreads();
    fill(stage + kStages - 1);
    const unsigned char* from = shared + stage % kStages * (2 * kStageBytes);
    if constexpr (std::is_same_v<T, float>) {
      add_float_stage<kLeftAcross, kRightAcross>(sums, from, from + kStageBytes);
    } else {
      add_stage<T, kLeftAcross, kRightAcross>(sums, from, from + kStageBytes);
    }
  }
}

}  // namespace argus::tile
