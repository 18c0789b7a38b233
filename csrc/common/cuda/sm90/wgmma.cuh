// wgmma on sm_90, with host twins (simt/wgmma.h): a warpgroup's D = ± A B + D, or ± A B where `scale_d` is
// false, D [64, N] in float32 registers, B [N columns, depth] and A [64, depth] in shared memory, where A may
// also be in registers. The depth is 32 bytes.
//
//   Thread t of the warpgroup holds of D row 16 (t / 32) + t % 32 / 4 + 8 (i / 2 % 2), column 8 (i / 4) +
//   2 (t % 4) + i % 2 in its i-th register, and of A the fragments of mma.m16n8k16 for rows 16 (t / 32) and
//   on. Around the operations: wgmma_fence before the first one and after every access to their registers,
//   then the operations, wgmma_commit, wgmma_wait<N> (at most N groups still under way), and only then the
//   registers of D and the next contents of A and B.
//
// Shared operands are described by a 64-bit descriptor; in its 16-byte chunks, with rows those of A or of Bᵀ:
//   K-major: swizzled by S bytes, 8 rows of S bytes are a pattern, `stride` lies between patterns along the
//   rows, and a step in depth adds 32 bytes to the start. Not swizzled, a pattern is 8 rows of 16 bytes,
//   `leading` lies between patterns along the depth.
//   MN-major: 8 steps in depth of S bytes are a pattern, `leading` lies between patterns along the rows,
//   `stride` between those along the depth; not swizzled, the two are exchanged.
// A pattern begins at a multiple of its 8 S bytes.
#pragma once

#include "common/cuda/ptx.cuh"

#if !defined(__CUDACC__)
#include "simt/regions.h"
#include "simt/wgmma.h"
#endif

