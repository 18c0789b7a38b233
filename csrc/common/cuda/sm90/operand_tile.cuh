// A tile of an operand of wgmma in shared memory, as TMA brings it there.
//
// K-major, the matrix is [rows, depth] in global memory, and a box of TMA is `kRows` rows of as many elements
// of depth as the swizzle is wide. MN-major, the matrix is [depth, rows], and a box is `kDepth` steps of as
// many rows as the swizzle is wide. Boxes follow one another; without a swizzle they are 16 bytes wide.
#pragma once

#include "common/cuda/sm90/cluster.cuh"
#include "common/cuda/sm90/wgmma.cuh"

namespace argus::sm90 {

constexpr uint32_t kPatternBytes = 1024;  // to which tiles are aligned

ARGUS_DEVICE unsigned char* align_to_pattern(unsigned char* shared) {
  return shared + (-reinterpret_cast<uintptr_t>(shared) % kPatternBytes);
}

template <class T, ptx::Major kStored, int kSwizzle, int kRows, int kDepth>
struct OperandTile {
  static constexpr ptx::Major kMajor = kStored;
  static constexpr int kSwizzleBytes = kSwizzle;
  static constexpr bool kMn = kMajor == ptx::Major::mn;
  static constexpr int kWidth = kSwizzle == 0 ? kChunkBytes : kSwizzle;  // bytes of a box's rows
  static constexpr int kBoxColumns = kWidth / static_cast<int>(sizeof(T));
  static constexpr int kBoxRows = kMn ? kDepth : kRows;
  static constexpr int kBoxes = (kMn ? kRows : kDepth) / kBoxColumns;
  static constexpr int kBoxBytes = kBoxRows * kWidth;
  static constexpr int kBytes = kBoxes * kBoxBytes;
  static constexpr int kStepDepth = 32 / static_cast<int>(sizeof(T));  // of one wgmma
  static constexpr int kSteps = kDepth / kStepDepth;
  // From one step to the next, and how many have them before the next box.
  static constexpr int kStepBytes = kMn ? kStepDepth * kWidth : kSwizzle == 0 ? 2 * kBoxBytes : 32;
  static constexpr int kStepsInBox = kMn || kSwizzle == 0 ? kSteps : kWidth / 32;
  static_assert((kMn ? kRows : kDepth) % kBoxColumns == 0 && kDepth % kStepDepth == 0 && kBoxRows <= 256);

  // Of a matrix with `rows` rows and `depth`, its lines `pitch` elements apart.
  static ptx::TensorMap map(const T* base, uint64_t rows, uint64_t depth, uint64_t pitch) {
    return ptx::make_tensor_map<T>(
        {base, kMn ? rows : depth, kMn ? depth : rows, pitch * sizeof(T), kBoxColumns, kBoxRows, kSwizzle});
  }

  // Brings the tile at (row, depth); `barrier` counts kBytes.
  ARGUS_DEVICE static void load(unsigned char* tile, const ptx::TensorMap& map, int row, int depth,
                                uint64_t* barrier) {
    for_each_box(tile, row, depth, [&](unsigned char* box, int column, int line) {
      ptx::tma_load(box, map, column, line, barrier);
    });
  }
  // Into the same place in each block of the cluster whose rank is a bit of `mask`.
  ARGUS_DEVICE static void load_multicast(unsigned char* tile, const ptx::TensorMap& map, int row, int depth,
                                          uint64_t* barrier, uint16_t mask) {
    for_each_box(tile, row, depth, [&](unsigned char* box, int column, int line) {
      ptx::tma_load_multicast(box, map, column, line, barrier, mask);
    });
  }

  template <class Visit>
  ARGUS_DEVICE static void for_each_box(unsigned char* tile, int row, int depth, const Visit& visit) {
    for (int box = 0; box < kBoxes; ++box) {
      const int along = box * kBoxColumns;
      visit(tile + box * kBoxBytes, kMn ? row + along : depth + along, kMn ? depth : row);
    }
  }

  // Without a swizzle a pattern is one chunk wide, and the offset that a swizzle leaves out lies between
  // boxes.
  static constexpr uint64_t kDescriptor =
      kSwizzle != 0 ? ptx::matrix_descriptor(kSwizzle, kMn ? kBoxBytes : kChunkBytes, 8 * kWidth)
      : kMn         ? ptx::matrix_descriptor(0, 8 * kChunkBytes, kBoxBytes)
                    : ptx::matrix_descriptor(0, kBoxBytes, 8 * kChunkBytes);

  // Where a thread that writes a tile of one box puts a chunk of a line of it: of a row's depth, or,
  // MN-major, of the rows at one depth.
  ARGUS_DEVICE static int chunk_offset(int line, int chunk) {
    static_assert(kSwizzle == 128 && kBoxes == 1);
    return line * kWidth + (chunk ^ (line & 7)) * kChunkBytes;
  }

  // Where the `step`-th 32 bytes of depth begin, and their descriptor.
  ARGUS_DEVICE static int step_offset(int step) {
    return step % kStepsInBox * kStepBytes + step / kStepsInBox * kBoxBytes;
  }
  ARGUS_DEVICE static uint64_t descriptor(const unsigned char* tile, int step) {
    // Shared memory has fewer bytes than the descriptor's address can hold, so that steps add without a
    // carry.
    return ptx::matrix_descriptor_at(kDescriptor, tile) +
           static_cast<uint64_t>(step_offset(step) / kChunkBytes);
  }
};

}  // namespace argus::sm90
