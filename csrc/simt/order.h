// Which accesses of device code happened before which.
//
// A __syncthreads orders the whole block: it begins a new epoch. Within an epoch every thread has a vector
// clock. At first it covers the lanes of its warp, which __syncwarp joins; from the first mbarrier, named
// barrier or wgmma of a block on it is wide, covers all threads, and is joined at those objects too.
//
// Work that goes on beside the threads (TMA copies, wgmma) belongs to workers, each with an entry of its own
// in the wide clocks: a thread has the entry from the moment on at which it, or one that it synchronised
// with, waited for the work. A second clock, `fenced`, holds what a fence.proxy.async has made visible to the
// async proxy; it is joined wherever the first is, so that the fence may stand anywhere on the way from the
// access to the asynchronous one, as the PTX manual's causality order has it. `fenced_global` is the same for
// fence.proxy.async.global and global memory.
//
// Blocks of a launch are ordered by turns only (turns.h): what a thread released with its turn becomes an
// entry in the clocks of the block that waited for it (order_blocks.cpp).
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "simt/executor.h"

namespace argus::simt {

// `add`: a write by a bulk add, which reads as well.
enum class Kind : uint8_t { read, write, atomic, add };

constexpr uint32_t kNoBlock = 0xffffffffu;

// When, and by which thread or worker, a byte was accessed. Blocks are numbered across launches.
struct Touch {
  uint32_t block = kNoBlock;
  uint32_t epoch = 0;   // block barriers passed
  uint32_t clock = 0;   // the thread's or worker's own clock
  uint16_t thread = 0;  // a worker's from kMaxThreads on
  Kind kind = Kind::read;

  bool by_worker() const { return thread >= kMaxThreads; }
};

// Entries by thread, then by worker; those past the end are 0.
using Clock = std::vector<uint32_t>;
inline uint32_t clock_at(const Clock& clock, size_t entry) {
  return entry < clock.size() ? clock[entry] : 0;
}

// What has happened before a point of the program, and what of it the async proxy may see, in shared and in
// global memory.
struct View {
  Clock seen, fenced, fenced_global;
};
void join(View& into, const View& from);
// What both have in common.
View meet(const View& a, const View& b);

// A thread's view at a moment when it released it to later blocks; `number` counts those of the launch.
struct Snapshot {
  uint32_t block, number;
  int thread;
  View view;
};
// A snapshot that is known, and whether a fence.proxy.async.global came after it was acquired.
struct KnownSnapshot {
  std::shared_ptr<const Snapshot> snapshot;
  bool fenced;
};
// The last one of each thread, fenced and not, sorted by block.
using Snapshots = std::vector<KnownSnapshot>;

class Order {
 public:
  void begin_launch() {
    launch_start_ = block_ + 1;
    releases_ = 0;
  }
  void begin_block(int threads);

  uint32_t block() const { return block_; }
  Touch now(int thread, Kind kind) const {
    const uint32_t clock = wide_ ? views_[thread].seen[thread] : lanes_[thread][thread % kLanes];
    return {block_, epoch_, clock, static_cast<uint16_t>(thread), kind};
  }
  bool before(const Touch& touch, int thread) const {
    if (outside(touch)) return true;
    if (touch.block != block_) return wide_ && before_elsewhere(touch, views_[thread]);
    if (wide_) return before_in_wide(touch, thread);
    if (touch.thread == thread || touch.epoch < epoch_) return true;
    return touch.thread / kLanes == thread / kLanes && touch.clock <= lanes_[thread][touch.thread % kLanes];
  }
  bool before(const Touch& touch, const View& view) const;
  // Whether a proxy fence for this memory stands between a thread's access and the view.
  bool fenced(const Touch& touch, const View& view, bool shared) const;

  void order_block();
  void order_lanes(int first_thread, unsigned mask);

  void widen();
  const View& view(int thread) const { return views_[thread]; }
  // The thread's view at a release; what it does afterwards is not in it.
  View release(int thread);
  void acquire(int thread, const View& view) { join(views_[thread], view); }
  void fence_proxy(int thread, bool shared);

  // Across blocks: all that the thread has seen, and to have seen it from now on.
  std::shared_ptr<const Snapshots> release_to_blocks(int thread);
  void acquire_from_blocks(int thread, const Snapshots& released);
  // Whether the view has acquired anything from the block.
  bool knows_block(uint32_t block, const View& view) const;

  // `work` is named in faults: "a TMA load that …".
  int add_worker(std::string work);
  std::string work_of(const Touch& touch) const;
  Touch worker_touch(int worker, uint32_t clock, Kind kind) const;
  void observe(int thread, int worker, uint32_t clock);
  void add_to(View& view, int worker, uint32_t clock) const;
  bool has(const View& view, int worker, uint32_t clock) const;

 private:
  size_t entry(int worker) const { return static_cast<size_t>(threads_ + worker); }
  // Whether it lies in an earlier launch.
  bool outside(const Touch& touch) const { return touch.block == kNoBlock || touch.block < launch_start_; }
  bool before_in_wide(const Touch& touch, int thread) const;
  bool covers(const Snapshot& snapshot, const Touch& touch) const;
  bool before_elsewhere(const Touch& touch, const View& view) const;
  bool fenced_elsewhere(const Touch& touch, const View& view) const;

  uint32_t block_ = 0, launch_start_ = 0, epoch_ = 0;
  int threads_ = 0;
  bool wide_ = false;
  std::vector<std::array<uint32_t, kLanes>> lanes_;
  std::vector<uint32_t> at_barrier_;  // each thread's clock when the last __syncthreads ended
  std::vector<View> views_;
  std::vector<std::string> workers_;

  // What a thread of the block has acquired, after its first time, its second, …; the worker's clock counts.
  struct Acquirer {
    int thread, worker;
    std::vector<Snapshots> known;
  };
  const Snapshots& known_at(const Acquirer& acquirer, const Clock& clock) const;
  std::vector<Acquirer> acquirers_;
  uint32_t releases_ = 0;
};

// The order of the running launch.
extern Order running_order;
inline Order& order() {
  return running_order;
}

}  // namespace argus::simt
