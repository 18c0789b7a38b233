// The newest events of each user against its paged history.
//
// User b has L = lengths[b] events; event j lies in slot j % page_size of page block_table[b, j / page_size].
// Its n newest are the rows offsets[b] … offsets[b + 1] − 1 of q, the last of them event L − 1; without
// offsets it is row b alone. For the row of event p = L − n + i:
//
//   where k and v are given:  slot p  ←  (k_i, v_i, key_time_i)
//   score_j  =  scale · q_i · k_j + position_bias[h, min(p − j, P − 1)] + time_bias[h, bucket(query_time_i −
//   time_j)] out_i    =  Σ weight_j · v_j   over j ≤ p with p − j < window
//
// weight = softmax_j(score_j), or SiLU(score_j) / divisor. Head h of q reads head h / group of the cache.
// Rows of an int8 cache are code · scale: see int8_rows.py.
//
// A history is cut into chunks of a fixed number of events. Each chunk gives, per row and head, its largest
// score m, the sum l of exp(score − m) and Σ exp(score − m) · v (of SiLU the sum of weights · v alone); a
// row's chunks are then combined in their order. The cut into chunks depends only on the shape of an event,
// so a row's bits depend neither on the number of threads nor on the other rows of the call.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/torch/dtype.h"

namespace argus::decode_attention {

struct Params {
  const void* q;    // [rows, heads, width]
  void* key_pages;  // [pages, page_size, kv_heads, width]; pages and slots may have any stride
  void* value_pages;
  float* key_scales;  // [pages, page_size, kv_heads] beside int8 pages, of q in float32; else null
  float* value_scales;
  int64_t* time_pages;         // [pages, page_size]
  const int32_t* block_table;  // [users, table_width]
  const int32_t* lengths;      // [users]
  const int32_t* offsets;      // [users + 1], or null: row b is user b's
  const void* k;               // [rows, kv_heads, width], or null: nothing is appended
  const void* v;
  const void* position_bias;   // [heads, position_buckets] in the arithmetic type, or null
  const void* time_bias;       // [heads, time_buckets]
  const int64_t* cell_bucket;  // TimeBuckets::Cells, on the CPU
  const int64_t* cell_edge;
  const int64_t* query_time;  // [rows]
  const int64_t* key_time;    // [rows], or null
  void* out;                  // like q
  void* partial;              // the partial results of each chunk
  int64_t users;
  int64_t rows;
  int64_t heads;  // of q: kv_heads · group
  int64_t kv_heads;
  int64_t group;
  int64_t width;
  int64_t pages;
  int64_t page_size;
  int64_t table_width;
  int64_t key_page_stride, key_slot_stride;
  int64_t value_page_stride, value_slot_stride;
  int64_t time_page_stride, time_slot_stride;
  int64_t key_scale_page_stride, key_scale_slot_stride, key_scale_head_stride;
  int64_t value_scale_page_stride, value_scale_slot_stride, value_scale_head_stride;
  int64_t position_buckets;
  int64_t time_buckets;
  int64_t window;  // at least 1
  int64_t chunk;   // events in a chunk
  double scale;
  double divisor;  // of SiLU's weights; 0 for softmax
  Dtype dtype;
};

inline int64_t first_seen(const Params& params, int64_t length) {
  return length > params.window ? length - params.window : 0;
}

// New events of the user.
inline int64_t new_events(const Params& params, int64_t user) {
  if (params.offsets == nullptr) return params.lengths[user] > 0 ? 1 : 0;
  return params.offsets[user + 1] - params.offsets[user];
}

// The row of the user's first new event.
inline int64_t first_row(const Params& params, int64_t user) {
  return params.offsets == nullptr ? user : params.offsets[user];
}

// A chunk of what one row sees, for the heads of q that are `member` in their groups: on the CPU those
// kv_heads heads are computed together.
struct Chunk {
  int64_t user;
  int64_t begin, end;  // events
  int64_t row, member;
  int64_t length;  // events up to the row's own
  int64_t place;   // of its result among all chunks'
};

// The partial result of a chunk, in the arithmetic type: [kv_heads] m, [kv_heads] l, [kv_heads, width]
// weighted values.
inline int64_t partial_elements(const Params& params) {
  return params.kv_heads * (params.width + 2);
}

// Writes the new events of the users [first, last) to the cache.
void append_cpu(const Params& params, int64_t first, int64_t last);

// Writes the results of chunks [first, last) to params.partial.
void attend_cpu(const Params& params, const Chunk* chunks, int64_t first, int64_t last);

// `out` of the members [first, last), row · group + member, from their chunks: first_chunk[m] … first_chunk[m
// + 1] − 1.
void combine_cpu(const Params& params, const int64_t* first_chunk, int64_t first, int64_t last);

// The CUDA kernels' limit: wider rows are refused.
constexpr int64_t kWidest = 256;

// Events in a chunk on the GPU, for histories of at most `capacity` events: short, so that one user fills
// many multiprocessors, but at most 64 chunks per history, so that their results take less than a hundredth
// of the history's memory.
inline int64_t cuda_chunk_events(int64_t capacity) {
  constexpr int64_t kTile = 128, kMaxChunks = 64;
  return std::max(kTile, (capacity + kMaxChunks * kTile - 1) / (kMaxChunks * kTile) * kTile);
}

// The largest number of chunks of a history.
inline int64_t cuda_chunks(const Params& params) {
  const int64_t capacity = params.table_width * params.page_size;
  const int64_t all = (capacity + params.chunk - 1) / params.chunk;
  return std::min(all, params.window / params.chunk + 2);
}

// Rows whose partial results, per head m, l and the weighted values, are in memory at the same time.
inline int64_t cuda_partial_elements(const Params& params) {
  return params.heads * (params.width + 2);
}
inline int64_t cuda_rows_at_once(const Params& params) {
  constexpr int64_t kMaxElements = int64_t{1} << 26, kMaxPairs = int64_t{1} << 30;
  const int64_t of_row = std::max<int64_t>(1, cuda_chunks(params) * cuda_partial_elements(params));
  const int64_t most = std::min(kMaxElements / of_row, kMaxPairs / std::max<int64_t>(params.heads, 1));
  return std::clamp<int64_t>(most, 1, std::max<int64_t>(params.rows, 1));
}

// Enqueues appending and attending on `stream`, a cudaStream_t. A user whose length or pages are out of
// bounds gives NaN and writes nothing.
void launch_cuda(const Params& params, void* stream);

}  // namespace argus::decode_attention
