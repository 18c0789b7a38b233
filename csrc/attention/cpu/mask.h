// Which keys the queries of a block see on the CPU (argus_kernels/attention/mask_rule.py has the rule), and
// the tiles of keys that a block therefore visits.
//
// Queries and keys of a user are numbered from 0. A block whose queries see themselves and events before them
// is causal: its own events are one tile, so that no other tile holds the diagonal. Any other block, and
// every block where keys are not the queries' own rows or where one of the rule's other numbers is given,
// walks the spans that hold all keys its queries see. All cuts depend on the user alone, so a user's results
// depend neither on the other users of the batch nor on the number of threads.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <vector>

#include "attention/arguments.h"

namespace argus::attention {

constexpr int64_t kQueries = 128;
constexpr int64_t kKeys = 384;
static_assert(kKeys % kQueries == 0 && kQueries % 64 == 0);

// One user's rows of the packed queries and keys.
struct User {
  int64_t index;
  int64_t query_row, queries;
  int64_t key_row, keys;

  // The place of query 0 among the keys where both end together; negative if there are more queries than
  // keys.
  int64_t shift() const { return keys - queries; }
};

inline User user_of(const Arguments& p, int64_t index) {
  const int64_t query_row = p.offsets[index], key_row = p.key_offsets[index];
  return {index, query_row, p.offsets[index + 1] - query_row, key_row, p.key_offsets[index + 1] - key_row};
}

// Keys [begin, end) of a user.
struct Span {
  int64_t begin, end;

  bool empty() const { return begin >= end; }
};

// What one query sees: the keys of all three spans.
struct SeenKeys {
  Span prefix, window, own;
};

// The place of query i for the window and the position bias.
inline int64_t position_of(const Arguments& p, const User& user, int64_t i) {
  return p.position == nullptr ? user.shift() + i : p.position[user.query_row + i];
}

inline SeenKeys keys_of_query(const Arguments& p, const User& user, int64_t i) {
  const int64_t place = user.shift() + i, row = user.query_row + i;
  const auto among_keys = [&](int64_t key) { return std::clamp<int64_t>(key, 0, user.keys); };
  const int64_t limit = among_keys(p.visible == nullptr ? place : p.visible[row]);
  const int64_t oldest = among_keys(position_of(p, user, i) + 1 - p.window);
  const int64_t prefix = std::min<int64_t>(p.prefix == nullptr ? 0 : p.prefix[user.index], limit);
  const Span own = p.own_begin == nullptr ? Span{among_keys(place), among_keys(place + 1)}
                                          : Span{p.own_begin[row], p.own_end[row]};
  return {{0, prefix}, {oldest, limit}, own};
}

// Sorts spans by their begins, joins those that meet, drops empty ones; returns how many are left.
inline int64_t join_spans(std::array<Span, 3>& spans) {
  std::sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) { return a.begin < b.begin; });
  int64_t count = 0;
  for (const Span& span : spans) {
    if (span.empty()) continue;
    if (count > 0 && span.begin <= spans[count - 1].end) {
      spans[count - 1].end = std::max(spans[count - 1].end, span.end);
    } else {
      spans[count++] = span;
    }
  }
  return count;
}

// A tile of keys against a block of its user's queries.
struct KeyTile {
  int64_t begin;
  int64_t end;
  bool masked;  // some query does not see some key

  int64_t size() const { return end - begin; }
};

// Queries [first, first + count) of one user, and which of its keys they see. A tile of their scores has
// `columns` columns; those past `count` repeat the last query's numbers and are not used.
struct Block {
  int64_t first, count, columns;
  int64_t place;  // of the first query among the keys where both end together
  bool causal;
  bool all_see;  // each query sees some key
  int32_t prefix;
  // A query sees the keys of [0, prefix) and [oldest, ∞) that are below its limit, and its own.
  alignas(64) int32_t limit[kQueries];
  alignas(64) int32_t oldest[kQueries];
  alignas(64) int32_t own_begin[kQueries];
  alignas(64) int32_t own_end[kQueries];

  Block(const Arguments& p, const User& user, int64_t first_query, int64_t query_count)
      : first(first_query),
        count(query_count),
        columns((query_count + 31) / 32 * 32),
        place(user.shift() + first_query) {
    causal = p.own_rows() && set_causal(p, user);
    if (!causal) set_any(p, user);
  }

  bool sees_nothing(int64_t c) const {
    return oldest[c] >= limit[c] && std::min(prefix, limit[c]) <= 0 && own_begin[c] >= own_end[c];
  }

  // Lists the tiles that hold all keys any query sees. They begin at multiples of 32, as the packed operands
  // require.
  void list_tiles(std::vector<KeyTile>& tiles) const {
    tiles.clear();
    if (causal) {
      list_causal_tiles(tiles);
    } else {
      list_any_tiles(tiles);
    }
  }

  // The same for a block of one query; it sees every key of these tiles, which begin anywhere.
  void list_seen_tiles(std::vector<KeyTile>& tiles) const {
    tiles.clear();
    const int64_t last = limit[0];
    std::array<Span, 3> spans{Span{own_begin[0], own_end[0]}, Span{oldest[0], last},
                              Span{0, std::min<int64_t>(prefix, last)}};
    const int64_t parts = causal ? 2 : join_spans(spans);
    for (int64_t i = 0; i < parts; ++i) {
      for (int64_t from = spans[i].begin; from < spans[i].end; from += kKeys)
        tiles.push_back({from, std::min(spans[i].end, from + kKeys), false});
    }
  }

