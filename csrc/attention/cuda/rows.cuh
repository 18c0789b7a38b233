// Stores results through shared memory, so that global memory is written 16 bytes at a time, and fills the
// rows after the last user with zeros.
#pragma once

#include "attention/cuda/tiles.cuh"

namespace argus::attention {

// Results of one user and head in a dense [rows, heads, width].
template <class T>
struct Target {
  T* data;
  int64_t stride;
  int width;
};

template <class T>
ARGUS_DEVICE Target<T> target_of(void* data, const Arguments& given, int begin, int head) {
  return {static_cast<T*>(data) + dense_offset(given, begin, head),
          static_cast<int64_t>(given.heads) * given.width, given.width};
}
template <class T>
ARGUS_DEVICE Target<T> key_target_of(void* data, const Arguments& given, int begin, int key_head) {
  const int64_t stride = static_cast<int64_t>(given.key_heads) * given.width;
  return {static_cast<T*>(data) + begin * stride + int64_t{key_head} * given.width, stride, given.width};
}

// Writes sums · factor, a warp's [16 · kRowTiles, 8 · kTiles], to the target's rows from `first` on, up to
// `end`, and its columns from `column` on. `tile` is shared memory for the warp's rows of this width, used by
// this warp alone. Returns whether any of the warp's numbers is NaN.
template <class T, int kRowTiles, int kTiles>
ARGUS_DEVICE bool store_rows(const Target<T>& to, T* tile, const float (&sums)[kRowTiles][kTiles][4],
                             const float (&factor)[kRowTiles][2], int first, int end, int column) {
  constexpr int kWidth = 8 * kTiles, kChunks = kWidth / kChunk<T>;
  const int lane = tile::offset<T, kWidth>(row_within(0, 0), column_within(0, 0));
  bool nan = false;
  __syncwarp();
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        const float (&pair)[4] = sums[r][n];
        const float by = factor[r][half];
        T* place = tile + tile::offset_from<T, kWidth>(lane, 16 * r + 8 * half, 8 * n);
        const float x = pair[2 * half] * by, y = pair[2 * half + 1] * by;
        nan = nan || is_nan(x) || is_nan(y);
        tile::store_pair(place, x, y);
      }
    }
  }
  __syncwarp();
  for (int i = lane_index(); i < 16 * kRowTiles * kChunks; i += kWarpSize) {
    const int row = i / kChunks, from = i % kChunks * kChunk<T>;
    if (first + row >= end || column + from >= to.width) continue;
    T* place = to.data + (first + row) * to.stride + column + from;
    *reinterpret_cast<uint4*>(place) =
        *reinterpret_cast<const uint4*>(tile + tile::offset<T, kWidth>(row, from));
  }
  return __any_sync(kFullWarp, nan) != 0;
}

template <class T, int kThreads>
ARGUS_DEVICE void zero_rows(const Target<T>& to, const Block& block) {
  const int chunks = to.width / kChunk<T>;
  for (int i = static_cast<int>(threadIdx.x); i < block.rows * chunks; i += kThreads) {
    T* place = to.data + (block.first + i / chunks) * to.stride + i % chunks * kChunk<T>;
    *reinterpret_cast<uint4*>(place) = make_uint4(0, 0, 0, 0);
  }
}

}  // namespace argus::attention
