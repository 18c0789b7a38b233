// The three products of sampled softmax's backward pass on the product loop of sm_90, of bfloat16 and half,
// in the place of d_scores_kernel, d_query_kernel and d_candidates_kernel.
//
//   loop_d_scores_kernel       the scores again, 64 rows × 256 candidates a warpgroup, and their gradients dS
//   loop_d_query_kernel        dS · C, split over the candidates where the tiles are fewer than the blocks
//   clear_queries_kernel       a strip's queries, with zeros for rows of weight 0, which may hold anything
//   and
//                              which TMA cannot leave out
//   loop_d_candidates_kernel   dSᵀ · Q, both operands MN-major, added strip by strip
#pragma once

#include "sampled_softmax_loss/backward_kernels.cuh"
#include "sampled_softmax_loss/loop_keys_sm90.cuh"

namespace argus::sampled_softmax_loss {

// A thread for each 16 bytes of a strip's queries.
template <class T>
__global__ void clear_queries_kernel(Kernel<T> k) {
  const int64_t chunks = k.in.width / kChunk<T>;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= k.strip_rows * chunks) return;
  const uint4* from = reinterpret_cast<const uint4*>(k.query() + k.first_row * k.in.width);
  static_cast<uint4*>(k.work.queries)[i] =
      k.weight(k.first_row + i / chunks) == 0.0f ? make_uint4(0, 0, 0, 0) : from[i];
}

// Calls visit(row, column, sum) for a thread's sums inside [rows, columns], then visit_nan(row, column) for
// those that are NaN.
template <int kSums, class Tile, class Visit, class VisitNan>
ARGUS_DEVICE void visit_sums(const float (&sums)[kSums], const Tile& tile, int64_t rows, int64_t columns,
                             const Visit& visit, const VisitNan& visit_nan) {
  // A bit a sum: an array that is indexed at run time would lie on the stack.
  uint64_t low = 0, high = 0;
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
    const int64_t row = tile.row + sm90::row_of_sum(i), column = tile.column + sm90::column_of_sum(i);
    if (row >= rows || column >= columns) continue;
    if (is_nan(sums[i])) {
      (i < 64 ? low : high) |= uint64_t{1} << (i % 64);
    } else {
      visit(row, column, sums[i]);
    }
  }
#pragma unroll 1
  for (int i = 0; (low | high) != 0; ++i, low = low >> 1 | high << 63, high >>= 1)
    if ((low & 1) != 0) visit_nan(tile.row + sm90::row_of_sum(i), tile.column + sm90::column_of_sum(i));
}

// A tile's gradients of scores, and its sums of rows, one chunk of them, which finish_rows_kernel adds in
// order.
template <class T>
struct StoreDScores {
  using Tile = typename ScoreLoop<T>::Tile;
  const Kernel<T>& k;
  LoopGradientKeys& keys;

  ARGUS_DEVICE void begin(const Tile& tile) const {
    keys.load(k, tile.row, tile.column);
    keys.load_gradients(k, tile.row);
  }

  ARGUS_DEVICE void take(const float (&sums)[kLoopColumns / 2], const Tile& tile) const {
    LoopKeys::synchronize();
    // One row after the other: both at once would spill.
    const RowSums upper = store<0>(sums, tile), lower = store<1>(sums, tile);
    // sums_of_what_stays reads what a row's other lanes have stored.
    __syncwarp();
    finish(upper, tile, sm90::row_of_sum(0));
    finish(lower, tile, sm90::row_of_sum(2));
  }

  ARGUS_DEVICE void finish(RowSums found, const Tile& tile, int own) const {
    const int64_t local = tile.row + own, begin = tile.column;
    found.join_lanes();
    if (lane_index() % 4 != 0 || local >= k.strip_rows) return;
    if (is_nan(found.moment) || is_nan(found.d_score))
      found = sums_of_what_stays(k, local, begin, min(begin + kLoopColumns, k.in.drawn));
    float* at = k.work.sums + begin / kLoopColumns * 3 * k.plan.strip_rows + local;
    at[0] = found.share;
    at[k.plan.strip_rows] = found.moment;
    at[2 * k.plan.strip_rows] = found.d_score;
  }

  // Of one of the thread's two rows in a tile.
  struct Row {
    LoopRow keys;
    bool real;
    float scale, whole, factor;
    // Columns are counted from the thread's first one, so that they are constants: as registers they would
    // spill, kept from the upper row to the lower.
    int columns;
    const float* log_q;
    T* to;
  };

