// One head's rows of one user by TMA, zeros behind the user's last row.
//
// A plain map knows the tensor's end alone: a box over a user's end would hold the next user's rows, and the
// weight 0 of a hidden value that is NaN would add NaN. So the map has two dimensions more, as in Triton's
// tools/ragged_tma.py: the row of a box counts up to kLastRow, whatever the user, and the two dimensions move
// the whole box to the user's end. (2³⁴ − row bytes) · kLastRow is −(row bytes) · kLastRow in 64 bits.
#pragma once

#include "attention/cuda/tiles.cuh"
#include "common/cuda/sm90/operand_tile.cuh"

namespace argus::attention {

constexpr int kLastRow = 1 << 30;

// The map of boxes of Tile, an OperandTile of rows or of columns that are rows of heads.
template <class T, class Tile>
ptx::TensorMap user_map(const Heads& heads, int head_count, int width) {
  constexpr uint64_t kUnbounded = (uint64_t{1} << 31) - (1 << 16);
  const auto bytes = [](int64_t elements) { return static_cast<uint64_t>(elements) * sizeof(T); };
  const uint64_t row = bytes(heads.row_stride);
  return ptx::make_box_map<T>(
      {static_cast<const T*>(heads.data),
       {static_cast<uint64_t>(width), kLastRow, static_cast<uint64_t>(head_count), kUnbounded, kUnbounded},
       {row, bytes(heads.head_stride), row, (uint64_t{1} << 34) - row},
       {Tile::kBoxColumns, Tile::kBoxRows, 1, 1, 1},
       Tile::kSwizzleBytes});
}

// Brings the user's rows from `first` on; `barrier` counts Tile::kBytes.
template <class Tile>
ARGUS_DEVICE void load_user_rows(unsigned char* tile, const ptx::TensorMap& map, const Side& user, int head,
                                 int first, uint64_t* barrier) {
#pragma unroll
  for (int box = 0; box < Tile::kBoxes; ++box) {
    const int at[5] = {box * Tile::kBoxColumns, kLastRow - user.length + first, head,
                       user.begin + user.length, kLastRow};
    ptx::tma_load(tile + box * Tile::kBoxBytes, map, at, barrier);
  }
}

}  // namespace argus::attention
