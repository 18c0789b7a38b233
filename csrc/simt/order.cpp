#include "simt/order.h"

#include <algorithm>
#include <utility>

namespace argus::simt {
namespace {

void raise(Clock& clock, size_t entry, uint32_t value) {
  if (entry >= clock.size()) clock.resize(entry + 1);
  clock[entry] = std::max(clock[entry], value);
}

void join_clock(Clock& into, const Clock& from) {
  if (into.size() < from.size()) into.resize(from.size());
  for (size_t i = 0; i < from.size(); ++i) into[i] = std::max(into[i], from[i]);
}

Clock meet_clock(const Clock& a, const Clock& b) {
  Clock common(std::min(a.size(), b.size()));
  for (size_t i = 0; i < common.size(); ++i) common[i] = std::min(a[i], b[i]);
  return common;
}

}  // namespace

void join(View& into, const View& from) {
  join_clock(into.seen, from.seen);
  join_clock(into.fenced, from.fenced);
  join_clock(into.fenced_global, from.fenced_global);
}

View meet(const View& a, const View& b) {
  return {meet_clock(a.seen, b.seen), meet_clock(a.fenced, b.fenced),
          meet_clock(a.fenced_global, b.fenced_global)};
}

Order running_order;

void Order::begin_block(int threads) {
  ++block_;
  epoch_ = 0;
  threads_ = threads;
  wide_ = false;
  lanes_.assign(threads, {});
  for (int thread = 0; thread < threads; ++thread) lanes_[thread][thread % kLanes] = 1;
  at_barrier_.assign(threads, 0);
  workers_.clear();
  acquirers_.clear();
}

bool Order::before_in_wide(const Touch& touch, int thread) const {
  const Clock& seen = views_[thread].seen;
  if (touch.by_worker()) return clock_at(seen, entry(touch.thread - kMaxThreads)) >= touch.clock;
  return touch.thread == thread || touch.epoch < epoch_ || clock_at(seen, touch.thread) >= touch.clock;
}

bool Order::before(const Touch& touch, const View& view) const {
  if (outside(touch)) return true;
  if (touch.block != block_) return before_elsewhere(touch, view);
  if (touch.by_worker()) return has(view, touch.thread - kMaxThreads, touch.clock);
  return touch.epoch < epoch_ || clock_at(view.seen, touch.thread) >= touch.clock;
}

bool Order::fenced(const Touch& touch, const View& view, bool shared) const {
  if (outside(touch) || touch.by_worker()) return true;
  if (touch.block != block_) return fenced_elsewhere(touch, view);
  return clock_at(shared ? view.fenced : view.fenced_global, touch.thread) >= touch.clock;
}

void Order::order_block() {
  ++epoch_;
  View joined;
  if (wide_) {
    for (const View& view : views_) join(joined, view);
    for (View& view : views_) view = joined;
  }
  for (int thread = 0; thread < threads_; ++thread) {
    at_barrier_[thread] = now(thread, Kind::read).clock;
    ++(wide_ ? views_[thread].seen[thread] : lanes_[thread][thread % kLanes]);
  }
}

void Order::order_lanes(int first_thread, unsigned mask) {
  std::array<uint32_t, kLanes> joined{};
  View joined_view;
  for (int lane = 0; lane < kLanes; ++lane) {
    if ((mask >> lane & 1u) == 0) continue;
    if (wide_) {
      join(joined_view, views_[first_thread + lane]);
      continue;
    }
    for (int other = 0; other < kLanes; ++other)
      joined[other] = std::max(joined[other], lanes_[first_thread + lane][other]);
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    if ((mask >> lane & 1u) == 0) continue;
    if (wide_) {
      views_[first_thread + lane] = joined_view;
      ++views_[first_thread + lane].seen[first_thread + lane];
    } else {
      lanes_[first_thread + lane] = joined;
      ++lanes_[first_thread + lane][lane];
    }
  }
}

void Order::widen() {
  if (wide_) return;
  views_.assign(threads_, {});
  for (int thread = 0; thread < threads_; ++thread) {
    Clock& seen = views_[thread].seen;
    seen = at_barrier_;
    const int first = thread / kLanes * kLanes;
    for (int lane = 0; lane < kLanes && first + lane < threads_; ++lane)
      raise(seen, static_cast<size_t>(first + lane), lanes_[thread][lane]);
  }
  wide_ = true;
}

View Order::release(int thread) {
  View released = views_[thread];
  ++views_[thread].seen[thread];
  return released;
}

void Order::fence_proxy(int thread, bool shared) {
  widen();
  (shared ? views_[thread].fenced : views_[thread].fenced_global) = views_[thread].seen;
  ++views_[thread].seen[thread];
}

int Order::add_worker(std::string work) {
  if (workers_.size() + kMaxThreads > 0xffff) fault("more than 64 thousand mbarriers and groups of copies");
  workers_.push_back(std::move(work));
  return static_cast<int>(workers_.size()) - 1;
}

std::string Order::work_of(const Touch& touch) const {
  return touch.block == block_ ? workers_[touch.thread - kMaxThreads] : "a TMA or bulk copy of another block";
}

Touch Order::worker_touch(int worker, uint32_t clock, Kind kind) const {
  return {block_, epoch_, clock, static_cast<uint16_t>(kMaxThreads + worker), kind};
}

void Order::observe(int thread, int worker, uint32_t clock) {
  add_to(views_[thread], worker, clock);
}

void Order::add_to(View& view, int worker, uint32_t clock) const {
  raise(view.seen, entry(worker), clock);
}

bool Order::has(const View& view, int worker, uint32_t clock) const {
  return clock_at(view.seen, entry(worker)) >= clock;
}

}  // namespace argus::simt
