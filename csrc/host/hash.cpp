// Multi-hash of ids, vectorised over the ids and split over threads.
#include "host/hash.h"

#include <algorithm>
#include <cstdlib>
#include <thread>
#include <vector>

namespace argus::host {
namespace {

constexpr int64_t kIdsPerThread = 1 << 18;
// A block of ids stays in the second-level cache while every hash of it is written.
constexpr int64_t kBlock = 1 << 13;

ARGUS_INLINE void hash_block(const int64_t* ids, int64_t count, uint64_t key, uint64_t slots, int64_t* out) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t slot = static_cast<int64_t>(slot_of(ids[i], key, slots));
    // All ones where the id is negative: -1 without a branch.
    out[i] = slot | (ids[i] >> 63);
  }
}

int64_t thread_count(int64_t count) {
  const char* limit = std::getenv("OMP_NUM_THREADS");
  const int64_t asked = limit != nullptr ? std::strtol(limit, nullptr, 10) : 0;
  const int64_t machine = std::max<int64_t>(1, std::thread::hardware_concurrency());
  const int64_t allowed = asked > 0 ? std::min(asked, machine) : std::min<int64_t>(machine, 8);
  return std::clamp<int64_t>(count / kIdsPerThread, 1, allowed);
}

}  // namespace

void hash_ids(const int64_t* ids, int64_t count, const uint64_t* keys, int64_t hashes, uint64_t slots,
              int64_t* out) {
  auto hash_range = [=](int64_t first, int64_t last) {
    for (int64_t begin = first; begin < last; begin += kBlock) {
      const int64_t size = std::min(kBlock, last - begin);
      for (int64_t k = 0; k < hashes; ++k) {
        ForEachIsa<&hash_block>::call(ids + begin, size, keys[k], slots, out + k * count + begin);
      }
    }
  };
  const int64_t workers = thread_count(count);
  std::vector<std::thread> threads;
  for (int64_t worker = 1; worker < workers; ++worker) {
    threads.emplace_back(hash_range, count * worker / workers, count * (worker + 1) / workers);
  }
  hash_range(0, count / workers);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace argus::host
