// The relative biases of the attention kernels: which entry of its table a (query, key) pair reads.
//
//   position   table[min(i - j, count - 1)], i - j the events between query and key
//   time       table[bucket(query_time - key_time)], bucket b holds edges[b] <= |x| < edges[b + 1]
//
// The edges of the time buckets are integers and come from attention/relative_bias.py, so that every backend
// agrees at each of them. No logarithm is taken: the exponent and the first two mantissa bits of |x| name a
// cell. A cell is narrower than any bucket, so it holds at most one edge: a table gives the bucket at the
// cell's start, and one integer comparison decides the rest.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <limits>
#include <utility>

#include "attention/time_edges.h"
#include "common/cpu/simd.h"

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

// The first `count` time buckets; the last one is unbounded.
class TimeBuckets {
 public:
  // The tables that the kernels' loops read, indexed by cell.
  struct Cells {
    const int64_t* first;  // the bucket of the cell's smallest integer
    const int64_t* edge;   // the smallest |x| of the next bucket, int64's maximum if there is none

    ARGUS_INLINE int64_t bucket(int64_t distance) const {
      const int64_t cell = cell_of(distance);
      return first[cell] + (distance >= edge[cell] ? 1 : 0);
    }
  };

  explicit TimeBuckets(int64_t count) : count_(count) {
    const auto& [first, edge] = cells_of_all();
    for (size_t cell = 0; cell < kCells; ++cell) {
      first_[cell] = std::min(first[cell], count - 1);
      edge_[cell] = first[cell] < count - 1 ? edge[cell] : kLargest;
    }
  }

  Cells cells() const { return {first_.data(), edge_.data()}; }
  // The smallest distance of bucket b, int64's maximum past the last bucket that a distance reaches.
  int64_t edge(int64_t b) const { return b < std::min<int64_t>(count_, kTimeBuckets) ? kEdges[b] : kLargest; }

 private:
  static constexpr int64_t kLargest = std::numeric_limits<int64_t>::max();
  static constexpr int kMantissaBits = 2;
  static constexpr size_t kCells = size_t{64} << kMantissaBits;
  static constexpr std::array<int64_t, kTimeBuckets> kEdges = {ARGUS_TIME_EDGES};

  // Monotonic in the distance, as rounding to double is.
  static ARGUS_INLINE int64_t cell_of(int64_t distance) {
    const int64_t bits = std::bit_cast<int64_t>(static_cast<double>(distance));
    return (bits >> (52 - kMantissaBits)) - (int64_t{1023} << kMantissaBits);
  }

  using CellTable = std::array<int64_t, kCells>;

  // Cells by bucket and edge, of all buckets. Cells are narrower than buckets except the first few, where
  // every integer is the smallest of its cell.
  static const std::pair<CellTable, CellTable>& cells_of_all() {
    static const std::pair<CellTable, CellTable> found = [] {
      std::pair<CellTable, CellTable> tables;
      for (size_t cell = 0; cell < kCells; ++cell) {
        const auto above =
            std::upper_bound(kEdges.begin(), kEdges.end(), smallest_of(static_cast<int64_t>(cell)));
        tables.first[cell] = above - kEdges.begin() - 1;
        tables.second[cell] = above == kEdges.end() ? kLargest : *above;
      }
      return tables;
    }();
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

  int64_t count_;
  CellTable first_, edge_;
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
