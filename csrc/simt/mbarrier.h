// Host twins of mbarrier, of the fences and named barriers around it, and of setmaxnreg
// (common/cuda/sm90/mbarrier.cuh).
//
// An mbarrier's phase ends when its pending arrivals and the bytes it expects are both 0. Whoever waits for a
// phase sees all that was ordered before its arrivals and the copies that it counted. Stricter than the
// manual: a copy must find its bytes announced by an expect_tx that is ordered before it, so that a phase can
// never end too early under another schedule.
#pragma once

#include <cstdint>

#include "simt/order.h"

namespace argus::simt {

void mbarrier_init(void* barrier, uint32_t arrivals);
void mbarrier_invalidate(void* barrier);
void mbarrier_arrive(void* barrier);
void mbarrier_arrive_expect(void* barrier, uint32_t bytes);
void mbarrier_expect(void* barrier, uint32_t bytes);
// Returns once the phase of this parity is over.
void mbarrier_wait(void* barrier, uint32_t parity, Site site);

void fence_mbarrier_init();
void fence_proxy_async();
void fence_proxy_async_global();

// What a TMA load writes until its bytes are counted: announced on issue, which checks that they are
// expected.
Touch mbarrier_announce(const void* barrier, uint32_t bytes, const View& view);
void mbarrier_complete(const void* barrier, uint32_t bytes);

// bar.sync and bar.arrive of a barrier other than __syncthreads', for this many threads.
void named_barrier(uint32_t id, uint32_t threads, bool wait, Site site);

// setmaxnreg: a thread may have `count` registers from now on. At launch
// each has 64 K / threads, rounded down to 8 and at most 255, and the block gets no more than these together.
// An increase waits for registers.
void set_max_registers(uint32_t count, bool increase, Site site);

void begin_block_barriers(int threads);
void end_block_barriers();

}  // namespace argus::simt
