// decode_attention on the CPU. A chunk is read front to back in two passes, all heads of an event together as
// they lie in memory: first keys, giving a row of scores per head; then, after the softmax over the chunk,
// values, giving the weighted sum. The op is bound by memory reads, which are fastest in address order:
// reading several events of one head at a time reaches a third of the rate.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <type_traits>
#include <vector>

#include "attention/relative_bias.h"
#include "common/cpu/column_blocks.h"
#include "common/cpu/stored_type.h"
#include "common/cpu/vector_math.h"
#include "decode_attention/decode_attention.h"
#include "decode_attention/history_pages.h"
#include "decode_attention/int8_blocks.h"
#include "decode_attention/int8_scales.h"

namespace argus::decode_attention {
namespace {

using namespace column_blocks;

constexpr int64_t kTogether = 4;  // events at a time

// What q, k, v and out are stored as beside pages of T.
template <class T>
struct VectorsOf {
  using type = T;
};
template <>
struct VectorsOf<int8_t> {
  using type = float;
};
template <class T>
using Vectors = typename VectorsOf<T>::type;

template <class T>
constexpr int64_t padded(int64_t width) {
  return (width + Block<T>::kColumns - 1) / Block<T>::kColumns * Block<T>::kColumns;
}

// Position of a head's column in a row of blocks.
template <class T>
constexpr int64_t place_of(int64_t column) {
  const int64_t within = column % Block<T>::kColumns;
  return column - within + Block<T>::lane(within);
}

// A thread's scratch memory.
template <class T>
struct Scratch {
  using A = Arithmetic<T>;
  std::vector<A> query;      // [heads, padded width] in blocks, scaled
  std::vector<A> lane_sums;  // [heads, kTogether, kLanes]
  std::vector<A> scores;     // [heads, chunk]
  std::vector<A> weighted;   // [heads, padded width] in blocks
  std::vector<int32_t> buckets;

