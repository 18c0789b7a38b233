// Count-min sketch. The table is larger than the caches, so the counters of a block of ids are fetched ahead
// of the updates, which must run one after the other.
#include "host/sketch.h"

#include <algorithm>
#include <limits>

#include "host/hash.h"
#include "host/parallel.h"

namespace argus::host {
namespace {

constexpr int64_t kBlock = 32;
constexpr int64_t kGrain = 1 << 16;

struct Block {
  double* counters[kBlock][kMaxDepth];
};

void locate(const Sketch& sketch, const int64_t* ids, int64_t size, Block& block) {
  const uint64_t width = static_cast<uint64_t>(sketch.width);
  for (int64_t i = 0; i < size; ++i) {
    for (int64_t k = 0; k < sketch.depth; ++k) {
      double* counter = sketch.table + k * sketch.width + slot_of(ids[i], sketch.keys[k], width);
      block.counters[i][k] = counter;
      __builtin_prefetch(counter, 1);
    }
  }
}

double smallest(double* const* counters, int64_t depth) {
  double least = std::numeric_limits<double>::infinity();
  for (int64_t k = 0; k < depth; ++k) least = std::min(least, *counters[k]);
  return least;
}

// Visits every id with its counters; block n + 1 is prefetched while block n is processed.
template <class Visit>
void visit_counters(const Sketch& sketch, const int64_t* ids, int64_t count, Visit&& visit) {
  Block blocks[2];
  locate(sketch, ids, std::min(kBlock, count), blocks[0]);
  int current = 0;
  for (int64_t begin = 0; begin < count; begin += kBlock, current ^= 1) {
    const int64_t next = begin + kBlock;
    if (next < count) locate(sketch, ids + next, std::min(kBlock, count - next), blocks[current ^ 1]);
    const int64_t size = std::min(kBlock, count - begin);
    for (int64_t i = 0; i < size; ++i) visit(begin + i, blocks[current].counters[i]);
  }
}

}  // namespace

double sketch_update(const Sketch& sketch, const int64_t* ids, const double* weights, int64_t count,
                     double total) {
  visit_counters(sketch, ids, count, [&](int64_t i, double* const* counters) {
    if (ids[i] < 0) return;
    const double weight = weights != nullptr ? weights[i] : 1.0;
    const double raised = smallest(counters, sketch.depth) + weight;
    for (int64_t k = 0; k < sketch.depth; ++k) *counters[k] = std::max(*counters[k], raised);
    total += weight;
  });
  return total;
}

void sketch_estimate(const Sketch& sketch, const int64_t* ids, int64_t count, double* out) {
  parallel_for(count, kGrain, [=](int64_t first, int64_t last) {
    visit_counters(sketch, ids + first, last - first, [&](int64_t i, double* const* counters) {
      out[first + i] = ids[first + i] < 0 ? 0.0 : smallest(counters, sketch.depth);
    });
  });
}

}  // namespace argus::host
