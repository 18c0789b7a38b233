// The biases of a tile of scores, and their gradients, on the CPU.
//
// A row of a tile is one key against up to kQueries queries. Its position biases are a run of neighbouring
// entries of the table, unless the queries' positions are given and do not follow one another. Its time
// biases are rarely more than a few entries: the earliest and the latest query of the block bound the
// distances of the row, and if few buckets lie between these bounds, one comparison per edge replaces a
// look-up per pair. This is exact for times in any order, and fast if they increase.
//
// Gradients are summed per tile in 16 lanes of the scores' arithmetic, and then in float64: a bucket may
// collect millions of pairs, for which float32 sums would lose four digits. Of softmax the sum over all
// buckets is known: a query's weights sum to 1, so its score gradients sum to its d_log_sum_exp. The rounding
// of out and of the weights makes up the difference, which a table of few buckets would show: the buckets
// give it back, block by block, each in proportion to its weights.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "attention/cpu/problem.h"
#include "attention/relative_bias.h"
#include "common/cpu/scratch.h"
#include "common/cpu/simd.h"
#include "common/cpu/vector_math.h"

namespace argus::attention {

// Up to this many edges are compared one by one.
constexpr int64_t kFewEdges = 6;

// The buckets of a table that the pairs of a row may fall into.
struct BucketRange {
  int64_t first, last;

  bool one() const { return first == last; }
};

// The tables and times that the loops over a tile's rows read, for one head, one user and one block of their
// queries.
template <class A>
struct BiasView {
  const A* position;  // [distance] for -kQueries < distance < positions + kQueries, or null
  int64_t last_position;
  // Of the block's queries: the positions of the first, the lowest and the highest, whether each is one after
  // the query before it, and all of them if not.
  int64_t first, lowest, highest;
  bool consecutive;
  bool causal;
  const A* time;  // [bucket], or null
  TimeBuckets::Cells cells;
  const int64_t* edges;      // [bucket], its smallest distance
  const int64_t* key_time;   // of the user's events
  int64_t last_bucket;       // buckets - 1
  int64_t earliest, latest;  // of the query times
  alignas(64) int64_t query_time[kQueries];
  alignas(64) int64_t query_position[kQueries];

  ARGUS_INLINE int64_t position_bucket(int64_t distance) const {
    return std::clamp<int64_t>(distance, 0, last_position);
  }

  // Position buckets of a row. In a causal block only rows of the last entry count as ones of one bucket:
  // which sums are taken together decides the bits of the gradient.
  ARGUS_INLINE BucketRange position_range(int64_t key) const {
    if (causal)
      return lowest - key >= last_position ? BucketRange{last_position, last_position} : BucketRange{0, 1};
    return {position_bucket(lowest - key), position_bucket(highest - key)};
  }

