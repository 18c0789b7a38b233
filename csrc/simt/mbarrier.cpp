#include "simt/mbarrier.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "simt/cluster.h"
#include "simt/memory.h"
#include "simt/regions.h"

namespace argus::simt {
namespace {

constexpr uint32_t kMaxArrivals = (1u << 20) - 1, kMaxBytes = (1u << 20) - 1;
constexpr size_t kBarrierBytes = 8;
constexpr uint32_t kRegisters = 64 << 10;

struct Expectation {
  Touch when;
  uint32_t bytes;
};

struct RemoteArrival {
  uint32_t clock, phase;
};

struct Barrier final : Waitable {
  std::string name;
  uint32_t arrivals = 0, pending = 0, phase = 0;
  int64_t bytes = 0;       // expected and not yet counted
  int64_t announced = 0;   // of the copies issued in this phase
  uint32_t last_load = 0;  // the clock of the last copy
  std::vector<Expectation> expected;
  View arriving, completed;
  std::map<int, RemoteArrival> from_others;  // the last ones of threads of other blocks
  int worker = 0;
  Touch initialised;
  bool init_fenced = false;

  std::string describe() const override {
    return "the " + name + " is in phase " + std::to_string(phase) + " and awaits " +
           std::to_string(pending) + " of " + std::to_string(arrivals) + " arrivals and " +
           bytes_text(static_cast<size_t>(bytes));
  }

  void end_phase_if_complete() {
    if (pending != 0 || bytes != 0) return;
    completed = arriving;
    order().add_to(completed, worker, ++phase);
    pending = arrivals;
    announced = 0;
    expected.clear();
    wake(*this);
  }

  void require_expected(int64_t all) const {
    if (announced <= all) return;
    fault("wrong byte count: TMA loads of " + bytes_text(static_cast<size_t>(announced)) + " on the " + name +
          ", of which " + bytes_text(static_cast<size_t>(all)) + " were expected before");
  }
  int64_t all_expected() const {
    int64_t all = 0;
    for (const Expectation& one : expected) all += one.bytes;
    return all;
  }
};

struct NamedBarrier final : Waitable {
  uint32_t threads = 0, arrived = 0;
  View joined;
  std::vector<View> released;  // by generation

  std::string describe() const override {
    return std::to_string(arrived) + " of " + std::to_string(threads) + " threads have arrived";
  }
};

struct RegisterPool final : Waitable {
  std::vector<uint32_t> of_thread;
  uint32_t all = 0;  // what the block was launched with

  uint32_t left() const {
    uint32_t used = 0;
    for (const uint32_t count : of_thread) used += count;
    return all - used;
  }
  std::string describe() const override {
    return std::to_string(left()) + " of the block's " + std::to_string(all) + " registers are free";
  }
};

// Those of a block or, by rank, of a cluster's blocks.
std::map<uintptr_t, std::unique_ptr<Barrier>> barriers;
std::array<std::array<NamedBarrier, 16>, kMaxCluster> named;
bool any_named = false;
std::array<RegisterPool, kMaxCluster> pools;

void mark_barrier(const void* address, bool live) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(address);
  Region& region = *find_region(begin, begin + kBarrierBytes);
  for (size_t i = 0; i < kBarrierBytes; ++i) region.async_cell(begin + i).barrier = live;
}

Barrier& require_barrier(const char* instruction, const void* address) {
  const auto found = barriers.find(reinterpret_cast<uintptr_t>(address));
  if (found == barriers.end())
    fault(std::string(instruction) + " of an address at which no mbarrier is initialised");
  return *found->second;
}

Barrier& use_barrier(const char* instruction, const void* address) {
  Barrier& barrier = require_barrier(instruction, address);
  access(address, kBarrierBytes, Kind::atomic);
  return barrier;
}

// Of whichever block of the cluster.
Barrier& use_cluster_barrier(const char* instruction, const void* address) {
  const int rank = rank_at(address);
  if (rank == current_rank()) return use_barrier(instruction, address);
  if (rank_exited(rank))
    fault(std::string(instruction) + " in the shared memory" + rank_text(rank) + ", whose block has exited");
  Barrier& barrier = require_barrier(instruction, address);
  access_by(current_thread(), address, kBarrierBytes, Kind::atomic);
  return barrier;
}

// What is ordered before the arrival is `released`.
void arrive(Barrier& barrier, const char* instruction, const View& released) {
  if (barrier.pending == 0) {
    fault(std::string("over-arrival: ") + instruction + " on the " + barrier.name +
          ", whose phase has had all " + std::to_string(barrier.arrivals) + " arrivals");
  }
  join(barrier.arriving, released);
  --barrier.pending;
  if (barrier.pending == 0) barrier.require_expected(barrier.all_expected());
  barrier.end_phase_if_complete();
}

void expect(Barrier& barrier, uint32_t bytes) {
  if (bytes > kMaxBytes || barrier.bytes + bytes > kMaxBytes) {
    fault("expect_tx of " + bytes_text(bytes) + " on the " + barrier.name + ", which can expect " +
          bytes_text(kMaxBytes));
  }
  barrier.expected.push_back({order().now(current_thread(), Kind::atomic), bytes});
  barrier.bytes += bytes;
}

}  // namespace

