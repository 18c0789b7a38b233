// The mask of events that attend to their own history: query i sees key j where j = i or j < visible[i], and
// i − j < window. Queries and keys are the same rows and have the same heads. visible is i where it is not
// given, and may reach past the query. For all that the mask rule says beyond this: general_mask.cuh, whose
// struct has the same members.
#pragma once

#include "attention/cuda/tiles.cuh"

namespace argus::attention {

struct CausalMask {
  static constexpr bool kGeneral = false;

  // What a warp keeps of its queries, and a block of its tile of queries.
  struct RowNumbers {
    int* visible;  // in shared memory
  };
  struct ColumnNumbers {
    const int* visible = nullptr;  // in shared memory, null where all before a query is visible
  };

  // Which keys a set of queries sees: within the window, every query sees the keys before `all_see`; keys
  // from `none_sees` on are seen by no query but the one at the same place.
  struct Reach {
    int all_see;
    int none_sees;
  };

  static ARGUS_DEVICE Side other_side(const Arguments&, const Block& block, bool) { return block; }
  static ARGUS_DEVICE int key_head(const Arguments&, int head) { return head; }
  // The query heads that read a key head.
  static ARGUS_DEVICE int first_head(const Arguments&, int key_head) { return key_head; }
  static ARGUS_DEVICE int last_head(const Arguments&, int key_head) { return key_head + 1; }

  static ARGUS_DEVICE bool sees(int query, int key, int visible, int window) {
    return (key == query || key < visible) && query - key < window;
  }
  // Whether the query in a row sees the key in a column; a column past `end` holds no key.
  static ARGUS_DEVICE bool row_sees(const RowNumbers& numbers, int within, int query, int key, int end,
                                    int window) {
    return key < end && sees(query, key, numbers.visible[within], window);
  }
  // Whether the query in a column sees the key in a row; a column past `end` holds no query.
  static ARGUS_DEVICE bool column_sees(const ColumnNumbers& numbers, int within, int query, int key, int end,
                                       int window) {
    const int visible = numbers.visible == nullptr ? query : numbers.visible[within];
    return query < end && sees(query, key, visible, window);
  }

  // Where a query stands for the window and the position bias.
  static ARGUS_DEVICE int row_position(const RowNumbers&, int, int place) { return place; }
  static ARGUS_DEVICE int column_position(const ColumnNumbers&, int, int place) { return place; }
  // The least position of the queries in a tile's rows or columns, of which the first is at `first`.
  static ARGUS_DEVICE int least_row_position(const RowNumbers&, int first) { return first; }
  static ARGUS_DEVICE int least_column_position(const ColumnNumbers&, int first) { return first; }
  static ARGUS_DEVICE bool sees_nothing(const RowNumbers&, int) { return false; }

  static ARGUS_DEVICE int visible_of(const Arguments& given, int begin, int place) {
    return given.visible == nullptr ? place : given.visible[begin + place];
  }

  // The reach of the queries [first, first + count); every lane of the warp must call it.
  static ARGUS_DEVICE Reach warp_reach(const Arguments& given, int begin, int first, int count) {
    if (count <= 0) return {kNoWindow, 0};
    if (given.visible == nullptr) return {first + 1, first + count - 1};
    int all_see = kNoWindow, none_sees = 0;
    for (int i = lane_index(); i < count; i += kWarpSize) {
      const int visible = visible_of(given, begin, first + i);
      all_see = min(all_see, visible + (visible == first + i ? 1 : 0));
      none_sees = max(none_sees, visible);
    }
    return {__reduce_min_sync(kFullWarp, all_see), __reduce_max_sync(kFullWarp, none_sees)};
  }

  // A block of threads' queries, kRows a warp, and the blocks of kKeys keys that it must visit: those before
  // `seen_end_`, then those at the queries' own places.
  template <int kWarps, int kRows, int kKeys>
  class Queries {
   public:
    struct Room {
      int visible[kWarps][kRows];
      Reach reach[kWarps];
      int2 ends[kWarps];  // of the block's blocks of keys: of those seen, of all; registers are scarcer
    };
    int begin;

