// Boxes of TMA, with the bytes as they lie in shared memory: on a GPU of compute capability 9.0 if compiled
// by nvcc for sm_90a, with the twins if compiled by the host compiler.
#include <stdexcept>

#include "attention/cuda/sm90/user_box.cuh"
#include "common/cuda/sm90/bulk.cuh"
#include "common/cuda/sm90/capability.cuh"
#include "golden.h"

namespace golden {

using argus::kWarpSize;
using argus::launch;
using argus::LaunchShape;
using argus::ptx::TensorMap;
using argus::sm90::kPatternBytes;
namespace ptx = argus::ptx;

// As golden_tma.py asks for it; the contiguous dimension first.
struct Boxes {
  int32_t type;  // 0 half, 1 bfloat16, 2 float
  int32_t rank;  // 2 or 5
  int32_t swizzle;
  int32_t offset;  // of a box in shared memory, behind the beginning of a pattern
  int32_t cases;
  int32_t elements;  // of a tensor, with what lies between its rows
  int64_t extents[5], stride_bytes[4];
  int32_t box[5];

  int box_elements() const {
    int count = 1;
    for (int d = 0; d < rank; ++d) count *= box[d];
    return count;
  }
};

// Of the packed rows of users, [rows, heads, width] with a stride between rows; a box has kUserRows rows.
constexpr int kUserRows = 16;
struct UserBoxes {
  int32_t type;  // 0 half, 1 bfloat16
  int32_t cases, rows, heads, width, row_stride;
};

// Words of shared and of global memory, `elements` of each, and the bytes that go from one to the other.
struct BulkCopies {
  int32_t adds;  // float32 numbers; else it stores
  int32_t parts, elements;
  int32_t shared_offset, global_offset, bytes;
};

ARGUS_DEVICE void expect_bytes(uint64_t* full, int bytes) {
  ptx::mbarrier_init(full, 1);
  ptx::fence_mbarrier_init();
  ptx::mbarrier_arrive_expect(full, static_cast<uint32_t>(bytes));
}

ARGUS_DEVICE void copy_words(uint32_t* to, const void* from, int bytes) {
  const uint32_t* words = static_cast<const uint32_t*>(from);
  for (int i = static_cast<int>(threadIdx.x); i < bytes / 4; i += kWarpSize) to[i] = words[i];
}

// A warp a case: the box at its `rank` coordinates, of `bytes` bytes, to `out`.
__global__ void load_box(const __grid_constant__ TensorMap map, int rank, int bytes, int offset,
                         const int32_t* coordinates, uint32_t* out) {
#if defined(ARGUS_SM90A_CODE)
  ARGUS_SHARED(uint64_t, full, [1]);
  ARGUS_DYNAMIC_SHARED(unsigned char, buffer);
  unsigned char* tile = argus::sm90::align_to_pattern(buffer) + offset;
  const int32_t* from = coordinates + static_cast<int>(blockIdx.x) * rank;
  if (threadIdx.x == 0) {
    expect_bytes(full, bytes);
    if (rank == 2) {
      ptx::tma_load(tile, map, from[0], from[1], full);
    } else {
      const int at[5] = {from[0], from[1], from[2], from[3], from[4]};
      ptx::tma_load(tile, map, at, full);
    }
  }
  __syncwarp();
  ptx::mbarrier_wait(full, 0);
  copy_words(out + static_cast<int>(blockIdx.x) * (bytes / 4), tile, bytes);
#endif
}

// A warp a case: the rows of a user of `cases` [cases, 4]: its begin and length, the head, the first row.
template <class Tile>
__global__ void load_user_box(const __grid_constant__ TensorMap map, const int32_t* cases, uint32_t* out) {
#if defined(ARGUS_SM90A_CODE)
  ARGUS_SHARED(uint64_t, full, [1]);
  ARGUS_DYNAMIC_SHARED(unsigned char, buffer);
  unsigned char* tile = argus::sm90::align_to_pattern(buffer);
  const int32_t* at = cases + static_cast<int>(blockIdx.x) * 4;
  if (threadIdx.x == 0) {
    expect_bytes(full, Tile::kBytes);
    argus::attention::load_user_rows<Tile>(tile, map, {at[0], at[1]}, at[2], at[3], full);
  }
  __syncwarp();
  ptx::mbarrier_wait(full, 0);
  copy_words(out + static_cast<int>(blockIdx.x) * (Tile::kBytes / 4), tile, Tile::kBytes);
#endif
}

// One warp: `tile`, as it is to lie in shared memory, to the box at the coordinates.
__global__ void store_box(const __grid_constant__ TensorMap map, int bytes, int offset,
                          const int32_t* coordinates, const uint32_t* tile) {
#if defined(ARGUS_SM90A_CODE)
  ARGUS_DYNAMIC_SHARED(unsigned char, buffer);
  unsigned char* shared = argus::sm90::align_to_pattern(buffer) + offset;
  copy_words(reinterpret_cast<uint32_t*>(shared), tile, bytes);
  ptx::fence_proxy_async();
  __syncwarp();
  if (threadIdx.x == 0) {
    ptx::tma_store(map, coordinates[0], coordinates[1], shared);
    ptx::tma_store_commit();
    ptx::tma_store_wait<0>();
  }
#endif
}

// One warp: each part [parts, elements] in its turn through shared memory to `to`.
__global__ void copy_parts(const __grid_constant__ BulkCopies asked, const uint32_t* parts, uint32_t* to) {
#if defined(ARGUS_SM90A_CODE)
  ARGUS_DYNAMIC_SHARED(unsigned char, buffer);
  unsigned char* shared = argus::sm90::align_to_pattern(buffer);
  unsigned char* from = shared + asked.shared_offset;
  float* target = reinterpret_cast<float*>(to) + asked.global_offset / 4;
  for (int part = 0; part < asked.parts; ++part) {
    copy_words(reinterpret_cast<uint32_t*>(shared), parts + part * asked.elements, 4 * asked.elements);
    ptx::fence_proxy_async();
    __syncwarp();
    if (threadIdx.x == 0) {
      if (asked.adds != 0) {
        ptx::bulk_add(target, reinterpret_cast<const float*>(from), static_cast<uint32_t>(asked.bytes));
      } else {
        ptx::bulk_store(target, from, static_cast<uint32_t>(asked.bytes));
      }
      ptx::tma_store_commit();
      ptx::tma_store_wait<0>();
    }
    __syncwarp();
  }
#endif
}

template <class T>
TensorMap map_of(const Boxes& asked, const T* base) {
  std::array<uint64_t, 5> extents;
  std::array<uint64_t, 4> strides;
  std::array<uint32_t, 5> box;
  for (int d = 0; d < 5; ++d) {
    extents[d] = static_cast<uint64_t>(asked.extents[d]);
    box[d] = static_cast<uint32_t>(asked.box[d]);
    if (d > 0) strides[d - 1] = static_cast<uint64_t>(asked.stride_bytes[d - 1]);
  }
  if (asked.rank == 5) return ptx::make_box_map<T>({base, extents, strides, box, asked.swizzle});
  return ptx::make_tensor_map<T>({base, extents[0], extents[1], strides[0], box[0], box[1], asked.swizzle});
}

LaunchShape warps(int count, int bytes) {
  return {dim3(static_cast<unsigned>(count)), dim3(kWarpSize), static_cast<size_t>(bytes) + kPatternBytes};
}

template <class T>
void load(const Boxes& asked, const void* tensor, const int32_t* coordinates, uint32_t* out) {
  const int bytes = asked.box_elements() * static_cast<int>(sizeof(T));
  const size_t cases = static_cast<size_t>(asked.cases);
  const Memory<const T> from("tensor", static_cast<const T*>(tensor), static_cast<size_t>(asked.elements));
  const Memory<const int32_t> at("coordinates", coordinates, cases * static_cast<size_t>(asked.rank));
  const Memory<uint32_t> to("out", out, cases * static_cast<size_t>(bytes) / 4);
  launch("golden_load_boxes", load_box, warps(asked.cases, asked.offset + bytes), nullptr,
         map_of(asked, from.get()), asked.rank, bytes, asked.offset, at.get(), to.get());
  to.copy_back();
}

// Each case has a tensor of its own.
template <class T>
void store(const Boxes& asked, const uint32_t* tile, const int32_t* coordinates, void* tensors) {
  const int bytes = asked.box_elements() * static_cast<int>(sizeof(T));
  const size_t cases = static_cast<size_t>(asked.cases), elements = static_cast<size_t>(asked.elements);
  const Memory<const uint32_t> from("tile", tile, static_cast<size_t>(bytes) / 4);
  const Memory<const int32_t> at("coordinates", coordinates, cases * 2);
  const Memory<T> to("tensors", static_cast<T*>(tensors), cases * elements);
  for (size_t i = 0; i < cases; ++i) {
    launch("golden_store_boxes", store_box, warps(1, asked.offset + bytes), nullptr,
           map_of<T>(asked, to.get() + i * elements), bytes, asked.offset, at.get() + 2 * i, from.get());
  }
  to.copy_back();
}

template <class T, int kWidth>
void load_users(const UserBoxes& asked, const void* tensor, const int32_t* cases, uint32_t* out) {
  using Tile = argus::sm90::OperandTile<T, ptx::Major::k, 128, kUserRows, kWidth>;
  const size_t count = static_cast<size_t>(asked.cases);
  const Memory<const T> from("tensor", static_cast<const T*>(tensor),
                             static_cast<size_t>(asked.rows) * static_cast<size_t>(asked.row_stride));
  const Memory<const int32_t> at("cases", cases, count * 4);
  const Memory<uint32_t> to("out", out, count * Tile::kBytes / 4);
  const argus::attention::Heads heads{from.get(), asked.row_stride, asked.width};
  launch("golden_load_users", load_user_box<Tile>, warps(asked.cases, Tile::kBytes), nullptr,
         argus::attention::user_map<T, Tile>(heads, asked.heads, asked.width), at.get(), to.get());
  to.copy_back();
}

}  // namespace golden

