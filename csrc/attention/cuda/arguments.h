// The arguments of attention over packed user histories, as the CUDA kernels take them: causal_attention and
// hstu_attention share everything but the function from scores to weights.
#pragma once

#include <cstdint>
#include <limits>

namespace argus::attention {

enum class Dtype { float32, bfloat16, float16 };

constexpr int32_t kNoWindow = std::numeric_limits<int32_t>::max();

// [rows, heads, width] of the arguments' dtype; strides in elements, a head's elements side by side. Data and
// strides are multiples of 16 bytes.
struct Heads {
  const void* data;
  int64_t row_stride;
  int64_t head_stride;
};

struct Arguments {
  Heads q, k, v;
  const int32_t* offsets;      // [users + 1]
  const int32_t* visible;      // [rows], null where every event before the query is visible
  const float* position_bias;  // [heads, positions], or null
  const float* time_bias;      // [heads, times], or null
  const int64_t* query_time;   // [rows], beside time_bias
  const int64_t* key_time;     // [rows]
  int64_t rows;
  int32_t users;
  int32_t heads;
  int32_t width;
  int32_t positions;
  int32_t times;
  int32_t window;
  float scale;    // of q · k
  float divisor;  // of SiLU weights
  Dtype dtype;
};

struct Forward {
  Arguments given;
  void* out;           // [rows, heads, width]
  float* log_sum_exp;  // [heads, rows], softmax only
};

struct Backward {
  Arguments given;
  Heads d_out;
  const void* out;             // [rows, heads, width], softmax only, as are the two below
  const float* log_sum_exp;    // [heads, rows]
  const float* d_log_sum_exp;  // [heads, rows]
  void* d_q;                   // [rows, heads, width], as are the next two
  void* d_k;
  void* d_v;
  float* d_position_bias;  // [heads, positions], null where not wanted
  float* d_time_bias;      // [heads, times], null where not wanted
  // Scratch; what it holds at first does not matter.
  float* delta;             // [heads, rows]
  float* correction;        // [heads, rows]
  int32_t* visible_bounds;  // [blocks, 2]
  float* table_parts;       // [blocks, heads, positions + times]
};

// Blocks of query rows that the backward pass has at most: the size of its scratch.
constexpr int64_t kLeastRows = 32;
constexpr int64_t most_blocks(int64_t rows, int64_t users) {
  return rows / kLeastRows + users + 1;
}

// What a kernel's shared memory has room for.
constexpr int32_t kMostPositions = 512;
constexpr int32_t kMostWidth = 256;

}  // namespace argus::attention
