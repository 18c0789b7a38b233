// Clusters of blocks on sm_90, one function an instruction, with host twins (simt/cluster.h).
//
//   The blocks of a launch with LaunchShape::cluster run at the same time, each with a rank, and reach each
//   other's shared memory, where what a kernel declares has the same offsets in all of them. An mbarrier is
//   usable by the others after its init, fence_mbarrier_init and a cluster_sync. tma_load_multicast brings a
//   box into each block of the mask, and counts its bytes on each one's mbarrier. A block must not exit while
//   the others may still write to it or arrive at its mbarriers.
#pragma once

#include "common/cuda/sm90/tma.cuh"

#if !defined(__CUDACC__)
#include "simt/cluster.h"
#endif

namespace argus::ptx {

#if defined(__CUDACC__)

ARGUS_DEVICE uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// Of all threads of the cluster that have not exited.
ARGUS_DEVICE void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
}
ARGUS_DEVICE void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}
// At the barrier of the same offset in the block of this rank. For another block's it orders copies and
// products that the thread has waited for, but none of its own accesses: release.cluster would be a
// MEMBAR.ALL.GPU at every arrival, and acquire.cluster of the wait a CCTL.IVALL, and stages need neither.
ARGUS_DEVICE void mbarrier_arrive_cluster(uint64_t* barrier, uint32_t rank) {
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(rank)
      : "memory");
}
// Into the blocks whose ranks are the bits of `mask`.
ARGUS_DEVICE void tma_load_multicast(void* shared, const TensorMap& map, int column, int row,
                                     uint64_t* barrier, uint16_t mask) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(shared_address(shared)),
      "l"(&map), "r"(column), "r"(row), "r"(shared_address(barrier)), "h"(mask)
      : "memory");
}

#else

#define ARGUS_SITE simt::Site site = simt::Site::current()

inline uint32_t cluster_rank() {
  return static_cast<uint32_t>(simt::current_rank());
}
inline void cluster_arrive() {
  simt::cluster_arrive();
}
inline void cluster_wait(ARGUS_SITE) {
  simt::cluster_wait(site);
}
inline void mbarrier_arrive_cluster(uint64_t* barrier, uint32_t rank) {
  simt::mbarrier_arrive_cluster(barrier, rank);
}
inline void tma_load_multicast(void* shared, const TensorMap& map, int column, int row, uint64_t* barrier,
                               uint16_t mask) {
  const int32_t coordinates[] = {column, row};
  simt::tma_load_multicast(shared, &map, coordinates, 2, barrier, mask);
}

#undef ARGUS_SITE

#endif

}  // namespace argus::ptx
