// Count-min sketch with conservative update.
#pragma once

#include <cstdint>

namespace argus::host {

struct Sketch {
  double* table;         // [depth, width]
  const uint64_t* keys;  // [depth]
  int64_t depth;
  int64_t width;
};

constexpr int64_t kMaxDepth = 32;

// Counts ids one after the other: e = min over k of table[k, slot k], then table[k, slot k] = max(itself, e +
// w). Negative ids are skipped. Returns total plus the counted weights, added in order; null weights mean 1
// each.
double sketch_update(const Sketch& sketch, const int64_t* ids, const double* weights, int64_t count,
                     double total);

// out[i] = min over k of table[k, slot k of ids[i]], 0 for a negative id.
void sketch_estimate(const Sketch& sketch, const int64_t* ids, int64_t count, double* out);

}  // namespace argus::host
