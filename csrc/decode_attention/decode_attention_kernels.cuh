// decode_attention on the GPU. A block takes one chunk of what one row sees for one head, tile by tile of as
// many events as it has threads: first a thread per event finds its row, its bias and whether it counts; then
// groups of lanes take events in turn, each lane 16 bytes of a row at a time, with their own running softmax.
// The groups are combined by shuffles and shared memory in a fixed order, the chunks by a second kernel.
// Loads of values do not wait for keys: both rows of four events are in flight at once.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

#include "attention/time_edges.h"
#include "common/cuda/device.cuh"
#include "common/cuda/reduce.cuh"
#include "decode_attention/decode_attention.h"
#include "decode_attention/decode_attention_rows.cuh"

namespace argus::decode_attention {

// A row of q: its user, their first new event, and how many events it may see, itself the last; padding none.
struct RowEvents {
  int64_t user, oldest_new, length;
  bool possible;  // the block table holds so many
};

ARGUS_DEVICE RowEvents events_of_row(const Params& params, int64_t row) {
  const int64_t capacity = params.table_width * params.page_size;
  if (params.offsets == nullptr) {
    const int64_t length = params.lengths[row];
    return {row, length - 1, length, length >= 0 && length <= capacity};
  }
  int64_t user = 0, end = params.users;  // the first user whose rows end behind this one
  while (user < end) {
    const int64_t middle = (user + end) / 2;
    if (params.offsets[middle + 1] > row) {
      end = middle;
    } else {
      user = middle + 1;
    }
  }
  if (user >= params.users) return {0, 0, 0, true};
  const int64_t total = params.lengths[user], first = params.offsets[user];
  const int64_t oldest_new = total - (params.offsets[user + 1] - first);
  return {user, oldest_new, oldest_new + row - first + 1, oldest_new >= 0 && total <= capacity};
}

// The oldest event that the window shows.
ARGUS_DEVICE int64_t first_event(const Params& params, int64_t length) {
  return length > params.window ? length - params.window : 0;
}

// A running softmax: the largest score, the sum of exp(score − largest), and the weighted values of a lane.
// Of SiLU the largest stays 0, so that sums add up as they are.
template <class R>
struct Running {
  float largest, sum;
  float weighted[R::kElements];
};

// exp(a − b), and 0 if a is −∞: −∞ − −∞ would be NaN.
ARGUS_DEVICE float weight_of(float a, float b) {
  return a == -INFINITY ? 0.0f : expf(a - b);
}

// SiLU(score), and 0 of an event that does not count.
ARGUS_DEVICE float silu_of(float score, bool counts) {
  return counts ? score / (1.0f + expf(-score)) : 0.0f;
}

// What the threads have computed for a tile's events.
template <class T>
struct Tile {
  const T** keys;  // null where the event does not count
  const T** values;
  float* bias;
  float* key_scale;  // of int8 pages
  float* value_scale;
};

// In global memory: each lane reads a different edge, and constant memory would serialise such reads.
static __device__ const uint64_t kTimeEdges[kTimeBuckets] = {ARGUS_TIME_EDGES};

ARGUS_DEVICE float time_bias_of(const Params& params, int64_t row, int64_t time, int head) {
  const unsigned long long raw =
      static_cast<unsigned long long>(params.query_time[row]) - static_cast<unsigned long long>(time);
  const unsigned long long magnitude = static_cast<long long>(raw) < 0 ? 0ull - raw : raw;
  constexpr unsigned long long kLargest = 0x7ffffffffffffffeull;
  const long long distance =
      static_cast<long long>(magnitude < 1 ? 1ull : (magnitude > kLargest ? kLargest : magnitude));
  // The logarithm, lowered a little, gives the bucket or the one below; comparing with the next integer edge
  // decides.
  const float estimate = logf(static_cast<float>(distance)) * (1.0f / kTimeLogStep) - 1e-3f;
  // No distance lies past the last bucket of the edges.
  const int last = static_cast<int>(min(params.time_buckets, int64_t{kTimeBuckets})) - 1;
  int bucket = min(max(static_cast<int>(estimate), 0), last);
  if (bucket < last && static_cast<uint64_t>(distance) >= kTimeEdges[bucket + 1]) ++bucket;
  return static_cast<const float*>(params.time_bias)[head * params.time_buckets + bucket];
}

// The keys, values and bias of event `event`; those of new events come from k and v, because the blocks of
// other rows may be writing their slots.
template <class T>
ARGUS_DEVICE void describe_event(const Params& params, const Tile<T>& tile, const RowEvents& events,
                                 int64_t row, int head, int64_t event, int place, bool& broken) {
  const int page_size = static_cast<int>(params.page_size);
  const int slot_of_table = static_cast<int>(event) / page_size, slot = static_cast<int>(event) % page_size;
  const int64_t page = params.block_table[events.user * params.table_width + slot_of_table];
  if (page < 0 || page >= params.pages) {
    broken = true;
    tile.keys[place] = nullptr;
    return;
  }
  const bool is_new = params.k != nullptr && event >= events.oldest_new;
  const int64_t distance = events.length - 1 - event, kv_head = head / params.group;
  const int64_t given = ((row - distance) * params.kv_heads + kv_head) * params.width;
  const int64_t column = kv_head * params.width;
  tile.keys[place] = is_new ? static_cast<const T*>(params.k) + given
                            : static_cast<const T*>(params.key_pages) + page * params.key_page_stride +
                                  slot * params.key_slot_stride + column;
  tile.values[place] = is_new ? static_cast<const T*>(params.v) + given
                              : static_cast<const T*>(params.value_pages) + page * params.value_page_stride +
                                    slot * params.value_slot_stride + column;
  if constexpr (std::is_same_v<T, int8_t>) {
    tile.key_scale[place] =
        params.key_scales[page * params.key_scale_page_stride + slot * params.key_scale_slot_stride +
                          kv_head * params.key_scale_head_stride];
    tile.value_scale[place] =
        params.value_scales[page * params.value_scale_page_stride + slot * params.value_scale_slot_stride +
                            kv_head * params.value_scale_head_stride];
  }
  float bias = 0.0f;
  if (params.position_bias != nullptr) {
    const int64_t bucket = min(distance, params.position_buckets - 1);
    bias += static_cast<const float*>(params.position_bias)[head * params.position_buckets + bucket];
  }
  if (params.time_bias != nullptr) {
    const bool given_time = is_new && params.key_time != nullptr;
    const int64_t time =
        given_time ? params.key_time[row - distance]
                   : params.time_pages[page * params.time_page_stride + slot * params.time_slot_stride];
    bias += time_bias_of(params, row, time, head);
  }
  tile.bias[place] = bias;
}

// Writes a head's part of the row's own event to its slot.
template <class T>
ARGUS_DEVICE void append_event(const Params& params, const RowEvents& events, int64_t row, int64_t kv_head) {
  const int64_t event = events.length - 1;
  const int64_t page = params.block_table[events.user * params.table_width + event / params.page_size];
  if (page < 0 || page >= params.pages) return;
  const int64_t slot = event % params.page_size;
  const int64_t given = (row * params.kv_heads + kv_head) * params.width, column = kv_head * params.width;
  T* key = static_cast<T*>(params.key_pages) + page * params.key_page_stride + slot * params.key_slot_stride +
           column;
  T* value = static_cast<T*>(params.value_pages) + page * params.value_page_stride +
             slot * params.value_slot_stride + column;
  for (int i = static_cast<int>(threadIdx.x); i < params.width; i += kThreads) {
    key[i] = static_cast<const T*>(params.k)[given + i];
    value[i] = static_cast<const T*>(params.v)[given + i];
  }
  if (kv_head == 0 && threadIdx.x == 0 && params.key_time != nullptr)
    params.time_pages[page * params.time_page_stride + slot * params.time_slot_stride] = params.key_time[row];
}

// Adds kUnrolled events of the tile, `step` apart from position `first` on, to a group's softmax.
template <class R>
ARGUS_DEVICE void add_events(const Params& params, const Tile<typename R::Element>& tile, int first, int step,
                             const float (&query)[R::kElements], int lane, Running<R>& running) {
  using T = typename R::Element;
  const int width = static_cast<int>(params.width);
  Part<R> keys[kUnrolled], values[kUnrolled];
  float scores[kUnrolled];
#pragma unroll
  for (int i = 0; i < kUnrolled; ++i) {
    const int place = first + i * step;
    const T* key = tile.keys[place];
    scores[i] = key == nullptr ? -INFINITY : tile.bias[place];
    keys[i] = key == nullptr ? empty_part<R>() : load_part<R>(key, lane, width);
    values[i] = key == nullptr ? empty_part<R>() : load_part<R>(tile.values[place], lane, width);
  }
  float largest = running.largest;
#pragma unroll
  for (int i = 0; i < kUnrolled; ++i) {
    float product = 0.0f;
#pragma unroll
    for (int vector = 0; vector < R::kVectors; ++vector) {
      float key[R::kVector];
      unpack(key, keys[i].words[vector], T());
#pragma unroll
      for (int e = 0; e < R::kVector; ++e) product += query[vector * R::kVector + e] * key[e];
    }
#pragma unroll
    for (int distance = R::kGroup / 2; distance > 0; distance /= 2)
      product += __shfl_xor_sync(kFullWarp, product, distance);
    // The scale of an event that does not count is not set.
    if constexpr (std::is_same_v<T, int8_t>) {
      if (scores[i] != -INFINITY) product *= tile.key_scale[first + i * step];
    }
    scores[i] += product;
    largest = fmaxf(largest, scores[i]);
  }
  const bool silu = params.divisor > 0;
  if (!silu) {
    const float kept = weight_of(running.largest, largest);
    running.largest = largest;
    running.sum *= kept;
#pragma unroll
    for (int e = 0; e < R::kElements; ++e) running.weighted[e] *= kept;
  }
#pragma unroll
  for (int i = 0; i < kUnrolled; ++i) {
    const bool counts = tile.keys[first + i * step] != nullptr;
    const float p = silu ? silu_of(scores[i], counts) : weight_of(scores[i], largest);
    running.sum += p;
    float weight = p;
    if constexpr (std::is_same_v<T, int8_t>) {
      if (counts) weight *= tile.value_scale[first + i * step];
    }
#pragma unroll
    for (int vector = 0; vector < R::kVectors; ++vector) {
      float value[R::kVector];
      unpack(value, values[i].words[vector], T());
#pragma unroll
      for (int e = 0; e < R::kVector; ++e) running.weighted[vector * R::kVector + e] += weight * value[e];
    }
  }
}

// Combines the groups of a warp: every lane ends with the sums over the lanes that hold the same columns.
template <class R>
ARGUS_DEVICE void combine_groups(Running<R>& running) {
  float largest = running.largest;
#pragma unroll
  for (int distance = R::kGroup; distance < kWarpSize; distance *= 2)
    largest = fmaxf(largest, __shfl_xor_sync(kFullWarp, largest, distance));
  const float kept = weight_of(running.largest, largest);
  running.largest = largest;
  running.sum *= kept;
#pragma unroll
  for (int e = 0; e < R::kElements; ++e) running.weighted[e] *= kept;
#pragma unroll
  for (int distance = R::kGroup; distance < kWarpSize; distance *= 2) {
    running.sum += __shfl_xor_sync(kFullWarp, running.sum, distance);
#pragma unroll
    for (int e = 0; e < R::kElements; ++e)
      running.weighted[e] += __shfl_xor_sync(kFullWarp, running.weighted[e], distance);
  }
}

// Writes codes and scale of one head's row of an int8 cache, as int8_rows.py has them; for a warp.
ARGUS_DEVICE void write_codes(const float* row, int width, int8_t* codes, float* scale_of) {
  float largest = 0.0f;
  bool broken = false;
  for (int column = static_cast<int>(threadIdx.x); column < width; column += kWarpSize) {
    broken = broken || row[column] != row[column];
    largest = fmaxf(largest, fabsf(row[column]));
  }
  const bool any_broken = __syncthreads_or(broken) != 0;
  const float scale = any_broken ? NAN : warp_max(largest) / 127.0f;
  const bool usable = scale > 0.0f && scale < INFINITY;
  // Adding 1.5 · 2²³ leaves the nearest integer in the low bits, ties to even.
  constexpr float kToInteger = 12582912.0f;
  for (int column = static_cast<int>(threadIdx.x); column < width; column += kWarpSize) {
    const float code = usable ? fminf(fmaxf(row[column] / scale, -127.0f), 127.0f) : 0.0f;
    codes[column] = static_cast<int8_t>(static_cast<int>((code + kToInteger) - kToInteger));
  }
  if (threadIdx.x == 0) *scale_of = scale;
}

// Block (row, head of the cache), a warp: the row's event, before anything reads the cache.
static __global__ void __launch_bounds__(kWarpSize) append_int8_kernel(Params params) {
  const int64_t row = blockIdx.x / params.kv_heads, head = blockIdx.x % params.kv_heads;
  const RowEvents events = events_of_row(params, row);
  const int64_t event = events.length - 1;
  if (event < 0 || !events.possible) return;
  const int64_t page = params.block_table[events.user * params.table_width + event / params.page_size];
  if (page < 0 || page >= params.pages) return;
  const int64_t slot = event % params.page_size;
  const int64_t given = (row * params.kv_heads + head) * params.width, column = head * params.width;
  write_codes(static_cast<const float*>(params.k) + given, static_cast<int>(params.width),
              static_cast<int8_t*>(params.key_pages) + page * params.key_page_stride +
                  slot * params.key_slot_stride + column,
              params.key_scales + page * params.key_scale_page_stride + slot * params.key_scale_slot_stride +
                  head * params.key_scale_head_stride);
  write_codes(static_cast<const float*>(params.v) + given, static_cast<int>(params.width),
              static_cast<int8_t*>(params.value_pages) + page * params.value_page_stride +
                  slot * params.value_slot_stride + column,
              params.value_scales + page * params.value_scale_page_stride +
                  slot * params.value_scale_slot_stride + head * params.value_scale_head_stride);
  if (head == 0 && threadIdx.x == 0 && params.key_time != nullptr)
    params.time_pages[page * params.time_page_stride + slot * params.time_slot_stride] = params.key_time[row];
}

// [m, l, weighted values] of a chunk and a head.
ARGUS_DEVICE float* partial_of(const Params& params, int64_t pair, int64_t chunk, int64_t chunks) {
  return static_cast<float*>(params.partial) + (pair * chunks + chunk) * (params.width + 2);
}

// Block (pair, chunk): pair numbers rows from first_row on, then heads; chunk counts from the first visible
// one.
template <class R>
__global__ void __launch_bounds__(kThreads) chunk_kernel(Params params, int64_t first_row) {
  using T = typename R::Element;
  ARGUS_SHARED(const T*, keys, [kThreads]);
  ARGUS_SHARED(const T*, values, [kThreads]);
  ARGUS_SHARED(float, bias, [kThreads]);
  ARGUS_SHARED(float, warp_largest, [kWarps]);
  ARGUS_SHARED(float, warp_sum_of, [kWarps]);
  ARGUS_SHARED(float, warp_weighted, [kWarps][R::kWidth]);
  constexpr int kScales = std::is_same_v<T, int8_t> ? kThreads : 1;
  ARGUS_SHARED(float, key_scale, [kScales]);
  ARGUS_SHARED(float, value_scale, [kScales]);
  const Tile<T> tile{keys, values, bias, key_scale, value_scale};
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarpSize;
  const int lane = thread % R::kGroup, group = thread / R::kGroup;
  const int64_t row = first_row + blockIdx.x / params.heads;
  const int head = static_cast<int>(blockIdx.x % params.heads);
  const RowEvents events = events_of_row(params, row);
  const int64_t seen = first_event(params, events.length);
  const int64_t chunk_begin = (seen / params.chunk + blockIdx.y) * params.chunk;
  const int64_t end = min(chunk_begin + params.chunk, events.length);
  if (chunk_begin >= end || !events.possible) return;
  if constexpr (!std::is_same_v<T, int8_t>) {
    if (params.k != nullptr && end == events.length && head % params.group == 0)
      append_event<T>(params, events, row, head / params.group);
  }

  float query[R::kElements];
  load_query<R>(query, static_cast<const Vectors<T>*>(params.q) + (row * params.heads + head) * params.width,
                lane, static_cast<int>(params.width), static_cast<float>(params.scale));
  Running<R> running;
  running.largest = params.divisor > 0 ? 0.0f : -INFINITY;
  running.sum = 0.0f;
#pragma unroll
  for (int e = 0; e < R::kElements; ++e) running.weighted[e] = 0.0f;

  bool broken = false;
  for (int64_t begin = chunk_begin; begin < end; begin += kThreads) {
    const int64_t event = begin + thread;
    keys[thread] = nullptr;
    if (event >= seen && event < end)
      describe_event<T>(params, tile, events, row, head, event, thread, broken);
    __syncthreads();
    for (int first = group; first < kThreads; first += kUnrolled * R::kGroups)
      add_events<R>(params, tile, first, R::kGroups, query, lane, running);
    __syncthreads();
  }
  const bool any_broken = __syncthreads_or(broken) != 0;

  combine_groups<R>(running);
  if (thread % kWarpSize < R::kGroup) {
#pragma unroll
    for (int vector = 0; vector < R::kVectors; ++vector) {
#pragma unroll
      for (int e = 0; e < R::kVector; ++e)
        warp_weighted[warp][(vector * R::kGroup + lane) * R::kVector + e] =
            running.weighted[vector * R::kVector + e];
    }
  }
  if (thread % kWarpSize == 0) {
    warp_largest[warp] = running.largest;
    warp_sum_of[warp] = running.sum;
  }
  __syncthreads();
  float largest = warp_largest[0];
  for (int i = 1; i < kWarps; ++i) largest = fmaxf(largest, warp_largest[i]);
  float weights[kWarps], sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) {
    weights[i] = weight_of(warp_largest[i], largest);
    sum += weights[i] * warp_sum_of[i];
  }
  float* partial = partial_of(params, blockIdx.x, blockIdx.y, gridDim.y);
  // A missing page must give NaN, not the result of a history without it.
  if (any_broken) largest = sum = NAN;
  for (int column = thread; column < params.width; column += kThreads) {
    float total = 0.0f;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) total += weights[i] * warp_weighted[i][column];
    partial[2 + column] = total;
  }
  if (thread == 0) {
    partial[0] = largest;
    partial[1] = sum;
  }
}

