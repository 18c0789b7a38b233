// Operands of the products of TMA and wgmma.
#pragma once

#include <cstdint>
#include <vector>

#include "common/cuda/sm90/wgmma.cuh"

namespace matrices {

using argus::ptx::Major;

// Integers of -8 to 8, so that every sum is exact.
inline int drawn(int row, int k) {
  uint32_t bits = static_cast<uint32_t>(row) * 0x9e3779b9u + static_cast<uint32_t>(k) * 0x85ebca6bu + 1;
  bits = (bits ^ bits >> 15) * 0x2c1b3c6du;
  return static_cast<int>((bits ^ bits >> 12) % 17) - 8;
}

// [rows, depth] or, MN-major, its transpose.
template <class T>
std::vector<T> matrix(int rows, int depth, Major major, int first) {
  std::vector<T> values(static_cast<size_t>(rows * depth));
  for (int row = 0; row < rows; ++row) {
    for (int k = 0; k < depth; ++k)
      values[major == Major::k ? row * depth + k : k * rows + row] =
          static_cast<float>(drawn(first + row, k));
  }
  return values;
}

}  // namespace matrices
