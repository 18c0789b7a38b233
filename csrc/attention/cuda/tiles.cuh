// Which part of the packed histories a block of threads works on, and which of its pairs are visible.
//
// A query i sees key j of its user where j = i or j < visible[i], and i − j < window; positions count from
// the user's first event. The grid is as large as any batch of `rows` rows and `users` users can need, so
// that the host need not know the offsets. User u owns the blocks from offsets[u] / kRows + u on, at most one
// more than needed; a block searches the offsets for its user. The rows after the last user are treated as
// one more user, whose results are zero.
#pragma once

#include "attention/arguments.h"
#include "common/cuda/device.cuh"
#include "common/cuda/tile_matrix.cuh"

namespace argus::attention {

struct Block {
  int user;
  int begin;   // the user's first row
  int length;  // the user's events
  int first;   // the block's first position
  int rows;    // the block's events, 0 if it has none
  bool padding;
};

template <int kRows>
ARGUS_DEVICE int first_block(const Arguments& given, int user) {
  return given.offsets[user] / kRows + user;
}

template <int kRows>
constexpr int64_t block_count(const Arguments& given) {
  return given.rows / kRows + given.users + 1;
}

// Every lane of a warp must call it: each tests one of 32 users per step, so that few dependent loads are
// needed.
template <int kRows>
ARGUS_DEVICE Block find_block(const Arguments& given, int index) {
  int low = 0;
  for (int count = given.users + 1; count > 1;) {
    const int step = (count + kWarpSize - 1) / kWarpSize, ahead = lane_index() * step;
    const bool begun = ahead < count && first_block<kRows>(given, low + ahead) <= index;
    const int passed = (__popc(__ballot_sync(kFullWarp, begun)) - 1) * step;
    low += passed;
    count = min(step, count - passed);
  }
  Block block;
  block.user = low;
  block.padding = low == given.users;
  block.begin = given.offsets[low];
  const int end = block.padding ? static_cast<int>(given.rows) : given.offsets[low + 1];
  block.length = end - block.begin;
  block.first = (index - first_block<kRows>(given, low)) * kRows;
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

// Which keys a set of queries sees: within the window, every query sees the keys before `all_see`; keys from
// `none_sees` on are seen by no query but the one at the same position.
struct Reach {
  int all_see;
  int none_sees;
};

ARGUS_DEVICE int visible_of(const Arguments& given, int begin, int place) {
  return given.visible == nullptr ? place : given.visible[begin + place];
}

// The reach of the queries [first, first + count); every lane of the warp must call it.
ARGUS_DEVICE Reach warp_reach(const Arguments& given, int begin, int first, int count) {
  if (count <= 0) return {kNoWindow, 0};
  if (given.visible == nullptr) return {first + 1, first + count - 1};
  int all_see = kNoWindow, none_sees = 0;
  for (int i = lane_index(); i < count; i += kWarpSize) {
    const int visible = visible_of(given, begin, first + i);
    all_see = min(all_see, visible + (visible == first + i ? 1 : 0));
    none_sees = max(none_sees, visible);
  }
  return {__reduce_min_sync(kFullWarp, all_see), __reduce_max_sync(kFullWarp, none_sees)};
}

// The same over all warps of the block. Every thread must call it; it ends with a barrier.
template <int kWarps>
ARGUS_DEVICE Reach block_reach(const Reach& own, Reach* room) {
  if (lane_index() == 0) room[warp_index()] = own;
  __syncthreads();
  Reach all = room[0];
#pragma unroll
  for (int warp = 1; warp < kWarps; ++warp) {
    all.all_see = min(all.all_see, room[warp].all_see);
    all.none_sees = max(all.none_sees, room[warp].none_sees);
  }
  return all;
}

ARGUS_DEVICE bool is_seen(int query, int key, int visible, int window) {
  return (key == query || key < visible) && query - key < window;
}

// The blocks of kKeys keys that a block of queries must visit: those before `seen_end`, then those at the
// queries' own positions.
template <int kKeys>
struct KeyBlocks {
  int begin, seen_end, own_begin, end;

  ARGUS_DEVICE KeyBlocks(const Arguments& given, const Block& block, int none_sees) {
    const int oldest = max(0, block.first - given.window + 1);
    seen_end = (none_sees + kKeys - 1) / kKeys;
    own_begin = block.first / kKeys;
    end = (block.first + block.rows + kKeys - 1) / kKeys;
    begin = skip(oldest / kKeys);
  }
  ARGUS_DEVICE int skip(int index) const {
    return index >= seen_end && index < own_begin ? own_begin : index;
  }
  ARGUS_DEVICE int next(int index) const { return skip(index + 1); }
};

// Whether none, or all, of the pairs of a warp's queries and a block of keys are visible.
struct Cover {
  bool none, all;
};

template <int kWarpRows, int kKeys>
ARGUS_DEVICE Cover cover_of(const Reach& reach, int first_query, int first_key, int window) {
  const int last_query = first_query + kWarpRows - 1, last_key = first_key + kKeys - 1;
  const bool own = first_key <= last_query && last_key >= first_query;
  const bool too_old = first_query - last_key >= window;
  return {too_old || (!own && first_key >= reach.none_sees),
          last_key < reach.all_see && last_query - first_key < window};
}

// Starts the copy of from[first … first + kCount) of a user's `length` values; those past the end are 0.
template <int kCount, int kThreads, class U>
ARGUS_DEVICE void copy_column(U* to, const U* from, int first, int length) {
  for (int i = static_cast<int>(threadIdx.x); i < kCount; i += kThreads) {
    const bool inside = first + i < length;
    ptx::cp_async<sizeof(U)>(to + i, inside ? from + first + i : from, inside ? sizeof(U) : 0);
  }
}

}  // namespace argus::attention
