// mbarriers, the fences around them, named barriers and register counts of sm_90, one function an
// instruction, with host twins (simt/mbarrier.h).
//
//   An mbarrier is 8 bytes of shared memory. A phase of it ends once it has had its arrivals and the bytes
//   that its expect_tx announced; phases have the parities 0, 1, 0, …, and a wait for the parity of the phase
//   before the first one returns at once. Between init and use stand fence_mbarrier_init (or
//   fence_proxy_async, where TMA counts on it) and a barrier of the threads. fence_proxy_async stands between
//   a thread's accesses to shared memory and those of TMA and wgmma, which go through another proxy: written,
//   fence, barrier, copied.
#pragma once

#include "common/cuda/ptx.cuh"

#if !defined(__CUDACC__)
#include "simt/mbarrier.h"
#endif

namespace argus::ptx {

#if defined(__CUDACC__)

ARGUS_DEVICE void mbarrier_init(uint64_t* barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals)
               : "memory");
}
ARGUS_DEVICE void mbarrier_invalidate(uint64_t* barrier) {
  asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}
ARGUS_DEVICE void mbarrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
ARGUS_DEVICE void mbarrier_arrive_expect(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(bytes)
               : "memory");
}
ARGUS_DEVICE void mbarrier_expect(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(bytes)
               : "memory");
}
// Returns once the phase of this parity is over.
ARGUS_DEVICE void mbarrier_wait(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred over;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 over, [%0], %1;\n"
      "@!over bra again;\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}
ARGUS_DEVICE void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
ARGUS_DEVICE void fence_proxy_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Barriers 1 to 15, for so many threads, whole warps; 0 is __syncthreads'.
ARGUS_DEVICE void named_barrier_sync(uint32_t id, uint32_t threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
ARGUS_DEVICE void named_barrier_arrive(uint32_t id, uint32_t threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// All warps of a warpgroup give registers back, or wait for more.
template <int kRegisters>
ARGUS_DEVICE void decrease_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
ARGUS_DEVICE void increase_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

#else

#define ARGUS_SITE simt::Site site = simt::Site::current()

inline void mbarrier_init(uint64_t* barrier, uint32_t arrivals) {
  simt::mbarrier_init(barrier, arrivals);
}
inline void mbarrier_invalidate(uint64_t* barrier) {
  simt::mbarrier_invalidate(barrier);
}
inline void mbarrier_arrive(uint64_t* barrier) {
  simt::mbarrier_arrive(barrier);
}
inline void mbarrier_arrive_expect(uint64_t* barrier, uint32_t bytes) {
  simt::mbarrier_arrive_expect(barrier, bytes);
}
inline void mbarrier_expect(uint64_t* barrier, uint32_t bytes) {
  simt::mbarrier_expect(barrier, bytes);
}
inline void mbarrier_wait(uint64_t* barrier, uint32_t parity, ARGUS_SITE) {
  simt::mbarrier_wait(barrier, parity, site);
}
inline void fence_mbarrier_init() {
  simt::fence_mbarrier_init();
}
inline void fence_proxy_async() {
  simt::fence_proxy_async();
}
inline void named_barrier_sync(uint32_t id, uint32_t threads, ARGUS_SITE) {
  simt::named_barrier(id, threads, true, site);
}
inline void named_barrier_arrive(uint32_t id, uint32_t threads, ARGUS_SITE) {
  simt::named_barrier(id, threads, false, site);
}
template <int kRegisters>
void decrease_registers(ARGUS_SITE) {
  simt::set_max_registers(kRegisters, false, site);
}
template <int kRegisters>
void increase_registers(ARGUS_SITE) {
  simt::set_max_registers(kRegisters, true, site);
}

#undef ARGUS_SITE

#endif

}  // namespace argus::ptx
