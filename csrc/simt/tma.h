// Host twins of TMA copies of tensor tiles (common/cuda/sm90/tma.cuh) and of bulk copies (bulk.cuh): tensor
// maps as the driver encodes them, cp.async.bulk.tensor in both directions, cp.async.bulk and
// cp.reduce.async.bulk to global memory, and the groups of stores.
//
// A load's source is read and its bytes arrive at one drawn moment between the instruction and the end of the
// mbarrier's phase; until then the destination holds 0xff. Elements outside the tensor are 0 and count as
// bytes. A store's source is read at one drawn moment, its destination written, or read and added to, at a
// later one. An add takes subnormal numbers for 0, as the manual says of its float32 form.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "simt/executor.h"

namespace argus::simt {

constexpr int kMaxRank = 5;

// What the driver is asked for; dimension 0 is the contiguous one, and strides are those of dimensions 1 and
// on, in bytes.
struct TensorMapRequest {
  const void* base;
  int element_bytes, rank, swizzle_bytes;  // swizzle: 0, 32, 64 or 128
  std::array<uint64_t, kMaxRank> extents;
  std::array<uint64_t, kMaxRank - 1> strides;
  std::array<uint32_t, kMaxRank> box;
  std::array<uint32_t, kMaxRank> element_strides;
};

// In the place of the driver's 128 opaque bytes.
struct alignas(64) EncodedTensorMap {
  uint64_t base;
  std::array<uint64_t, kMaxRank - 1> strides;
  std::array<uint32_t, kMaxRank> extents;
  std::array<uint16_t, kMaxRank> box;  // elements that arrive, the element strides taken out
  std::array<uint8_t, kMaxRank> element_strides;
  uint8_t rank, element_bytes, swizzle_bytes;
  uint32_t encoded;  // tells a map from other bytes

  size_t box_bytes() const;
};
static_assert(sizeof(EncodedTensorMap) == 128);

// Throws std::invalid_argument where the driver returns CUDA_ERROR_INVALID_VALUE.
EncodedTensorMap encode_tensor_map(const TensorMapRequest& request);

// A run of a tile: bytes that are contiguous in global and in shared memory. Shared offsets are those of the
// shared window, swizzled by their bits 7 to 9.
struct TileRun {
  uint64_t global;
  uint32_t shared, bytes;
  bool inside;  // of the tensor
};
std::vector<TileRun> tile_runs(const EncodedTensorMap& map, const int32_t* coordinates, uint32_t shared);
uint32_t swizzled(uint32_t shared, int swizzle_bytes);

void tma_load(void* shared, const void* map, const int32_t* coordinates, int rank, void* barrier);
void tma_store(const void* map, const int32_t* coordinates, int rank, const void* shared);
void bulk_store(void* global, const void* shared, uint32_t bytes);
void bulk_add(float* global, const float* shared, uint32_t bytes);
void bulk_commit();
// Waits until all but the last `groups_left` groups have been read, or have arrived too.
void bulk_wait(int groups_left, bool read_only);

void begin_block_copies();
void exit_thread_copies(int thread);

}  // namespace argus::simt
