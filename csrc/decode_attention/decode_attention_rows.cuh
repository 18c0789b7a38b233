// How the lanes of decode_attention's kernels hold a row, of each type that is cached.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

#include "common/cuda/device.cuh"

namespace argus::decode_attention {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kUnrolled = 4;  // events per group in flight at once

// What q, k, v and out are stored as beside pages of T.
template <class T>
using Vectors = std::conditional_t<std::is_same_v<T, int8_t>, float, T>;

// How a row of up to kWidth elements of T is spread over lanes. kWhole: it has exactly kWidth, aligned to 16
// bytes.
template <class T, int kWidth_, bool kWhole_>
struct Row {
  using Element = T;
  static constexpr int kWidth = kWidth_;
  static constexpr bool kWhole = kWhole_;
  static constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  static constexpr int kGroup = kWidth / kVector < kWarpSize ? kWidth / kVector : kWarpSize;
  static constexpr int kVectors = kWidth / (kVector * kGroup);
  static constexpr int kElements = kVectors * kVector;  // of a lane
  static constexpr int kGroups = kThreads / kGroup;
  static_assert(kThreads % (kUnrolled * kGroups) == 0);
};

// A lane's part of a row as it lies in memory. Rows are read through the read-only cache: a launch writes
// only the slots of the new events, and those are read from k and v instead.
template <class R>
struct Part {
  uint4 words[R::kVectors];
};

template <class R>
ARGUS_DEVICE Part<R> empty_part() {
  Part<R> part;
#pragma unroll
  for (int i = 0; i < R::kVectors; ++i) part.words[i] = make_uint4(0, 0, 0, 0);
  return part;
}

template <class R>
ARGUS_DEVICE Part<R> load_part(const typename R::Element* row, int lane, int width) {
  Part<R> part;
#pragma unroll
  for (int i = 0; i < R::kVectors; ++i) {
    const int column = (i * R::kGroup + lane) * R::kVector;
    if constexpr (R::kWhole) {
      part.words[i] = __ldg(reinterpret_cast<const uint4*>(row + column));
    } else if constexpr (std::is_same_v<typename R::Element, int8_t>) {
      // An array of codes would lie on the stack.
      unsigned quads[4] = {};
#pragma unroll
      for (int e = 0; e < R::kVector; ++e)
        if (column + e < width) quads[e / 4] |= static_cast<unsigned>(row[column + e] & 0xff) << (e % 4 * 8);
      part.words[i] = make_uint4(quads[0], quads[1], quads[2], quads[3]);
    } else {
      typename R::Element padded[R::kVector];
#pragma unroll
      for (int e = 0; e < R::kVector; ++e) {
        from_float(padded[e], 0.0f);
        if (column + e < width) padded[e] = row[column + e];
      }
      memcpy(&part.words[i], padded, sizeof(padded));
    }
  }
  return part;
}

ARGUS_DEVICE void unpack(float (&to)[4], const uint4& words, float) {
  to[0] = __uint_as_float(words.x);
  to[1] = __uint_as_float(words.y);
  to[2] = __uint_as_float(words.z);
  to[3] = __uint_as_float(words.w);
}
ARGUS_DEVICE void unpack(float (&to)[8], const uint4& words, __nv_bfloat16) {
  const unsigned pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    to[2 * i] = __uint_as_float(pairs[i] << 16);
    to[2 * i + 1] = __uint_as_float(pairs[i] & 0xffff0000u);
  }
}
ARGUS_DEVICE void unpack(float (&to)[8], const uint4& words, __half) {
  __half values[8];
  memcpy(values, &words, sizeof(values));
#pragma unroll
  for (int i = 0; i < 8; ++i) to[i] = __half2float(values[i]);
}

ARGUS_DEVICE void unpack(float (&to)[16], const uint4& words, int8_t) {
  const unsigned quads[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (int i = 0; i < 16; ++i)
    to[i] = static_cast<float>(static_cast<int>(quads[i / 4] << (24 - i % 4 * 8)) >> 24);
}

// A lane's part of a row of q.
template <class R>
ARGUS_DEVICE void load_query(float (&query)[R::kElements], const Vectors<typename R::Element>* row, int lane,
                             int width, float scale) {
  if constexpr (std::is_same_v<typename R::Element, int8_t>) {
#pragma unroll
    for (int i = 0; i < R::kElements; ++i) {
      const int column = (i / R::kVector * R::kGroup + lane) * R::kVector + i % R::kVector;
      query[i] = column < width ? row[column] * scale : 0.0f;
    }
  } else {
    const Part<R> part = load_part<R>(row, lane, width);
#pragma unroll
    for (int vector = 0; vector < R::kVectors; ++vector) {
      float loaded[R::kVector];
      unpack(loaded, part.words[vector], typename R::Element());
#pragma unroll
      for (int e = 0; e < R::kVector; ++e) query[vector * R::kVector + e] = loaded[e] * scale;
    }
  }
}

}  // namespace argus::decode_attention
