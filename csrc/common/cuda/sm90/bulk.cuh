// Bulk copies of contiguous bytes from shared to global memory on sm_90, with host twins (simt/tma.h).
//
//   bulk_store writes the bytes, bulk_add adds float32 numbers to those that are there. Both addresses are
//   multiples of 16, and so are the bytes. They belong to the thread's bulk groups, as tma_store does:
//   tma_store_commit, tma_store_wait, tma_store_wait_read (tma.cuh). An add is atomic element by element, so
//   the order of several adds is fixed only by waiting for each (turns.cuh). Each rounds once; subnormal
//   numbers count as 0.
//   fence_proxy_async_global stands between accesses of threads to global memory and a bulk copy to the same
//   bytes, as fence_proxy_async (mbarrier.cuh) does for shared memory.
#pragma once

#include "common/cuda/sm90/tma.cuh"

namespace argus::ptx {

#if defined(__CUDACC__)

ARGUS_DEVICE void bulk_store(void* global, const void* shared, uint32_t bytes) {
  asm volatile(
      "cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(__cvta_generic_to_global(global)),
      "r"(shared_address(shared)), "r"(bytes)
      : "memory");
}
ARGUS_DEVICE void bulk_add(float* global, const float* shared, uint32_t bytes) {
  asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(
                   __cvta_generic_to_global(global)),
               "r"(shared_address(shared)), "r"(bytes)
               : "memory");
}
ARGUS_DEVICE void fence_proxy_async_global() {
  asm volatile("fence.proxy.async.global;" ::: "memory");
}

#else

inline void bulk_store(void* global, const void* shared, uint32_t bytes) {
  simt::bulk_store(global, shared, bytes);
}
inline void bulk_add(float* global, const float* shared, uint32_t bytes) {
  simt::bulk_add(global, shared, bytes);
}
inline void fence_proxy_async_global() {
  simt::fence_proxy_async_global();
}

#endif

}  // namespace argus::ptx