  template <int kHalf>
  ARGUS_DEVICE RowSums store(const float (&sums)[kLoopColumns / 2], const Tile& tile) const {
    const int own = sm90::row_of_sum(2 * kHalf), first = sm90::column_of_sum(0);
    const int all = static_cast<int>(min(k.in.drawn - tile.column, int64_t{kLoopColumns}));
    const Row row{
        LoopRow::of(keys, kHalf),
        tile.row + own < k.strip_rows,
        k.scale(),
        keys.whole[own],
        keys.factor[own],
        all - first,
        keys.log_q + first,
        static_cast<T*>(k.work.d_scores) + (tile.row + own) * k.plan.score_stride + tile.column + first};
    // A row that does not count may hold anything: none of its candidates does.
    if (row.whole == kInfinity) return store_nothing(row);
    RowSums found{};
#pragma unroll
    for (int piece = 0; piece < LoopKeys::kPieces; ++piece) {
      // A branch, beyond which nothing is read ahead: all at once, keys would spill.
      if (piece * LoopKeys::kPieceColumns >= all) break;
      if (keys.any_left_out(own, piece)) {
        found.add(store_piece<kHalf, true>(sums, row, piece));
      } else {
        found.add(store_piece<kHalf, false>(sums, row, piece));
      }
    }
    return found;
  }

  ARGUS_DEVICE RowSums store_nothing(const Row& row) const {
#pragma unroll 1
    for (int column = 0; row.real && column < row.columns; column += 8)
      *reinterpret_cast<uint32_t*>(row.to + column) = 0;
    return {};
  }

  // Summed in pieces of 16 scores: one long sum's error would show in d_scale.
  template <int kHalf, bool kSomeLeftOut>
  ARGUS_DEVICE RowSums store_piece(const float (&sums)[kLoopColumns / 2], const Row& row, int piece) const {
    constexpr int kSums = 2 * LoopKeys::kPieceColumns / 4;
    RowSums part{};
#pragma unroll
    for (int i = piece * kSums + 2 * kHalf; i < (piece + 1) * kSums; i += 4) {
      const int column = i / 4 * 8;
      const uint32_t pair = kSomeLeftOut ? row.keys.pair(i) : 0;
      float product[2], share[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        // Selected, not branched to: a score takes 46 instructions with branches.
        const bool here = !kSomeLeftOut || row.keys.keeps(pair, e);
        product[e] = here ? sums[i + e] - row.keys.product : 0.0f;
        const float relative = fmaf(row.scale, product[e], -row.log_q[column + e]) - row.whole;
        share[e] = expf(here ? relative : -kInfinity);
      }
      // The stride is even: a pair that begins inside a row ends inside it.
      const uint32_t word = packed(row.factor * share[0], row.factor * share[1], T{});
      if (row.real && (!kSomeLeftOut || column < row.columns))
        *reinterpret_cast<uint32_t*>(row.to + column) = word;
      const float2 stored = unpacked(word, T{});
      part.add({share[0], share[0] * product[0], stored.x});
      part.add({share[1], share[1] * product[1], stored.y});
    }
    return part;
  }
};

template <class T>
__global__ void __launch_bounds__(ScoreLoop<T>::kThreads, 1)
    loop_d_scores_kernel(const __grid_constant__ ptx::TensorMap queries,
                         const __grid_constant__ ptx::TensorMap candidates,
                         const __grid_constant__ Kernel<T> k,
                         const __grid_constant__ typename ScoreLoop<T>::Shape shape) {
#if defined(ARGUS_SM90A_CODE)
  ARGUS_SHARED(LoopGradientKeys, keys, [2]);
  StoreDScores<T> policy{k, keys[loop_half()]};
  ScoreLoop<T>::run(queries, candidates, shape, policy);
#endif
}

template <class T>
using QueryLoop = sm90::ProductLoop<T, ptx::Major::k, ptx::Major::mn, kLoopColumns>;
template <class T>
using CandidateLoop = sm90::ProductLoop<T, ptx::Major::mn, ptx::Major::mn, kLoopColumns>;

template <class T>
struct StoreDQuery {
  using Tile = typename QueryLoop<T>::Tile;
  const Kernel<T>& k;

  ARGUS_DEVICE void begin(const Tile&) const {}
  ARGUS_DEVICE void take(const float (&sums)[kLoopColumns / 2], const Tile& tile) const {
    float* to = k.work.d_query + tile.split * k.plan.strip_rows * k.in.width;
    const int64_t begin = int64_t{tile.first_step} * QueryLoop<T>::kDepth;
    const int64_t end = min(begin + int64_t{tile.steps} * QueryLoop<T>::kDepth, k.in.drawn);
    visit_sums(
        sums, tile, k.strip_rows, k.in.width,
        [&](int64_t row, int64_t column, float sum) { to[row * k.in.width + column] = sum; },
        [&](int64_t row, int64_t column) {
          to[row * k.in.width + column] = d_query_of_what_stays(k, row, column, begin, end);
        });
  }
};

