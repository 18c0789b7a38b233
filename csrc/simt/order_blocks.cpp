// The order of blocks of one launch that take turns: what a thread of an earlier block released is known to a
// thread of this block from its acquire on, and to all that synchronise with that thread afterwards.
//
// Each acquiring thread has a worker's entry in the clocks, which counts its acquires; so whoever has the
// entry has seen all that was known after so many of them. A later snapshot of a thread includes its earlier
// ones.
#include <algorithm>
#include <iterator>
#include <tuple>
#include <utility>

#include "simt/order.h"

namespace argus::simt {
namespace {

auto key(const KnownSnapshot& known) {
  return std::tuple(known.snapshot->block, known.snapshot->thread, known.fenced);
}

// Sorts them, and keeps the last one of each thread and kind.
void keep_last(Snapshots& known) {
  std::sort(known.begin(), known.end(), [](const KnownSnapshot& a, const KnownSnapshot& b) {
    return std::pair(key(a), b.snapshot->number) < std::pair(key(b), a.snapshot->number);
  });
  const auto same = [](const KnownSnapshot& a, const KnownSnapshot& b) { return key(a) == key(b); };
  known.erase(std::unique(known.begin(), known.end(), same), known.end());
}

struct Range {
  Snapshots::const_iterator first, last;
  auto begin() const { return first; }
  auto end() const { return last; }
};

Range of_block(const Snapshots& known, uint32_t block) {
  const auto number = [](const KnownSnapshot& one) { return one.snapshot->block; };
  const auto found = std::ranges::equal_range(known, block, {}, number);
  return {found.begin(), found.end()};
}

}  // namespace

const Snapshots& Order::known_at(const Acquirer& acquirer, const Clock& clock) const {
  static const Snapshots nothing;
  const uint32_t acquires = clock_at(clock, entry(acquirer.worker));
  return acquires == 0 ? nothing : acquirer.known[acquires - 1];
}

std::shared_ptr<const Snapshots> Order::release_to_blocks(int thread) {
  widen();
  const View& view = views_[thread];
  auto released = std::make_shared<Snapshots>();
  for (const Acquirer& acquirer : acquirers_) {
    const Snapshots& seen = known_at(acquirer, view.seen);
    released->insert(released->end(), seen.begin(), seen.end());
    for (const KnownSnapshot& one : known_at(acquirer, view.fenced_global))
      released->push_back({one.snapshot, true});
  }
  released->push_back(
      {std::make_shared<Snapshot>(Snapshot{block_, ++releases_, thread, release(thread)}), false});
  keep_last(*released);
  return released;
}

void Order::acquire_from_blocks(int thread, const Snapshots& released) {
  widen();
  auto own = std::ranges::find(acquirers_, thread, &Acquirer::thread);
  if (own == acquirers_.end()) {
    const int worker = add_worker("the turns that thread " + thread_name(thread) + " waited for");
    own = acquirers_.insert(own, {thread, worker, {}});
  }
  Snapshots known = own->known.empty() ? Snapshots{} : own->known.back();
  for (const KnownSnapshot& one : released) {
    if (one.snapshot->block == block_) {
      acquire(thread, one.snapshot->view);
    } else {
      known.push_back(one);
    }
  }
  keep_last(known);
  own->known.push_back(std::move(known));
  observe(thread, own->worker, static_cast<uint32_t>(own->known.size()));
}

bool Order::knows_block(uint32_t block, const View& view) const {
  return std::ranges::any_of(acquirers_, [&](const Acquirer& acquirer) {
    const Range found = of_block(known_at(acquirer, view.seen), block);
    return found.begin() != found.end();
  });
}

bool Order::covers(const Snapshot& snapshot, const Touch& touch) const {
  const size_t by = touch.by_worker() ? entry(touch.thread - kMaxThreads) : touch.thread;
  return clock_at(snapshot.view.seen, by) >= touch.clock;
}

bool Order::before_elsewhere(const Touch& touch, const View& view) const {
  return std::ranges::any_of(acquirers_, [&](const Acquirer& acquirer) {
    const Range found = of_block(known_at(acquirer, view.seen), touch.block);
    return std::any_of(found.begin(), found.end(),
                       [&](const KnownSnapshot& known) { return covers(*known.snapshot, touch); });
  });
}

bool Order::fenced_elsewhere(const Touch& touch, const View& view) const {
  return std::ranges::any_of(acquirers_, [&](const Acquirer& acquirer) {
    const Range fenced = of_block(known_at(acquirer, view.fenced_global), touch.block);
    const Range seen = of_block(known_at(acquirer, view.seen), touch.block);
    const auto covered = [&](const KnownSnapshot& known) { return covers(*known.snapshot, touch); };
    const auto fenced_before = [&](const KnownSnapshot& known) {
      const Snapshot& snapshot = *known.snapshot;
      return (known.fenced && covers(snapshot, touch)) ||
             clock_at(snapshot.view.fenced_global, touch.thread) >= touch.clock;
    };
    return std::any_of(fenced.begin(), fenced.end(), covered) ||
           std::any_of(seen.begin(), seen.end(), fenced_before);
  });
}

}  // namespace argus::simt
