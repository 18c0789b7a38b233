// Attention dropout on the CPU: which weights of a tile stay, by the generator of
// argus_kernels/attention/dropout.py. Nothing is stored between the passes: both ask the generator.
#pragma once

#include <algorithm>
#include <cstdint>

#include "attention/cpu/mask.h"
#include "common/cpu/scratch.h"
#include "common/cpu/simd.h"

namespace argus::attention {

// Philox2x32 with 10 rounds over `count` counters, in place.
ARGUS_INLINE void philox(uint32_t* first, uint32_t* second, int64_t count, uint32_t key) {
  constexpr uint64_t kMultiplier = 0xD256D193;
  constexpr uint32_t kWeyl = 0x9E3779B9;
  for (int round = 0; round < 10; ++round, key += kWeyl) {
    for (int64_t i = 0; i < count; ++i) {
      const uint64_t product = first[i] * kMultiplier;
      first[i] = static_cast<uint32_t>(product >> 32) ^ key ^ second[i];
      second[i] = static_cast<uint32_t>(product);
    }
  }
}

// kept[key, query] = factor where the weight stays, else 0, for `keys` keys from `begin` on.
template <class A>
ARGUS_INLINE void kept_body(A* kept, const uint32_t* position, uint32_t stream, uint32_t dropped_below,
                            A factor, int64_t begin, int64_t keys, int64_t columns) {
  alignas(64) uint32_t even[kQueries], odd[kQueries];
  for (int64_t pair = begin / 2; 2 * pair < begin + keys; ++pair) {
    for (int64_t c = 0; c < columns; ++c) even[c] = position[c];
    for (int64_t c = 0; c < columns; ++c) odd[c] = static_cast<uint32_t>(pair);
    philox(even, odd, columns, stream);
    const int64_t j = 2 * pair - begin;
    for (int64_t c = 0; j >= 0 && c < columns; ++c)
      kept[j * kQueries + c] = even[c] >= dropped_below ? factor : A{0};
    for (int64_t c = 0; j + 1 < keys && c < columns; ++c)
      kept[(j + 1) * kQueries + c] = odd[c] >= dropped_below ? factor : A{0};
  }
}

template <class A>
ARGUS_INLINE void multiply_tile_body(A* to, const A* kept, int64_t keys, int64_t columns) {
  for (int64_t j = 0; j < keys; ++j) {
    for (int64_t c = 0; c < columns; ++c) to[j * kQueries + c] *= kept[j * kQueries + c];
  }
}

// The dropout of one problem, asked head by head, user by user, block by block.
template <class A>
class TileDropout {
 public:
  explicit TileDropout(const Arguments& problem) : problem_(problem) {
    if (present()) kept_.at_least(kKeys * kQueries);
  }

  bool present() const { return problem_.dropout_seed != nullptr; }

  void begin(const User& user, int64_t head) {
    if (!present()) return;
    const uint64_t seed = static_cast<uint64_t>(problem_.dropout_seed[user.index]);
    uint32_t low = static_cast<uint32_t>(seed), high = static_cast<uint32_t>(seed >> 32);
    philox(&low, &high, 1, static_cast<uint32_t>(head));
    stream_ = low;
  }

  void begin_block(const User& user, const Block& block) {
    for (int64_t c = 0; present() && c < kQueries; ++c) {
      const int64_t query = block.first + std::min(c, block.count - 1);
      position_[c] = static_cast<uint32_t>(position_of(problem_, user, query));
    }
  }

  // The factors of a tile's weights [keys, kQueries], until the next call.
  const A* kept(const KeyTile& tile, int64_t columns) {
    ForEachIsa<&kept_body<A>>::call(kept_.get(), static_cast<const uint32_t*>(position_), stream_,
                                    problem_.dropped_below, static_cast<A>(problem_.kept_factor), tile.begin,
                                    tile.size(), columns);
    return kept_.get();
  }

  static void multiply(A* to, const A* kept, const KeyTile& tile, int64_t columns) {
    ForEachIsa<&multiply_tile_body<A>>::call(to, kept, tile.size(), columns);
  }

 private:
  const Arguments& problem_;
  uint32_t stream_ = 0;
  Scratch<A> kept_;
  alignas(64) uint32_t position_[kQueries];
};

}  // namespace argus::attention
