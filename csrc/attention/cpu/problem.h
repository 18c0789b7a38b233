// How the work of attention over packed user histories is cut on the CPU.
//
// The score matrix of a user and head is cut into pieces of queries, which threads share, pieces into blocks
// of at most kQueries queries, and blocks into tiles of at most kKeys keys (mask.h). The heads that share one
// head of keys are computed one after another in the same piece. All cuts depend on the user alone.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "attention/cpu/mask.h"

namespace argus::attention {

// Query-block size, for a user whose keys of one head take `bytes`. While K and V fit in L2, blocks of
// kQueries / 2 compute less of the hidden half of a block's own events. Beyond L2 blocks of kQueries halve
// the reads of K and V.
inline int64_t block_queries(int64_t bytes) {
  return bytes < (int64_t{1} << 20) ? kQueries / 2 : kQueries;
}

// Queries [begin, end) of one user and of the heads that share key_head.
struct Piece {
  User user;
  int64_t key_head;
  int64_t begin, end;
  int64_t parts;  // pieces that the user's queries are cut into, for these heads
};

// Pieces [first, last) of the list, all of one head of keys.
struct Task {
  int64_t index;
  int64_t first, last;
  double cost;
};

struct Work {
  std::vector<Piece> pieces;
  std::vector<Task> tasks;
};

// Heads of queries that share one head of keys.
inline int64_t heads_of_group(const Arguments& p) {
  return p.key_heads == 0 ? 0 : p.heads / p.key_heads;
}

// The pairs that queries [begin, end) compute, about.
inline double cost_of_queries(const Arguments& p, const User& user, int64_t begin, int64_t end) {
  double sum = 0;
  for (int64_t first = begin; first < end; first += kQueries) {
    const int64_t last = std::min(end, first + kQueries);
    const Span any = p.own_rows() ? Span{0, std::min<int64_t>(first, p.window) + last - first}
                                  : keys_of_queries(p, user, first, last);
    sum += static_cast<double>(last - first) * static_cast<double>(any.end - any.begin);
  }
  return sum;
}

// Cuts a batch into tasks. A user's queries are cut into at most `most_pieces` pieces a head, of about
// `piece_rows` rows; small pieces of one head of keys are combined until a task is a 256th of the whole work.
inline Work cut_work(const Arguments& p, int64_t piece_rows, int64_t most_pieces) {
  Work work;
  std::vector<double> costs;
  double total = 0;
  // No heads of queries, no pieces of theirs: the keys, whose gradients are written, stay one.
  const int64_t most = std::max<int64_t>(1, most_pieces * heads_of_group(p));
  work.pieces.reserve(static_cast<size_t>(p.users) * p.key_heads);
  costs.reserve(work.pieces.capacity());
  for (int64_t head = 0; head < p.key_heads; ++head) {
    for (int64_t index = 0; index < p.users; ++index) {
      const User user = user_of(p, index);
      const int64_t length = user.queries;
      if (length == 0 && user.keys == 0) continue;
      const int64_t parts = std::clamp<int64_t>(length / piece_rows, 1, most);
      const int64_t rows = ((length + parts - 1) / parts + kQueries - 1) / kQueries * kQueries;
      int64_t begin = 0;
      // Keys without queries are a piece, too: their gradients are written.
      do {
        const int64_t end = std::min(begin + rows, length);
        work.pieces.push_back({user, head, begin, end, length == 0 ? 1 : (length + rows - 1) / rows});
        costs.push_back(cost_of_queries(p, user, begin, end));
        total += costs.back();
        begin = end;
      } while (begin < length);
    }
  }
  const int64_t count = static_cast<int64_t>(work.pieces.size());
  for (int64_t first = 0, last = 0; first < count; first = last) {
    double cost = 0;
    do {
      cost += costs[last++];
    } while (last < count && work.pieces[last].key_head == work.pieces[first].key_head && cost < total / 256);
    work.tasks.push_back({static_cast<int64_t>(work.tasks.size()), first, last, cost});
  }
  return work;
}

}  // namespace argus::attention