    // Every thread of the block must call it; it ends with a barrier. `first` is the warp's first query.
    ARGUS_DEVICE Queries(const Arguments& given, const Block& block, const Side&, int first, Room& room)
        : given_(given), first_(first) {
      static_assert(kRows <= kWarpSize);
      const int warp = warp_index(), place = first + lane_index();
      rows_.visible = room.visible[warp];
      if (lane_index() < kRows)
        rows_.visible[lane_index()] = place < block.length ? visible_of(given, block.begin, place) : place;
      reach_ = warp_reach(given, block.begin, first, min(kRows, block.length - first));
      if (lane_index() == 0) room.reach[warp] = reach_;
      __syncthreads();
      all_ = room.reach[0];
#pragma unroll
      for (int other = 1; other < kWarps; ++other) {
        all_.all_see = min(all_.all_see, room.reach[other].all_see);
        all_.none_sees = max(all_.none_sees, room.reach[other].none_sees);
      }
      const int oldest = max(0, block.first - given.window + 1);
      const int own_end = (block.first + block.rows + kKeys - 1) / kKeys;
      const int seen_end = (min(all_.none_sees, block.length) + kKeys - 1) / kKeys;
      own_begin_ = block.first / kKeys;
      if (lane_index() == 0) room.ends[warp] = int2{seen_end, max(own_end, seen_end)};
      __syncwarp();
      ends_ = &room.ends[warp];
      begin = skip(oldest / kKeys);
    }

    ARGUS_DEVICE const RowNumbers& rows() const { return rows_; }
    ARGUS_DEVICE int next(int index) const { return skip(index + 1); }
    // Whether there is a block to visit at `index`, which is `begin` or what `next` returned.
    ARGUS_DEVICE bool has(int index) const { return index < ends_->y; }

    // Of the warp's queries and the keys from first_key on.
    ARGUS_DEVICE Cover cover(int first_key) const {
      const int last_query = first_ + kRows - 1, last_key = first_key + kKeys - 1;
      const bool own = first_key <= last_query && last_key >= first_;
      const bool too_old = first_ - last_key >= given_.window;
      return {too_old || (!own && first_key >= reach_.none_sees),
              last_key < reach_.all_see && last_query - first_key < given_.window};
    }

    // The numbers of the calling warp's queries, and whether all of them, from `first` on, see all keys from
    // first_key on.
    static ARGUS_DEVICE RowNumbers row_numbers(Room& room) { return {room.visible[warp_index()]}; }
    static ARGUS_DEVICE bool covers(const Room& room, int first, int window, int first_key) {
      return first_key + kKeys - 1 < room.reach[warp_index()].all_see &&
             first + kRows - 1 - first_key < window;
    }

    // Tells the kernel of the key gradients what the block sees.
    ARGUS_DEVICE void store_reach(const Backward& call, int block_index) const {
      if (call.given.visible == nullptr || threadIdx.x > 0) return;
      int32_t* to = call.reach + static_cast<int64_t>(block_index) * kReachNumbers;
      to[0] = all_.all_see;
      to[1] = all_.none_sees;
    }

   private:
    ARGUS_DEVICE int skip(int index) const {
      return index >= ends_->x && index < own_begin_ ? own_begin_ : index;
    }

    const Arguments& given_;
    RowNumbers rows_;
    Reach reach_, all_;
    const int2* ends_;
    int first_, own_begin_;
  };

  // A block of threads' keys, kRows a warp, and the blocks of kQueries queries that it must visit. What
  // `store_reach` stored covers kStored queries.
  template <int kRows, int kQueries, int kStored>
  class Keys {
   public:
    static_assert(kStored % kQueries == 0);
    // Of 16 bytes, as what lies behind it needs.
    struct alignas(16) Room {
      int visible[2][kQueries];
      int2 ends;  // of the blocks at the keys' own places, and of all; registers are scarcer
      int first_key;
      Side queries;
    };
    int begin;

