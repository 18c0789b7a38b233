// The pairwise loss on the CPU: sixteen neighbouring events at a time, one per lane, loop over the range that
// holds the partners of all of them; each lane masks events that are not its partners. A lane sums for its
// own event, so the gradient needs no sum across lanes and no event writes to another's gradient.
//
// Σ log(1 + e) needs no logarithm per pair: Π (1 + e) − 1 = p is kept, p ← p + e + p·e, which keeps the
// relative accuracy of log(1 + p) however small the terms are. A factor is at most 2, so 60 steps of 16 lanes
// stay below 2⁹⁶⁰ and one double logarithm serves 960 pairs.
#include <algorithm>
#include <cmath>

#include "common/cpu/lanes.h"
#include "common/cpu/simd.h"
#include "pairwise_loss/pairwise_loss.h"

namespace argus::pairwise_loss {
namespace {

constexpr int32_t kSteps = 60;

using Integers = Lanes<int32_t>;

// The sixteen events of one chunk, one per lane.
template <class A>
struct Chunk {
  Lanes<A> scores;
  Integers grades, begin, end;
  int32_t first, last;  // the range that holds every lane's partners

  // Both events of a pair are each other's partners; with `later_only` only the later one is the earlier
  // one's.
  ARGUS_INLINE Chunk(const TimeOrder<A>& events, int64_t base, bool later_only) {
    int32_t after[kLanes];
    for (int64_t lane = 0; lane < kLanes; ++lane) after[lane] = static_cast<int32_t>(base + lane + 1);
    scores = Lanes<A>::load(events.scores.data() + base);
    grades = Integers::load(events.grades.data() + base);
    begin = Integers::load(later_only ? after : events.begin.data() + base);
    end = Integers::load(events.end.data() + base);
    first = later_only ? after[0] : events.begin[base];
    last = 0;
    for (int64_t lane = 0; lane < kLanes; ++lane) last = std::max(last, events.end[base + lane]);
  }

  // 1 for the lanes whose event makes a pair with event `other` of the given grade.
  ARGUS_INLINE Integers pairs_with(int32_t other, int32_t grade) const {
    return map_lanes<int32_t>(
        [=](int32_t own, int32_t from, int32_t to)
            ARGUS_INLINE_LAMBDA { return (other >= from) & (other < to) & (own != grade); },
        grades, begin, end);
  }
};

// The pairs of a chunk with up to kSteps other events.
template <class A>
struct LaneSums {
  Lanes<A> product = zero_lanes<A>(), linear = zero_lanes<A>();
  Integers pairs = zero_lanes<int32_t>(), concordant = zero_lanes<int32_t>();

  ARGUS_INLINE void add(const Chunk<A>& chunk, int32_t other, A score, int32_t grade) {
    const Integers pair = chunk.pairs_with(other, grade);
    const Lanes<A> margin = map_lanes<A>(
        [=](A own_score, int32_t own_grade) ARGUS_INLINE_LAMBDA {
          const A difference = score - own_score;
          return grade > own_grade ? difference : -difference;
        },
        chunk.scores, chunk.grades);
    const Lanes<A> decay =
        map_lanes<A>([](A m) ARGUS_INLINE_LAMBDA { return fast_exp(-std::fabs(m)); }, margin);
    const Lanes<A> e =
        map_lanes<A>([](int32_t p, A x) ARGUS_INLINE_LAMBDA { return p != 0 ? x : A{0}; }, pair, decay);
    product = map_lanes<A>([](A p, A x) ARGUS_INLINE_LAMBDA { return fma(p, x, p + x); }, product, e);
    const Lanes<A> shortfall =
        map_lanes<A>([](A m) ARGUS_INLINE_LAMBDA { return m > A{0} ? A{0} : -m; }, margin);
    linear = map_lanes<A>([](A sum, int32_t p, A x) ARGUS_INLINE_LAMBDA { return sum + (p != 0 ? x : A{0}); },
                          linear, pair, shortfall);
    pairs = map_lanes<int32_t>([](int32_t n, int32_t p) ARGUS_INLINE_LAMBDA { return n + p; }, pairs, pair);
    concordant = map_lanes<int32_t>([](int32_t n, int32_t p, A m)
                                        ARGUS_INLINE_LAMBDA { return n + (m > A{0} ? p : 0); },
                                    concordant, pair, margin);
  }