// Each writes the error, or the empty string, to `report`. out [cases, bytes of a box].
GOLDEN_EXPORT void golden_load_boxes(const golden::Boxes* asked, const void* tensor,
                                     const int32_t* coordinates, uint32_t* out, char* report, size_t bytes) {
  golden::report_of(report, bytes, [&] {
    const auto load = asked->type == 0   ? golden::load<__half>
                      : asked->type == 1 ? golden::load<__nv_bfloat16>
                                         : golden::load<float>;
    load(*asked, tensor, coordinates, out);
  });
}

// tensors [cases, elements] are written in place, each of the one tile.
GOLDEN_EXPORT void golden_store_boxes(const golden::Boxes* asked, const uint32_t* tile,
                                      const int32_t* coordinates, void* tensors, char* report, size_t bytes) {
  golden::report_of(report, bytes, [&] {
    const auto store = asked->type == 0   ? golden::store<__half>
                       : asked->type == 1 ? golden::store<__nv_bfloat16>
                                          : golden::store<float>;
    store(*asked, tile, coordinates, tensors);
  });
}

GOLDEN_EXPORT void golden_load_users(const golden::UserBoxes* asked, const void* tensor, const int32_t* cases,
                                     uint32_t* out, char* report, size_t bytes) {
  golden::report_of(report, bytes, [&] {
    const bool wide = asked->width > 64;
    const auto load = asked->type == 0
                          ? wide ? golden::load_users<__half, 128> : golden::load_users<__half, 64>
                      : wide ? golden::load_users<__nv_bfloat16, 128>
                             : golden::load_users<__nv_bfloat16, 64>;
    load(*asked, tensor, cases, out);
  });
}

// `to` [elements] is written in place.
GOLDEN_EXPORT void golden_bulk_copies(const golden::BulkCopies* asked, const uint32_t* parts, uint32_t* to,
                                      char* report, size_t bytes) {
  golden::report_of(report, bytes, [&] {
    const size_t elements = static_cast<size_t>(asked->elements);
    const golden::Memory<const uint32_t> from("parts", parts, static_cast<size_t>(asked->parts) * elements);
    const golden::Memory<uint32_t> target("to", to, elements);
    golden::launch("golden_bulk_copies", golden::copy_parts, golden::warps(1, 4 * asked->elements), nullptr,
                   *asked, from.get(), target.get());
    target.copy_back();
  });
}