  ARGUS_INLINE BucketRange range(int64_t time_of_key) const {
    // Distances that wrap around do not increase with the query's time.
    if (time_wraps(earliest, time_of_key) || time_wraps(latest, time_of_key)) return {0, last_bucket};
    const int64_t a = time_distance(earliest, time_of_key), b = time_distance(latest, time_of_key);
    const bool between = time_of_key > earliest && time_of_key < latest;
    return {cells.bucket(between ? 1 : std::min(a, b)), cells.bucket(std::max(a, b))};
  }
};

// Adds the time biases to `row` if `range` spans several buckets.
template <class A>
ARGUS_INLINE void add_time_row(const BiasView<A>& view, BucketRange range, int64_t time_of_key, A* row,
                               int64_t columns) {
  if (range.last - range.first > kFewEdges) {
    for (int64_t c = 0; c < columns; ++c) {
      row[c] += view.time[view.cells.bucket(time_distance(view.query_time[c], time_of_key))];
    }
    return;
  }
  alignas(64) int64_t distance[kQueries];
  alignas(64) A found[kQueries];
  for (int64_t c = 0; c < columns; ++c) {
    distance[c] = time_distance(view.query_time[c], time_of_key);
    found[c] = view.time[range.first];
  }
  for (int64_t bucket = range.first + 1; bucket <= range.last; ++bucket) {
    const int64_t edge = view.edges[bucket];
    const A entry = view.time[bucket];
    for (int64_t c = 0; c < columns; ++c) found[c] = distance[c] >= edge ? entry : found[c];
  }
  for (int64_t c = 0; c < columns; ++c) row[c] += found[c];
}

// Adds the position biases to `row` if its pairs read several entries.
template <class A>
ARGUS_INLINE void add_position_row(const BiasView<A>& view, int64_t key, A* row, int64_t columns) {
  if (view.consecutive) {
    const A* entries = view.position + (view.first - key);
    for (int64_t c = 0; c < columns; ++c) row[c] += entries[c];
    return;
  }
  for (int64_t c = 0; c < columns; ++c)
    row[c] += view.position[view.position_bucket(view.query_position[c] - key)];
}

// scores[key, query] = factor · scores + bias, for a tile whose first key is `begin`. In most rows all pairs
// share one bias, because the key is far behind the queries and all distances lie between two edges.
template <class A>
ARGUS_INLINE void add_bias_body(const BiasView<A>* view, A* scores, int64_t begin, int64_t keys,
                                int64_t columns, A factor) {
  alignas(64) A row[kQueries];
  for (int64_t j = 0; j < keys; ++j) {
    A* line = scores + j * kQueries;
    A common{0};
    BucketRange position{0, 0}, time{0, 0};
    if (view->position != nullptr) {
      position = view->position_range(begin + j);
      if (position.one()) common = view->position[position.first];
    }
    if (view->time != nullptr) {
      time = view->range(view->key_time[begin + j]);
      if (time.one()) common += view->time[time.first];
    }
    if (position.one() && time.one()) {
      for (int64_t c = 0; c < columns; ++c) line[c] = fma(line[c], factor, common);
      continue;
    }
    for (int64_t c = 0; c < columns; ++c) row[c] = common;
    if (!position.one()) add_position_row(*view, begin + j, row, columns);
    if (!time.one()) add_time_row(*view, time, view->key_time[begin + j], row, columns);
    for (int64_t c = 0; c < columns; ++c) line[c] = fma(line[c], factor, row[c]);
  }
}

// The sums of one tile. A row `distance` events from the block's first query adds to the run of position
// entries that begins at `distance`. There are 16 copies of the run, one per remainder of the distance, so
// that every addition works on whole vectors.
template <class A>
struct BiasSums {
  static constexpr int64_t kRun = kKeys + kQueries + 2 * kLanes;

  alignas(64) A run[kLanes][kRun];
  int64_t run_begin;  // distance of the run's first entry, a multiple of kLanes
  bool near;          // some row has added to the run
  A* position;        // [positions, kLanes], of rows that do not add to the run
  A* time;            // [buckets, kLanes]
  BucketRange position_used, time_used;
};

ARGUS_INLINE void widen(BucketRange& used, BucketRange by) {
  used.first = std::min(used.first, by.first);
  used.last = std::max(used.last, by.last);
}

template <class A>
ARGUS_INLINE void add_time_sums(const BiasView<A>& view, BiasSums<A>* sums, int64_t time_of_key,
                                const A* line, const A* folded, int64_t columns) {
  const BucketRange range = view.range(time_of_key);
  widen(sums->time_used, range);
  if (range.one()) {
    A* to = sums->time + range.first * kLanes;
    for (int64_t lane = 0; lane < kLanes; ++lane) to[lane] += folded[lane];
    return;
  }
  if (range.last - range.first > kFewEdges) {
    alignas(64) int64_t bucket[kQueries];
    for (int64_t c = 0; c < columns; ++c) {
      bucket[c] = view.cells.bucket(time_distance(view.query_time[c], time_of_key));
    }
    for (int64_t c = 0; c < columns; ++c) sums->time[bucket[c] * kLanes + c % kLanes] += line[c];
    return;
  }
  alignas(64) int64_t distance[kQueries];
  for (int64_t c = 0; c < columns; ++c) distance[c] = time_distance(view.query_time[c], time_of_key);
  for (int64_t bucket = range.first; bucket <= range.last; ++bucket) {
    const int64_t low = view.edges[bucket], high = view.edges[bucket + 1];
    A* to = sums->time + bucket * kLanes;
    for (int64_t c = 0; c < columns; c += kLanes) {
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const bool inside = distance[c + lane] >= low && distance[c + lane] < high;
        to[lane] += inside ? line[c + lane] : A{0};
      }
    }
  }
}

