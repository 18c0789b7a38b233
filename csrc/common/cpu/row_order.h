// The rows of a table in ascending order, equal rows in the order given, by a radix sort on packed keys: the
// order in which the gradients of a row are summed, whatever the number of threads.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <span>
#include <vector>

#include "common/torch/fail.h"

namespace argus {

constexpr int64_t kSkippedRow = -1;

// `lists` are read one after the other; entry i of list l has the position l · list length + i. Skipped rows
// (-1) are left out; every other row must lie in [0, table_rows).
class RowOrder {
 public:
  RowOrder() = default;

  RowOrder(const char* op, std::span<const int64_t* const> lists, int64_t length, int64_t table_rows) {
    const int64_t most = static_cast<int64_t>(lists.size()) * length;
    position_bits_ = std::bit_width(static_cast<uint64_t>(most));
    const int row_bits = std::bit_width(static_cast<uint64_t>(std::max<int64_t>(table_rows - 1, 0)));
    if (row_bits + position_bits_ > 64)
      fail(op, "a table has ", table_rows, " rows for a list of ", most,
           ", expected that both numbers together take at most 64 bits");
    if (!pack(lists, length)) sort(row_bits);
    find_runs();
  }

  // Entries that are not skipped.
  int64_t count() const { return static_cast<int64_t>(keys_.size()); }
  // Rows that occur, each once.
  int64_t runs() const { return static_cast<int64_t>(rows_.size()); }
  // Their numbers, ascending.
  const int64_t* rows() const { return rows_.data(); }
  // Where the entries of run u begin; begin(runs()) is count().
  int64_t begin(int64_t run) const { return begins_[static_cast<size_t>(run)]; }
  // Input position of the i-th entry in this order.
  int64_t position(int64_t i) const {
    return static_cast<int64_t>(keys_[static_cast<size_t>(i)] & ((uint64_t{1} << position_bits_) - 1));
  }

 private:
  static constexpr int kDigitBits = 11;

  int64_t row(uint64_t key) const { return static_cast<int64_t>(key >> position_bits_); }

  // Whether the keys are already ascending.
  bool pack(std::span<const int64_t* const> lists, int64_t length) {
    keys_.reserve(lists.size() * static_cast<size_t>(length));
    bool ascending = true;
    uint64_t position = 0, last = 0;
    for (const int64_t* list : lists) {
      for (int64_t i = 0; i < length; ++i, ++position) {
        if (list[i] == kSkippedRow) continue;
        const uint64_t key = static_cast<uint64_t>(list[i]) << position_bits_ | position;
        ascending = ascending && last <= key;
        last = key;
        keys_.push_back(key);
      }
    }
    return ascending;
  }

  // Least significant digit first: the sort is stable and positions ascend at first, so only rows are sorted.
  void sort(int row_bits) {
    const int passes = (row_bits + kDigitBits - 1) / kDigitBits;
    std::vector<uint64_t> next(keys_.size());
    for (int pass = 0; pass < passes; ++pass) {
      const int digit_bits = (row_bits + passes - 1) / passes;
      const int shift = position_bits_ + pass * digit_bits;
      const uint64_t mask = (uint64_t{1} << digit_bits) - 1;
      std::vector<int64_t> start(mask + 2);
      for (const uint64_t key : keys_) ++start[(key >> shift & mask) + 1];
      for (size_t digit = 1; digit <= mask; ++digit) start[digit] += start[digit - 1];
      for (const uint64_t key : keys_) next[static_cast<size_t>(start[key >> shift & mask]++)] = key;
      keys_.swap(next);
    }
  }

  void find_runs() {
    rows_.reserve(keys_.size());
    begins_.reserve(keys_.size() + 1);
    for (size_t i = 0; i < keys_.size(); ++i) {
      const int64_t row_index = row(keys_[i]);
      if (!rows_.empty() && rows_.back() == row_index) continue;
      rows_.push_back(row_index);
      begins_.push_back(static_cast<int64_t>(i));
    }
    begins_.push_back(count());
  }

  int position_bits_ = 0;
  std::vector<uint64_t> keys_;
  std::vector<int64_t> rows_, begins_;
};

}  // namespace argus
