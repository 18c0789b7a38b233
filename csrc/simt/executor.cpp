#include "simt/executor.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <sstream>
#include <string_view>
#include <vector>

#include "simt/async.h"
#include "simt/fiber.h"
#include "simt/language.h"
#include "simt/memory.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace argus::simt {
namespace {

enum class State { runnable, at_barrier, at_collective, at_warpgroup, at_object, exited };

struct Thread {
  Fiber fiber;
  State state = State::exited;
  const char* waits_in = "";
  Site site;
  unsigned mask = 0;
  void* payload = nullptr;
  const Waitable* object = nullptr;
};

// How soon work beside the threads is done.
enum class Haste { undrawn, last, equal, first };

constexpr int kNoWarp = -1;

struct BlockBarrier {
  int arrived = 0, positive = 0;
  Votes votes{};
};

struct Executor {
  uint64_t random = 1;
  const Grid* grid = nullptr;
  void (*body)(const void*) = nullptr;
  const void* arguments = nullptr;

  std::unique_ptr<Thread[]> threads{new Thread[kMaxThreads]};
  int count = 0;
  int current = -1;
  std::vector<int> runnable, runnable_slow;  // the latter of the slow warp
  int slow_warp = kNoWarp;
  std::vector<std::function<void()>> deferred;
  Haste haste = Haste::undrawn;
  int blocks = 1;  // of a cluster
  uint3 first_block{};
  std::array<BlockBarrier, kMaxCluster> barriers{};
  std::string report;

