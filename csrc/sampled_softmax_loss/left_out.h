// Which candidates a row leaves out: accidental hits, and those of the row's own owner. They are few, so they
// are looked up in sorted lists and masked in a tile of scores, instead of comparing every pair of ids.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <limits>
#include <utility>
#include <vector>

#include "sampled_softmax_loss/sampled_softmax_loss.h"

namespace argus::sampled_softmax_loss {

// Positions [next, end) in a list of candidates, ascending.
struct Positions {
  const int64_t* next = nullptr;
  const int64_t* end = nullptr;
  int64_t size() const { return end - next; }
};

// Candidates in the order of a key, equal keys in the order of their positions.
class KeyOrder {
 public:
  KeyOrder(const int64_t* keys, int64_t count, int64_t smallest) {
    std::vector<std::pair<int64_t, int64_t>> pairs;
    pairs.reserve(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) {
      if (keys[i] >= smallest) pairs.emplace_back(keys[i], i);
    }
    std::sort(pairs.begin(), pairs.end());
    for (const auto& [key, position] : pairs) {
      keys_.push_back(key);
      positions_.push_back(position);
    }
  }

  Positions of(int64_t key) const {
    const auto [first, last] = std::equal_range(keys_.begin(), keys_.end(), key);
    const int64_t* base = positions_.data();
    return {base + (first - keys_.begin()), base + (last - keys_.begin())};
  }

 private:
  std::vector<int64_t> keys_, positions_;
};

// The candidates that one row leaves out; `cross_out` is called for blocks of candidates from left to right.
class RowLeftOut {
 public:
  RowLeftOut(Positions hits, Positions own, int64_t first) : lists_{hits, own} {
    for (Positions& list : lists_) list.next = std::lower_bound(list.next, list.end, first);
  }

  template <class A>
  void cross_out(A* scores, int64_t first, int64_t last) {
    for (Positions& list : lists_) {
      for (; list.next < list.end && *list.next < last; ++list.next)
        scores[*list.next - first] = -std::numeric_limits<A>::infinity();
    }
  }

 private:
  Positions lists_[2];
};

class LeftOut {
 public:
  explicit LeftOut(const Inputs& inputs)
      : inputs_(inputs),
        by_id_(inputs.candidate_ids, inputs.drawn, std::numeric_limits<int64_t>::min()),
        by_owner_(inputs.candidate_owner, inputs.candidate_owner == nullptr ? 0 : inputs.drawn, 0) {}

  // From candidate `first` on.
  RowLeftOut of_row(int64_t row, int64_t first) const { return {hits(row), own(row), first}; }

  // The number of candidates that remain.
  int64_t count_kept(int64_t row) const {
    const Positions a = hits(row), b = own(row);
    if (a.size() == 0 || b.size() == 0) return inputs_.drawn - a.size() - b.size();
    std::vector<int64_t> both;
    std::set_intersection(a.next, a.end, b.next, b.end, std::back_inserter(both));
    return inputs_.drawn - a.size() - b.size() + static_cast<int64_t>(both.size());
  }

 private:
  Positions hits(int64_t row) const { return by_id_.of(inputs_.positive_ids[row]); }
  Positions own(int64_t row) const {
    return inputs_.query_owner == nullptr ? Positions{} : by_owner_.of(inputs_.query_owner[row]);
  }

  const Inputs& inputs_;
  KeyOrder by_id_, by_owner_;
};

}  // namespace argus::sampled_softmax_loss