// sums[i] += the entries of all copies at the run's first distance + i; resets the copies to zero.
template <class A>
ARGUS_INLINE void join_runs_body(BiasSums<A>* from, double* sums, int64_t used) {
  for (int64_t copy = 0; copy < kLanes; ++copy) {
    A* run = from->run[copy];
    double* to = sums + copy;
    for (int64_t i = 0; i < used; ++i) to[i] += run[i];
    for (int64_t i = 0; i < used; ++i) run[i] = A{0};
  }
}

template <class A>
ARGUS_INLINE void add_position_sums(const BiasView<A>& view, BiasSums<A>* sums, int64_t key, const A* line,
                                    const A* folded, int64_t columns) {
  const BucketRange range = view.position_range(key);
  if (range.one()) {
    widen(sums->position_used, range);
    A* to = sums->position + range.first * kLanes;
    for (int64_t lane = 0; lane < kLanes; ++lane) to[lane] += folded[lane];
  } else if (view.consecutive) {
    const int64_t distance = view.first - key, copy = distance & (kLanes - 1);
    A* run = sums->run[copy] + (distance - copy - sums->run_begin);
    for (int64_t c = 0; c < columns; ++c) run[c] += line[c];
    sums->near = true;
  } else {
    widen(sums->position_used, range);
    for (int64_t c = 0; c < columns; ++c) {
      const int64_t bucket = view.position_bucket(view.query_position[c] - key);
      sums->position[bucket * kLanes + c % kLanes] += line[c];
    }
  }
}

template <class A>
ARGUS_INLINE void add_bias_sums_body(const BiasView<A>* view, BiasSums<A>* sums, const A* d_scores,
                                     int64_t begin, int64_t keys, int64_t columns) {
  for (int64_t j = 0; j < keys; ++j) {
    const A* line = d_scores + j * kQueries;
    alignas(64) A folded[kLanes] = {};
    for (int64_t c = 0; c < columns; c += kLanes) {
      for (int64_t lane = 0; lane < kLanes; ++lane) folded[lane] += line[c + lane];
    }
    if (view->position != nullptr)
      add_position_sums(*view, sums, begin + j, line, static_cast<const A*>(folded), columns);
    if (view->time != nullptr) {
      add_time_sums(*view, sums, view->key_time[begin + j], line, folded, columns);
    }
  }
}

// Both tables of one problem, read head by head, user by user, block by block.
template <class A>
class TileBias {
 public:
  explicit TileBias(const Arguments& problem)
      : problem_(problem),
        present_(problem.position_bias != nullptr || problem.time_bias != nullptr),
        position_table_(static_cast<const A*>(problem.position_bias)),
        positions_(problem.positions),
        time_table_(static_cast<const A*>(problem.time_bias)),
        times_(problem.times),
        query_time_(problem.query_time),
        key_time_(problem.key_time),
        buckets_(problem.times) {
    view_.position = view_.time = nullptr;
    if (position_table_ != nullptr) run_.at_least(positions_ + 2 * kQueries);
    if (time_table_ != nullptr) {
      for (int64_t b = 0; b <= times_; ++b) edges_.push_back(buckets_.edge(b));
      view_.cells = buckets_.cells();
      view_.edges = edges_.data();
      view_.last_bucket = times_ - 1;
    }
  }

  bool present() const { return present_; }
  const BiasView<A>& view() const { return view_; }

