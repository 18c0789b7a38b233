// Packs the windows of users' histories into batches under a token budget, and gathers their columns.
#pragma once

#include <cstdint>
#include <vector>

namespace argus::host {

struct PackOptions {
  int64_t token_budget;
  int64_t window;
  int64_t stride;
  int64_t max_users;  // entries in a batch
  int64_t min_events;
  bool last_only;
};

struct Plan {
  std::vector<int64_t> batch_offsets;                  // [batches + 1] into the entries
  std::vector<int64_t> users, starts, ends, contexts;  // each has one element per entry
};

// The total number of windows of the users' histories; int64's maximum if there are more.
int64_t count_windows(const int64_t* offsets, const int64_t* order, int64_t order_count,
                      const PackOptions& options);

// The most entries of one plan: 2^28, or as many as fit in half of this machine's memory.
int64_t most_windows();

// `offsets` [users + 1]: rows of each user; `order` [order_count]: the users to take, in that order.
Plan plan_batches(const int64_t* offsets, const int64_t* order, int64_t order_count,
                  const PackOptions& options);

// Copies rows starts[e] … ends[e] − 1 of `column`, `row_bytes` each, one entry after the other, to `out`.
void gather_rows(const char* column, int64_t row_bytes, const int64_t* starts, const int64_t* ends,
                 int64_t entries, char* out);

}  // namespace argus::host
