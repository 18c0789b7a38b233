// Tile sizes of the attention kernels, by element size in bytes and head width: chosen so that sums stay in
// registers without spilling and tiles fit a block's share of shared memory on sm_80.
#pragma once

namespace argus::attention {

struct Shape {
  int warps;
  int row_tiles;  // of 16 rows, per warp
  int columns;    // rows of the tiles that the block loops over
  int warp_rows, rows, threads;
};

constexpr Shape make_shape(int warps, int row_tiles, int columns) {
  return {warps, row_tiles, columns, 16 * row_tiles, 16 * row_tiles * warps, 32 * warps};
}

// Rows are queries, columns keys.
constexpr Shape forward_shape(int bytes, int width) {
  if (bytes == 4) return make_shape(4, 1, width <= 128 ? 32 : 16);
  if (width <= 64) return make_shape(4, 2, 48);
  return make_shape(4, width <= 128 ? 2 : 1, 32);
}

// Rows are queries, columns keys. The rows are the same for both masks.
constexpr Shape query_shape(int bytes, int width, bool general = false) {
  if (bytes == 4) return make_shape(width <= 128 ? 4 : 2, 1, width <= 64 ? 32 : 16);
  return make_shape(4, width <= 64 ? 2 : 1, general && width <= 64 ? 16 : 32);
}

// Rows are keys, columns queries. What the general mask keeps of a tile takes the registers of half its
// columns.
constexpr Shape key_shape(int bytes, int width, bool general) {
  if (bytes == 4) return make_shape(width <= 128 ? 4 : 2, 1, 16);
  return make_shape(4, 1, (width <= 64 ? 64 : 32) / (general ? 2 : 1));
}

// Sums are this wide at most: wider heads are done in parts, by blocks of their own, each of which computes
// the scores again.
constexpr int forward_part(int bytes, int width) {
  const int most = bytes == 4 ? 64 : 256;
  return width < most ? width : most;
}
constexpr int query_part(int bytes, int width) {
  return forward_part(bytes, width);
}
constexpr int key_part(int bytes, int width) {
  const int most = bytes == 4 ? 64 : 128;
  return width < most ? width : most;
}

// The same as constants, which device code may read.
template <int kBytes, int kWidth>
struct ForwardTiles {
  static constexpr Shape kShape = forward_shape(kBytes, kWidth);
  static constexpr int kPart = forward_part(kBytes, kWidth);
};
template <int kBytes, int kWidth>
struct QueryTiles {
  static constexpr Shape kShape = query_shape(kBytes, kWidth);
  static constexpr int kPart = query_part(kBytes, kWidth);
};
template <int kBytes, int kWidth, bool kGeneral>
struct KeyTiles {
  static constexpr Shape kShape = key_shape(kBytes, kWidth, kGeneral);
  static constexpr int kPart = key_part(kBytes, kWidth);
};

}  // namespace argus::attention
