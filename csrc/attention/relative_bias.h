// The relative biases of the attention kernels: which entry of its table a (query, key) pair reads.
//
//   position   table[min(i - j, count - 1)], i - j the events between query and key
//   time       table[bucket(query_time - key_time)], bucket b holds edges[b] <= |x| < edges[b + 1]
//
// The edges of the time buckets are integers and come from attention/relative_bias.py, so that every backend
// agrees at each of them. No logarithm is taken: the exponent and the first two mantissa bits of |x| name a
// cell, narrower than any bucket, and so a cell holds at most one edge: an entry gives the bucket at the
// cell's start, one integer comparison the rest.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <limits>
#include <vector>

#include "common/cpu/simd.h"
#include "common/torch/fail.h"

namespace argus {

// |a - b|, at least 1 and below int64's maximum; times further apart than int64 holds wrap around.
ARGUS_INLINE int64_t time_distance(int64_t a, int64_t b) {
  const int64_t difference = static_cast<int64_t>(static_cast<uint64_t>(a) - static_cast<uint64_t>(b));
  const int64_t distance =
      difference < 0 ? static_cast<int64_t>(uint64_t{0} - static_cast<uint64_t>(difference)) : difference;
  return std::clamp<int64_t>(distance, 1, std::numeric_limits<int64_t>::max() - 1);
}

// Whether `time_distance` wraps around.
ARGUS_INLINE bool time_wraps(int64_t a, int64_t b) {
  int64_t difference = 0;
  const bool overflows = __builtin_sub_overflow(a, b, &difference);
  return overflows || difference == std::numeric_limits<int64_t>::min();
}

class TimeBuckets {
 public:
  // What the kernels' loops read: two tables by cell.
  struct Cells {
    const int64_t* first;  // the bucket of the cell's smallest integer
    const int64_t* edge;   // the smallest |x| of the bucket after that, int64's maximum where there is none

    ARGUS_INLINE int64_t bucket(int64_t distance) const {
      const int64_t cell = cell_of(distance);
      return first[cell] + (distance >= edge[cell] ? 1 : 0);
    }
  };

  TimeBuckets() = default;

  // `edges` [count] rise from 0; int64's maximum stands for an edge that no distance reaches. Refuses others
  // by the name that the op has for them.
  TimeBuckets(const char* op, const char* name, const int64_t* edges, int64_t count)
      : edges_(edges, edges + count), first_(kCells), edge_(kCells) {
    check(op, name);
    static const std::array<int64_t, kCells> smallest_of_cells = smallest_of_all();
    for (int64_t cell = 0; cell < kCells; ++cell) {
      const auto above = std::upper_bound(edges_.begin(), edges_.end(), smallest_of_cells[cell]);
      first_[cell] = above - edges_.begin() - 1;
      edge_[cell] = above == edges_.end() ? kLargest : *above;
      const bool two_edges = edge_[cell] < kLargest && above + 1 != edges_.end() && above[1] < kLargest &&
                             cell_of(above[1]) == cell;
      if (two_edges)
        fail(op, name, "[", above - edges_.begin() + 1, "] is ", above[1], " after ", *above,
             ", expected edges at least a quarter octave apart");
    }
  }

  int64_t count() const { return static_cast<int64_t>(edges_.size()); }
  Cells cells() const { return {first_.data(), edge_.data()}; }
  // The bucket of a `time_distance`.
  int64_t bucket(int64_t distance) const { return cells().bucket(distance); }
  // The smallest distance of bucket b, int64's maximum past the last bucket.
  int64_t edge(int64_t b) const { return b < count() ? edges_[b] : kLargest; }

 private:
  static constexpr int64_t kLargest = std::numeric_limits<int64_t>::max();
  static constexpr int kMantissaBits = 2;
  static constexpr int64_t kCells = int64_t{64} << kMantissaBits;

  // Rises with the distance, as rounding to double does.
  static ARGUS_INLINE int64_t cell_of(int64_t distance) {
    const int64_t bits = std::bit_cast<int64_t>(static_cast<double>(distance));
    return (bits >> (52 - kMantissaBits)) - (int64_t{1023} << kMantissaBits);
  }

  void check(const char* op, const char* name) const {
    if (edges_.empty()) fail(op, name, " is empty, expected at least 1 edge");
    if (edges_[0] != 0) fail(op, name, "[0] is ", edges_[0], ", expected 0");
    for (size_t i = 1; i < edges_.size(); ++i) {
      if (edges_[i] < edges_[i - 1])
        fail(op, name, "[", i, "] is ", edges_[i], " after ", edges_[i - 1], ", expected no fall");
    }
  }

  static std::array<int64_t, kCells> smallest_of_all() {
    std::array<int64_t, kCells> found;
    for (int64_t cell = 0; cell < kCells; ++cell) found[static_cast<size_t>(cell)] = smallest_of(cell);
    return found;
  }

  static int64_t smallest_of(int64_t cell) {
    int64_t below = 0, reached = kLargest;
    while (reached - below > 1) {
      const int64_t middle = below + (reached - below) / 2;
      (cell_of(middle) >= cell ? reached : below) = middle;
    }
    return reached;
  }

  std::vector<int64_t> edges_, first_, edge_;
};

// scores[j] += table[bucket(query_time - key_time[j])] for one query over `count` keys.
template <class A>
ARGUS_INLINE void add_time_bias(A* scores, const int64_t* key_time, int64_t count, int64_t query_time,
                                TimeBuckets::Cells cells, const A* table) {
  for (int64_t j = 0; j < count; ++j)
    scores[j] += table[cells.bucket(time_distance(query_time, key_time[j]))];
}

// scores[j] += table[min(distance - j, buckets - 1)] for one query over `count` keys, the first of them
// `distance` events back and the last at most 0.
template <class A>
ARGUS_INLINE void add_position_bias(A* scores, int64_t count, int64_t distance, const A* table,
                                    int64_t buckets) {
  const int64_t far = std::clamp<int64_t>(distance - (buckets - 1) + 1, 0, count);
  for (int64_t j = 0; j < far; ++j) scores[j] += table[buckets - 1];
  for (int64_t j = far; j < count; ++j) scores[j] += table[distance - j];
}

}  // namespace argus