  void begin_head(int64_t head) {
    if (head == head_) return;
    head_ = head;
    if (position_table_ != nullptr) {
      const A* table = position_table_ + head * positions_;
      A* run = run_.get();
      std::fill(run, run + kQueries, table[0]);
      std::copy(table, table + positions_, run + kQueries);
      std::fill(run + kQueries + positions_, run + positions_ + 2 * kQueries, table[positions_ - 1]);
      view_.position = run + kQueries;
      view_.last_position = positions_ - 1;
    }
    if (time_table_ != nullptr) view_.time = time_table_ + head * times_;
  }

  void begin_block(const User& user, const Block& block) {
    if (position_table_ != nullptr) set_positions(user, block);
    if (time_table_ == nullptr) return;
    view_.key_time = key_time_ + user.key_row;
    const int64_t* times = query_time_ + user.query_row + block.first;
    const auto [earliest, latest] = std::minmax_element(times, times + block.count);
    view_.earliest = *earliest;
    view_.latest = *latest;
    for (int64_t c = 0; c < kQueries; ++c) view_.query_time[c] = times[std::min(c, block.count - 1)];
  }

  void add(A* scores, const KeyTile& tile, int64_t columns, A factor) const {
    ForEachIsa<&add_bias_body<A>>::call(&view_, scores, tile.begin, tile.size(), columns, factor);
  }

 private:
  void set_positions(const User& user, const Block& block) {
    view_.causal = block.causal;
    view_.first = view_.lowest = position_of(problem_, user, block.first);
    view_.highest = view_.first + block.count - 1;
    view_.consecutive = true;
    if (problem_.position == nullptr) return;
    for (int64_t c = 0; c < kQueries; ++c) {
      const int64_t place = position_of(problem_, user, block.first + std::min(c, block.count - 1));
      view_.query_position[c] = place;
      view_.consecutive &= place == view_.first + std::min(c, block.count - 1);
      view_.lowest = c == 0 ? place : std::min(view_.lowest, place);
      view_.highest = c == 0 ? place : std::max(view_.highest, place);
    }
  }

  const Arguments& problem_;
  bool present_;
  int64_t head_ = -1;  // whose tables the view has
  const A* position_table_;
  int64_t positions_;
  const A* time_table_;
  int64_t times_;
  const int64_t* query_time_;
  const int64_t* key_time_;
  TimeBuckets buckets_;
  std::vector<int64_t> edges_;
  Scratch<A> run_;
  BiasView<A> view_;
};

// Adds a key's weights to the buckets of its pairs; of several buckets up to 32 queries tell the share of
// each.
template <class A, class BucketOf>
void add_masses(double* masses, const A* line, int64_t columns, bool one, int64_t first, BucketOf bucket_of) {
  if (one) {
    A sum{0};
    for (int64_t c = 0; c < columns; ++c) sum += line[c];
    masses[first] += sum;
    return;
  }
  const int64_t step = columns / 32;
  for (int64_t c = 0; c < columns; c += step) masses[bucket_of(c)] += static_cast<A>(step) * line[c];
}

// Gradients of both tables for one head, summed in float64 over all added tiles.
template <class A>
class TileBiasGradient {
 public:
  // `wanted`: whether anything will be added; the 16 copies take memory and time.
  TileBiasGradient(const Arguments& problem, bool wanted)
      : positions_(problem.positions), times_(problem.times) {
    if (!wanted) return;
    BiasSums<A>& sums = *memory_.at_least(1);
    std::fill(&sums.run[0][0], &sums.run[0][0] + kLanes * BiasSums<A>::kRun, A{0});
    sums.position = lanes_.at_least((positions_ + times_) * kLanes);
    sums.time = sums.position + positions_ * kLanes;
    std::fill(sums.position, sums.position + (positions_ + times_) * kLanes, A{0});
    masses_.assign(static_cast<size_t>(positions_ + times_), 0.0);
  }

