// The mask of the whole rule (rule.cuh): keys with rows of their own, any four numbers of a query, a prefix,
// query heads that share a key head. Its members are those of causal_mask.cuh, where they are explained.
//
// A query's keys are three ranges, so a set of queries sees at most three ranges of keys, too: blocks outside
// them cost nothing. What does not fit the registers of the main loops lies in shared memory.
#pragma once

#include "attention/cuda/rule.cuh"
#include "attention/cuda/tiles.cuh"

namespace argus::attention {

struct GeneralMask {
  static constexpr bool kGeneral = true;
  static constexpr int kNever = kNoWindow;

  // Which keys a set of queries sees: some query may see [0, prefix), [near, visible) and [own_begin,
  // own_end), and every query sees [0, all_prefix), [all_near, all_visible) and [all_own_begin, all_own_end).
  struct Reach {
    int prefix, near, visible, own_begin, own_end;
    int all_prefix, all_near, all_visible, all_own_begin, all_own_end;
    int least_position;

    static ARGUS_DEVICE Reach of_none() {
      return {0, kNever, 0, kNever, 0, kNever, 0, kNever, 0, kNever, kNever};
    }
    static ARGUS_DEVICE Reach of(const QueryNumbers& one) {
      const bool history = one.near < one.visible, own = one.own_begin < one.own_end;
      return {one.prefix,
              history ? one.near : kNever,
              history ? one.visible : 0,
              own ? one.own_begin : kNever,
              own ? one.own_end : 0,
              one.prefix,
              one.near,
              one.visible,
              one.own_begin,
              one.own_end,
              one.position};
    }
    // Of both sets; `least` and `most` also reduce over a warp.
    template <class Least, class Most>
    ARGUS_DEVICE Reach joined(const Reach& other, Least least, Most most) const {
      return {most(prefix, other.prefix),
              least(near, other.near),
              most(visible, other.visible),
              least(own_begin, other.own_begin),
              most(own_end, other.own_end),
              least(all_prefix, other.all_prefix),
              most(all_near, other.all_near),
              least(all_visible, other.all_visible),
              most(all_own_begin, other.all_own_begin),
              least(all_own_end, other.all_own_end),
              least(least_position, other.least_position)};
    }
    ARGUS_DEVICE bool touches(int first, int last) const {
      return first < prefix || (first < visible && last >= near) || (first < own_end && last >= own_begin);
    }
    ARGUS_DEVICE bool covers(int first, int last) const {
      return last < all_prefix || (first >= all_near && last < all_visible) ||
             (first >= all_own_begin && last < all_own_end);
    }
    // The first block of kKeys keys that it touches, of those from `index` on.
    template <int kKeys>
    ARGUS_DEVICE int block_from(int index) const {
      int found = kNever;
      const auto look = [&](int begin, int end) {
        if (begin < end && index * kKeys < end) found = min(found, max(index, begin / kKeys));
      };
      look(0, prefix);
      look(near, visible);
      look(own_begin, own_end);
      return found;
    }
  };
  static_assert(sizeof(Reach) == kReachNumbers * sizeof(int32_t));

  static ARGUS_DEVICE Reach join(const Reach& one, const Reach& other) {
    return one.joined(other, [](int a, int b) { return min(a, b); }, [](int a, int b) { return max(a, b); });
  }
  static ARGUS_DEVICE Reach warp_joined(const Reach& one) {
    return one.joined(
        one, [](int a, int) { return __reduce_min_sync(kFullWarp, a); },
        [](int a, int) { return __reduce_max_sync(kFullWarp, a); });
  }

  struct RowNumbers {
    QueryNumbers* of;  // in shared memory, as is the next
    const Reach* reach;
  };
  // As given.
  template <int kQueries>
  struct Numbers {
    int position[kQueries], visible[kQueries], own_begin[kQueries], own_end[kQueries];
  };
  struct ColumnNumbers {
    const int* position = nullptr;
    const int* visible = nullptr;
    const int* own_begin = nullptr;
    const int* own_end = nullptr;
    const UserNumbers* user = nullptr;  // in shared memory, as the arrays
    int least_position = 0;
  };