 private:
  // Returns false if a query sees a key after itself.
  bool set_causal(const Arguments& p, const User& user) {
    all_see = true;
    prefix = 0;
    bool behind = true;
    for (int64_t c = 0; c < kQueries; ++c) {
      const int64_t event = first + std::min(c, count - 1);
      const int64_t seen = p.visible == nullptr ? event : p.visible[user.query_row + event];
      own_begin[c] = static_cast<int32_t>(event);
      own_end[c] = static_cast<int32_t>(event + 1);
      limit[c] = static_cast<int32_t>(seen);
      oldest[c] = static_cast<int32_t>(std::max<int64_t>(0, event + 1 - p.window));
      behind &= seen <= event;
    }
    return behind;
  }

  void set_any(const Arguments& p, const User& user) {
    all_see = true;
    const int64_t users_prefix = p.prefix == nullptr ? 0 : p.prefix[user.index];
    prefix = static_cast<int32_t>(std::min(users_prefix, user.keys));
    for (int64_t c = 0; c < kQueries; ++c) {
      const SeenKeys seen = keys_of_query(p, user, first + std::min(c, count - 1));
      limit[c] = static_cast<int32_t>(seen.window.end);
      // A window that reaches the prefix hides nothing.
      oldest[c] = static_cast<int32_t>(seen.window.begin <= prefix ? 0 : seen.window.begin);
      own_begin[c] = static_cast<int32_t>(seen.own.begin);
      own_end[c] = static_cast<int32_t>(seen.own.end);
      all_see &= !sees_nothing(c);
    }
  }

  // The queries' own events first, so that every query has seen at least one key before the next tile comes.
  void list_causal_tiles(std::vector<KeyTile>& tiles) const {
    int64_t most = 0, least = first;
    for (int64_t c = 0; c < count; ++c) {
      most = std::max<int64_t>(most, limit[c]);
      least = std::min<int64_t>(least, limit[c]);
    }
    tiles.push_back({first, first + count, true});
    const int64_t begin = std::min<int64_t>(oldest[0] / 32 * 32, first);
    const int64_t end = std::max(begin, std::min(most, first));
    for (int64_t from = begin; from < end;) {
      const int64_t to = std::min(end, (from / kKeys + 1) * kKeys);
      tiles.push_back({from, to, from < oldest[kQueries - 1] || to > least});
      from = to;
    }
  }

  void list_any_tiles(std::vector<KeyTile>& tiles) const {
    constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
    Span in_prefix{0, 0}, in_window{kNone, 0}, own{kNone, 0};
    for (int64_t c = 0; c < count; ++c) {
      in_prefix.end = std::max<int64_t>(in_prefix.end, std::min(prefix, limit[c]));
      if (oldest[c] < limit[c])
        in_window = {std::min<int64_t>(in_window.begin, oldest[c]),
                     std::max<int64_t>(in_window.end, limit[c])};
      if (own_begin[c] < own_end[c])
        own = {std::min<int64_t>(own.begin, own_begin[c]), std::max<int64_t>(own.end, own_end[c])};
    }
    std::array<Span, 3> spans{in_prefix, in_window, own};
    for (Span& span : spans)
      if (!span.empty()) span.begin = span.begin / 32 * 32;
    const int64_t parts = join_spans(spans);
    for (int64_t i = 0; i < parts; ++i) {
      for (int64_t from = spans[i].begin; from < spans[i].end;) {
        const int64_t to = std::min(spans[i].end, (from / kKeys + 1) * kKeys);
        add_tile({from, to}, tiles);
        from = to;
      }
    }
  }

  // The part of a tile that some query sees, if any.
  void add_tile(Span keys, std::vector<KeyTile>& tiles) const {
    Span seen{keys.end, keys.begin};
    const auto widen = [&](int64_t begin, int64_t end) {
      begin = std::max(begin, keys.begin);
      end = std::min(end, keys.end);
      if (begin < end) seen = {std::min(seen.begin, begin), std::max(seen.end, end)};
    };
    for (int64_t c = 0; c < count; ++c) {
      widen(oldest[c], limit[c]);
      widen(0, std::min(prefix, limit[c]));
      widen(own_begin[c], own_end[c]);
    }
    if (seen.empty()) return;
    seen.begin = seen.begin / 32 * 32;
    bool whole = true;
    for (int64_t c = 0; c < count; ++c) {
      whole &= (seen.end <= limit[c] && (seen.begin >= oldest[c] || seen.end <= prefix)) ||
               (seen.begin >= own_begin[c] && seen.end <= own_end[c]);
    }
    tiles.push_back({seen.begin, seen.end, !whole});
  }
};

// A span that holds the tiles of queries [begin, end); it begins at a multiple of kKeys.
inline Span keys_of_queries(const Arguments& p, const User& user, int64_t begin, int64_t end) {
  if (p.own_rows()) {
    Span all{std::max<int64_t>(0, begin + 1 - p.window) / kKeys * kKeys, end};
    for (int64_t i = begin; p.visible != nullptr && i < end; ++i)
      all.end = std::max<int64_t>(all.end, p.visible[user.query_row + i]);
    return all;
  }
  Span all{user.keys, 0};
  for (int64_t i = begin; i < end; ++i) {
    const SeenKeys seen = keys_of_query(p, user, i);
    for (const Span& span : {seen.prefix, seen.window, seen.own})
      if (!span.empty()) all = {std::min(all.begin, span.begin), std::max(all.end, span.end)};
  }
  return all.empty() ? Span{0, 0} : Span{all.begin / kKeys * kKeys, all.end};
}

}  // namespace argus::attention
