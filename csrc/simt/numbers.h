// bfloat16 and half on the host, with the names of cuda_bf16.h and cuda_fp16.h; no CUDA installation is
// needed. Conversions round to nearest even as the device's do. Arithmetic is done in float and rounded once,
// which is what the device gives for one operation; only __hfma rounds twice, once to float.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

struct __nv_bfloat16 {
  uint16_t bits;

  __nv_bfloat16() = default;
  __nv_bfloat16(float x) {
    const uint32_t wide = std::bit_cast<uint32_t>(x);
    const uint32_t rounded = (wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16;
    bits = static_cast<uint16_t>(x != x ? 0x7fffu : rounded);
  }
  operator float() const { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
};

struct __half {
  uint16_t bits;

  __half() = default;
  __half(float x) { bits = x != x ? uint16_t{0x7fff} : std::bit_cast<uint16_t>(static_cast<_Float16>(x)); }
  operator float() const { return static_cast<float>(std::bit_cast<_Float16>(bits)); }
};

struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};

struct alignas(4) __half2 {
  __half x, y;
};

inline __half __float2half_rn(float x) {
  return __half(x);
}
inline __half __float2half(float x) {
  return __half(x);
}
inline float __half2float(__half x) {
  return x;
}
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  return __nv_bfloat16(x);
}
inline __nv_bfloat16 __float2bfloat16(float x) {
  return __nv_bfloat16(x);
}
inline float __bfloat162float(__nv_bfloat16 x) {
  return x;
}

inline __half2 __floats2half2_rn(float x, float y) {
  return {x, y};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {x, y};
}
inline __half2 __halves2half2(__half x, __half y) {
  return {x, y};
}
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) {
  return {x, y};
}

template <class T>
concept ArgusNarrow = std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>;
template <class T>
concept ArgusNarrowPair = std::is_same_v<T, __half2> || std::is_same_v<T, __nv_bfloat162>;

template <ArgusNarrow T>
T __hadd(T a, T b) {
  return T(float(a) + float(b));
}
template <ArgusNarrow T>
T __hsub(T a, T b) {
  return T(float(a) - float(b));
}
template <ArgusNarrow T>
T __hmul(T a, T b) {
  return T(float(a) * float(b));
}
template <ArgusNarrow T>
T __hfma(T a, T b, T c) {
  return T(std::fma(float(a), float(b), float(c)));
}
template <ArgusNarrow T>
T __hmax(T a, T b) {
  return T(std::fmax(float(a), float(b)));
}
template <ArgusNarrow T>
T __hmin(T a, T b) {
  return T(std::fmin(float(a), float(b)));
}
template <ArgusNarrowPair T>
T __hadd2(T a, T b) {
  return {__hadd(a.x, b.x), __hadd(a.y, b.y)};
}
template <ArgusNarrowPair T>
T __hmul2(T a, T b) {
  return {__hmul(a.x, b.x), __hmul(a.y, b.y)};
}
template <ArgusNarrowPair T>
T __hfma2(T a, T b, T c) {
  return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}
template <ArgusNarrowPair T>
float __low2float(T pair) {
  return pair.x;
}
template <ArgusNarrowPair T>
float __high2float(T pair) {
  return pair.y;
}