void mbarrier_init(void* address, uint32_t arrivals) {
  require_shared("mbarrier.init", address, kBarrierBytes);
  if (arrivals == 0 || arrivals > kMaxArrivals)
    fault("mbarrier.init with " + std::to_string(arrivals) + " arrivals");
  const uintptr_t begin = reinterpret_cast<uintptr_t>(address);
  if (barriers.contains(begin)) fault("mbarrier.init of an mbarrier that was not invalidated");
  order().widen();
  access(address, kBarrierBytes, Kind::write);
  std::memset(address, 0, kBarrierBytes);
  mark_barrier(address, true);
  auto barrier = std::make_unique<Barrier>();
  barrier->name = "mbarrier at " + find_region(begin, begin + 1)->byte_text(begin);
  barrier->arrivals = barrier->pending = arrivals;
  barrier->worker = order().add_worker("a TMA load that the " + barrier->name + " counts");
  barrier->initialised = order().now(current_thread(), Kind::write);
  barriers[begin] = std::move(barrier);
}

void mbarrier_invalidate(void* address) {
  const Barrier& barrier = require_barrier("mbarrier.inval", address);
  if (barrier.bytes != 0) fault("mbarrier.inval while the " + barrier.name + " expects bytes");
  mark_barrier(address, false);
  access(address, kBarrierBytes, Kind::write);
  barriers.erase(reinterpret_cast<uintptr_t>(address));
}

void mbarrier_arrive(void* address) {
  Barrier& barrier = use_barrier("mbarrier.arrive", address);
  arrive(barrier, "mbarrier.arrive", order().release(current_thread()));
}

void mbarrier_arrive_expect(void* address, uint32_t bytes) {
  Barrier& barrier = use_barrier("mbarrier.arrive.expect_tx", address);
  expect(barrier, bytes);
  arrive(barrier, "mbarrier.arrive.expect_tx", order().release(current_thread()));
}

void mbarrier_expect(void* address, uint32_t bytes) {
  expect(use_barrier("mbarrier.expect_tx", address), bytes);
}

void mbarrier_arrive_cluster(void* address, uint32_t rank) {
  constexpr const char* kName = "mbarrier.arrive.shared::cluster";
  const void* there = in_rank(kName, address, rank);
  Barrier& barrier = use_cluster_barrier(kName, there);
  const int thread = current_thread();
  if (static_cast<int>(rank) == current_rank()) return arrive(barrier, kName, order().release(thread));
  barrier.from_others[thread] = {order().now(thread, Kind::atomic).clock, barrier.phase};
  arrive(barrier, kName, order().release_work(thread));
}

void mbarrier_wait(void* address, uint32_t parity, Site site) {
  if (parity > 1) fault("mbarrier.try_wait of parity " + std::to_string(parity) + ", expected 0 or 1");
  const Barrier& barrier = use_barrier("mbarrier.try_wait", address);
  while (barrier.phase % 2 == parity) wait_for(barrier, "mbarrier.try_wait", site);
  order().acquire(current_thread(), barrier.completed);
}

void fence_mbarrier_init() {
  const int thread = current_thread();
  for (const auto& [address, barrier] : barriers)
    barrier->init_fenced = barrier->init_fenced || barrier->initialised.thread == thread;
}

void fence_proxy_async() {
  order().fence_proxy(current_thread(), true);
}

void fence_proxy_async_global() {
  order().fence_proxy(current_thread(), false);
}

namespace {

// Of bytes that the block itself brings.
void announce_own(Barrier& barrier, const View& view) {
  int64_t expected = 0;
  for (const Expectation& one : barrier.expected) {
    if (order().before(one.when, view)) expected += one.bytes;
  }
  barrier.require_expected(expected);
}

// Of those that another block of the cluster brings.
void announce_from_another(const Barrier& barrier, const View& view) {
  if (!order().has(view, barrier.worker, barrier.phase)) {
    fault("missing wait: a TMA load counts on the " + barrier.name + " in phase " +
          std::to_string(barrier.phase) + ", and nothing orders it after the end of the phase before");
  }
  if (barrier.pending == 0) barrier.require_expected(barrier.all_expected());
}

}  // namespace

