// Where each event's gradient goes, for a gathered table. The gradient of a row that was read once is written
// to the result, or applied to the table, directly: no other event reads that row. Those of a row that was
// read more often are stored side by side and summed later, in order.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <type_traits>
#include <vector>

#include "common/cpu/element.h"
#include "triple_embedding/triple_embedding.h"

namespace argus::triple_embedding {

constexpr int64_t kNowhere = std::numeric_limits<int64_t>::min();

template <class A>
class Destinations {
 public:
  Destinations() = default;

  // `entries` is the number of events times the number of columns that read the table.
  Destinations(const RowGradients& rows, int64_t entries, int64_t width)
      : places_(static_cast<size_t>(entries), kNowhere) {
    const RowOrder& order = rows.order;
    int64_t waiting = 0;
    for (int64_t run = 0; run < order.runs(); ++run) {
      const int64_t to = rows.dense ? order.rows()[run] : run;
      const int64_t begin = order.begin(run), times = order.begin(run + 1) - begin;
      if (times == 1) {
        place(order.position(begin)) = to;
        continue;
      }
      repeated_.push_back({to, waiting, times});
      for (int64_t i = 0; i < times; ++i) place(order.position(begin + i)) = ~(waiting + i);
      waiting += times;
    }
    waiting_.reset(new A[static_cast<size_t>(waiting * width)]);
  }

  // A row of values that are read more than once: its gradients are stored at [first, first + times).
  struct Repeated {
    int64_t to, first, times;
  };
  const std::vector<Repeated>& repeated() const { return repeated_; }

  // The destination of the entry at a position of the order: a row of the values, ~ a stored row, or
  // kNowhere.
  const int64_t* places() const { return places_.data(); }
  A* waiting() const { return waiting_.get(); }

 private:
  int64_t& place(int64_t position) { return places_[static_cast<size_t>(position)]; }

  std::vector<int64_t> places_;
  std::vector<Repeated> repeated_;
  std::unique_ptr<A[]> waiting_;
};

// The gradients' destination: rows of a gradient, or of a table that is updated by them.
template <class A, class Stored>
struct RowSink {
  explicit RowSink(const RowGradients& rows, int64_t row_width)
      : values(static_cast<Stored*>(rows.values)),
        states(static_cast<A*>(rows.state)),
        width(row_width),
        settings(rows.settings) {}

  ARGUS_INLINE void prefetch(int64_t row) const {
    constexpr int64_t kLine = 64 / sizeof(Stored);
    const Stored* next = values + row * width;
    for (int64_t j = 0; j < width; j += kLine) __builtin_prefetch(next + j, 1);
    if (states != nullptr) __builtin_prefetch(states + row, 1);
  }

  // `gradient` is scratch afterwards.
  ARGUS_INLINE void put(int64_t row, A* gradient) const {
    Stored* to = values + row * width;
    if (states == nullptr) {
      for (int64_t j = 0; j < width; ++j) store(to[j], gradient[j]);
      return;
    }
    if constexpr (!std::is_same_v<A, Stored>) {
      for (int64_t j = 0; j < width; ++j) {
        Stored rounded;
        store(rounded, gradient[j]);
        gradient[j] = load(rounded);
      }
    }
    row_adagrad::update_row(settings, gradient, width, to, states + row);
  }

  Stored* values;
  A* states;
  int64_t width;
  row_adagrad::Settings settings;
};

// Puts the gradients of `count` events of one column, from_stride apart, in their places; prefetches
// places[count, known).
template <class A, class Stored>
ARGUS_INLINE void scatter_rows(A* from, int64_t from_stride, const int64_t* places, int64_t count,
                               int64_t known, const RowSink<A, Stored>* sink, A* waiting) {
  constexpr int64_t kAhead = 12;
  const RowSink<A, Stored> to = *sink;
  for (int64_t i = 0; i < count; ++i, from += from_stride) {
    if (i + kAhead < known && places[i + kAhead] >= 0) to.prefetch(places[i + kAhead]);
    const int64_t place = places[i];
    if (place >= 0) {
      to.put(place, from);
    } else if (place != kNowhere) {
      for (int64_t j = 0; j < to.width; ++j) waiting[~place * to.width + j] = from[j];
    }
  }
}

// Sums the stored rows [0, times) in order and puts the sum into row `to`; `sum` is scratch for one row.
template <class A, class Stored>
ARGUS_INLINE void sum_waiting(const A* waiting, int64_t times, A* sum, const RowSink<A, Stored>* sink,
                              int64_t to) {
  const int64_t width = sink->width;
  for (int64_t j = 0; j < width; ++j) sum[j] = waiting[j];
  for (int64_t i = 1; i < times; ++i) {
    for (int64_t j = 0; j < width; ++j) sum[j] += waiting[i * width + j];
  }
  sink->put(to, sum);
}

// Puts rows of `gradients`, whose row r belongs to the table's row r, into the rows of the order.
template <class A, class Stored>
ARGUS_INLINE void put_runs(const RowOrder* order, bool dense, A* gradients, const RowSink<A, Stored>* sink) {
  for (int64_t run = 0; run < order->runs(); ++run) {
    const int64_t row = order->rows()[run];
    sink->put(dense ? row : run, gradients + row * sink->width);
  }
}

}  // namespace argus::triple_embedding
