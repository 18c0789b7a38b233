#include "simt/cluster.h"

#include <string>
#include <vector>

#include "simt/memory.h"
#include "simt/order.h"
#include "simt/regions.h"

namespace argus::simt {
namespace {

constexpr size_t kNever = ~size_t{0};

struct Member {
  size_t generation = kNever;  // in which it arrived, and for which it has not waited yet
  bool exited = false;
};

struct ClusterBarrier final : Waitable {
  std::vector<Member> members;
  int missing = 0;  // threads that have neither arrived nor exited
  bool any_arrived = false;
  View joined;
  std::vector<View> released;  // by generation

  std::string describe() const override {
    return std::to_string(missing) + " threads of the cluster have not arrived";
  }
  size_t generation() const { return released.size(); }

  void end_generation_if_complete() {
    if (missing != 0 || !any_arrived) return;
    released.push_back(std::move(joined));
    joined = {};
    any_arrived = false;
    for (const Member& member : members) missing += member.exited ? 0 : 1;
    wake(*this);
  }
};

ClusterBarrier barrier;

}  // namespace

void cluster_arrive() {
  Member& own = barrier.members[current_thread()];
  if (own.generation != kNever)
    fault("barrier.cluster.arrive again, with no barrier.cluster.wait in between");
  order().widen();
  join(barrier.joined, order().release(current_thread()));
  own.generation = barrier.generation();
  barrier.any_arrived = true;
  --barrier.missing;
  barrier.end_generation_if_complete();
}

void cluster_wait(Site site) {
  Member& own = barrier.members[current_thread()];
  if (own.generation == kNever) fault("barrier.cluster.wait without barrier.cluster.arrive");
  while (barrier.generation() == own.generation) wait_for(barrier, "barrier.cluster.wait", site);
  order().acquire(current_thread(), barrier.released[own.generation]);
  own.generation = kNever;
}

void* in_rank(const char* instruction, const void* shared, uint32_t rank) {
  require_shared(instruction, shared, 1);
  if (rank_at(shared) != current_rank())
    fault(std::string(instruction) + " with an address in the shared memory" + rank_text(rank_at(shared)));
  if (rank >= static_cast<uint32_t>(cluster_blocks())) {
    fault(std::string(instruction) + " names rank " + std::to_string(rank) + " of a cluster of " +
          std::to_string(cluster_blocks()) + (cluster_blocks() == 1 ? " block" : " blocks"));
  }
  return shared_pointer(rank * kRankWindow + shared_offset(shared) % kRankWindow);
}

void begin_cluster(int threads) {
  barrier.members.assign(static_cast<size_t>(threads), {});
  barrier.missing = threads;
  barrier.any_arrived = false;
  barrier.joined = {};
  barrier.released.clear();
}

void exit_thread_cluster(int thread) {
  Member& member = barrier.members[static_cast<size_t>(thread)];
  member.exited = true;
  if (member.generation == barrier.generation()) return;
  --barrier.missing;
  barrier.end_generation_if_complete();
}

}  // namespace argus::simt