  uint64_t next_random(uint64_t bound) {
    random ^= random << 13;
    random ^= random >> 7;
    random ^= random << 17;
    return (random >> 11) % bound;
  }
};

Executor executor;

std::string place(const Site& site) {
  const std::string file = site.file_name();
  return file.substr(file.find_last_of('/') + 1) + ":" + std::to_string(site.line());
}

std::string triple(unsigned x, unsigned y, unsigned z) {
  std::ostringstream text;
  text << '(' << x << ", " << y << ", " << z << ')';
  return text.str();
}

std::string where_now() {
  std::string text =
      std::string(executor.grid->kernel) + ": block " + triple(blockIdx.x, blockIdx.y, blockIdx.z);
  return executor.current < 0 ? text : text + " thread " + thread_name(executor.current);
}

uint3 thread_index(int thread) {
  const unsigned x = blockDim.x, y = blockDim.y, linear = static_cast<unsigned>(thread % block_threads());
  return {linear % x, linear / x % y, linear / (x * y)};
}

void wake(int thread) {
  executor.threads[thread].state = State::runnable;
  (thread / kLanes == executor.slow_warp ? executor.runnable_slow : executor.runnable).push_back(thread);
}

void wait(State state, const char* name, const Site& site) {
  Thread& self = executor.threads[executor.current];
  self.state = state;
  self.waits_in = name;
  self.site = site;
  self.fiber.suspend(false);
}

void fiber_entry() {
  executor.body(executor.arguments);
  exit_thread(executor.current);
  executor.threads[executor.current].state = State::exited;
  executor.threads[executor.current].fiber.suspend(true);
}

std::string waiting_place(const Thread& thread) {
  if (thread.state == State::exited) return "have exited";
  std::ostringstream text;
  text << "wait in " << thread.waits_in << " (" << place(thread.site);
  if (thread.state == State::at_collective) text << ", mask 0x" << std::hex << thread.mask;
  text << ')';
  if (thread.state == State::at_object) text << ": " << thread.object->describe();
  return text.str();
}

// "96 threads wait in __syncthreads (kernel.cu:41), the first (0, 0, 0); 32 threads have exited, the first …"
std::string deadlock_report() {
  std::vector<std::pair<std::string, std::pair<int, int>>> groups;
  for (int thread = 0; thread < executor.count; ++thread) {
    const std::string what = waiting_place(executor.threads[thread]);
    auto found =
        std::find_if(groups.begin(), groups.end(), [&](const auto& group) { return group.first == what; });
    if (found == groups.end()) {
      groups.push_back({what, {thread, 1}});
    } else {
      ++found->second.second;
    }
  }
  std::ostringstream text;
  const auto at_object = [](const Thread& thread) { return thread.state == State::at_object; };
  const bool deadlock =
      std::any_of(executor.threads.get(), executor.threads.get() + executor.count, at_object);
  text << (deadlock ? "deadlock: " : "divergent barrier: ");
  for (size_t i = 0; i < groups.size(); ++i) {
    const auto& [what, first_and_count] = groups[i];
    text << (i > 0 ? "; " : "") << first_and_count.second << " threads " << what << ", the first is thread "
         << thread_name(first_and_count.first);
  }
  return text.str();
}

void throw_report() {
  executor.current = -1;
  executor.grid = nullptr;
  throw Fault(executor.report);
}

// From now on a thread runs, or none: -1.
void set_current(int thread) {
  executor.current = thread;
  blockIdx = executor.first_block;
  if (thread < 0) return;
  blockIdx.x += static_cast<unsigned>(rank_of(thread));
  threadIdx = thread_index(thread);
}

bool all_exited(int first, int count) {
  const Thread* begin = executor.threads.get() + first;
  return std::all_of(begin, begin + count,
                     [](const Thread& thread) { return thread.state == State::exited; });
}

void run_beside(const std::function<void()>& action) {
  set_current(-1);
  action();
}

// One drawn step: a thread up to where it waits, or work beside the threads. How soon the latter comes is
// drawn for the block: at once, like a thread, or only where every thread waits. A slow warp's threads run
// only where all others wait.
void run_step() {
  std::vector<int>& runnable = executor.runnable.empty() ? executor.runnable_slow : executor.runnable;
  const size_t threads = runnable.size(), beside = executor.deferred.size();
  if (beside > 0) {
    if (executor.haste == Haste::undrawn)
      executor.haste = std::array{Haste::last, Haste::equal, Haste::first}[executor.next_random(3)];
    const bool take = threads == 0 || executor.haste == Haste::first ||
                      (executor.haste == Haste::equal && executor.next_random(threads + beside) >= threads);
    if (take) {
      const size_t chosen = executor.next_random(beside);
      std::swap(executor.deferred[chosen], executor.deferred.back());
      const std::function<void()> action = std::move(executor.deferred.back());
      executor.deferred.pop_back();
      return run_beside(action);
    }
  }
  const size_t chosen = executor.next_random(threads);
  set_current(runnable[chosen]);
  runnable[chosen] = runnable.back();
  runnable.pop_back();
  begin_step();
  executor.threads[executor.current].fiber.resume();
  if (!executor.report.empty()) throw_report();
}

// Of a block with several warps, one in half of the blocks: others may pass it by more steps than a fair
// order of hundreds of threads ever shows.
int draw_slow_warp() {
  const int warps = (executor.count + kLanes - 1) / kLanes;
  if (warps == 1 || executor.next_random(2) == 0) return kNoWarp;
  return static_cast<int>(executor.next_random(static_cast<uint64_t>(warps)));
}

// A block, or the blocks of a cluster together.
void run_blocks(const Grid& grid) {
  executor.blocks = static_cast<int>(grid.cluster);
  executor.count = static_cast<int>(grid.threads.count()) * executor.blocks;
  executor.barriers.fill({});
  executor.runnable.clear();
  executor.runnable_slow.clear();
  executor.slow_warp = draw_slow_warp();
  executor.deferred.clear();
  executor.haste = Haste::undrawn;
  set_current(-1);
  begin_block_memory(executor.count, grid.dynamic_shared);
  begin_block_async(executor.count);
  for (int thread = 0; thread < executor.count; ++thread) {
    executor.threads[thread].fiber.reset(&fiber_entry);
    wake(thread);
  }
  while (!executor.runnable.empty() || !executor.runnable_slow.empty() || !executor.deferred.empty())
    run_step();
  set_current(-1);
  if (all_exited(0, executor.count)) return end_block_async();
  executor.report = where_now() + ": " + deadlock_report();
  throw_report();
}

void check_grid(const Grid& grid) {
  const auto refuse = [&](const std::string& what) { throw Fault(std::string(grid.kernel) + ": " + what); };
  const unsigned long long threads = grid.threads.count();
  if (threads == 0 || threads > kMaxThreads || grid.threads.z > 64) {
    refuse("a block of " + triple(grid.threads.x, grid.threads.y, grid.threads.z) +
           " threads cannot be launched");
  }
  if (grid.blocks.count() == 0 || grid.blocks.x > 0x7fffffffu || grid.blocks.y > 65535 ||
      grid.blocks.z > 65535) {
    refuse("a grid of " + triple(grid.blocks.x, grid.blocks.y, grid.blocks.z) + " blocks cannot be launched");
  }
  if (grid.cluster == 1) return;
  const std::string blocks = " in clusters of " + std::to_string(grid.cluster);
  if (grid.cluster == 0 || grid.cluster > kMaxCluster || grid.blocks.x % grid.cluster != 0)
    refuse("a grid of " + triple(grid.blocks.x, grid.blocks.y, grid.blocks.z) + " blocks" + blocks +
           " cannot be launched");
  // Limits of the executor: warpgroups do not cross blocks, and a cluster's threads run together.
  if (threads % (4 * kLanes) != 0 || threads * grid.cluster > kMaxThreads)
    refuse("blocks of " + std::to_string(threads) + " threads" + blocks +
           ", expected whole warpgroups and at most " + std::to_string(kMaxThreads) + " threads a cluster");
}

}  // namespace