  static ARGUS_DEVICE Side other_side(const Arguments& given, const Block& block, bool of_keys) {
    const int32_t* offsets = of_keys ? given.key_offsets : given.offsets;
    return {offsets[block.user], offsets[block.user + 1] - offsets[block.user]};
  }
  static ARGUS_DEVICE int group(const Arguments& given) { return given.heads / given.key_heads; }
  static ARGUS_DEVICE int key_head(const Arguments& given, int head) { return head / group(given); }
  static ARGUS_DEVICE int first_head(const Arguments& given, int key_head) { return key_head * group(given); }
  static ARGUS_DEVICE int last_head(const Arguments& given, int key_head) {
    return (key_head + 1) * group(given);
  }

  static ARGUS_DEVICE bool row_sees(const RowNumbers& numbers, int within, int, int key, int, int) {
    return numbers.of[within].sees(key);
  }
  static ARGUS_DEVICE bool column_sees(const ColumnNumbers& numbers, int within, int query, int key, int end,
                                       int window) {
    const QueryNumbers of =
        query_numbers(*numbers.user, window, numbers.position[within], numbers.visible[within],
                      numbers.own_begin[within], numbers.own_end[within]);
    return query < end && of.sees(key);
  }
  static ARGUS_DEVICE int row_position(const RowNumbers& numbers, int within, int) {
    return numbers.of[within].position;
  }
  static ARGUS_DEVICE int column_position(const ColumnNumbers& numbers, int within, int) {
    return numbers.position[within];
  }
  static ARGUS_DEVICE int least_row_position(const RowNumbers& numbers, int) {
    return numbers.reach->least_position;
  }
  static ARGUS_DEVICE int least_column_position(const ColumnNumbers& numbers, int) {
    return numbers.least_position;
  }
  static ARGUS_DEVICE bool sees_nothing(const RowNumbers& numbers, int within) {
    return numbers.of[within].sees_nothing();
  }

  template <int kWarps, int kRows, int kKeys>
  class Queries {
   public:
    struct Room {
      QueryNumbers numbers[kWarps][kRows];
      Reach reach[kWarps], all;
    };
    int begin;

    ARGUS_DEVICE Queries(const Arguments& given, const Block& block, const Side& keys, int first, Room& room)
        : room_(room) {
      static_assert(kRows <= kWarpSize);
      const int warp = warp_index(), place = first + lane_index();
      const UserNumbers user = user_numbers(given, block.user, block.length, keys.length);
      rows_ = {room.numbers[warp], &room.reach[warp]};
      Reach reach = Reach::of_none();
      if (lane_index() < kRows) {
        QueryNumbers numbers{};
        if (place < block.length) {
          numbers = numbers_of(given, user, block.begin + place, place);
          reach = Reach::of(numbers);
        }
        rows_.of[lane_index()] = numbers;
      }
      reach = warp_joined(reach);
      if (lane_index() == 0) room.reach[warp] = reach;
      __syncthreads();
      if (threadIdx.x == 0) {
        for (int other = 1; other < kWarps; ++other) reach = join(reach, room.reach[other]);
        room.all = reach;
      }
      __syncthreads();
      begin = room.all.template block_from<kKeys>(0);
    }

    ARGUS_DEVICE const RowNumbers& rows() const { return rows_; }
    ARGUS_DEVICE int next(int index) const { return room_.all.template block_from<kKeys>(index + 1); }
    ARGUS_DEVICE bool has(int index) const { return index < kNever; }
    ARGUS_DEVICE Cover cover(int first_key) const {
      const int last_key = first_key + kKeys - 1;
      return {!rows_.reach->touches(first_key, last_key), rows_.reach->covers(first_key, last_key)};
    }
    static ARGUS_DEVICE RowNumbers row_numbers(Room& room) {
      return {room.numbers[warp_index()], &room.reach[warp_index()]};
    }
    static ARGUS_DEVICE bool covers(const Room& room, int, int, int first_key) {
      return room.reach[warp_index()].covers(first_key, first_key + kKeys - 1);
    }
    ARGUS_DEVICE void store_reach(const Backward& call, int block_index) const {
      const int i = static_cast<int>(threadIdx.x);
      if (i < kReachNumbers)
        call.reach[static_cast<int64_t>(block_index) * kReachNumbers + i] =
            reinterpret_cast<const int32_t*>(&room_.all)[i];
    }

