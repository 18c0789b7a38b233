// wgmma on given matrices, its operands brought by TMA in every layout that OperandTile has: on a GPU of
// compute capability 9.0 if compiled by nvcc for sm_90a, with the twins if compiled by the host compiler.
#include <stdexcept>

#include "common/cuda/sm90/capability.cuh"
#include "common/cuda/sm90/product_loop.cuh"
#include "golden.h"

namespace golden {

using argus::launch;
using argus::LaunchShape;
using argus::ptx::Major;
using argus::ptx::TensorMap;
using argus::sm90::OperandTile;
namespace ptx = argus::ptx;

constexpr int kRows = 64, kThreads = 128;

// Deep enough for steps within a box of TMA and, where the product is narrow, from one to the next;
// golden_wgmma.py has the same.
template <class T, int kSwizzle, int kColumns>
constexpr int kDepth = (kSwizzle == 128 && kColumns == 64 ? 256 : 128) / static_cast<int>(sizeof(T));

template <int kColumns, class Visit>
ARGUS_DEVICE void for_each_sum(const Visit& visit) {
#pragma unroll
  for (int i = 0; i < kColumns / 2; ++i)
    visit(i, argus::sm90::row_of_sum(i) * kColumns + argus::sm90::column_of_sum(i));
}

// A, K-major, in fragments of mma.m16n8k16.
template <class T, int kSteps>
ARGUS_DEVICE void read_fragments(const T* a, uint32_t (&fragments)[kSteps][4]) {
  const int t = static_cast<int>(threadIdx.x), row = t / 32 * 16 + t % 32 / 4;
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const T* from = a + (row + i % 2 * 8) * 16 * kSteps + 16 * step + t % 4 * 2 + i / 2 * 8;
      memcpy(&fragments[step][i], from, sizeof(uint32_t));
    }
  }
}

// D [64, kColumns] = kSign · A Bᵀ by one warpgroup, all steps in one group of operations; added to `before`
// if it is not null. With kRegisters A is read from `a` into registers, and map_a is not used.
template <class T, class TileA, class TileB, int kColumns, int kSign, bool kRegisters>
__global__ void __launch_bounds__(kThreads)
    multiply(const __grid_constant__ TensorMap map_a, const __grid_constant__ TensorMap map_b, const T* a,
             const float* before, float* d) {
#if defined(ARGUS_SM90A_CODE)
  constexpr int kSteps = TileB::kSteps, kBytes = (kRegisters ? 0 : TileA::kBytes) + TileB::kBytes;
  static_assert(TileA::kSteps == kSteps && TileB::kBytes % argus::sm90::kPatternBytes == 0);
  ARGUS_SHARED(uint64_t, full, [1]);
  ARGUS_DYNAMIC_SHARED(unsigned char, buffer);
  unsigned char* tile_b = argus::sm90::align_to_pattern(buffer);
  unsigned char* tile_a = tile_b + TileB::kBytes;
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(full, 1);
    ptx::fence_mbarrier_init();
    ptx::mbarrier_arrive_expect(full, kBytes);
    if constexpr (!kRegisters) TileA::load(tile_a, map_a, 0, 0, full);
    TileB::load(tile_b, map_b, 0, 0, full);
  }
  __syncthreads();
  float sums[kColumns / 2];
  if (before != nullptr) for_each_sum<kColumns>([&](int i, int at) { sums[i] = before[at]; });
  uint32_t fragments[kRegisters ? kSteps : 1][4];
  if constexpr (kRegisters) read_fragments(a, fragments);
  ptx::mbarrier_wait(full, 0);
  ptx::wgmma_fence();
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const uint64_t b = TileB::descriptor(tile_b, step);
    const bool add = step > 0 || before != nullptr;
    if constexpr (kRegisters) {
      ptx::wgmma<TileB::kMajor, kSign>(sums, fragments[step], b, add, T{});
    } else {
      ptx::wgmma<TileA::kMajor, TileB::kMajor, kSign>(sums, TileA::descriptor(tile_a, step), b, add, T{});
    }
  }
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>(sums);
  for_each_sum<kColumns>([&](int i, int at) { d[at] = sums[i]; });
#endif
}

enum Source { kMajorK, kMajorMn, kInRegisters };

// One product, as golden_wgmma.py asks for it.
struct Product {
  int32_t type;  // 0 half, 1 bfloat16, 2 tf32
  int32_t columns, depth, swizzle, sign;
  int32_t a, b;  // Source
  int32_t adds;  // to `before`
};

// A is [64, depth] or, MN-major, [depth, 64]; B [columns, depth] or [depth, columns]; before and d are
// [64, columns].
struct Operands {
  const void *a, *b;
  const float* before;
  float* d;
};