void set_seed(uint64_t seed) {
  executor.random = (seed + 1) * 0x9e3779b97f4a7c15ull;
}

bool in_kernel() {
  return executor.current >= 0;
}

bool launch_in_order() {
  return executor.grid->in_order;
}

int current_thread() {
  return executor.current;
}

const Fiber& current_fiber() {
  return executor.threads[executor.current].fiber;
}

std::string thread_name(int thread) {
  const uint3 index = thread_index(thread);
  const int rank = rank_of(thread);
  return triple(index.x, index.y, index.z) + (rank == current_rank() ? "" : rank_text(rank));
}

int block_threads() {
  return executor.count / executor.blocks;
}

int cluster_blocks() {
  return executor.blocks;
}

int rank_of(int thread) {
  return thread / block_threads();
}

int current_rank() {
  return in_kernel() ? rank_of(executor.current) : -1;
}

bool rank_exited(int rank) {
  return all_exited(rank * block_threads(), block_threads());
}

std::string rank_text(int rank) {
  return executor.blocks == 1 ? "" : " of cluster rank " + std::to_string(rank);
}

void fault(const std::string& what) {
  if (!in_kernel()) {
    const Fault outside(executor.grid == nullptr ? what : where_now() + ": " + what);
    executor.grid = nullptr;
    throw outside;
  }
  executor.report = where_now() + ": " + what;
  executor.threads[executor.current].fiber.suspend(true);
  std::abort();
}

void run(const Grid& grid, void (*body)(const void*), const void* arguments, size_t arguments_bytes) {
  check_grid(grid);
  executor.grid = &grid;
  executor.body = body;
  executor.arguments = arguments;
  executor.report.clear();
  gridDim = {grid.blocks.x, grid.blocks.y, grid.blocks.z};
  blockDim = {grid.threads.x, grid.threads.y, grid.threads.z};
  begin_launch_memory(arguments, arguments_bytes);
  begin_launch_turns();
  std::vector<unsigned long long> order(grid.blocks.count() / grid.cluster);
  std::iota(order.begin(), order.end(), 0ull);
  for (size_t left = order.size(); left > 1 && !grid.in_order; --left)
    std::swap(order[left - 1], order[executor.next_random(left)]);
  for (const unsigned long long drawn : order) {
    const unsigned long long x = grid.blocks.x, y = grid.blocks.y, block = drawn * grid.cluster;
    executor.first_block = {static_cast<unsigned>(block % x), static_cast<unsigned>(block / x % y),
                            static_cast<unsigned>(block / (x * y))};
    run_blocks(grid);
  }
  executor.grid = nullptr;
}

