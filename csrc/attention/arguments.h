// The arguments of attention over packed user histories, as the kernels of both processors take them:
// causal_attention and hstu_attention differ only in the function from scores to weights. call.h makes them
// from tensors.
#pragma once

#include <cstdint>
#include <limits>

#include "common/torch/dtype.h"

namespace argus::attention {

constexpr int32_t kNoWindow = std::numeric_limits<int32_t>::max();

// [rows, heads, width] of the arguments' dtype; keys have their own rows and heads; strides in elements; the
// elements of a head are contiguous. On CUDA data and strides are multiples of 16 bytes.
struct Heads {
  const void* data;
  int64_t row_stride;
  int64_t head_stride;

  template <class T>
  const T* at(int64_t row, int64_t head) const {
    return static_cast<const T*>(data) + row * row_stride + head * head_stride;
  }
};

// Tables and statistics are float32, float64 beside float64.
struct Arguments {
  Heads q, k, v;
  const int32_t* offsets;      // [users + 1]
  const int32_t* key_offsets;  // [users + 1]; the queries' where keys are the queries' own rows
  // The mask rule, see argus_kernels/attention/mask_rule.py; each null where its default holds.
  const int32_t* visible;       // [rows]
  const int32_t* position;      // [rows]
  const int32_t* own_begin;     // [rows]
  const int32_t* own_end;       // [rows]
  const int32_t* prefix;        // [users]
  const void* position_bias;    // [heads, positions], or null
  const void* time_bias;        // [heads, times], or null
  const int64_t* query_time;    // [rows], beside time_bias
  const int64_t* key_time;      // [key_rows]
  const int64_t* dropout_seed;  // [users], null without dropout
  int64_t rows;
  int64_t key_rows;
  int32_t users;
  int32_t heads;
  int32_t key_heads;  // query head h reads key head h / (heads / key_heads)
  int32_t width;
  int32_t positions;
  int32_t times;
  int32_t window;
  uint32_t dropped_below;  // of the generator's words, see argus_kernels/attention/dropout.py
  double kept_factor;      // 1 / (1 - dropout)
  double scale;            // of q · k
  double divisor;          // of SiLU weights
  Dtype dtype;

  // Elements of a contiguous row of heads.
  int64_t row_elements() const { return int64_t{heads} * width; }
  int64_t key_row_elements() const { return int64_t{key_heads} * width; }
  // Whether each event sees itself and what `visible` shows of the events before it, within the window.
  bool own_rows() const {
    return key_offsets == offsets && position == nullptr && own_begin == nullptr && prefix == nullptr;
  }
  // Whether the rest of the rule, shared key heads and dropout are left out, too: what CUDA's causal mask
  // serves.
  bool causal() const { return own_rows() && key_heads == heads && dropout_seed == nullptr; }
};

struct Forward {
  Arguments given;
  void* out;          // [rows, heads, width]
  void* log_sum_exp;  // [heads, rows], softmax only
};

struct Backward {
  Arguments given;
  Heads d_out;
  const void* out;            // [rows, heads, width], softmax only, as are the two below
  const void* log_sum_exp;    // [heads, rows]
  const void* d_log_sum_exp;  // [heads, rows]; on the CPU null where it is zero
  void* d_q;                  // [rows, heads, width]
  void* d_k;                  // [key_rows, key_heads, width]
  void* d_v;
  void* d_position_bias;  // [heads, positions], null where not wanted
  void* d_time_bias;      // [heads, times], null where not wanted
  // Scratch on CUDA; it need not be initialised.
  float* delta;        // [heads, rows], softmax only, as is the next
  float* correction;   // [heads, rows]
  int32_t* reach;      // [blocks, kReachNumbers]: what each block of queries sees
  float* table_parts;  // [blocks, heads, positions + times]
  // Of the kernel on TMA and wgmma, null where it does not run: sums of d_q, a tile after the other, and the
  // block of keys that added to each last.
  float* query_sums;
  int32_t* turns;
};

// How much scratch the kernel on TMA and wgmma takes, 0 where it does not run.
struct LoopScratch {
  int64_t floats;  // of query_sums
  int64_t turns;
};

// The largest number of blocks of query rows in the backward pass on CUDA: the size of its scratch.
constexpr int64_t kMinRows = 32;
constexpr int32_t kReachNumbers = 11;
constexpr int64_t most_blocks(int64_t rows, int64_t users) {
  return rows / kMinRows + users + 1;
}

// Limits set by the CUDA kernels' shared memory.
constexpr int32_t kMaxPositions = 512;
constexpr int32_t kMaxWidth = 256;

}  // namespace argus::attention
