// How the work of attention over packed user histories is cut on the CPU.
//
// A query i of a user sees its event j where j = i or j < visible[i], and i - j < window; positions count
// from the user's first event. The score matrix of a user and head is cut into blocks of at most kQueries
// queries, and a block into tiles of at most kKeys keys: first the block's own events, then those before them
// that any of its queries sees. Tiles that no query sees are skipped. All cuts depend on the user alone, so a
// user's results depend neither on the other users of the batch nor on the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "attention/arguments.h"

namespace argus::attention {

constexpr int64_t kQueries = 128;
constexpr int64_t kKeys = 384;
static_assert(kKeys % kQueries == 0 && kQueries % 64 == 0);

// Query-block size, for a user whose keys of one head take `bytes`. While K and V fit in L2, blocks of
// kQueries / 2 compute less of the hidden half of a block's own events. Beyond L2 blocks of kQueries halve
// the reads of K and V.
inline int64_t block_queries(int64_t bytes) {
  return bytes < (int64_t{1} << 20) ? kQueries / 2 : kQueries;
}

// Keys [begin, end) of the user against a block of its queries.
struct KeyTile {
  int64_t begin;
  int64_t end;
  bool masked;  // some query does not see some key

  int64_t size() const { return end - begin; }
};

// Queries [first, first + count) of one user, and which of its events they see. A tile of their scores has
// `columns` columns; those past `count` repeat the last query's position and are not used.
struct Block {
  int64_t first, count, columns;
  int64_t begin, end;                    // events before `first` that any query sees
  int64_t all_begin, all_end;            // those of them that every query sees
  alignas(64) int32_t own[kQueries];     // the query's position
  alignas(64) int32_t limit[kQueries];   // it sees the events before this one,
  alignas(64) int32_t oldest[kQueries];  // from this one on

  Block(const Arguments& problem, int64_t user_row, int64_t first_query, int64_t query_count)
      : first(first_query), count(query_count), columns((query_count + 31) / 32 * 32) {
    int64_t most = 0, least = first;
    for (int64_t c = 0; c < kQueries; ++c) {
      const int64_t place = first + std::min(c, count - 1);
      const int64_t seen = problem.visible == nullptr ? place : problem.visible[user_row + place];
      own[c] = static_cast<int32_t>(place);
      limit[c] = static_cast<int32_t>(seen);
      oldest[c] = static_cast<int32_t>(std::max<int64_t>(0, place + 1 - problem.window));
      most = std::max(most, seen);
      least = std::min(least, seen);
    }
    // Tiles begin at multiples of 32, as the packed operands require.
    begin = std::min<int64_t>(oldest[0] / 32 * 32, first);
    end = std::max(begin, std::min(most, first));
    all_begin = oldest[kQueries - 1];
    all_end = least;
  }

  // Calls visit(tile) for every tile: the queries' own events first, so that every query has seen at least
  // one key
  // before the next tile comes.
  template <class Visit>
  void for_each_tile(Visit&& visit) const {
    visit(KeyTile{first, first + count, true});
    for (int64_t from = begin; from < end;) {
      const int64_t to = std::min(end, (from / kKeys + 1) * kKeys);
      visit(KeyTile{from, to, from < all_begin || to > all_end});
      from = to;
    }
  }

  // The same for a block of one query; every key of its tiles is one that the query sees.
  template <class Visit>
  void for_each_seen_tile(Visit&& visit) const {
    visit(KeyTile{first, first + 1, false});
    const int64_t last = std::min<int64_t>(limit[0], first);
    for (int64_t from = oldest[0]; from < last; from += kKeys)
      visit(KeyTile{from, std::min(last, from + kKeys), false});
  }
};

// Queries [begin, end) of one user and head.
struct Piece {
  int64_t user_row;
  int64_t head;
  int64_t begin, end;
  int64_t length;  // the user's events
  int64_t parts;   // pieces that the user's queries are cut into, for this head
};

// Pieces [first, last) of the list, all of one head.
struct Task {
  int64_t index;
  int64_t first, last;
  double cost;
};

struct Work {
  std::vector<Piece> pieces;
  std::vector<Task> tasks;
};

// Cuts a batch into tasks. A user's queries are cut into at most `most_pieces` pieces of about `piece_rows`
// rows; small pieces of one head are combined until a task is a 256th of the whole work.
inline Work cut_work(const Arguments& problem, int64_t piece_rows, int64_t most_pieces) {
  const auto cost_of = [&](int64_t begin, int64_t end) {
    double sum = 0;
    for (int64_t first = begin; first < end; first += kQueries) {
      const int64_t rows = std::min(kQueries, end - first);
      const int64_t keys = std::min<int64_t>(first, problem.window) + rows;
      sum += static_cast<double>(rows) * static_cast<double>(keys);
    }
    return sum;
  };
  Work work;
  std::vector<double> costs;
  double total = 0;
  for (int64_t head = 0; head < problem.heads; ++head) {
    for (int64_t user = 0; user < problem.users; ++user) {
      const int64_t row = problem.offsets[user], length = problem.offsets[user + 1] - row;
      if (length == 0) continue;
      const int64_t parts = std::clamp<int64_t>(length / piece_rows, 1, most_pieces);
      const int64_t rows = ((length + parts - 1) / parts + kQueries - 1) / kQueries * kQueries;
      for (int64_t begin = 0; begin < length; begin += rows) {
        const int64_t end = std::min(begin + rows, length);
        work.pieces.push_back({row, head, begin, end, length, (length + rows - 1) / rows});
        costs.push_back(cost_of(begin, end));
        total += costs.back();
      }
    }
  }
  const int64_t count = static_cast<int64_t>(work.pieces.size());
  for (int64_t first = 0, last = 0; first < count; first = last) {
    double cost = 0;
    while (last < count && work.pieces[last].head == work.pieces[first].head && cost < total / 256) {
      cost += costs[last++];
    }
    work.tasks.push_back({static_cast<int64_t>(work.tasks.size()), first, last, cost});
  }
  return work;
}

}  // namespace argus::attention
