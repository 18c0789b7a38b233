// Which part of the packed histories a block of threads works on, and how results and sources lie in memory.
//
// The grid is as large as any batch of `rows` rows and `users` users can need, so that the host need not know
// the offsets. User u owns the blocks from offsets[u] / kRows + u on, at most one more than needed; a block
// searches the offsets for its user. The rows after the last user are treated as one more user, whose results
// are zero. Rows are those of queries, or those of keys where a block of threads owns keys.
#pragma once

#include "attention/arguments.h"
#include "common/cuda/device.cuh"
#include "common/cuda/tile_matrix.cuh"

namespace argus::attention {

// Rows of one user, queries or keys.
struct Side {
  int begin;  // the first row
  int length;
};

struct Block : Side {
  int user;
  int first;  // the block's first place among the user's rows
  int rows;   // the block's rows, 0 if it has none
  bool padding;
};

// The packed rows of all users.
struct Packed {
  const int32_t* offsets;  // [users + 1]
  int users;
  int64_t rows;
};

ARGUS_HOST_DEVICE Packed queries_in(const Arguments& given) {
  return {given.offsets, given.users, given.rows};
}
ARGUS_HOST_DEVICE Packed keys_in(const Arguments& given) {
  return {given.key_offsets, given.users, given.key_rows};
}

template <int kRows>
ARGUS_DEVICE int first_block(const Packed& packed, int user) {
  return packed.offsets[user] / kRows + user;
}

template <int kRows>
constexpr int64_t block_count(const Packed& packed) {
  return packed.rows / kRows + packed.users + 1;
}

// Every lane of a warp must call it: each tests one of 32 users per step, so that few dependent loads are
// needed.
template <int kRows>
ARGUS_DEVICE Block find_block(const Packed& packed, int index) {
  int low = 0;
  for (int count = packed.users + 1; count > 1;) {
    const int step = (count + kWarpSize - 1) / kWarpSize, ahead = lane_index() * step;
    const bool begun = ahead < count && first_block<kRows>(packed, low + ahead) <= index;
    const int passed = (__popc(__ballot_sync(kFullWarp, begun)) - 1) * step;
    low += passed;
    count = min(step, count - passed);
  }
  Block block;
  block.user = low;
  block.padding = low == packed.users;
  block.begin = packed.offsets[low];
  const int end = block.padding ? static_cast<int>(packed.rows) : packed.offsets[low + 1];
  block.length = end - block.begin;
  block.first = (index - first_block<kRows>(packed, low)) * kRows;
  block.rows = max(0, min(kRows, block.length - block.first));
  return block;
}

// Statistics and tables, which are float32 here.
ARGUS_DEVICE const float* floats(const void* values) {
  return static_cast<const float*>(values);
}
ARGUS_DEVICE float* floats(void* values) {
  return static_cast<float*>(values);
}

// Rows of one user and head of a packed tensor.
template <class T>
ARGUS_DEVICE tile::Source<T> source_of(const Heads& heads, const Arguments& given, int begin, int head) {
  const T* data = static_cast<const T*>(heads.data);
  return {data + begin * heads.row_stride + head * heads.head_stride, heads.row_stride, given.width};
}

// Element [row, head, 0] of a dense [rows, heads, width].
ARGUS_DEVICE int64_t dense_offset(const Arguments& given, int64_t row, int head) {
  return (row * given.heads + head) * given.width;
}

// Row of a lane's i-th number of tile (r, n), in a warp's product [16 · kRowTiles, 8 · kTiles].
ARGUS_DEVICE int row_within(int r, int i) {
  return 16 * r + i / 2 * 8 + lane_index() / 4;
}
ARGUS_DEVICE int column_within(int n, int i) {
  return 8 * n + lane_index() % 4 * 2 + i % 2;
}

constexpr int kNobody = kNoWindow;  // in the place of a block of keys

// Whether none, or all, of the pairs of a tile are visible.
struct Cover {
  bool none, all;
};

// Waits for the copies that no loop has waited for; every thread must call it.
ARGUS_DEVICE void finish_copies() {
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  __syncthreads();
}

// Starts the copy of from[first … first + kCount) of a user's `length` values; those past the end are 0.
template <int kCount, int kThreads, class U>
ARGUS_DEVICE void copy_column(U* to, const U* from, int first, int length) {
  for (int i = static_cast<int>(threadIdx.x); i < kCount; i += kThreads) {
    const bool inside = first + i < length;
    ptx::cp_async<sizeof(U)>(to + i, inside ? from + first + i : from, inside ? sizeof(U) : 0);
  }
}

// Who writes a column of numbers, and how: a block of threads, beside its work, or a warp, at once.
template <int kThreads>
struct BlockColumns {
  template <int kCount, class U>
  ARGUS_DEVICE void copy(U* to, const U* from, int first, int length) const {
    copy_column<kCount, kThreads>(to, from, first, length);
  }
  // The numbers from `first` on.
  template <int kCount>
  ARGUS_DEVICE void count(int* to, int first) const {
    for (int i = static_cast<int>(threadIdx.x); i < kCount; i += kThreads) to[i] = first + i;
  }
};
struct WarpColumns {
  template <int kCount, class U>
  ARGUS_DEVICE void copy(U* to, const U* from, int first, int length) const {
#pragma unroll 1
    for (int i = lane_index(); i < kCount; i += kWarpSize) to[i] = first + i < length ? from[first + i] : U{};
  }
  template <int kCount>
  ARGUS_DEVICE void count(int* to, int first) const {
#pragma unroll 1
    for (int i = lane_index(); i < kCount; i += kWarpSize) to[i] = first + i;
  }
};

}  // namespace argus::attention
