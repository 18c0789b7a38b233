// Host twins of the instructions of thread block clusters (common/cuda/sm90/cluster.cuh). TMA loads into
// several blocks are in tma.h, arrivals at another block's mbarriers in mbarrier.h.
//
// The executor runs the threads of a cluster's blocks together. Each block has its own shared memory,
// barriers and registers. A block may not exit while another one may still copy into its shared memory or
// arrive at its mbarriers.
#pragma once

#include <cstdint>

#include "simt/executor.h"

namespace argus::simt {

// barrier.cluster.arrive.release and barrier.cluster.wait.acquire: waits for the threads of all blocks that
// have not exited.
void cluster_arrive();
void cluster_wait(Site site);

// mapa: the address of the same offset in the shared memory of the block of this rank.
void* in_rank(const char* instruction, const void* shared, uint32_t rank);

void begin_cluster(int threads);
void exit_thread_cluster(int thread);

}  // namespace argus::simt
