// Orders the entries of small tables without a sort. Each block takes a chunk of one column's events:
//
//   count_kernel  how often the chunk reads each row
//   place_kernel  the entries' positions: the number of entries of earlier rows, columns and chunks (a
//                 running sum over all counts), of the block's earlier warps, and of the warp's earlier
//                 events
//
// The order is that of a stable sort of CudaKeys' keys.
#pragma once

#include "common/cuda/device.cuh"
#include "triple_embedding/triple_embedding_cuda.h"

namespace argus::triple_embedding {

constexpr int kCountWarps = 8;
constexpr int kWarpEvents = kCountedEvents / kCountWarps;
static_assert(kWarpEvents % kWarpSize == 0);

// Adds the warp's events to counts[bin], bin 0 for ids without a row, else 1 + id, and calls visit(event,
// bin, count of the bin before this event).
template <class Visit>
ARGUS_DEVICE void count_events(const CudaKeys& given, int column, int32_t* counts, const Visit& visit) {
  const int64_t* ids = given.ids + given.columns[column] * given.events;
  const int lane = lane_index();
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kCountedEvents + warp_index() * kWarpEvents + lane;
  for (int64_t event = first; event < first + kWarpEvents; event += kWarpSize) {
    const bool real = event < given.events;
    const int64_t id = real ? ids[event] : -1;
    const int bin = id >= 0 && id < given.table_rows[column] ? static_cast<int>(id) + 1 : 0;
    const unsigned same = __match_any_sync(kFullWarp, real ? bin : -1);
    const int earlier = __popc(same & ((1u << lane) - 1));
    const int32_t before = counts[bin];
    __syncwarp();
    if (real && earlier == 0) counts[bin] = before + __popc(same);
    __syncwarp();
    if (real) visit(event, bin, before + earlier);
  }
}

// The counts of each warp of the block, in shared memory: [kCountWarps, kMaxCountedRows + 1].
struct WarpCounts {
  int32_t* all;

  ARGUS_DEVICE int32_t* of(int warp) const { return all + warp * (kMaxCountedRows + 1); }

  ARGUS_DEVICE void fill(const CudaKeys& given, int column, int bins) const {
    for (int i = static_cast<int>(threadIdx.x); i < bins; i += static_cast<int>(blockDim.x)) {
      for (int warp = 0; warp < kCountWarps; ++warp) of(warp)[i] = 0;
    }
    __syncthreads();
    count_events(given, column, of(warp_index()), [](int64_t, int, int32_t) {});
    __syncthreads();
  }

  // Replaces each warp's count of a bin by the sum of the earlier warps' counts; returns the total.
  ARGUS_DEVICE int32_t accumulate(int bin) const {
    int32_t sum = 0;
    for (int warp = 0; warp < kCountWarps; ++warp) {
      const int32_t own = of(warp)[bin];
      of(warp)[bin] = sum;
      sum += own;
    }
    return sum;
  }
};

ARGUS_DEVICE int64_t count_index(const CudaCounts& given, int column, int bin) {
  return (given.lines[column] + static_cast<int64_t>(bin) * given.readers[column]) * gridDim.x + blockIdx.x;
}

// blockIdx.y is the column.
__global__ void __launch_bounds__(kCountWarps* kWarpSize) count_kernel(CudaCounts given) {
  ARGUS_SHARED(int32_t, shared, [kCountWarps * (kMaxCountedRows + 1)]);
  const int column = static_cast<int>(blockIdx.y);
  const int bins = static_cast<int>(given.keys.table_rows[column]) + 1;
  const WarpCounts counts{&shared[0]};
  counts.fill(given.keys, column, bins);
  for (int bin = static_cast<int>(threadIdx.x); bin < bins; bin += static_cast<int>(blockDim.x))
    given.counts[count_index(given, column, bin)] = counts.accumulate(bin);
}

// blockIdx.y is the column.
__global__ void __launch_bounds__(kCountWarps* kWarpSize) place_kernel(CudaCounts given) {
  ARGUS_SHARED(int32_t, shared, [kCountWarps * (kMaxCountedRows + 1)]);
  const int column = static_cast<int>(blockIdx.y);
  const CudaKeys& keys = given.keys;
  const int bins = static_cast<int>(keys.table_rows[column]) + 1;
  const WarpCounts counts{&shared[0]};
  counts.fill(keys, column, bins);
  for (int bin = static_cast<int>(threadIdx.x); bin < bins; bin += static_cast<int>(blockDim.x))
    counts.accumulate(bin);
  __syncthreads();
  count_events(keys, column, counts.of(warp_index()), [&](int64_t event, int bin, int32_t before) {
    const int64_t index = count_index(given, column, bin);
    const int64_t place = (index > 0 ? given.sums[index - 1] : 0) + before;
    keys.keys[place] = keys.first_keys[column] + bin;
    given.positions[place] = column * keys.events + event;
  });
}

}  // namespace argus::triple_embedding
