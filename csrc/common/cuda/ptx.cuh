// The PTX instructions that have no CUDA C++ spelling, one function each, with a host twin of the same
// behaviour (simt/ptx.cpp). Fragments are laid out as the PTX manual draws them ("Matrix fragments for
// mma.m16n8k16", …).
//
//   ldmatrix: lanes 8 i … 8 i + 7 give the addresses of the eight 16-byte rows of matrix i, in shared memory.
//   Lane l gets, of each 8×8 matrix of 16-bit elements, row l / 4, columns 2 (l % 4) and one more;
//   transposed, the same of the matrix's transpose. mma: D = A B + D, A row-major, B column-major, D in
//   float32. cp.async: bytes that go from global to shared memory on their own; a thread's copies since its
//   last commit form a group. wait<N> leaves at most the N youngest groups pending. Other threads see the
//   bytes after a barrier.
#pragma once

#include "common/cuda/device.cuh"

#if !defined(__CUDACC__)
#include "simt/arithmetic.h"
#include "simt/ptx.h"
#endif

namespace argus::ptx {

#if defined(__CUDACC__)

ARGUS_DEVICE unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

ARGUS_DEVICE void ldmatrix(uint32_t (&r)[1], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
               : "=r"(r[0])
               : "r"(shared_address(row))
               : "memory");
}
ARGUS_DEVICE void ldmatrix(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}
ARGUS_DEVICE void ldmatrix(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
ARGUS_DEVICE void ldmatrix_transposed(uint32_t (&r)[1], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
               : "=r"(r[0])
               : "r"(shared_address(row))
               : "memory");
}
ARGUS_DEVICE void ldmatrix_transposed(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}
ARGUS_DEVICE void ldmatrix_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

#define ARGUS_MMA_M16N8K16(TYPE, NAME)                                                                  \
  ARGUS_DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], TYPE) { \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." NAME "." NAME                                 \
                 ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                 \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                       \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                   \
  }
ARGUS_MMA_M16N8K16(__half, "f16")
ARGUS_MMA_M16N8K16(__nv_bfloat16, "bf16")
#undef ARGUS_MMA_M16N8K16

ARGUS_DEVICE void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Copies 4, 8 or 16 bytes, of which those past `source_bytes` are zero and not read.
template <int kBytes>
ARGUS_DEVICE void cp_async(void* shared, const void* global, int source_bytes = kBytes) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(source_bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)), "l"(global),
                 "n"(kBytes), "r"(source_bytes)
                 : "memory");
  }
}
ARGUS_DEVICE void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kGroupsLeft>
ARGUS_DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroupsLeft) : "memory");
}
ARGUS_DEVICE void cp_async_wait_all() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

ARGUS_DEVICE float exp2_approx(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
ARGUS_DEVICE float tanh_approx(float x) {
  float result;
  asm("tanh.approx.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

#else

template <int kMatrices>
void ldmatrix(uint32_t (&r)[kMatrices], const void* row, simt::Site site = simt::Site::current()) {
  simt::load_matrices("ldmatrix", r, kMatrices, row, false, site);
}
template <int kMatrices>
void ldmatrix_transposed(uint32_t (&r)[kMatrices], const void* row, simt::Site site = simt::Site::current()) {
  simt::load_matrices("ldmatrix.trans", r, kMatrices, row, true, site);
}
inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __half,
                         simt::Site site = simt::Site::current()) {
  simt::multiply_f16(d, a, b, site);
}
inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __nv_bfloat16,
                         simt::Site site = simt::Site::current()) {
  simt::multiply_bf16(d, a, b, site);
}
inline void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                             simt::Site site = simt::Site::current()) {
  simt::multiply_tf32(d, a, b, site);
}
template <int kBytes>
void cp_async(void* shared, const void* global, int source_bytes = kBytes) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  simt::copy_async(shared, global, kBytes, static_cast<size_t>(source_bytes));
}
inline void cp_async_commit() {
  simt::copy_async_commit();
}
template <int kGroupsLeft>
void cp_async_wait() {
  simt::copy_async_wait(kGroupsLeft);
}
inline void cp_async_wait_all() {
  simt::copy_async_wait_all();
}
inline float exp2_approx(float x) {
  return simt::exp2_approx(x);
}
inline float tanh_approx(float x) {
  return simt::tanh_approx(x);
}

#endif

}  // namespace argus::ptx
