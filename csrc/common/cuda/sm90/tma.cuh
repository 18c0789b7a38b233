// TMA copies of tensor tiles on sm_90, with host twins (simt/tma.h).
//
//   A TensorMap, made on the host and passed to the kernel as `const __grid_constant__ TensorMap`, describes
//   a tensor of up to five dimensions and a box of it. tma_load brings the box at some coordinates,
//   contiguous dimension first, into shared memory: 128-byte aligned, one row of the box after the other,
//   chunks of 16 bytes swizzled by the address. Elements outside the tensor are 0. The mbarrier counts the
//   bytes of the whole box, which an expect_tx has announced. tma_store writes what lies inside the tensor; a
//   thread's stores since its last commit are a group. tma_store_wait_read<N> waits until at most N groups
//   may still read shared memory, tma_store_wait<N> until their bytes have arrived.
#pragma once

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>

#include "common/cuda/sm90/mbarrier.cuh"

#if defined(__CUDACC__)
#include <cuda.h>
#else
#include "simt/tma.h"
#endif

namespace argus::ptx {

#if defined(__CUDACC__)
using TensorMap = CUtensorMap;
#else
using TensorMap = simt::EncodedTensorMap;
#endif

template <class T>
struct TensorTile {
  const T* base;
  uint64_t columns, rows, row_bytes;  // of a matrix, contiguous along its columns
  uint32_t box_columns, box_rows;
  int swizzle_bytes;  // 0, 32, 64 or 128, at least a row of the box
};

// Of a tensor of five dimensions, the contiguous one first.
template <class T>
struct TensorBox {
  const T* base;
  std::array<uint64_t, 5> extents;
  std::array<uint64_t, 4> stride_bytes;  // of dimensions 1 and on
  std::array<uint32_t, 5> box;
  int swizzle_bytes;
};

#if defined(__CUDACC__)

inline CUtensorMapDataType tensor_type(__half) {
  return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
}
inline CUtensorMapDataType tensor_type(__nv_bfloat16) {
  return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
}
inline CUtensorMapDataType tensor_type(float) {
  return CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
}

// The driver's encoder, without linking the driver.
inline decltype(&cuTensorMapEncodeTiled) tensor_map_encoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
  if (error != cudaSuccess || found != cudaDriverEntryPointSuccess)
    throw std::runtime_error("the CUDA driver has no cuTensorMapEncodeTiled");
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
}

// Throws where the driver refuses it.
template <class T>
TensorMap encode_tensor_map(const T* base, int rank, const cuuint64_t* extents, const cuuint64_t* strides,
                            const cuuint32_t* box, int swizzle_bytes) {
  TensorMap map;
  const cuuint32_t steps[] = {1, 1, 1, 1, 1};
  const CUtensorMapSwizzle swizzle = swizzle_bytes == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
                                     : swizzle_bytes == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                     : swizzle_bytes == 32 ? CU_TENSOR_MAP_SWIZZLE_32B
                                                           : CU_TENSOR_MAP_SWIZZLE_NONE;
  const CUresult result =
      tensor_map_encoder()(&map, tensor_type(T{}), static_cast<cuuint32_t>(rank), const_cast<T*>(base),
                           extents, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                           CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS)
    throw std::runtime_error("cuTensorMapEncodeTiled: error " + std::to_string(static_cast<int>(result)));
  return map;
}

// The map of a matrix.
template <class T>
TensorMap make_tensor_map(const TensorTile<T>& tile) {
  const cuuint64_t extents[] = {tile.columns, tile.rows}, strides[] = {tile.row_bytes};
  const cuuint32_t box[] = {tile.box_columns, tile.box_rows};
  return encode_tensor_map(tile.base, 2, extents, strides, box, tile.swizzle_bytes);
}
template <class T>
TensorMap make_box_map(const TensorBox<T>& of) {
  cuuint64_t extents[5], strides[4];
  std::copy(of.extents.begin(), of.extents.end(), extents);
  std::copy(of.stride_bytes.begin(), of.stride_bytes.end(), strides);
  return encode_tensor_map(of.base, 5, extents, strides, of.box.data(), of.swizzle_bytes);
}

ARGUS_DEVICE void tma_load(void* shared, const TensorMap& map, int column, int row, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, "
      "%3}], [%4];" ::"r"(shared_address(shared)),
      "l"(&map), "r"(column), "r"(row), "r"(shared_address(barrier))
      : "memory");
}
ARGUS_DEVICE void tma_load(void* shared, const TensorMap& map, const int (&at)[5], uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, "
      "%3, %4, %5, %6}], [%7];" ::"r"(shared_address(shared)),
      "l"(&map), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4]), "r"(shared_address(barrier))
      : "memory");
}
ARGUS_DEVICE void tma_store(const TensorMap& map, int column, int row, const void* shared) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&map),
               "r"(column), "r"(row), "r"(shared_address(shared))
               : "memory");
}
ARGUS_DEVICE void tma_store_commit() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
template <int kGroupsLeft>
ARGUS_DEVICE void tma_store_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kGroupsLeft) : "memory");
}
template <int kGroupsLeft>
ARGUS_DEVICE void tma_store_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kGroupsLeft) : "memory");
}
ARGUS_DEVICE void prefetch_tensor_map(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

#else

template <class T>
TensorMap make_tensor_map(const TensorTile<T>& tile) {
  return simt::encode_tensor_map({tile.base,
                                  static_cast<int>(sizeof(T)),
                                  2,
                                  tile.swizzle_bytes,
                                  {tile.columns, tile.rows},
                                  {tile.row_bytes},
                                  {tile.box_columns, tile.box_rows},
                                  {1, 1}});
}

template <class T>
TensorMap make_box_map(const TensorBox<T>& of) {
  return simt::encode_tensor_map({of.base,
                                  static_cast<int>(sizeof(T)),
                                  5,
                                  of.swizzle_bytes,
                                  of.extents,
                                  of.stride_bytes,
                                  of.box,
                                  {1, 1, 1, 1, 1}});
}

inline void tma_load(void* shared, const TensorMap& map, const int (&at)[5], uint64_t* barrier) {
  simt::tma_load(shared, &map, at, 5, barrier);
}
inline void tma_load(void* shared, const TensorMap& map, int column, int row, uint64_t* barrier) {
  const int32_t coordinates[] = {column, row};
  simt::tma_load(shared, &map, coordinates, 2, barrier);
}
inline void tma_store(const TensorMap& map, int column, int row, const void* shared) {
  const int32_t coordinates[] = {column, row};
  simt::tma_store(&map, coordinates, 2, shared);
}
inline void tma_store_commit() {
  simt::bulk_commit();
}
template <int kGroupsLeft>
void tma_store_wait() {
  simt::bulk_wait(kGroupsLeft, false);
}
template <int kGroupsLeft>
void tma_store_wait_read() {
  simt::bulk_wait(kGroupsLeft, true);
}
inline void prefetch_tensor_map(const TensorMap&) {}

#endif

}  // namespace argus::ptx
