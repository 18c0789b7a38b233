// A user's events as they lie in pages, read piece by piece on the CPU.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/cpu/simd.h"
#include "decode_attention/decode_attention.h"

namespace argus::decode_attention {

// One of the cache's arrays.
template <class T>
struct Pages {
  const T* first;
  int64_t page_stride, slot_stride;
};

// Consecutive events within a page.
template <class T>
struct Rows {
  const T* first;
  int64_t stride;
  int64_t count;

  ARGUS_INLINE const T* row(int64_t event) const { return first + event * stride; }
};

// The pages of a user from `begin` on; none if `end` ≤ `begin`.
template <class T>
ARGUS_INLINE Rows<T> rows_from(const Params& params, const Pages<T>& pages, int64_t user, int64_t begin,
                               int64_t end) {
  if (begin >= end) return {pages.first, pages.slot_stride, 0};
  const int64_t page = params.block_table[user * params.table_width + begin / params.page_size];
  const int64_t slot = begin % params.page_size;
  return {pages.first + page * pages.page_stride + slot * pages.slot_stride, pages.slot_stride,
          std::min(params.page_size - slot, end - begin)};
}

// Prefetches into L2: the hardware's own prefetch comes too late, and prefetching into L1 is slower than
// none. One prefetch per load: a burst of them stalls.
template <class T>
ARGUS_INLINE void prefetch(const T* from, int64_t bytes) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<intptr_t>(from) + bytes), 0, 2);
}

// The events that are read together, and those to be read after them.
template <class T>
struct Piece {
  Rows<T> now, next;

  // The same for a part of each row.
  ARGUS_INLINE Piece from(int64_t column) const {
    return {{now.first + column, now.stride, now.count}, {next.first + column, next.stride, next.count}};
  }
};

// Calls visit(position in the chunk, piece) for the pages of a chunk in turn; `after` is read next.
template <class T, class Visit>
ARGUS_INLINE void for_each_piece(const Params& params, const Chunk& chunk, const Pages<T>& pages,
                                 const Rows<T>& after, const Visit& visit) {
  Rows<T> now = rows_from(params, pages, chunk.user, chunk.begin, chunk.end);
  for (int64_t event = chunk.begin; event < chunk.end;) {
    const int64_t end = event + now.count;
    const Rows<T> next = end < chunk.end ? rows_from(params, pages, chunk.user, end, chunk.end) : after;
    visit(event - chunk.begin, Piece<T>{now, next});
    event = end;
    now = next;
  }
}

}  // namespace argus::decode_attention