// Block (pair): the chunks of a row and a head, in their order, as many at a time as there are threads.
template <class T>
__global__ void __launch_bounds__(kThreads) combine_kernel(Params params, int64_t first_row, int64_t chunks) {
  ARGUS_SHARED(float, weights, [kThreads]);
  ARGUS_SHARED(float, sums, [kThreads]);
  ARGUS_SHARED(float, warp_largest, [kWarps]);
  const int thread = static_cast<int>(threadIdx.x);
  const RowEvents events = events_of_row(params, first_row + blockIdx.x / params.heads);
  const int64_t length = events.length;
  T* out = static_cast<T*>(params.out) + (first_row * params.heads + blockIdx.x) * params.width;
  if (length == 0 || !events.possible) {
    for (int column = thread; column < params.width; column += kThreads)
      from_float(out[column], events.possible ? 0.0f : NAN);
    return;
  }
  const int64_t begin = first_event(params, length) / params.chunk * params.chunk;
  const int64_t count = (length - begin + params.chunk - 1) / params.chunk;
  const float* partial = partial_of(params, blockIdx.x, 0, chunks);
  const int64_t step = params.width + 2;

  float largest = -INFINITY;
  bool broken = false;
  for (int64_t chunk = thread; chunk < count; chunk += kThreads) {
    const float found = partial[chunk * step];
    broken = broken || found != found;
    largest = fmaxf(largest, found);
  }
  largest = warp_max(largest);
  if (thread % kWarpSize == 0) warp_largest[thread / kWarpSize] = largest;
  const bool any_broken = __syncthreads_or(broken) != 0;
  for (int i = 0; i < kWarps; ++i) largest = fmaxf(largest, warp_largest[i]);

  // Every thread adds up the sum of weights in the same order.
  constexpr int kColumns = 2;
  float total = 0.0f, out_of_lane[kColumns] = {};
  for (int64_t first = 0; first < count; first += kThreads) {
    const int here = static_cast<int>(min(count - first, static_cast<int64_t>(kThreads)));
    if (thread < here) {
      const float* result = partial + (first + thread) * step;
      weights[thread] = weight_of(result[0], largest);
      sums[thread] = result[1];
    }
    __syncthreads();
#pragma unroll 4
    for (int i = 0; i < here; ++i) {
      const float weight = weights[i];
      total += weight * sums[i];
#pragma unroll
      for (int block = 0; block < kColumns; ++block) {
        const int64_t column = thread + block * kThreads;
        if (column < params.width) out_of_lane[block] += weight * partial[(first + i) * step + 2 + column];
      }
    }
    __syncthreads();
  }
  if (params.divisor > 0) total = static_cast<float>(params.divisor);
#pragma unroll
  for (int block = 0; block < kColumns; ++block) {
    const int64_t column = thread + block * kThreads;
    if (column < params.width) from_float(out[column], any_broken ? NAN : out_of_lane[block] / total);
  }
}

}  // namespace argus::decode_attention
