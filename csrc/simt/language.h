// The CUDA language for the host compiler: what device code may use besides C++. Semantics are those of the
// CUDA programming guide; where a result differs from a GPU's, docs/simt.md says by how much.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "simt/arithmetic.h"
#include "simt/executor.h"
#include "simt/memory.h"
#include "simt/numbers.h"

#define __global__
#define __device__
#define __host__
#define __constant__ const
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) alignas(bytes)

#define ARGUS_UNCHECKED __attribute__((noinline, no_sanitize("thread", "undefined")))

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

#define ARGUS_VECTOR_TYPES(T, NAME)                            \
  struct alignas(2 * sizeof(T)) NAME##2 {                      \
    T x, y;                                                    \
  };                                                           \
  struct NAME##3 {                                             \
    T x, y, z;                                                 \
  };                                                           \
  struct alignas(sizeof(T) > 4 ? 16 : 4 * sizeof(T)) NAME##4 { \
    T x, y, z, w;                                              \
  };                                                           \
  inline NAME##2 make_##NAME##2(T x, T y) {                    \
    return {x, y};                                             \
  }                                                            \
  inline NAME##4 make_##NAME##4(T x, T y, T z, T w) {          \
    return {x, y, z, w};                                       \
  }
ARGUS_VECTOR_TYPES(float, float)
ARGUS_VECTOR_TYPES(double, double)
ARGUS_VECTOR_TYPES(int, int)
ARGUS_VECTOR_TYPES(short, short)
ARGUS_VECTOR_TYPES(unsigned short, ushort)
ARGUS_VECTOR_TYPES(long long, longlong)
#undef ARGUS_VECTOR_TYPES
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) {
  return {x, y};
}
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
  return {x, y, z, w};
}

// Barriers.

inline void __syncthreads(argus::simt::Site site = argus::simt::Site::current()) {
  argus::simt::block_barrier("__syncthreads", false, site);
}
inline int __syncthreads_count(int predicate, argus::simt::Site site = argus::simt::Site::current()) {
  return argus::simt::block_barrier("__syncthreads_count", predicate != 0, site).count;
}
inline int __syncthreads_and(int predicate, argus::simt::Site site = argus::simt::Site::current()) {
  const argus::simt::Votes votes = argus::simt::block_barrier("__syncthreads_and", predicate != 0, site);
  return votes.count == votes.threads;
}
inline int __syncthreads_or(int predicate, argus::simt::Site site = argus::simt::Site::current()) {
  return argus::simt::block_barrier("__syncthreads_or", predicate != 0, site).count > 0;
}
inline void __syncwarp(unsigned mask = 0xffffffffu, argus::simt::Site site = argus::simt::Site::current()) {
  argus::simt::warp_collective("__syncwarp", mask, nullptr, nullptr, true, site);
}
inline void __threadfence() {}
inline void __threadfence_block() {}

// Numbers.

template <class T>
concept ArgusArithmetic = std::is_arithmetic_v<T>;
template <ArgusArithmetic T>
T min(T a, T b) {
  return b < a ? b : a;
}
template <ArgusArithmetic T>
T max(T a, T b) {
  return a < b ? b : a;
}
inline float rsqrtf(float x) {
  return argus::simt::reciprocal_root(x);
}
inline float __saturatef(float x) {
  return x != x ? 0.0f : std::fmin(std::fmax(x, 0.0f), 1.0f);
}
inline int __float_as_int(float x) {
  return std::bit_cast<int>(x);
}
inline unsigned __float_as_uint(float x) {
  return std::bit_cast<unsigned>(x);
}
inline float __int_as_float(int x) {
  return std::bit_cast<float>(x);
}
inline float __uint_as_float(unsigned x) {
  return std::bit_cast<float>(x);
}
inline float __fmul_rn(float x, float y) {
  return x * y;
}
inline unsigned __umulhi(unsigned x, unsigned y) {
  return static_cast<unsigned>(uint64_t{x} * y >> 32);
}
inline int __popc(unsigned x) {
  return std::popcount(x);
}
inline int __clz(int x) {
  return std::countl_zero(static_cast<unsigned>(x));
}
inline int __ffs(int x) {
  return x == 0 ? 0 : std::countr_zero(static_cast<unsigned>(x)) + 1;
}
template <class T>
T __ldg(const T* address) {
  return *address;
}
// glibc has functions of these names.
#define __expf(x) argus::simt::exp_fast(x)
#define __exp2f(x) argus::simt::exp2_approx(x)
#define __logf(x) argus::simt::log_fast(x)
#define __fdividef(x, y) argus::simt::divide_fast(x, y)
#define __fmaf_rn(x, y, z) fmaf(x, y, z)

#include "simt/atomics.h"
#include "simt/warp.h"