Touch mbarrier_announce(const void* address, uint32_t bytes, const View& view) {
  Barrier& barrier = use_cluster_barrier("a TMA load", address);
  if (!barrier.init_fenced && !order().fenced(barrier.initialised, view, true)) {
    fault("missing fence: a TMA load counts on the " + barrier.name +
          ", with neither fence.mbarrier_init nor fence.proxy.async since its init");
  }
  barrier.announced += bytes;
  rank_at(address) == current_rank() ? announce_own(barrier, view) : announce_from_another(barrier, view);
  barrier.last_load = barrier.phase + 1;
  return order().worker_touch(barrier.worker, barrier.last_load, Kind::write);
}

void mbarrier_complete(const void* address, uint32_t bytes) {
  Barrier& barrier = require_barrier("the end of a TMA load", address);
  barrier.bytes -= bytes;
  barrier.end_phase_if_complete();
}

void named_barrier(uint32_t id, uint32_t threads, bool wait, Site site) {
  if (id == 0 || id > 15) fault("barrier " + std::to_string(id) + ", expected 1 to 15");
  if (threads == 0 || threads % kLanes != 0)
    fault("barrier " + std::to_string(id) + " of " + std::to_string(threads) + " threads, not whole warps");
  NamedBarrier& barrier = named[current_rank()][id];
  if (barrier.arrived > 0 && barrier.threads != threads) {
    fault("barrier " + std::to_string(id) + " of " + std::to_string(threads) +
          " threads, which others gave " + std::to_string(barrier.threads));
  }
  order().widen();
  any_named = true;
  barrier.threads = threads;
  join(barrier.joined, order().release(current_thread()));
  const size_t generation = barrier.released.size();
  if (++barrier.arrived == threads) {
    barrier.released.push_back(std::move(barrier.joined));
    barrier.joined = {};
    barrier.arrived = 0;
    wake(barrier);
  }
  if (!wait) return;
  while (barrier.released.size() == generation) wait_for(barrier, "bar.sync", site);
  order().acquire(current_thread(), barrier.released[generation]);
}

void set_max_registers(uint32_t count, bool increase, Site site) {
  const char* name = increase ? "setmaxnreg.inc" : "setmaxnreg.dec";
  RegisterPool& pool = pools[current_rank()];
  uint32_t& own = pool.of_thread[current_thread() % block_threads()];
  if (count < 24 || count > 256 || count % 8 != 0)
    fault(std::string(name) + " to " + std::to_string(count) + ", expected a multiple of 8 from 24 to 256");
  if (increase ? count < own : count > own)
    fault(std::string(name) + " from " + std::to_string(own) + " to " + std::to_string(count) + " registers");
  while (increase && pool.left() < count - own) wait_for(pool, name, site);
  own = count;
  if (!increase) wake(pool);
}

void begin_block_barriers(int threads) {
  barriers.clear();
  if (any_named) named.fill({});
  any_named = false;
  const uint32_t of_block = static_cast<uint32_t>(threads / cluster_blocks());
  const uint32_t each = std::min(256u, kRegisters / of_block / 8 * 8);
  for (int rank = 0; rank < cluster_blocks(); ++rank) {
    pools[rank].of_thread.assign(of_block, each);
    pools[rank].all = each * of_block;
  }
}

namespace {

bool any_thread(int rank, const std::function<bool(const View&)>& has) {
  for (int thread = rank * block_threads(); thread < (rank + 1) * block_threads(); ++thread)
    if (has(order().view(thread))) return true;
  return false;
}

// A block may exit only after all arrivals of other blocks at its barriers: one of its threads has waited for
// their phase, or all has met in the barrier of the cluster.
void require_arrivals_before_exit(const Barrier& barrier, int rank) {
  for (const auto& [thread, at] : barrier.from_others) {
    const Touch arrival{order().block(), 0, at.clock, static_cast<uint16_t>(thread), Kind::atomic};
    const auto after = [&, phase = at.phase](const View& view) {
      return order().before(arrival, view) || order().has(view, barrier.worker, phase + 1);
    };
    if (any_thread(rank, after)) continue;
    fault("missing wait: the block" + rank_text(rank) + " has exited, and nothing orders its end after the " +
          "arrival of thread " + thread_name(thread) + " at the " + barrier.name);
  }
}

}  // namespace

void end_block_barriers() {
  for (const auto& [address, barrier] : barriers) {
    if (barrier->bytes != 0) fault("the block has ended, and " + barrier->describe());
    const int rank = rank_at(reinterpret_cast<const void*>(address));
    const bool seen = barrier->last_load == 0 || any_thread(rank, [&](const View& view) {
                        return order().has(view, barrier->worker, barrier->last_load);
                      });
    if (!seen) fault("missing wait: the block has ended, and no thread has waited for " + barrier->name);
    require_arrivals_before_exit(*barrier, rank);
  }
}

}  // namespace argus::simt
