#include "simt/mbarrier.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

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

struct Barrier final : Waitable {
  std::string name;
  uint32_t arrivals = 0, pending = 0, phase = 0;
  int64_t bytes = 0;       // expected and not yet counted
  int64_t announced = 0;   // of the copies issued in this phase
  uint32_t last_load = 0;  // the clock of the last copy
  std::vector<Expectation> expected;
  View arriving, completed;
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

std::map<uintptr_t, std::unique_ptr<Barrier>> barriers;
std::array<NamedBarrier, 16> named;
bool any_named = false;  // of the block's barriers
RegisterPool pool;

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

void arrive(Barrier& barrier, const char* instruction) {
  if (barrier.pending == 0) {
    fault(std::string("over-arrival: ") + instruction + " on the " + barrier.name +
          ", whose phase has had all " + std::to_string(barrier.arrivals) + " arrivals");
  }
  join(barrier.arriving, order().release(current_thread()));
  --barrier.pending;
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
  arrive(use_barrier("mbarrier.arrive", address), "mbarrier.arrive");
}

void mbarrier_arrive_expect(void* address, uint32_t bytes) {
  Barrier& barrier = use_barrier("mbarrier.arrive.expect_tx", address);
  expect(barrier, bytes);
  arrive(barrier, "mbarrier.arrive.expect_tx");
}

void mbarrier_expect(void* address, uint32_t bytes) {
  expect(use_barrier("mbarrier.expect_tx", address), bytes);
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

Touch mbarrier_announce(const void* address, uint32_t bytes, const View& view) {
  Barrier& barrier = use_barrier("a TMA load", address);
  if (!barrier.init_fenced && !order().fenced(barrier.initialised, view, true)) {
    fault("missing fence: a TMA load counts on the " + barrier.name +
          ", with neither fence.mbarrier_init nor fence.proxy.async since its init");
  }
  int64_t expected = 0;
  for (const Expectation& one : barrier.expected) {
    if (order().before(one.when, view)) expected += one.bytes;
  }
  barrier.announced += bytes;
  if (barrier.announced > expected) {
    fault("wrong byte count: TMA loads of " + bytes_text(static_cast<size_t>(barrier.announced)) +
          " on the " + barrier.name + ", of which " + bytes_text(static_cast<size_t>(expected)) +
          " were expected before");
  }
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
  NamedBarrier& barrier = named[id];
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
  uint32_t& own = pool.of_thread[current_thread()];
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
  const uint32_t each = std::min(256u, kRegisters / static_cast<uint32_t>(threads) / 8 * 8);
  pool.of_thread.assign(threads, each);
  pool.all = each * static_cast<uint32_t>(threads);
}

void end_block_barriers() {
  for (const auto& [address, barrier] : barriers) {
    if (barrier->bytes != 0) fault("the block has ended, and " + barrier->describe());
    const auto waited = [&](int thread) {
      return order().has(order().view(thread), barrier->worker, barrier->last_load);
    };
    bool seen = barrier->last_load == 0;
    for (int thread = 0; thread < static_cast<int>(pool.of_thread.size()) && !seen; ++thread)
      seen = waited(thread);
    if (!seen) fault("missing wait: the block has ended, and no thread has waited for " + barrier->name);
  }
}

}  // namespace argus::simt