  // Later sums are added to table[positions + times].
  void add_to(double* table) {
    position_ = table;
    time_ = table + positions_;
  }

  void add(const BiasView<A>& view, const A* d_scores, const KeyTile& tile, int64_t columns) {
    BiasSums<A>& sums = *memory_.get();
    sums.run_begin = (view.first - tile.end + 1) & ~(kLanes - 1);
    sums.near = false;
    sums.position_used = {positions_, -1};
    sums.time_used = {times_, -1};
    ForEachIsa<&add_bias_sums_body<A>>::call(&view, &sums, d_scores, tile.begin, tile.size(), columns);
    position_sum_ += flush(position_, sums.position, sums.position_used);
    time_sum_ += flush(time_, sums.time, sums.time_used);
    if (sums.near) position_sum_ += flush_run(tile.size() + columns + kLanes);
  }

  // Softmax only, of the tile that was added: its weights before dropout. Eight keys tell well enough how the
  // weights are spread.
  void add_weights(const BiasView<A>& view, const A* weights, const KeyTile& tile, int64_t columns) {
    constexpr int64_t kSampled = 8;
    const int64_t step = (tile.size() + kSampled - 1) / kSampled;
    for (int64_t j = step / 2; j < tile.size(); j += step) {
      const int64_t key = tile.begin + j;
      const A* line = weights + j * kQueries;
      if (view.position != nullptr) {
        const BucketRange range = view.position_range(key);
        add_masses(masses_.data(), line, columns, range.one(), range.first, [&](int64_t c) {
          return view.position_bucket((view.consecutive ? view.first + c : view.query_position[c]) - key);
        });
      }
      if (view.time != nullptr) {
        const int64_t time = view.key_time[key];
        const BucketRange range = view.range(time);
        add_masses(masses_.data() + positions_, line, columns, range.one(), range.first,
                   [&](int64_t c) { return view.cells.bucket(time_distance(view.query_time[c], time)); });
      }
    }
  }

  // Softmax only, after the tiles of a block, whose score gradients sum to `expected`.
  void settle(double expected) {
    if (positions_ > 0) settle(position_, masses_.data(), positions_, position_sum_ - expected);
    if (times_ > 0) settle(time_, masses_.data() + positions_, times_, time_sum_ - expected);
    position_sum_ = time_sum_ = 0;
  }

 private:
  static double flush(double* table, A* lanes, BucketRange used) {
    double whole = 0;
    for (int64_t b = used.first; b <= used.last; ++b) {
      double sum = 0;
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        sum += lanes[b * kLanes + lane];
        lanes[b * kLanes + lane] = A{0};
      }
      table[b] += sum;
      whole += sum;
    }
    return whole;
  }

  double flush_run(int64_t used) {
    BiasSums<A>& sums = *memory_.get();
    alignas(64) double whole[BiasSums<A>::kRun + kLanes] = {};
    ForEachIsa<&join_runs_body<A>>::call(&sums, static_cast<double*>(whole), used);
    double sum = 0;
    for (int64_t i = 0; i < used + kLanes; ++i) {
      position_[std::clamp<int64_t>(sums.run_begin + i, 0, positions_ - 1)] += whole[i];
      sum += whole[i];
    }
    return sum;
  }

  // Nothing is known where a gradient is not finite.
  static void settle(double* table, double* masses, int64_t entries, double excess) {
    double whole = 0;
    for (int64_t b = 0; b < entries; ++b) whole += masses[b];
    const double share = excess / whole;
    for (int64_t b = 0; std::isfinite(share) && b < entries; ++b) table[b] -= share * masses[b];
    std::fill(masses, masses + entries, 0.0);
  }

  int64_t positions_, times_;
  double* position_ = nullptr;
  double* time_ = nullptr;
  double position_sum_ = 0, time_sum_ = 0;  // of the block
  std::vector<double> masses_;              // [positions + times], of the block
  Scratch<A> lanes_;
  Scratch<BiasSums<A>> memory_;
};

}  // namespace argus::attention
