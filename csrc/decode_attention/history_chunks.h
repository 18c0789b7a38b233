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
    first_.reserve(static_cast<size_t>(params.rows * params.group + 1));
    for (int64_t user = 0; user < params.users; ++user) add_user(params, user);
    first_.resize(static_cast<size_t>(params.rows * params.group + 1), count());
  }

  int64_t count() const { return static_cast<int64_t>(chunks_.size()); }
  const Chunk* chunks() const { return chunks_.data(); }
  // [rows · group + 1]: where the results of each member of a row begin.
  const int64_t* first() const { return first_.data(); }

 private:
  // Part after part of the history, for all rows in turn: it is read from memory once and then from a cache.
  void add_user(const Params& params, int64_t user) {
    const int64_t rows = new_events(params, user), length = params.lengths[user];
    const int64_t first = first_row(params, user);
    // A user without events has a row, of no chunks, where there are no offsets.
    const int64_t own_rows = params.offsets == nullptr ? 1 : rows;
    const auto length_of = [&](int64_t i) { return length - rows + i + 1; };
    const auto begin_of = [&](int64_t i) {
      return first_seen(params, length_of(i)) / params.chunk * params.chunk;
    };
    for (int64_t i = 0; i < own_rows; ++i) {
      const int64_t chunks = rows == 0 ? 0 : (length_of(i) - begin_of(i) + params.chunk - 1) / params.chunk;
      for (int64_t member = 0; member < params.group; ++member) first_.push_back(first_.back() + chunks);
    }
    if (rows == 0) return;
    for (int64_t part = begin_of(0); part < length; part += params.chunk) {
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t begin = std::max(part, first_seen(params, length_of(i)));
        const int64_t end = std::min(part + params.chunk, length_of(i));
        if (begin >= end) continue;
        for (int64_t member = 0; member < params.group; ++member) {
          const int64_t index = (part - begin_of(i)) / params.chunk;
          const int64_t place = first_[static_cast<size_t>((first + i) * params.group + member)] + index;
          chunks_.push_back({user, begin, end, first + i, member, length_of(i), place});
        }
      }
    }
  }

  std::vector<Chunk> chunks_;
  std::vector<int64_t> first_;
};

}  // namespace argus::decode_attention