  explicit Scratch(const Params& params)
      : query(static_cast<size_t>(params.kv_heads * padded<T>(params.width))),
        lane_sums(static_cast<size_t>(params.kv_heads * kTogether * kLanes)),
        scores(static_cast<size_t>(params.kv_heads * params.chunk)),
        weighted(query.size()),
        buckets(static_cast<size_t>(params.chunk)) {}
};

// Distance in bytes from the row of `event` to the row that is prefetched while it is read; 0 at the end.
template <class T>
ARGUS_INLINE int64_t bytes_ahead(const Piece<T>& piece, int64_t event, int64_t columns) {
  constexpr int64_t kPrefetchBytes = 16384;
  const int64_t wanted = event + kPrefetchBytes / (columns * static_cast<int64_t>(sizeof(T)));
  const int64_t beyond = wanted - piece.now.count;
  if (beyond >= piece.next.count) return 0;
  const T* row = beyond < 0 ? piece.now.row(wanted) : piece.next.row(beyond);
  return reinterpret_cast<intptr_t>(row) - reinterpret_cast<intptr_t>(piece.now.row(event));
}

// Calls visit(columns before it, vectors) for each block of a head's row. kWidth is the width, 0 if it is not
// known at compile time.
template <class T, int64_t kWidth, class Visit>
ARGUS_INLINE void for_each_block(const T* row, int64_t head_width, int64_t ahead, const Visit& visit) {
  constexpr int64_t kColumns = Block<T>::kColumns;
  const int64_t width = kWidth > 0 ? kWidth : head_width;
  LaneVector<Arithmetic<T>> x[Block<T>::kVectors];
  int64_t column = 0;
#pragma GCC unroll 8
  for (; column + kColumns <= width; column += kColumns) {
    prefetch(row + column, ahead);
    Block<T>::load(row + column, x);
    visit(column, x);
  }
  if (column < width) {
    load_part<T>(row + column, width - column, x);
    visit(column, x);
  }
}

// sum + a · x, x of a block of T; of codes in one rounding: reading them is bound by instructions, not by
// memory.
template <class T, class A>
ARGUS_INLINE LaneVector<A> multiply_add(LaneVector<A> a, LaneVector<A> x, LaneVector<A> sum) {
  if constexpr (std::is_same_v<T, int8_t>) {
    const auto fused = [](A one, A other, A third) ARGUS_INLINE_LAMBDA { return fma(one, other, third); };
    return map_lanes<A>(fused, Lanes<A>{a}, Lanes<A>{x}, Lanes<A>{sum}).vector;
  } else {
    return sum + a * x;
  }
}

template <class T, class A>
ARGUS_INLINE LaneVector<A> scaled_add(A a, LaneVector<A> x, LaneVector<A> sum) {
  if constexpr (std::is_same_v<T, int8_t>) {
    const auto fused = [a](A other, A third) ARGUS_INLINE_LAMBDA { return fma(a, other, third); };
    return map_lanes<A>(fused, Lanes<A>{x}, Lanes<A>{sum}).vector;
  } else {
    return sum + a * x;
  }
}

// The sum of the lanes of q · k of one head.
template <class T, int64_t kWidth>
ARGUS_INLINE LaneVector<Arithmetic<T>> lane_products(const Arithmetic<T>* query, const T* key, int64_t width,
                                                     int64_t ahead) {
  using A = Arithmetic<T>;
  LaneVector<A> sum = {};
  for_each_block<T, kWidth>(key, width, ahead, [&](int64_t column, const auto& x) ARGUS_INLINE_LAMBDA {
    for (int64_t vector = 0; vector < Block<T>::kVectors; ++vector)
      sum = multiply_add<T, A>(load_lanes(query + column + vector * kLanes), x[vector], sum);
  });
  return sum;
}

// `lane_sums` is scratch of [heads, kTogether, kLanes].
template <class T, int64_t kWidth>
ARGUS_INLINE void score_piece(const Params& params, const Piece<T>& piece, const ScalesAhead& scales,
                              const Arithmetic<T>* query, Arithmetic<T>* lane_sums, Arithmetic<T>* scores) {
  using A = Arithmetic<T>;
  const int64_t width = kWidth > 0 ? kWidth : params.width, padded_width = padded<T>(width);
  for (int64_t event = 0; event < piece.now.count; event += kTogether) {
    const int64_t together = std::min(kTogether, piece.now.count - event);
    if constexpr (std::is_same_v<T, int8_t>) scales.prefetch_at(event);
    for (int64_t place = 0; place < together; ++place) {
      const T* key = piece.now.row(event + place);
      const int64_t ahead = bytes_ahead(piece, event + place, params.kv_heads * width);
      for (int64_t head = 0; head < params.kv_heads; ++head) {
        const LaneVector<A> sum =
            lane_products<T, kWidth>(query + head * padded_width, key + head * width, width, ahead);
        std::memcpy(lane_sums + (head * kTogether + place) * kLanes, &sum, sizeof(sum));
      }
    }
    for (int64_t head = 0; head < params.kv_heads; ++head) {
      const Quad<A> products = sums_of_four(lane_sums + head * kTogether * kLanes);
      std::memcpy(scores + head * params.chunk + event, &products, static_cast<size_t>(together) * sizeof(A));
    }
  }
}

// weighted += p · v of one head.
template <class T, int64_t kWidth>
ARGUS_INLINE void add_value(Arithmetic<T>* weighted, Arithmetic<T> p, const T* value, int64_t width,
                            int64_t ahead) {
  using A = Arithmetic<T>;
  for_each_block<T, kWidth>(value, width, ahead, [&](int64_t column, const auto& x) ARGUS_INLINE_LAMBDA {
    for (int64_t vector = 0; vector < Block<T>::kVectors; ++vector) {
      A* to = weighted + column + vector * kLanes;
      const LaneVector<A> sum = scaled_add<T, A>(p, x[vector], load_lanes(to));
      std::memcpy(to, &sum, sizeof(sum));
    }
  });
}

constexpr int64_t kHeldColumns = 256;

// weighted += Σ p · v of as many heads as have kHeldColumns columns: their sums stay in registers.
template <class T, int64_t kWidth>
ARGUS_INLINE void weigh_heads(const Piece<T>& piece, const Arithmetic<T>* p, int64_t chunk,
                              Arithmetic<T>* weighted) {
  using A = Arithmetic<T>;
  constexpr int64_t kHeld = kHeldColumns / kLanes, kOfHead = kWidth / kLanes;
  constexpr int64_t kVectors = Block<T>::kVectors;
  LaneVector<A> held[kHeld];
#pragma GCC unroll 16
  for (int64_t place = 0; place < kHeld; ++place) held[place] = load_lanes(weighted + place * kLanes);
  for (int64_t event = 0; event < piece.now.count; ++event) {
    const T* value = piece.now.row(event);
    const int64_t ahead = bytes_ahead(piece, event, kHeldColumns);
#pragma GCC unroll 16
    for (int64_t place = 0; place < kHeld; place += kVectors) {
      const A weight = p[place / kOfHead * chunk + event];
      LaneVector<A> x[kVectors];
      prefetch(value + place * kLanes, ahead);
      Block<T>::load(value + place * kLanes, x);
#pragma GCC unroll 4
      for (int64_t vector = 0; vector < kVectors; ++vector)
        held[place + vector] = scaled_add<T, A>(weight, x[vector], held[place + vector]);
    }
  }
#pragma GCC unroll 16
  for (int64_t place = 0; place < kHeld; ++place)
    std::memcpy(weighted + place * kLanes, &held[place], sizeof(held[place]));
}

template <class T, int64_t kWidth>
ARGUS_INLINE void weigh_piece(const Params& params, const Piece<T>& piece, const Arithmetic<T>* p,
                              Arithmetic<T>* weighted) {
  const int64_t width = kWidth > 0 ? kWidth : params.width, padded_width = padded<T>(width);
  int64_t first = 0;
  if constexpr (kWidth > 0) {
    constexpr int64_t kHeads = kHeldColumns / kWidth;
    for (; first + kHeads <= params.kv_heads; first += kHeads) {
      weigh_heads<T, kWidth>(piece.from(first * width), p + first * params.chunk, params.chunk,
                             weighted + first * width);
    }
  }
  const Piece<T> rest = piece.from(first * width);
  for (int64_t event = 0; first < params.kv_heads && event < rest.now.count; ++event) {
    const int64_t ahead = bytes_ahead(rest, event, (params.kv_heads - first) * width);
    for (int64_t head = first; head < params.kv_heads; ++head)
      add_value<T, kWidth>(weighted + head * padded_width, p[head * params.chunk + event],
                           rest.now.row(event) + (head - first) * width, width, ahead);
  }
}

// The time bucket of every event of the chunk.
ARGUS_INLINE void find_buckets(const Params& params, const Chunk& chunk, int32_t* buckets) {
  const int64_t now = params.query_time[chunk.row];
  const TimeBuckets::Cells cells{params.cell_bucket, params.cell_edge};
  const Pages<int64_t> times{params.time_pages, params.time_page_stride, params.time_slot_stride};
  for_each_piece<int64_t>(
      params, chunk, times, {}, [&](int64_t place, const Piece<int64_t>& piece) ARGUS_INLINE_LAMBDA {
        for (int64_t event = 0; event < piece.now.count; ++event) {
          const int64_t time = *piece.now.row(event);
          buckets[place + event] = static_cast<int32_t>(cells.bucket(time_distance(now, time)));
        }
      });
}

template <class T>
ARGUS_INLINE void add_biases(const Params& params, const Chunk& chunk, Scratch<T>& scratch) {
  using A = Arithmetic<T>;
  const int64_t count = chunk.end - chunk.begin;
  const int64_t oldest = chunk.length - 1 - chunk.begin;
  const int32_t* buckets = scratch.buckets.data();
  if (params.time_bias != nullptr) find_buckets(params, chunk, scratch.buckets.data());
  for (int64_t head = 0; head < params.kv_heads; ++head) {
    A* scores = scratch.scores.data() + head * params.chunk;
    if (params.position_bias != nullptr) {
      const A* table = static_cast<const A*>(params.position_bias) +
                       (head * params.group + chunk.member) * params.position_buckets;
      add_position_bias(scores, count, oldest, table, params.position_buckets);
    }
    if (params.time_bias != nullptr) {
      const A* table = static_cast<const A*>(params.time_bias) +
                       (head * params.group + chunk.member) * params.time_buckets;
      for (int64_t event = 0; event < count; ++event) scores[event] += table[buckets[event]];
    }
  }
}

// exp(score − m) in place; m into `largest`, the sum into `sum`.
template <class A>
ARGUS_INLINE void exponentiate(A* scores, int64_t count, A& largest, A& sum) {
  constexpr A kNothing = -std::numeric_limits<A>::infinity();
  largest = lane_max(scores, count, kNothing);
  // Scores that are all −∞ have weight 0; −∞ − −∞ would be NaN.
  const A subtracted = largest == kNothing ? A{0} : largest;
  for (int64_t event = 0; event < count; ++event) scores[event] = fast_exp(scores[event] - subtracted);
  sum = lane_sum(scores, count);
}

// SiLU in place; m is 0, so that the chunks' sums add up as they are.
template <class A>
ARGUS_INLINE void apply_silu(A* scores, int64_t count, A& largest, A& sum) {
  largest = sum = A{0};
  for (int64_t event = 0; event < count; ++event) scores[event] *= sigmoid(scores[event]);
}

template <class T, int64_t kWidth>
ARGUS_INLINE void attend_chunk(const Params& params, const Chunk& chunk, Scratch<T>& scratch,
                               Arithmetic<T>* partial) {
  using A = Arithmetic<T>;
  const int64_t width = params.width, padded_width = padded<T>(width), count = chunk.end - chunk.begin;
  const Vectors<T>* q =
      static_cast<const Vectors<T>*>(params.q) + (chunk.row * params.heads + chunk.member) * width;
  for (int64_t head = 0; head < params.kv_heads; ++head) {
    for (int64_t column = 0; column < width; ++column)
      scratch.query[head * padded_width + place_of<T>(column)] =
          load(q[head * params.group * width + column]) * static_cast<A>(params.scale);
  }
  const Pages<T> keys{static_cast<const T*>(params.key_pages), params.key_page_stride,
                      params.key_slot_stride};
  const Pages<T> values{static_cast<const T*>(params.value_pages), params.value_page_stride,
                        params.value_slot_stride};
  const ScalePages scales(params);
  for_each_piece<T>(params, chunk, keys, rows_from(params, values, chunk.user, chunk.begin, chunk.end),
                    [&](int64_t place, const Piece<T>& piece) ARGUS_INLINE_LAMBDA {
                      score_piece<T, kWidth>(params, piece, {params, scales, chunk, place},
                                             scratch.query.data(), scratch.lane_sums.data(),
                                             scratch.scores.data() + place);
                    });
  if constexpr (std::is_same_v<T, int8_t>)
    multiply_by_scales(params, chunk, scales.keys, scales.key_head_stride, scratch.scores.data());
  add_biases(params, chunk, scratch);
  for (int64_t head = 0; head < params.kv_heads; ++head) {
    A *scores = scratch.scores.data() + head * params.chunk, *sum = partial + params.kv_heads;
    if (params.divisor > 0) {
      apply_silu(scores, count, partial[head], sum[head]);
    } else {
      exponentiate(scores, count, partial[head], sum[head]);
    }
  }
  if constexpr (std::is_same_v<T, int8_t>)
    multiply_by_scales(params, chunk, scales.values, scales.value_head_stride, scratch.scores.data());
  std::fill(scratch.weighted.begin(), scratch.weighted.end(), A{0});
  for_each_piece<T>(
      params, chunk, values, rows_from<T>(params, keys, chunk.user, chunk.end, params.lengths[chunk.user]),
      [&](int64_t place, const Piece<T>& piece) ARGUS_INLINE_LAMBDA {
        weigh_piece<T, kWidth>(params, piece, scratch.scores.data() + place, scratch.weighted.data());
      });
  A* weighted = partial + 2 * params.kv_heads;
  for (int64_t head = 0; head < params.kv_heads; ++head) {
    for (int64_t column = 0; column < width; ++column)
      weighted[head * width + column] = scratch.weighted[head * padded_width + place_of<T>(column)];
  }
}

template <class T, int64_t kWidth>
ARGUS_INLINE void attend(const Params& params, const Chunk* chunks, int64_t first, int64_t last,
                         Scratch<T>* scratch) {
  Arithmetic<T>* partial = static_cast<Arithmetic<T>*>(params.partial);
  for (int64_t index = first; index < last; ++index)
    attend_chunk<T, kWidth>(params, chunks[index], *scratch,
                            partial + chunks[index].place * partial_elements(params));
}

template <class T>
void attend_typed(const Params& params, const Chunk* chunks, int64_t first, int64_t last) {
  Scratch<T> scratch(params);
  switch (params.width % Block<T>::kColumns == 0 ? params.width : 0) {
    case 32:
      return ForEachIsa<&attend<T, 32>>::call(params, chunks, first, last, &scratch);
    case 64:
      return ForEachIsa<&attend<T, 64>>::call(params, chunks, first, last, &scratch);
    case 128:
      return ForEachIsa<&attend<T, 128>>::call(params, chunks, first, last, &scratch);
    default:
      return ForEachIsa<&attend<T, 0>>::call(params, chunks, first, last, &scratch);
  }
}

// One member of a row: `out` begins at its first head; `sum` holds [width].
template <class T>
ARGUS_INLINE void combine_chunks(const Params& params, int64_t first, int64_t last, T* out,
                                 Arithmetic<T>* sum) {
  using A = Arithmetic<T>;
  constexpr A kNothing = -std::numeric_limits<A>::infinity();
  const int64_t heads = params.kv_heads, width = params.width, step = partial_elements(params);
  const A* partial = static_cast<const A*>(params.partial);
  for (int64_t head = 0; head < heads; ++head) {
    A largest = kNothing;
    for (int64_t chunk = first; chunk < last; ++chunk)
      largest = std::max(largest, partial[chunk * step + head]);
    const A subtracted = largest == kNothing ? A{0} : largest;
    A total{0};
    std::fill_n(sum, width, A{0});
    for (int64_t chunk = first; chunk < last; ++chunk) {
      const A* result = partial + chunk * step;
      const A weight = fast_exp(result[head] - subtracted);
      total += weight * result[heads + head];
      const A* weighted = result + 2 * heads + head * width;
      for (int64_t column = 0; column < width; ++column) sum[column] += weight * weighted[column];
    }
    if (params.divisor > 0) total = static_cast<A>(params.divisor);
    T* row = out + head * params.group * width;
    for (int64_t column = 0; column < width; ++column) store(row[column], sum[column] / total);
  }
}

template <class T>
ARGUS_INLINE void combine(const Params& params, const int64_t* first_chunk, int64_t first, int64_t last,
                          Arithmetic<T>* sum) {
  const int64_t width = params.width;
  for (int64_t index = first; index < last; ++index) {
    const int64_t row = index / params.group, member = index % params.group;
    T* out = static_cast<T*>(params.out) + (row * params.heads + member) * width;
    if (first_chunk[index] < first_chunk[index + 1]) {
      combine_chunks<T>(params, first_chunk[index], first_chunk[index + 1], out, sum);
      continue;
    }
    for (int64_t head = 0; head < params.kv_heads; ++head) {
      for (int64_t column = 0; column < width; ++column)
        store(out[head * params.group * width + column], Arithmetic<T>{0});
    }
  }
}

template <class T>
void combine_typed(const Params& params, const int64_t* first_chunk, int64_t first, int64_t last) {
  std::vector<Arithmetic<T>> sum(static_cast<size_t>(params.width));
  ForEachIsa<&combine<T>>::call(params, first_chunk, first, last, sum.data());
}

template <class T>
void append_typed(const Params& params, int64_t first, int64_t last) {
  const int64_t row = params.kv_heads * params.width;
  const auto scales_at = [](float* scales, int64_t at) { return scales == nullptr ? nullptr : scales + at; };
  for (int64_t user = first; user < last; ++user) {
    const int64_t events = new_events(params, user), from = first_row(params, user);
    for (int64_t i = 0; i < events; ++i) {
      const int64_t event = params.lengths[user] - events + i, slot = event % params.page_size;
      const int64_t page = params.block_table[user * params.table_width + event / params.page_size];
      write_row(
          static_cast<const Vectors<T>*>(params.k) + (from + i) * row, params.kv_heads, params.width,
          static_cast<T*>(params.key_pages) + page * params.key_page_stride + slot * params.key_slot_stride,
          scales_at(params.key_scales,
                    page * params.key_scale_page_stride + slot * params.key_scale_slot_stride),
          params.key_scale_head_stride);
      write_row(static_cast<const Vectors<T>*>(params.v) + (from + i) * row, params.kv_heads, params.width,
                static_cast<T*>(params.value_pages) + page * params.value_page_stride +
                    slot * params.value_slot_stride,
                scales_at(params.value_scales,
                          page * params.value_scale_page_stride + slot * params.value_scale_slot_stride),
                params.value_scale_head_stride);
      if (params.key_time != nullptr)
        params.time_pages[page * params.time_page_stride + slot * params.time_slot_stride] =
            params.key_time[from + i];
    }
  }
}

// Calls function with the type of the pages.
template <class Function>
void with_page_type(const Params& params, const Function& function) {
  if (params.key_scales != nullptr) return function.template operator()<int8_t>();
  with_stored_type(params.dtype, function);
}

}  // namespace

void append_cpu(const Params& params, int64_t first, int64_t last) {
  with_page_type(params, [&]<class T>() { append_typed<T>(params, first, last); });
}

void attend_cpu(const Params& params, const Chunk* chunks, int64_t first, int64_t last) {
  with_page_type(params, [&]<class T>() { attend_typed<T>(params, chunks, first, last); });
}

void combine_cpu(const Params& params, const int64_t* first_chunk, int64_t first, int64_t last) {
  with_stored_type(params.dtype, [&]<class T>() { combine_typed<T>(params, first_chunk, first, last); });
}

}  // namespace argus::decode_attention
