// Pairwise ranking loss over the events of one user that lie near in time.
//
//   loss       = Σ −log σ(s_a − s_b)   over pairs (a, b): grade_a > grade_b ≥ 0, |t_a − t_b| ≤ window
//   pairs      = their number
//   concordant = how many of them have s_a > s_b
//
// In the order of time the partners of an event are a contiguous range of rows, so no list of pairs is
// needed.
#pragma once

#include <cstdint>

#include "pairwise_loss/time_order.h"

namespace argus::pairwise_loss {

struct Totals {
  double loss = 0.0;
  int64_t pairs = 0;
  int64_t concordant = 0;
};

// Each partial result covers this many consecutive events, whatever the number of threads.
constexpr int64_t kPart = 256;

inline int64_t part_count(int64_t padded_events) {
  return (padded_events + kPart - 1) / kPart;
}

// The totals of the pairs whose earlier event is in part [first, last).
template <class A>
void forward_cpu(const TimeOrder<A>& events, int64_t first, int64_t last, Totals* parts);

// gradients[k] = d loss / d score of the k-th event in the order of time, of part [first, last).
template <class A>
void backward_cpu(const TimeOrder<A>& events, int64_t first, int64_t last, A* gradients);

}  // namespace argus::pairwise_loss