template <class T>
__global__ void __launch_bounds__(QueryLoop<T>::kThreads, 1)
    loop_d_query_kernel(const __grid_constant__ ptx::TensorMap d_scores,
                        const __grid_constant__ ptx::TensorMap candidates,
                        const __grid_constant__ Kernel<T> k,
                        const __grid_constant__ typename QueryLoop<T>::Shape shape) {
#if defined(ARGUS_SM90A_CODE)
  StoreDQuery<T> policy{k};
  QueryLoop<T>::run(d_scores, candidates, shape, policy);
#endif
}

template <class T>
struct AddDCandidates {
  using Tile = typename CandidateLoop<T>::Tile;
  const Kernel<T>& k;
  bool first_strip, last_strip;

  ARGUS_DEVICE void begin(const Tile&) const {}
  ARGUS_DEVICE void take(const float (&sums)[kLoopColumns / 2], const Tile& tile) const {
    visit_sums(
        sums, tile, k.in.drawn, k.in.width,
        [&](int64_t row, int64_t column, float sum) {
          add_d_candidate(k, row * k.in.width + column, sum, first_strip, last_strip);
        },
        [&](int64_t row, int64_t column) {
          const float sum = d_candidate_of_what_stays(k, row, column);
          add_d_candidate(k, row * k.in.width + column, sum, first_strip, last_strip);
        });
  }
};

template <class T>
__global__ void __launch_bounds__(CandidateLoop<T>::kThreads, 1)
    loop_d_candidates_kernel(const __grid_constant__ ptx::TensorMap d_scores,
                             const __grid_constant__ ptx::TensorMap queries,
                             const __grid_constant__ Kernel<T> k,
                             const __grid_constant__ typename CandidateLoop<T>::Shape shape, bool first_strip,
                             bool last_strip) {
#if defined(ARGUS_SM90A_CODE)
  AddDCandidates<T> policy{k, first_strip, last_strip};
  CandidateLoop<T>::run(d_scores, queries, shape, policy);
#endif
}

// The strip's queries as the product reads them.
template <class T>
const T* strip_queries(const char* op, const Kernel<T>& k, void* stream) {
  if (k.work.queries == nullptr) return k.query() + k.first_row * k.in.width;
  constexpr int64_t kThreads = 256;
  const int64_t chunks = k.strip_rows * k.in.width / kChunk<T>;
  launch(op, clear_queries_kernel<T>,
         LaunchShape{dim3(static_cast<unsigned>((chunks + kThreads - 1) / kThreads)), dim3(kThreads)}, stream,
         k);
  return static_cast<const T*>(k.work.queries);
}

template <class T>
void launch_d_scores_loop(const char* op, const Kernel<T>& k, void* stream) {
  using Loop = ScoreLoop<T>;
  const auto rows = static_cast<uint64_t>(k.strip_rows), drawn = static_cast<uint64_t>(k.in.drawn);
  const auto width = static_cast<uint64_t>(k.in.width);
  const auto shape = product_of<Loop>(rows, drawn, width);
  const auto queries = Loop::TileA::map(k.query() + k.first_row * k.in.width, rows, width, width);
  const auto candidates = Loop::map_b(k.candidates().data, shape, width);
  launch(op, loop_d_scores_kernel<T>, loop_shape<Loop>(k, shape), stream, queries, candidates, k, shape);
}

template <class T>
void launch_d_query_loop(const char* op, const Kernel<T>& k, void* stream) {
  using Loop = QueryLoop<T>;
  const auto rows = static_cast<uint64_t>(k.strip_rows), drawn = static_cast<uint64_t>(k.in.drawn);
  const auto width = static_cast<uint64_t>(k.in.width), stride = static_cast<uint64_t>(k.plan.score_stride);
  const auto d_scores = Loop::TileA::map(static_cast<const T*>(k.work.d_scores), rows, drawn, stride);
  const auto shape = product_of<Loop>(rows, width, drawn, k.plan.splits);
  const auto candidates = Loop::map_b(k.candidates().data, shape, width);
  launch(op, loop_d_query_kernel<T>, loop_shape<Loop>(k, shape), stream, d_scores, candidates, k, shape);
}

template <class T>
void launch_d_candidates_loop(const char* op, const Kernel<T>& k, bool first, bool last, void* stream) {
  using Loop = CandidateLoop<T>;
  const auto rows = static_cast<uint64_t>(k.strip_rows), drawn = static_cast<uint64_t>(k.in.drawn);
  const auto width = static_cast<uint64_t>(k.in.width), stride = static_cast<uint64_t>(k.plan.score_stride);
  const auto d_scores = Loop::TileA::map(static_cast<const T*>(k.work.d_scores), drawn, rows, stride);
  const auto shape = product_of<Loop>(drawn, width, rows);
  const auto queries = Loop::map_b(strip_queries(op, k, stream), shape, width);
  launch(op, loop_d_candidates_kernel<T>, loop_shape<Loop>(k, shape), stream, d_scores, queries, k, shape,
         first, last);
}

}  // namespace argus::sampled_softmax_loss
