// Host twins of wgmma (common/cuda/sm90/wgmma.cuh): D = A B + D by the four warps of a warpgroup, D [64, N]
// in registers, B and possibly A in shared memory, found through matrix descriptors.
//
// An operation reads its shared operands at a drawn moment between the instruction and the wait; a write to
// them that is not ordered after the waits of all four warps is a fault. Until a warp's wait its accumulators
// hold NaN, and they and the registers of A may not be touched. A register touched since the warp's last
// wgmma.fence may not enter an operation, unless as the accumulator of operations still under way.
#pragma once

#include <cstddef>
#include <cstdint>

#include "simt/order.h"

namespace argus::simt {

enum class Element : uint8_t { f16, bf16, tf32 };

struct ProductShape {
  int columns;
  Element element;
  bool scale_d, negate, mn_major_a, mn_major_b;

  bool operator==(const ProductShape&) const = default;
  int depth() const { return element == Element::tf32 ? 8 : 16; }
  int element_bytes() const { return element == Element::tf32 ? 4 : 2; }
};

// A matrix descriptor, decoded; offsets in bytes.
struct MatrixDescriptor {
  uint32_t start, leading, stride, base_offset;
  int swizzle_bytes;
};
MatrixDescriptor decode_descriptor(uint64_t bits);

// The offset in the shared window of element (row, k) of an operand, where rows are those of A or columns of
// B.
uint32_t operand_offset(const MatrixDescriptor& descriptor, bool mn_major, int element_bytes, int row, int k);

// `a` is null where A is in shared memory, d has columns / 2 numbers.
void wgmma(const ProductShape& shape, float* d, const uint32_t* a, uint64_t descriptor_a,
           uint64_t descriptor_b, Site site);
void wgmma_fence(Site site);
void wgmma_commit(Site site);
void wgmma_wait(int groups_left, Site site);

// Whether the view is ordered after the waits of all four warps for the warpgroup's operation of this number.
bool product_over(const View& view, int warpgroup, uint32_t product);

// An access of the running thread to its own stack, where registers may lie; told once the block uses wgmma.
extern bool registers_watched;
void touch_registers(const void* address, size_t bytes, Kind kind);

void begin_block_products(int threads);
void exit_thread_products(int thread);

}  // namespace argus::simt