Votes block_barrier(const char* name, bool predicate, Site site) {
  BlockBarrier& barrier = executor.barriers[current_rank()];
  const int threads = block_threads(), first = current_rank() * threads, end = first + threads;
  barrier.positive += predicate ? 1 : 0;
  if (++barrier.arrived < threads) {
    wait(State::at_barrier, name, site);
    return barrier.votes;
  }
  for (int thread = first; thread < end; ++thread) {
    const Thread& other = executor.threads[thread];
    if (thread != executor.current &&
        (other.site.line() != site.line() || place(other.site) != place(site))) {
      fault("divergent barrier: it waits in " + std::string(name) + " (" + place(site) + "), but thread " +
            thread_name(thread) + " in " + other.waits_in + " (" + place(other.site) + ")");
    }
  }
  const Votes votes{barrier.positive, threads};
  barrier = {0, 0, votes};
  order().order_block(first, threads);
  for (int thread = first; thread < end; ++thread) {
    if (thread != executor.current) wake(thread);
  }
  // The last one to arrive continues at a random time like the others.
  wake(executor.current);
  executor.threads[executor.current].fiber.suspend(false);
  return votes;
}

void wait_for(const Waitable& object, const char* name, Site site) {
  executor.threads[executor.current].object = &object;
  wait(State::at_object, name, site);
}

void wake(const Waitable& object) {
  for (int thread = 0; thread < executor.count; ++thread) {
    const Thread& waiting = executor.threads[thread];
    if (waiting.state == State::at_object && waiting.object == &object) wake(thread);
  }
}

void defer(std::function<void()> action) {
  executor.deferred.push_back(std::move(action));
}

void warpgroup_collective(const char* name, void* payload, void (*combine)(void* const* payloads),
                          Site site) {
  constexpr int kThreads = 4 * kLanes;
  const int first = executor.current / kThreads * kThreads;
  if (first + kThreads > executor.count) {
    fault(std::string(name) + " (" + place(site) + ") in a warpgroup of " +
          std::to_string(executor.count - first) + " threads, expected 128");
  }
  executor.threads[executor.current].payload = payload;
  void* payloads[kThreads] = {};
  for (int other = 0; other < kThreads; ++other) {
    const Thread& thread = executor.threads[first + other];
    const bool here = first + other == executor.current ||
                      (thread.state == State::at_warpgroup && std::string_view(thread.waits_in) == name &&
                       thread.site.line() == site.line());
    if (!here) return wait(State::at_warpgroup, name, site);
    payloads[other] = thread.payload;
  }
  combine(payloads);
  for (int other = 0; other < kThreads; ++other) wake(first + other);
  executor.threads[executor.current].fiber.suspend(false);
}

void warp_collective(const char* name, unsigned mask, void* payload, Combine combine, bool orders_memory,
                     Site site) {
  const int lane = executor.current % kLanes, first = executor.current - lane;
  if ((mask >> lane & 1u) == 0) {
    std::ostringstream text;
    text << name << " (" << place(site) << ") names lanes 0x" << std::hex << mask
         << ", and its own is not among them";
    fault(text.str());
  }
  Thread& self = executor.threads[executor.current];
  self.mask = mask;
  self.payload = payload;
  void* payloads[kLanes] = {};
  for (int other = 0; other < kLanes; ++other) {
    if ((mask >> other & 1u) == 0) continue;
    const Thread& thread = executor.threads[first + other];
    const bool here =
        other == lane || (first + other < executor.count && thread.state == State::at_collective &&
                          thread.mask == mask && std::string_view(thread.waits_in) == name);
    if (!here) return wait(State::at_collective, name, site);
    payloads[other] = thread.payload;
  }
  if (combine != nullptr) combine(payloads, mask);
  if (orders_memory) order().order_lanes(first, mask);
  for (int other = 0; other < kLanes; ++other) {
    if ((mask >> other & 1u) != 0) wake(first + other);
  }
  self.fiber.suspend(false);
}

}  // namespace argus::simt