   private:
    RowNumbers rows_;
    const Room& room_;
  };

  template <int kRows, int kQueries, int kStored>
  class Keys {
   public:
    static_assert(kStored % kQueries == 0);
    struct Room {
      Numbers<kQueries> numbers[2];
      const Reach* stored;  // of the user's blocks of queries
      Side queries;
      UserNumbers user;
      int first_key, last_key;  // of the block of threads
    };
    int begin;

    ARGUS_DEVICE Keys(const Backward& call, const Block& block, Room& room)
        : room_(room), given_(call.given) {
      if (threadIdx.x == 0) {
        const Side queries = other_side(given_, block, false);
        room.queries = queries;
        room.user = user_numbers(given_, block.user, queries.length, block.length);
        room.stored =
            reinterpret_cast<const Reach*>(call.reach) + first_block<kStored>(queries_in(given_), block.user);
        room.first_key = block.first;
        room.last_key = block.first + block.rows - 1;
      }
      __syncthreads();
      begin = skip(0);
    }

    ARGUS_DEVICE const Side& queries() const { return room_.queries; }
    ARGUS_DEVICE int next(int index) const { return skip(index + 1); }
    // Worked out anew: registers are scarcer.
    ARGUS_DEVICE bool has(int index) const { return index * kQueries < room_.queries.length; }

    template <class Columns>
    ARGUS_DEVICE void load(int stage, int first, const Columns& columns) const {
      Numbers<kQueries>& to = room_.numbers[stage];
      load_one(to.position, given_.position, first, 0, columns);
      load_one(to.visible, given_.visible, first, 0, columns);
      load_one(to.own_begin, given_.own_begin, first, 0, columns);
      load_one(to.own_end, given_.own_end, first, 1, columns);
    }
    ARGUS_DEVICE ColumnNumbers columns(int stage, int index) const {
      const Numbers<kQueries>& of = room_.numbers[stage];
      return {of.position, of.visible, of.own_begin, of.own_end, &room_.user, reach(index).least_position};
    }
    ARGUS_DEVICE Cover cover(int index, int first) const {
      const Reach& queries = reach(index);
      const int last_key = first + kRows - 1, last_query = index * kQueries + kQueries - 1;
      return {!queries.touches(first, last_key),
              queries.covers(first, last_key) && last_query < room_.queries.length};
    }

    ARGUS_DEVICE Reach reach_of(int index) const { return reach(index); }
    static ARGUS_DEVICE ColumnNumbers columns_of(Room& room, const Arguments&, const Reach& reach,
                                                 int stage) {
      const Numbers<kQueries>& of = room.numbers[stage];
      return {of.position, of.visible, of.own_begin, of.own_end, &room.user, reach.least_position};
    }
    static ARGUS_DEVICE bool covers(const Room& room, const Arguments&, const Reach& reach, int index,
                                    int first) {
      return reach.covers(first, first + kRows - 1) && (index + 1) * kQueries <= room.queries.length;
    }
    template <int kKeys>
    ARGUS_DEVICE int visitor_after(int index) const {
      return reach(index).template block_from<kKeys>(room_.first_key / kKeys + 1);
    }

   private:
    // Every lane of the warp must call it: each looks at one of 32 blocks per step.
    ARGUS_DEVICE int skip(int index) const {
      for (; has(index); index += kWarpSize) {
        const int mine = index + lane_index();
        const bool seen = has(mine) && reach(mine).touches(room_.first_key, room_.last_key);
        const unsigned any = __ballot_sync(kFullWarp, seen);
        if (any != 0) return index + __ffs(static_cast<int>(any)) - 1;
      }
      return index;
    }
    ARGUS_DEVICE const Reach& reach(int index) const { return room_.stored[index * kQueries / kStored]; }

    // A number that is not given is the query's place among its user's keys, plus `more`.
    template <class Columns>
    ARGUS_DEVICE void load_one(int* to, const int32_t* from, int first, int more,
                               const Columns& columns) const {
      const Side& queries = room_.queries;
      if (from != nullptr)
        return columns.template copy<kQueries>(to, from + queries.begin, first, queries.length);
      columns.template count<kQueries>(to, room_.user.lead + first + more);
    }

    Room& room_;
    const Arguments& given_;
  };
};

}  // namespace argus::attention
