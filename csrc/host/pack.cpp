// Batch packing: windows of one user from the oldest to the newest, users in the order given; a batch is
// closed when the next window would exceed its token budget or its number of entries.
#include "host/pack.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <limits>

namespace argus::host {
namespace {

// Windows of a history, which end at its last event and every `stride` events before it, until one reaches
// the first event.
int64_t windows_of(int64_t length, const PackOptions& options) {
  if (length < options.min_events || length == 0) return 0;
  if (options.last_only || length <= options.window) return 1;
  return (length - options.window - 1) / options.stride + 2;
}

class Packer {
 public:
  Packer(const PackOptions& options, int64_t windows) : options_(options) {
    // Reserved at full size: growth by doubling would take twice the memory.
    for (auto* list : {&plan_.users, &plan_.starts, &plan_.ends, &plan_.contexts})
      list->reserve(static_cast<size_t>(windows));
  }

  void add_user(int64_t user, int64_t first_row, int64_t length) {
    int64_t previous_end = 0;
    for (int64_t step = windows_of(length, options_) - 1; step >= 0; --step) {
      const int64_t end = length - step * options_.stride;
      const int64_t start = std::max<int64_t>(0, end - options_.window);
      add_entry(user, first_row + start, first_row + end, std::max<int64_t>(0, previous_end - start));
      previous_end = end;
    }
  }

  Plan finish() {
    if (plan_.batch_offsets.back() != entries()) plan_.batch_offsets.push_back(entries());
    return std::move(plan_);
  }

 private:
  int64_t entries() const { return static_cast<int64_t>(plan_.users.size()); }

  void add_entry(int64_t user, int64_t start, int64_t end, int64_t context) {
    const bool full = end - start > options_.token_budget - tokens_ ||
                      entries() - plan_.batch_offsets.back() == options_.max_users;
    if (full) {
      plan_.batch_offsets.push_back(entries());
      tokens_ = 0;
    }
    tokens_ += end - start;
    plan_.users.push_back(user);
    plan_.starts.push_back(start);
    plan_.ends.push_back(end);
    plan_.contexts.push_back(context);
  }

  PackOptions options_;
  Plan plan_{.batch_offsets = {0}, .users = {}, .starts = {}, .ends = {}, .contexts = {}};
  int64_t tokens_ = 0;
};

}  // namespace

int64_t count_windows(const int64_t* offsets, const int64_t* order, int64_t order_count,
                      const PackOptions& options) {
  int64_t count = 0;
  for (int64_t i = 0; i < order_count; ++i) {
    const int64_t length = offsets[order[i] + 1] - offsets[order[i]];
    if (__builtin_add_overflow(count, windows_of(length, options), &count))
      return std::numeric_limits<int64_t>::max();
  }
  return count;
}

int64_t most_windows() {
  // Four numbers per entry, one per batch, and as much again for the caller's copies.
  constexpr int64_t kWindowBytes = 64, kMax = int64_t{1} << 28;
  const int64_t fitting =
      static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) / 2 * (sysconf(_SC_PAGE_SIZE) / kWindowBytes);
  return std::min(kMax, fitting);
}

Plan plan_batches(const int64_t* offsets, const int64_t* order, int64_t order_count,
                  const PackOptions& options) {
  Packer packer(options, count_windows(offsets, order, order_count, options));
  for (int64_t i = 0; i < order_count; ++i) {
    const int64_t user = order[i];
    packer.add_user(user, offsets[user], offsets[user + 1] - offsets[user]);
  }
  return packer.finish();
}

void gather_rows(const char* column, int64_t row_bytes, const int64_t* starts, const int64_t* ends,
                 int64_t entries, char* out) {
  for (int64_t entry = 0; entry < entries; ++entry) {
    const int64_t bytes = (ends[entry] - starts[entry]) * row_bytes;
    // With no bytes the pointers may be null, which memcpy does not allow.
    if (bytes == 0) continue;
    std::memcpy(out, column + starts[entry] * row_bytes, static_cast<size_t>(bytes));
    out += bytes;
  }
}

}  // namespace argus::host
