// The given rows in ascending order, equal rows in the order given, and where each run of equal rows begins.
// Skipped rows come first and belong to no run.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <numeric>
#include <vector>

#include "rowwise_adagrad/rowwise_adagrad.h"

namespace argus::rowwise_adagrad {

class RowOrder {
 public:
  RowOrder(const int64_t* rows, int64_t count, int64_t table_rows)
      : rows_(rows, rows + count), order_(count) {
    std::iota(order_.begin(), order_.end(), int64_t{0});
    if (!std::is_sorted(rows_.begin(), rows_.end())) sort(table_rows);
    for (int64_t i = 0; i < count; ++i) {
      if (rows_[i] != kSkipped && (i == 0 || rows_[i] != rows_[i - 1])) runs_.push_back(i);
    }
    runs_.push_back(count);
  }

  const int64_t* rows() const { return rows_.data(); }
  const int64_t* order() const { return order_.data(); }
  // Starts of the runs, then the count; the rows before the first start are skipped.
  const std::vector<int64_t>& runs() const { return runs_; }

 private:
  static constexpr int kDigitBits = 11;
  static constexpr int64_t kBuckets = int64_t{1} << kDigitBits;

  // Counted from the skipped row, so that no key is negative.
  static int64_t digit(int64_t row, int shift) { return ((row - kSkipped) >> shift) & (kBuckets - 1); }

  // Least significant digit first: stable, and 3 passes order any table of up to 8 billion rows.
  void sort(int64_t table_rows) {
    std::vector<int64_t> next_rows(rows_.size()), next_order(rows_.size());
    for (int shift = 0; shift < 63 && (table_rows >> shift) > 0; shift += kDigitBits) {
      std::array<int64_t, kBuckets + 1> start{};
      for (const int64_t row : rows_) ++start[digit(row, shift) + 1];
      std::partial_sum(start.begin(), start.end(), start.begin());
      for (size_t i = 0; i < rows_.size(); ++i) {
        const int64_t to = start[digit(rows_[i], shift)]++;
        next_rows[to] = rows_[i];
        next_order[to] = order_[i];
      }
      rows_.swap(next_rows);
      order_.swap(next_order);
    }
  }

  std::vector<int64_t> rows_, order_, runs_;
};

}  // namespace argus::rowwise_adagrad