  ARGUS_INLINE void add_to(Totals& totals) const {
    A p[kLanes], l[kLanes];
    product.store(p);
    linear.store(l);
    double product_of_lanes = 0.0, sum = 0.0;
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const double factor = static_cast<double>(p[lane]);
      product_of_lanes += factor + product_of_lanes * factor;
      sum += static_cast<double>(l[lane]);
    }
    totals.loss += sum + std::log1p(product_of_lanes);
    totals.pairs += sum_of_lanes(pairs);
    totals.concordant += sum_of_lanes(concordant);
  }
};

template <class A>
ARGUS_INLINE void forward_chunk(const TimeOrder<A>& events, int64_t base, Totals& totals) {
  const Chunk<A> chunk(events, base, true);
  const A* scores = events.scores.data();
  const int32_t* grades = events.grades.data();
  for (int32_t from = chunk.first; from < chunk.last;) {
    const int32_t to = chunk.last - from > kSteps ? from + kSteps : chunk.last;
    LaneSums<A> sums;
    for (int32_t other = from; other < to; ++other) sums.add(chunk, other, scores[other], grades[other]);
    sums.add_to(totals);
    from = to;
  }
}

// ∂/∂s of each lane's event: −σ(s_other − s) if it is the better one, +σ(s − s_other) if it is the worse.
template <class A>
ARGUS_INLINE Lanes<A> with_gradient(Lanes<A> sums, const Chunk<A>& chunk, int32_t other, A score,
                                    int32_t grade) {
  const Integers pair = chunk.pairs_with(other, grade);
  const Lanes<A> x = map_lanes<A>(
      [=](A own_score, int32_t own_grade) ARGUS_INLINE_LAMBDA {
        const A difference = score - own_score;
        return own_grade > grade ? difference : -difference;
      },
      chunk.scores, chunk.grades);
  const Lanes<A> e = map_lanes<A>([](A d) ARGUS_INLINE_LAMBDA { return fast_exp(-std::fabs(d)); }, x);
  const Lanes<A> share = map_lanes<A>(
      [](A d, A decay) ARGUS_INLINE_LAMBDA { return (d > A{0} ? A{1} : decay) / (A{1} + decay); }, x, e);
  const Lanes<A> gradient =
      map_lanes<A>([=](A s, int32_t own_grade) ARGUS_INLINE_LAMBDA { return own_grade > grade ? -s : s; },
                   share, chunk.grades);
  return map_lanes<A>([](A sum, int32_t p, A s) ARGUS_INLINE_LAMBDA { return sum + (p != 0 ? s : A{0}); },
                      sums, pair, gradient);
}

template <class A>
ARGUS_INLINE void backward_chunk(const TimeOrder<A>& events, int64_t base, A* gradients) {
  const Chunk<A> chunk(events, base, false);
  const A* scores = events.scores.data();
  const int32_t* grades = events.grades.data();
  double totals[kLanes] = {};
  for (int32_t from = chunk.first; from < chunk.last;) {
    const int32_t to = chunk.last - from > kSteps ? from + kSteps : chunk.last;
    Lanes<A> sums = zero_lanes<A>();
    for (int32_t other = from; other < to; ++other)
      sums = with_gradient(sums, chunk, other, scores[other], grades[other]);
    A lane_sums[kLanes];
    sums.store(lane_sums);
    for (int64_t lane = 0; lane < kLanes; ++lane) totals[lane] += static_cast<double>(lane_sums[lane]);
    from = to;
  }
  for (int64_t lane = 0; lane < kLanes; ++lane) gradients[base + lane] = static_cast<A>(totals[lane]);
}

template <class A>
ARGUS_INLINE void forward_parts(const TimeOrder<A>& events, int64_t first, int64_t last, Totals* parts) {
  for (int64_t part = first; part < last; ++part) {
    const int64_t end = std::min(events.padded_count(), (part + 1) * kPart);
    Totals totals;
    for (int64_t base = part * kPart; base < end; base += kLanes) forward_chunk(events, base, totals);
    parts[part] = totals;
  }
}

template <class A>
ARGUS_INLINE void backward_parts(const TimeOrder<A>& events, int64_t first, int64_t last, A* gradients) {
  const int64_t end = std::min(events.padded_count(), last * kPart);
  for (int64_t base = first * kPart; base < end; base += kLanes) backward_chunk(events, base, gradients);
}

}  // namespace

template <class A>
void forward_cpu(const TimeOrder<A>& events, int64_t first, int64_t last, Totals* parts) {
  ForEachIsa<&forward_parts<A>>::template call<const TimeOrder<A>&>(events, first, last, parts);
}

template <class A>
void backward_cpu(const TimeOrder<A>& events, int64_t first, int64_t last, A* gradients) {
  ForEachIsa<&backward_parts<A>>::template call<const TimeOrder<A>&>(events, first, last, gradients);
}

template void forward_cpu<float>(const TimeOrder<float>&, int64_t, int64_t, Totals*);
template void forward_cpu<double>(const TimeOrder<double>&, int64_t, int64_t, Totals*);
template void backward_cpu<float>(const TimeOrder<float>&, int64_t, int64_t, float*);
template void backward_cpu<double>(const TimeOrder<double>&, int64_t, int64_t, double*);

}  // namespace argus::pairwise_loss