    // Every thread of the block must call it; it may have barriers.
    ARGUS_DEVICE Keys(const Backward& call, const Block& block, Room& room)
        : room_(room), given_(call.given), queries_(block) {
      stored_ = nullptr;
      if (given_.visible != nullptr)
        stored_ = call.reach +
                  kReachNumbers * static_cast<int64_t>(first_block<kStored>(queries_in(given_), block.user));
      const int window = given_.window, last_key = block.first + block.rows - 1;
      const int last =
          window > block.length ? block.length - 1 : min(block.length - 1, last_key + window - 1);
      if (threadIdx.x == 0) {
        room.ends = int2{last_key / kQueries + 1, last / kQueries + 1};
        room.first_key = block.first;
        room.queries = block;
      }
      __syncthreads();
      begin = skip(stored_ == nullptr ? own_begin() : 0);
    }

    // Found by compiling: in shared memory HSTU's kernel of heads of 128 spills for sm_90, in registers those
    // of 128 and 256 do for sm_80 and sm_100.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900
    ARGUS_DEVICE const Side& queries() const { return queries_; }
#else
    ARGUS_DEVICE const Side& queries() const { return room_.queries; }
#endif
    ARGUS_DEVICE int next(int index) const { return skip(index + 1); }
    ARGUS_DEVICE bool has(int index) const { return index < room_.ends.y; }

    // Copies the numbers of the queries from `first` on.
    template <class Columns>
    ARGUS_DEVICE void load(int stage, int first, const Columns& columns) const {
      if (given_.visible != nullptr)
        columns.template copy<kQueries>(room_.visible[stage], given_.visible + queries().begin, first,
                                        queries().length);
    }
    ARGUS_DEVICE ColumnNumbers columns(int stage, int) const {
      return {given_.visible == nullptr ? nullptr : room_.visible[stage]};
    }

    // Of the warp's keys, from `first` on, and a block of queries.
    ARGUS_DEVICE Cover cover(int index, int first) const {
      const int first_query = index * kQueries, last_query = first_query + kQueries - 1;
      const int last_key = first + kRows - 1;
      const bool too_old = first_query - last_key >= given_.window;
      return {too_old || (last_query < first && reach(index).none_sees <= first),
              last_key < reach(index).all_see && last_query - first < given_.window &&
                  last_query < queries().length};
    }

    // For a loop whose warps read what one of them wrote of a block of queries: its reach, and what follows
    // from that.
    ARGUS_DEVICE Reach reach_of(int index) const { return reach(index); }
    static ARGUS_DEVICE ColumnNumbers columns_of(Room& room, const Arguments& given, const Reach&,
                                                 int stage) {
      return {given.visible == nullptr ? nullptr : room.visible[stage]};
    }
    static ARGUS_DEVICE bool covers(const Room& room, const Arguments& given, const Reach& reach, int index,
                                    int first) {
      const int last_query = index * kQueries + kQueries - 1;
      return first + kRows - 1 < reach.all_see && last_query - first < given.window &&
             last_query < room.queries.length;
    }

    // The next block of kKeys keys, after this one, of those that visit a block of queries; kNobody if there
    // is none.
    template <int kKeys>
    ARGUS_DEVICE int visitor_after(int index) const {
      static_assert(kKeys % kQueries == 0);
      const int next = room_.first_key / kKeys + 1, own = index * kQueries / kKeys;
      if (next * kKeys >= queries().length) return kNobody;
      if (next == own || reach(index).none_sees > next * kKeys) return next;
      return next < own ? own : kNobody;
    }

   private:
    ARGUS_DEVICE int skip(int index) const {
      while (stored_ != nullptr && (index < own_begin() || index >= room_.ends.x) && index < room_.ends.y &&
             reach(index).none_sees <= room_.first_key)
        ++index;
      return index;
    }
    ARGUS_DEVICE int own_begin() const { return room_.first_key / kQueries; }
    ARGUS_DEVICE Reach reach(int index) const {
      if (stored_ == nullptr) return {index * kQueries + 1, index * kQueries + kQueries - 1};
      const int32_t* stored = stored_ + kReachNumbers * (index * kQueries / kStored);
      return {stored[0], stored[1]};
    }

    Room& room_;
    const Arguments& given_;
    Side queries_;
    const int32_t* stored_;  // of the user; null if every event before the query is visible
  };
};

}  // namespace argus::attention
