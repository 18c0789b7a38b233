// Dropout of attention weights, bit for bit that of argus_kernels/attention/dropout.py: Philox2x32-10 of
// (seed, head, position, key), whose two words serve two neighbouring keys.
#pragma once

#include "attention/cuda/scores.cuh"

namespace argus::attention {

struct Words {
  uint32_t even, odd;  // of keys
};

ARGUS_DEVICE Words philox(uint32_t first, uint32_t second, uint32_t key) {
  constexpr uint32_t kMultiplier = 0xd256d193u, kWeyl = 0x9e3779b9u;
  constexpr int kRounds = 10;
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const uint32_t high = __umulhi(first, kMultiplier), low = first * kMultiplier;
    first = high ^ key ^ second;
    second = low;
    key += kWeyl;
  }
  return {first, second};
}

// Of one user and head.
struct Dropout {
  uint32_t stream, below;  // words below it drop
  float kept_factor;

  ARGUS_DEVICE Dropout(const Arguments& given, uint32_t stream)
      : stream(stream), below(given.dropped_below), kept_factor(static_cast<float>(given.kept_factor)) {}
  ARGUS_DEVICE Dropout(const Arguments& given, int user, int head) : Dropout(given, 0u) {
    if (given.dropout_seed == nullptr) return;
    const uint64_t seed = static_cast<uint64_t>(given.dropout_seed[user]);
    stream =
        philox(static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32), static_cast<uint32_t>(head))
            .even;
  }

  ARGUS_DEVICE bool drops() const { return below > 0; }
  ARGUS_DEVICE Words words(int position, int key) const {
    return philox(static_cast<uint32_t>(position), static_cast<uint32_t>(key) / 2, stream);
  }
  // What a weight is multiplied by.
  ARGUS_DEVICE float factor(bool dropped) const { return dropped ? 0.0f : kept_factor; }
  ARGUS_DEVICE float factor(int position, int key) const {
    if (!drops()) return 1.0f;
    const Words both = words(position, key);
    return factor((key % 2 == 0 ? both.even : both.odd) < below);
  }
};

// Which pairs of a tile drop, with queries in the rows.
template <int kTiles, class Mask, int kRowTiles>
ARGUS_DEVICE PairBits<kRowTiles, kTiles> dropped_rows(const Dropout& dropout,
                                                      const RowSide<Mask, kRowTiles>& rows,
                                                      const ColumnSide<Mask>& columns) {
  PairBits<kRowTiles, kTiles> dropped;
#pragma unroll 1
  for (int half = 0; half < 2 * kRowTiles; ++half) {
    const int r = half / 2, i = half % 2 * 2, within = row_within(r, i);
    const int position = Mask::row_position(rows.numbers, within, rows.first + within);
#pragma unroll 2
    for (int n = 0; n < kTiles; ++n) {
      const Words words = dropout.words(position, columns.first + column_within(n, 0));
      dropped.set(r, n, i, words.even < dropout.below);
      dropped.set(r, n, i + 1, words.odd < dropout.below);
    }
  }
  return dropped;
}

// With keys in the rows. Neighbouring keys are in lanes that differ by 4: of their common two queries each
// lane takes one, and hands the other lane its word.
template <int kTiles, class Mask, int kRowTiles>
ARGUS_DEVICE PairBits<kRowTiles, kTiles> dropped_columns(const Dropout& dropout,
                                                         const RowSide<Mask, kRowTiles>& rows,
                                                         const ColumnSide<Mask>& columns) {
  PairBits<kRowTiles, kTiles> dropped;
  const bool odd = lane_index() / 4 % 2 != 0;
#pragma unroll 1
  for (int half = 0; half < 2 * kRowTiles; ++half) {
    const int r = half / 2, i = half % 2 * 2, key = rows.first + row_within(r, i);
#pragma unroll 2
    for (int n = 0; n < kTiles; ++n) {
      const int within = column_within(n, odd ? 1 : 0);
      const int position = Mask::column_position(columns.numbers, within, columns.first + within);
      const Words words = dropout.words(position, key);
      const uint32_t mine = odd ? words.odd : words.even;
      const uint32_t other = __shfl_xor_sync(kFullWarp, odd ? words.even : words.odd, 4);
      dropped.set(r, n, i, (odd ? other : mine) < dropout.below);
      dropped.set(r, n, i + 1, (odd ? mine : other) < dropout.below);
    }
  }
  return dropped;
}

}  // namespace argus::attention