namespace argus::ptx {

enum class Major { k, mn };

// What is the same at every step of a loop: without the start address.
constexpr uint64_t matrix_descriptor(int swizzle_bytes, uint32_t leading_bytes, uint32_t stride_bytes) {
  const uint64_t swizzle = swizzle_bytes == 128 ? 1 : swizzle_bytes == 64 ? 2 : swizzle_bytes == 32 ? 3 : 0;
  return swizzle << 62 | static_cast<uint64_t>(stride_bytes >> 4 & 0x3fff) << 32 |
         static_cast<uint64_t>(leading_bytes >> 4 & 0x3fff) << 16;
}

ARGUS_DEVICE uint64_t matrix_descriptor_at(uint64_t descriptor, const void* shared) {
#if defined(__CUDACC__)
  return descriptor | (shared_address(shared) >> 4 & 0x3fff);
#else
  return descriptor | (simt::shared_offset(shared) >> 4 & 0x3fff);
#endif
}

#if defined(__CUDACC__)

ARGUS_DEVICE void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
ARGUS_DEVICE void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kGroupsLeft>
ARGUS_DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroupsLeft) : "memory");
}
// The same, and keeps the compiler from using D before the wait.
template <int kGroupsLeft, int kRegisters>
ARGUS_DEVICE void wgmma_wait(float (&d)[kRegisters]) {
  wgmma_wait<kGroupsLeft>();
#pragma unroll
  for (int i = 0; i < kRegisters; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

#define ARGUS_TEN(t) \
  "%" #t "0,%" #t "1,%" #t "2,%" #t "3,%" #t "4,%" #t "5,%" #t "6,%" #t "7,%" #t "8,%" #t "9,"
#define ARGUS_D16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define ARGUS_D32 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9," ARGUS_TEN(1) ARGUS_TEN(2) "%30,%31"
#define ARGUS_D64                                                                      \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9," ARGUS_TEN(1) ARGUS_TEN(2) ARGUS_TEN(3) ARGUS_TEN(4) \
      ARGUS_TEN(5) "%60,%61,%62,%63"
#define ARGUS_D128 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9," ARGUS_TEN(1) ARGUS_TEN(2) ARGUS_TEN(3) ARGUS_TEN(4) ARGUS_TEN(5)       \
      ARGUS_TEN(6) ARGUS_TEN(7) ARGUS_TEN(8) ARGUS_TEN(9) ARGUS_TEN(10) ARGUS_TEN(11) "%120,%121,%122,%123," \
                                                                                      "%124,%125,%126,%127"
#define ARGUS_ACC8(i)                                                                         \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define ARGUS_ACC16(i) ARGUS_ACC8(i), ARGUS_ACC8(i + 8)
#define ARGUS_ACC32(i) ARGUS_ACC8(i), ARGUS_ACC8(i + 8), ARGUS_ACC8(i + 16), ARGUS_ACC8(i + 24)
#define ARGUS_ACC64(i) ARGUS_ACC32(i), ARGUS_ACC32(i + 32)
#define ARGUS_ACC128(i) ARGUS_ACC64(i), ARGUS_ACC64(i + 64)

// With A in shared memory the operands after D's R registers are: A, B, scale of D, sign, majors of A and B;
// with A in registers: its four registers, B, scale of D, sign, major of B.
#define ARGUS_WGMMA_16(N, R, TYPE, NAME, A, B, P, S, MA, MB)                                               \
  template <Major kA, Major kB, int kSign = 1>                                                             \
  ARGUS_DEVICE void wgmma(float (&d)[R], uint64_t a, uint64_t b, bool scale_d, TYPE) {                     \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" P ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N       \
                 "k16.f32." NAME "." NAME " {" ARGUS_D##R "}, %" A ", %" B ", p, %" S ", 1, %" MA ", %" MB \
                                                          ";\n}"                                           \
                 : ARGUS_ACC##R(0)                                                                         \
                 : "l"(a), "l"(b), "r"(static_cast<int>(scale_d)), "n"(kSign), "n"(static_cast<int>(kA)),  \
                   "n"(static_cast<int>(kB)));                                                             \
  }
#define ARGUS_WGMMA_16_REGISTERS(N, R, TYPE, NAME, A0, A1, A2, A3, B, P, S, MB)                          \
  template <Major kB, int kSign = 1>                                                                     \
  ARGUS_DEVICE void wgmma(float (&d)[R], const uint32_t (&a)[4], uint64_t b, bool scale_d, TYPE) {       \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" P ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N     \
                 "k16.f32." NAME "." NAME " {" ARGUS_D##R "}, {%" A0 ", %" A1 ", %" A2 ", %" A3 "}, %" B \
                                                          ", p, %" S ", 1, %" MB ";\n}"                  \
                 : ARGUS_ACC##R(0)                                                                       \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(scale_d)),   \
                   "n"(kSign), "n"(static_cast<int>(kB)));                                               \
  }
#define ARGUS_WGMMA_TYPE(TYPE, NAME)                                                            \
  ARGUS_WGMMA_16(32, 16, TYPE, NAME, "16", "17", "18", "19", "20", "21")                        \
  ARGUS_WGMMA_16(64, 32, TYPE, NAME, "32", "33", "34", "35", "36", "37")                        \
  ARGUS_WGMMA_16(128, 64, TYPE, NAME, "64", "65", "66", "67", "68", "69")                       \
  ARGUS_WGMMA_16(256, 128, TYPE, NAME, "128", "129", "130", "131", "132", "133")                \
  ARGUS_WGMMA_16_REGISTERS(64, 32, TYPE, NAME, "32", "33", "34", "35", "36", "37", "38", "39")  \
  ARGUS_WGMMA_16_REGISTERS(128, 64, TYPE, NAME, "64", "65", "66", "67", "68", "69", "70", "71") \
  ARGUS_WGMMA_16_REGISTERS(256, 128, TYPE, NAME, "128", "129", "130", "131", "132", "133", "134", "135")
ARGUS_WGMMA_TYPE(__half, "f16")
ARGUS_WGMMA_TYPE(__nv_bfloat16, "bf16")

#define ARGUS_WGMMA_TF32(N, R, A, B, P, S)                                                           \
  template <Major kA, Major kB, int kSign = 1>                                                       \
  ARGUS_DEVICE void wgmma(float (&d)[R], uint64_t a, uint64_t b, bool scale_d, float) {              \
    static_assert(kA == Major::k && kB == Major::k);                                                 \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" P ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N \
                 "k8.f32.tf32.tf32 {" ARGUS_D##R "}, %" A ", %" B ", p, %" S ", 1;\n}"               \
                 : ARGUS_ACC##R(0)                                                                   \
                 : "l"(a), "l"(b), "r"(static_cast<int>(scale_d)), "n"(kSign));                      \
  }
ARGUS_WGMMA_TF32(64, 32, "32", "33", "34", "35")
ARGUS_WGMMA_TF32(128, 64, "64", "65", "66", "67")

#undef ARGUS_WGMMA_TF32
#undef ARGUS_WGMMA_TYPE
#undef ARGUS_WGMMA_16_REGISTERS
#undef ARGUS_WGMMA_16
#undef ARGUS_ACC128
#undef ARGUS_ACC64
#undef ARGUS_ACC32
#undef ARGUS_ACC16
#undef ARGUS_ACC8
#undef ARGUS_D128
#undef ARGUS_D64
#undef ARGUS_D32
#undef ARGUS_D16
#undef ARGUS_TEN

#else

#define ARGUS_SITE simt::Site site = simt::Site::current()

inline simt::Element element_of(__half) {
  return simt::Element::f16;
}
inline simt::Element element_of(__nv_bfloat16) {
  return simt::Element::bf16;
}
inline simt::Element element_of(float) {
  return simt::Element::tf32;
}

inline void wgmma_fence(ARGUS_SITE) {
  simt::wgmma_fence(site);
}
inline void wgmma_commit(ARGUS_SITE) {
  simt::wgmma_commit(site);
}
template <int kGroupsLeft>
void wgmma_wait(ARGUS_SITE) {
  simt::wgmma_wait(kGroupsLeft, site);
}
template <int kGroupsLeft, int kRegisters>
void wgmma_wait(float (&)[kRegisters], ARGUS_SITE) {
  simt::wgmma_wait(kGroupsLeft, site);
}
template <Major kA, Major kB, int kSign = 1, int kRegisters, class T>
void wgmma(float (&d)[kRegisters], uint64_t a, uint64_t b, bool scale_d, T type, ARGUS_SITE) {
  const simt::ProductShape shape{2 * kRegisters, element_of(type), scale_d,
                                 kSign < 0,      kA == Major::mn,  kB == Major::mn};
  simt::wgmma(shape, d, nullptr, a, b, site);
}
template <Major kB, int kSign = 1, int kRegisters, class T>
void wgmma(float (&d)[kRegisters], const uint32_t (&a)[4], uint64_t b, bool scale_d, T type, ARGUS_SITE) {
  const simt::ProductShape shape{2 * kRegisters, element_of(type), scale_d, kSign < 0,
                                 false,          kB == Major::mn};
  simt::wgmma(shape, d, a, 0, b, site);
}

#undef ARGUS_SITE

#endif

}  // namespace argus::ptx
