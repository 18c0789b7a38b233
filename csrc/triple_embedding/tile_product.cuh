// The product of a block: a tile of 128 × 128 sums over a depth that is taken in stages of 64 bytes.
//
// Operands come as *sources*, which put any 16-byte chunk of themselves into shared memory, by cp.async where
// it lies on a 16-byte address. A tile lies *along* the depth (128 rows of 4 chunks) or *across* it (rows of
// 128 elements, one an element of depth), whichever the source is dense in; ldmatrix transposes where needed.
// Three stages are under way. Chunks are swizzled so that neither copies nor loads meet in a bank.
//
// 16-bit operands: eight warps, each 64 × 32 sums by mma.m16n8k16. float32: each thread 8 × 8 sums by fma.
#pragma once

#include <type_traits>

#include "common/device.cuh"
#include "common/ptx.cuh"

namespace argus::triple_embedding {

constexpr int kThreads = 256;
constexpr int kTile = 128;
constexpr int kStages = 3;
constexpr int kChunkBytes = 16;
constexpr int kStageChunks = 4;
constexpr int kTileBytes = kTile * kStageChunks * kChunkBytes;
constexpr size_t kSharedBytes = size_t{2} * kStages * kTileBytes;

template <class T>
constexpr int kChunk = kChunkBytes / static_cast<int>(sizeof(T));
template <class T>
constexpr int kDepth = kStageChunks * kChunk<T>;

// Where a chunk of a tile lies.
template <class T, bool kAcross>
ARGUS_DEVICE int chunk_offset(int row, int chunk) {
  if constexpr (kAcross) {
    return (row * (kTile / kChunk<T>)+(chunk ^ (row & 7))) * kChunkBytes;
  } else {
    return (row * kStageChunks + (chunk ^ ((row >> 1) & 3))) * kChunkBytes;
  }
}

// One operand of a block: its tile begins at row or chunk `first`, the depth at `depth_begin` (rows across,
// chunks along).
template <class T, bool kAcross, class Source>
struct Operand {
  static constexpr int kRows = kAcross ? kDepth<T> : kTile;
  static constexpr int kRowChunks = kAcross ? kTile / kChunk<T> : kStageChunks;
  static_assert(kRows * kRowChunks % kThreads == 0);

  const Source& source;
  int64_t first_row;
  int first_chunk;

  ARGUS_DEVICE void fill(unsigned char* tile, int stage) const {
    const int64_t row0 = first_row + (kAcross ? static_cast<int64_t>(stage) * kDepth<T> : 0);
    const int chunk0 = first_chunk + (kAcross ? 0 : stage * kStageChunks);
#pragma unroll
    for (int i = 0; i < kRows * kRowChunks / kThreads; ++i) {
      const int slot = i * kThreads + static_cast<int>(threadIdx.x);
      const int row = slot / kRowChunks, chunk = slot % kRowChunks;
      source.copy(tile + chunk_offset<T, kAcross>(row, chunk), row0 + row, chunk0 + chunk);
    }
  }
};

// The sums of a thread, and where they stand in the tile.
template <class T>
struct Sums {
  static constexpr int kRows = 4, kColumns = 4;  // blocks of 16 × 8
  float sum[kRows][kColumns][4] = {};

  static ARGUS_DEVICE int warp_row() { return static_cast<int>(threadIdx.x) / kWarpSize / 4 * 64; }
  static ARGUS_DEVICE int warp_column() { return static_cast<int>(threadIdx.x) / kWarpSize % 4 * 32; }

