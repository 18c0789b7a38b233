// The chunks of the histories of a call, user after user.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "decode_attention/decode_attention.h"

namespace argus::decode_attention {

// Events in a chunk: about a quarter of a megabyte of keys and values, whose reads cost far more than a
// chunk's overhead, while one user of a thousand events still fills several threads.
inline int64_t chunk_events(int64_t event_bytes) {
  constexpr int64_t kChunkBytes = 1 << 18, kMin = 64, kMax = 1024;
  return std::clamp(kChunkBytes / std::max<int64_t>(event_bytes, 1) / 16 * 16, kMin, kMax);
}

class HistoryChunks {
 public:
  explicit HistoryChunks(const Params& params) : first_(1, 0) {
    for (int64_t user = 0; user < params.users; ++user) {
      const int64_t length = params.lengths[user];
      const int64_t seen = first_seen(params, length);
      for (int64_t begin = seen / params.chunk * params.chunk; begin < length; begin += params.chunk) {
        chunks_.push_back({user, std::max(begin, seen), std::min(begin + params.chunk, length)});
      }
      first_.push_back(static_cast<int64_t>(chunks_.size()));
    }
  }

  int64_t count() const { return static_cast<int64_t>(chunks_.size()); }
  const Chunk* chunks() const { return chunks_.data(); }
  // [users + 1]: where each user's chunks begin.
  const int64_t* first() const { return first_.data(); }

 private:
  std::vector<Chunk> chunks_;
  std::vector<int64_t> first_;
};

}  // namespace argus::decode_attention
