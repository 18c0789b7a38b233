// One new event per user against its paged history.
//
// User b has L = lengths[b] events; event j lies in slot j % page_size of page block_table[b, j / page_size]:
//
//   where k and v are given:  slot L − 1  ←  (k_b, v_b, key_time_b)
//   score_j  =  scale · q_b · k_j + position_bias[h, min(L − 1 − j, P − 1)]
//               + time_bias[h, bucket(query_time_b − time_j)]
//   out_b    =  Σ softmax_j(score_j) · v_j   over j < L with L − 1 − j < window
//
// A history is cut into chunks of a fixed number of events. Each chunk gives, per head, its largest score m,
// the sum l of exp(score − m) and Σ exp(score − m) · v; a user's chunks are then combined in their order. The
// cut into chunks depends only on the shape of an event, so a user's bits depend neither on the number of
// threads nor on the other users of the call.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/torch/dtype.h"

namespace argus::decode_attention {

struct Params {
  const void* q;    // [users, heads, width]
  void* key_pages;  // [pages, page_size, heads, width]; pages and slots may have any stride
  void* value_pages;
  int64_t* time_pages;         // [pages, page_size]
  const int32_t* block_table;  // [users, table_width]
  const int32_t* lengths;      // [users]
  const void* k;               // [users, heads, width], or null: nothing is appended
  const void* v;
  const void* position_bias;   // [heads, position_buckets] in the arithmetic type, or null
  const void* time_bias;       // [heads, time_buckets]
  const int64_t* cell_bucket;  // TimeBuckets::Cells, on the CPU
  const int64_t* cell_edge;
  const int64_t* query_time;  // [users]
  const int64_t* key_time;    // [users], or null
  void* out;                  // [users, heads, width]
  void* partial;              // the partial results of each chunk
  int64_t users;
  int64_t heads;
  int64_t width;
  int64_t pages;
  int64_t page_size;
  int64_t table_width;
  int64_t key_page_stride, key_slot_stride;
  int64_t value_page_stride, value_slot_stride;
  int64_t time_page_stride, time_slot_stride;
  int64_t position_buckets;
  int64_t time_buckets;
  int64_t window;  // at least 1
  int64_t chunk;   // events in a chunk
  double scale;
  Dtype dtype;
};

inline int64_t first_seen(const Params& params, int64_t length) {
  return length > params.window ? length - params.window : 0;
}

struct Chunk {
  int64_t user;
  int64_t begin, end;  // events
};

// The partial result of a chunk, in the arithmetic type: [heads] m, [heads] l, [heads, width] weighted
// values.
inline int64_t partial_elements(const Params& params) {
  return params.heads * (params.width + 2);
}

// Writes the new events of the users [first, last) to the cache.
void append_cpu(const Params& params, int64_t first, int64_t last);

// Writes the results of chunks [first, last) to params.partial.
void attend_cpu(const Params& params, const Chunk* chunks, int64_t first, int64_t last);

// `out` of the users [first, last) from their chunks; those of user b are first_chunk[b] … first_chunk[b + 1]
// − 1.
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

// Users whose partial results are in memory at the same time.
inline int64_t cuda_users_at_once(const Params& params) {
  constexpr int64_t kMaxElements = int64_t{1} << 26, kMaxPairs = int64_t{1} << 30;
  const int64_t of_user = std::max<int64_t>(1, cuda_chunks(params) * partial_elements(params));
  const int64_t most = std::min(kMaxElements / of_user, kMaxPairs / std::max<int64_t>(params.heads, 1));
  return std::clamp<int64_t>(most, 1, std::max<int64_t>(params.users, 1));
}

// Enqueues appending and attending on `stream`, a cudaStream_t. A user whose length or pages are out of
// bounds gives NaN and writes nothing.
void launch_cuda(const Params& params, void* stream);

}  // namespace argus::decode_attention