  template <bool kLeftAcross, bool kRightAcross>
  ARGUS_DEVICE void add(const unsigned char* left, const unsigned char* right) {
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      uint32_t a[kRows][4], b[kColumns / 2][4];
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const int row = warp_row() + 16 * i;
        if constexpr (kLeftAcross) {
          const int k = 16 * step + lane / 16 * 8 + lane % 8;
          ptx::ldmatrix_transposed(a[i], left + chunk_offset<T, true>(k, row / 8 + lane / 8 % 2));
        } else {
          ptx::ldmatrix(a[i], left + chunk_offset<T, false>(row + lane % 16, 2 * step + lane / 16));
        }
      }
#pragma unroll
      for (int j = 0; j < kColumns / 2; ++j) {
        const int column = warp_column() + 16 * j;
        if constexpr (kRightAcross) {
          const int k = 16 * step + lane % 16;
          ptx::ldmatrix_transposed(b[j], right + chunk_offset<T, true>(k, column / 8 + lane / 16));
        } else {
          const int row = column + lane / 16 * 8 + lane % 8;
          ptx::ldmatrix(b[j], right + chunk_offset<T, false>(row, 2 * step + lane / 8 % 2));
        }
      }
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          const uint32_t two[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
          ptx::mma_m16n8k16(sum[i][j], a[i], two, T{});
        }
      }
    }
  }

  // visit(row, column, x, y): neighbours in a row of the tile.
  template <class Visit>
  ARGUS_DEVICE void for_each_pair(const Visit& visit) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        const int row = warp_row() + 16 * i + lane / 4, column = warp_column() + 8 * j + lane % 4 * 2;
        visit(row, column, sum[i][j][0], sum[i][j][1]);
        visit(row + 8, column, sum[i][j][2], sum[i][j][3]);
      }
    }
  }
};

template <>
struct Sums<float> {
  static constexpr int kCount = 8;
  float sum[kCount][kCount] = {};

  // Rows and columns of a thread lie apart, so that a warp's loads meet in no bank.
  static ARGUS_DEVICE int row(int i) { return static_cast<int>(threadIdx.x) / 16 + 16 * i; }
  static ARGUS_DEVICE int column(int j) {
    return static_cast<int>(threadIdx.x) % 16 * 2 + 32 * (j / 2) + j % 2;
  }

  // Four elements of depth of tile element `index`.
  template <bool kAcross>
  static ARGUS_DEVICE void load(float (&to)[4], const unsigned char* tile, int index, int chunk) {
    if constexpr (kAcross) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int offset = chunk_offset<float, true>(4 * chunk + k, index / 4);
        to[k] = reinterpret_cast<const float*>(tile + offset)[index % 4];
      }
    } else {
      const float4 four = *reinterpret_cast<const float4*>(tile + chunk_offset<float, false>(index, chunk));
      to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
    }
  }

  template <bool kLeftAcross, bool kRightAcross>
  ARGUS_DEVICE void add(const unsigned char* left, const unsigned char* right) {
#pragma unroll 1
    for (int chunk = 0; chunk < kStageChunks; ++chunk) {
      float a[kCount][4], b[kCount][4];
#pragma unroll
      for (int i = 0; i < kCount; ++i) load<kLeftAcross>(a[i], left, row(i), chunk);
#pragma unroll
      for (int j = 0; j < kCount; ++j) load<kRightAcross>(b[j], right, column(j), chunk);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
#pragma unroll
          for (int j = 0; j < kCount; ++j) sum[i][j] = fmaf(a[i][k], b[j][k], sum[i][j]);
        }
      }
    }
  }

  template <class Visit>
  ARGUS_DEVICE void for_each_pair(const Visit& visit) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
#pragma unroll
      for (int j = 0; j < kCount; j += 2) visit(row(i), column(j), sum[i][j], sum[i][j + 1]);
    }
  }
};

// sums += left · right over `stages` stages; `shared` is kSharedBytes of shared memory.
template <class T, bool kLeftAcross, bool kRightAcross, class Left, class Right>
ARGUS_DEVICE void add_product(Sums<T>& sums, unsigned char* shared, const Operand<T, kLeftAcross, Left>& left,
                              const Operand<T, kRightAcross, Right>& right, int stages) {
  const auto fill = [&](int stage) {
    if (stage < stages) {
      unsigned char* tiles = shared + stage % kStages * (2 * kTileBytes);
      left.fill(tiles, stage);
      right.fill(tiles + kTileBytes, stage);
    }
    ptx::cp_async_commit();
  };
  for (int stage = 0; stage < kStages - 1; ++stage) fill(stage);
  for (int stage = 0; stage < stages; ++stage) {
    ptx::cp_async_wait<kStages - 2>();
    // The stage has arrived for all, and all have left the place that the next copies go to.
    __syncthreads();
    fill(stage + kStages - 1);
    const unsigned char* tiles = shared + stage % kStages * (2 * kTileBytes);
    sums.template add<kLeftAcross, kRightAcross>(tiles, tiles + kTileBytes);
  }
}

}  // namespace argus::triple_embedding
