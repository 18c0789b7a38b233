// The hash of ids: slot k of an id is floor(mix(id + key[k]) · slots / 2^64), mix the finaliser of
// splitmix64.
#pragma once

#include <cstdint>

#include "common/cpu/simd.h"

namespace argus::host {

constexpr int64_t kMissing = -1;

ARGUS_INLINE uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// floor(hash · slots / 2^64) for slots < 2^32, in 64-bit steps that vectorise.
ARGUS_INLINE uint64_t scale(uint64_t hash, uint64_t slots) {
  const uint64_t high = (hash >> 32) * slots;
  const uint64_t low = ((hash & 0xffffffffu) * slots) >> 32;
  return (high + low) >> 32;
}

ARGUS_INLINE uint64_t slot_of(int64_t id, uint64_t key, uint64_t slots) {
  return scale(mix(static_cast<uint64_t>(id) + key), slots);
}

// out[k · count + i] is slot k of ids[i], -1 where ids[i] is negative.
void hash_ids(const int64_t* ids, int64_t count, const uint64_t* keys, int64_t hashes, uint64_t slots,
              int64_t* out);

}  // namespace argus::host