template <class T, class TileA, class TileB, int kColumns, int kSign, bool kRegisters>
void run(const Product& asked, const Operands& given) {
  constexpr int kTileDepth = TileB::kSteps * TileB::kStepDepth;
  if (asked.depth != kTileDepth)
    throw std::invalid_argument("the kernel's depth is " + std::to_string(kTileDepth));
  const Memory<const T> a("a", static_cast<const T*>(given.a), size_t{kRows} * kTileDepth);
  const Memory<const T> b("b", static_cast<const T*>(given.b), size_t{kColumns} * kTileDepth);
  const Memory<const float> before("before", given.before, size_t{kRows} * kColumns);
  const Memory<float> d("d", given.d, size_t{kRows} * kColumns);
  const auto map_a = TileA::map(a.get(), kRows, kTileDepth, TileA::kMn ? kRows : kTileDepth);
  const auto map_b = TileB::map(b.get(), kColumns, kTileDepth, TileB::kMn ? kColumns : kTileDepth);
  const size_t bytes = TileA::kBytes + TileB::kBytes + argus::sm90::kPatternBytes;
  launch("golden_wgmma", multiply<T, TileA, TileB, kColumns, kSign, kRegisters>,
         LaunchShape{dim3(1), dim3(kThreads), bytes}, nullptr, map_a, map_b, a.get(),
         asked.adds != 0 ? before.get() : nullptr, d.get());
  d.copy_back();
}

template <class T, Major kA, Major kB, int kSwizzle, int kColumns, int kSign, bool kRegisters>
void run_layout(const Product& asked, const Operands& given) {
  using TileA = OperandTile<T, kA, kSwizzle, kRows, kDepth<T, kSwizzle, kColumns>>;
  using TileB = OperandTile<T, kB, kSwizzle, kColumns, kDepth<T, kSwizzle, kColumns>>;
  run<T, TileA, TileB, kColumns, kSign, kRegisters>(asked, given);
}

// A in registers or, of `kA`, in shared memory.
template <class T, Major kA, int kSwizzle, int kColumns, int kSign>
void run_b(const Product& asked, const Operands& given) {
  constexpr Major k = Major::k, mn = sizeof(T) == 2 ? Major::mn : Major::k;
  constexpr bool kRegisters = sizeof(T) == 2 && kA == Major::k;
  const bool b_mn = asked.b == kMajorMn;
  const auto run = kRegisters && asked.a == kInRegisters
                       ? b_mn ? run_layout<T, kA, mn, kSwizzle, kColumns, kSign, kRegisters>
                              : run_layout<T, kA, k, kSwizzle, kColumns, kSign, kRegisters>
                   : b_mn ? run_layout<T, kA, mn, kSwizzle, kColumns, kSign, false>
                          : run_layout<T, kA, k, kSwizzle, kColumns, kSign, false>;
  run(asked, given);
}

template <class T, int kSwizzle, int kColumns, int kSign = 1>
bool run_majors(const Product& asked, const Operands& given) {
  if (sizeof(T) == 4 && (asked.a != kMajorK || asked.b != kMajorK)) return false;
  if (asked.a != kMajorMn) {
    run_b<T, Major::k, kSwizzle, kColumns, kSign>(asked, given);
    return true;
  }
  if constexpr (sizeof(T) == 2 && kColumns == 64 && kSign == 1)
    run_b<T, Major::mn, kSwizzle, kColumns, kSign>(asked, given);
  return kColumns == 64 && kSign == 1;
}

// Wide products and those of sign -1 have no MN-major A, and the swizzle of 128 bytes of the library's
// kernels.
template <class T>
bool run_type(const Product& asked, const Operands& given) {
  if (asked.swizzle == 128) {
    if (asked.columns == 64 && asked.sign == -1) return run_majors<T, 128, 64, -1>(asked, given);
    if (asked.sign != 1) return false;
    if (asked.columns == 64) return run_majors<T, 128, 64>(asked, given);
    if (asked.columns == 128) return run_majors<T, 128, 128>(asked, given);
    if constexpr (sizeof(T) == 2) {
      if (asked.columns == 256) return run_majors<T, 128, 256>(asked, given);
    }
    return false;
  }
  if (asked.columns != 64 || asked.sign != 1) return false;
  if (asked.swizzle == 64) return run_majors<T, 64, 64>(asked, given);
  if (asked.swizzle == 32) return run_majors<T, 32, 64>(asked, given);
  return asked.swizzle == 0 && run_majors<T, 0, 64>(asked, given);
}

}  // namespace golden

// Writes the error, or the empty string, to `report`.
GOLDEN_EXPORT void golden_wgmma(const golden::Product* asked, const void* a, const void* b,
                                const float* before, float* d, char* report, size_t bytes) {
  golden::report_of(report, bytes, [&] {
    const golden::Operands given{a, b, before, d};
    const auto run = asked->type == 0   ? golden::run_type<__half>
                     : asked->type == 1 ? golden::run_type<__nv_bfloat16>
                                        : golden::run_type<float>;
    if (!run(*asked, given))
      throw std::invalid_argument("golden_wgmma has no kernel of this shape and layout");
  });
}
