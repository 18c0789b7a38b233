// Multi-hash of ids, vectorised over the ids and split over threads.
#include "host/hash.h"

#include <algorithm>

#include "host/parallel.h"

namespace argus::host {
namespace {

constexpr int64_t kGrain = 1 << 18;
// A block of ids stays in L1 while all its hashes are written.
constexpr int64_t kBlock = 1 << 11;

ARGUS_INLINE void hash_block(const int64_t* ids, int64_t count, uint64_t key, uint64_t slots, int64_t* out) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t slot = static_cast<int64_t>(slot_of(ids[i], key, slots));
    // All ones where the id is negative: -1 without a branch.
    out[i] = slot | (ids[i] >> 63);
  }
}

}  // namespace

void hash_ids(const int64_t* ids, int64_t count, const uint64_t* keys, int64_t hashes, uint64_t slots,
              int64_t* out) {
  parallel_for(count, kGrain, [=](int64_t first, int64_t last) {
    for (int64_t begin = first; begin < last; begin += kBlock) {
      const int64_t size = std::min(kBlock, last - begin);
      for (int64_t k = 0; k < hashes; ++k) {
        ForEachIsa<&hash_block>::call(ids + begin, size, keys[k], slots, out + k * count + begin);
      }
    }
  });
}

}  // namespace argus::host
