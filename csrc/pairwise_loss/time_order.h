// The events that can be in a pair, user by user in the order of time, and the range of each one's partners.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

namespace argus::pairwise_loss {

constexpr int64_t kChunk = 16;

// Events of equal time keep their input order. `begin[k]` to `end[k]` are the events of the same user within
// the window of event k, including itself. All arrays are padded to whole chunks with events that have no
// partner.
template <class A>
struct TimeOrder {
  std::vector<A> scores;
  std::vector<int32_t> grades, begin, end;
  std::vector<int32_t> rows;  // the event's row in the user's tensors

  explicit TimeOrder(int64_t count) {
    const size_t padded = static_cast<size_t>((count + kChunk - 1) / kChunk * kChunk);
    scores.resize(padded);
    for (auto* array : {&grades, &begin, &end, &rows}) array->resize(padded);
    rows.resize(static_cast<size_t>(count));
  }

  int64_t padded_count() const { return static_cast<int64_t>(scores.size()); }
};

// Puts the rows [first, last) with a grade ≥ 0 into `order` from position `to` on; the caller has counted
// them.
template <class A>
void put_rows_in_time_order(TimeOrder<A>& order, int64_t to, const int64_t* grades, const int64_t* times,
                            int64_t first, int64_t last) {
  int32_t* rows = order.rows.data() + to;
  int64_t count = 0;
  bool ascending = true;
  for (int64_t row = first; row < last; ++row) {
    if (grades[row] < 0) continue;
    ascending = ascending && (count == 0 || times[rows[count - 1]] <= times[row]);
    rows[count++] = static_cast<int32_t>(row);
  }
  if (ascending) return;
  std::stable_sort(rows, rows + count, [times](int32_t a, int32_t b) { return times[a] < times[b]; });
}

// Grades as int32: unchanged if they fit, else their ranks, since only their order matters.
template <class A>
void put_grades(TimeOrder<A>& order, int64_t to, int64_t count, const int64_t* grades) {
  const int32_t* rows = order.rows.data() + to;
  int32_t* found = order.grades.data() + to;
  int64_t largest = 0;
  for (int64_t k = 0; k < count; ++k) {
    largest = std::max(largest, grades[rows[k]]);
    found[k] = static_cast<int32_t>(grades[rows[k]]);
  }
  if (largest <= std::numeric_limits<int32_t>::max()) return;
  std::vector<int64_t> levels(static_cast<size_t>(count));
  for (int64_t k = 0; k < count; ++k) levels[k] = grades[rows[k]];
  std::sort(levels.begin(), levels.end());
  for (int64_t k = 0; k < count; ++k) {
    const auto level = std::lower_bound(levels.begin(), levels.end(), grades[rows[k]]);
    found[k] = static_cast<int32_t>(level - levels.begin());
  }
}

// Both ends only move forward, so one pass gives the ranges of all events of a user.
template <class A>
void put_windows(TimeOrder<A>& order, int64_t to, int64_t count, const int64_t* times, int64_t window) {
  const int32_t* rows = order.rows.data() + to;
  const auto near = [&](int64_t earlier, int64_t later) {
    const uint64_t apart =
        static_cast<uint64_t>(times[rows[later]]) - static_cast<uint64_t>(times[rows[earlier]]);
    return apart <= static_cast<uint64_t>(window);
  };
  int64_t begin = 0, end = 0;
  for (int64_t k = 0; k < count; ++k) {
    while (!near(begin, k)) ++begin;
    while (end < count && near(k, end)) ++end;
    order.begin[to + k] = static_cast<int32_t>(to + begin);
    order.end[to + k] = static_cast<int32_t>(to + end);
  }
}

}  // namespace argus::pairwise_loss
