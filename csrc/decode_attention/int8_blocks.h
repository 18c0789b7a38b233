// Codes of an int8 cache: read in blocks of vectors, and written as int8_rows.py has them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "common/cpu/column_blocks.h"

namespace argus {

// Codes of a row with a scale beside them.
ARGUS_INLINE float load(int8_t x) {
  return static_cast<float>(x);
}

namespace column_blocks {

// Four columns per word, each shifted or masked into the top byte: a code reads as 2²⁴ times itself, which
// multiply_by_scales takes back. Widening sixteen codes to a vector takes five times as long: see BFloat16's.
template <>
struct Block<int8_t> {
  static constexpr int64_t kVectors = 4, kColumns = 4 * kLanes;
  static constexpr int64_t lane(int64_t column) { return column % 4 * kLanes + column / 4; }
  static ARGUS_INLINE void load(const int8_t* from, LaneVector<float> (&x)[kVectors]) {
    uint32_t words[kLanes];
    std::memcpy(words, from, sizeof(words));
    x[0] = top_bytes<24>(words);
    x[1] = top_bytes<16>(words);
    x[2] = top_bytes<8>(words);
    x[3] = top_bytes<0>(words);
  }

 private:
  template <int kShift>
  static ARGUS_INLINE LaneVector<float> top_bytes(const uint32_t* words) {
    float found[kLanes];
#pragma GCC unroll 1
    for (int64_t lane = 0; lane < kLanes; ++lane)
      found[lane] = static_cast<float>(static_cast<int32_t>((words[lane] << kShift) & 0xff000000u));
    return load_lanes(found);
  }
};

}  // namespace column_blocks
}  // namespace argus

namespace argus::decode_attention {

// Writes a row of every head; of types other than int8 as it is.
template <class T>
void write_row(const T* from, int64_t kv_heads, int64_t width, T* to, float*, int64_t) {
  std::copy_n(from, kv_heads * width, to);
}

// float32's largest magnitude over 127 is a head's scale, and codes round to the nearest, ties to even. Where
// the scale is 0 or not finite the codes are 0: a row that holds NaN or infinity reads as NaN.
inline void write_row(const float* from, int64_t kv_heads, int64_t width, int8_t* to, float* scales,
                      int64_t head_stride) {
  for (int64_t head = 0; head < kv_heads; ++head) {
    const float* row = from + head * width;
    float largest = 0.0f;
    for (int64_t column = 0; column < width; ++column) {
      const float magnitude = std::fabs(row[column]);
      // NaN stays.
      if (!(magnitude <= largest)) largest = largest != largest ? largest : magnitude;
    }
    const float scale = largest / 127.0f;
    const bool usable = scale > 0.0f && scale < std::numeric_limits<float>::infinity();
    scales[head * head_stride] = scale;
    for (int64_t column = 0; column < width; ++column) {
      const float code = usable ? std::nearbyint(row[column] / scale) : 0.0f;
      to[head * width + column] = static_cast<int8_t>(std::clamp(code, -127.0f, 127.0f));
    }
  }
}

}  // namespace argus::decode_attention
