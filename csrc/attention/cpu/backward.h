// The backward pass of attention over packed histories on the CPU, for any rule from scores to weights.
//
// For each block of queries, tile by tile (problem.h), with the scores recomputed:
//
//   scores' = K · Q',  d_weights' = V · dO'                 keys by queries
//   weights', d_scores' = rule(scale · scores' + bias, d_weights')
//   dV += weights' · dO,  dK += d_scores' · Q,  dQ' += K' · d_scores'
//   d_bias += sums of d_scores' by bucket
// Five products, and no tile is transposed: weights' and d_scores' are left operands in their own layout, and
// d_scores' is packed once for dQ'. As in the forward pass, a block whose sums hold a NaN is recomputed query
// by query, over the keys that each query sees. One thread sums dK and dV of one user and head block after
// block. The queries of a long user are cut into a few pieces, whose sums are added in order at the end.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "attention/cpu/bias.h"
#include "attention/cpu/operands.h"
#include "attention/cpu/problem.h"
#include "common/cpu/matmul.h"
#include "common/cpu/scratch.h"

namespace argus::attention {

// Sums of dK and dV over one piece's queries, for the events [begin, end).
template <class A>
struct EventSums {
  Scratch<A> memory;
  A* d_k = nullptr;
  A* d_v = nullptr;
  int64_t begin = 0, end = 0;

  void zero(int64_t first, int64_t last, int64_t width) {
    begin = first;
    end = last;
    const int64_t size = (last - first) * width;
    d_k = memory.at_least(2 * size);
    d_v = d_k + size;
    std::fill(d_k, d_k + 2 * size, A{0});
  }
};

template <class T, class A>
void put_event_sums(const Backward& to, const Piece& piece, const EventSums<A>& sums) {
  const Arguments& p = to.given;
  const int64_t stride = p.row_elements();
  const int64_t place = (piece.user_row + sums.begin) * stride + piece.head * p.width;
  const int64_t rows = sums.end - sums.begin;
  const auto put = [&](void* gradient, const A* from, A factor) {
    ForEachIsa<&put_rows_body<T, A>>::call(static_cast<T*>(gradient) + place, stride, from, factor, rows,
                                           p.width);
  };
  put(to.d_k, sums.d_k, static_cast<A>(p.scale));
  put(to.d_v, sums.d_v, A{1});
}

// to[row] = Σ_d a[row, d] · b[row, d] − c[row], in 16 lanes.
template <class T, class A>
ARGUS_INLINE void row_products_body(A* to, const T* a, int64_t a_stride, const T* b, int64_t b_stride,
                                    const A* c, int64_t rows, int64_t width) {
  for (int64_t row = 0; row < rows; ++row) {
    A lanes[kLanes] = {};
    const T* x = a + row * a_stride;
    const T* y = b + row * b_stride;
    int64_t d = 0;
    for (; d + kLanes <= width; d += kLanes) {
      for (int64_t lane = 0; lane < kLanes; ++lane)
        lanes[lane] = fma(load(x[d + lane]), load(y[d + lane]), lanes[lane]);
    }
    for (int64_t lane = 0; d + lane < width; ++lane)
      lanes[lane] = fma(load(x[d + lane]), load(y[d + lane]), lanes[lane]);
    to[row] = lane_sum(lanes, kLanes) - c[row];
  }
}

// Clears the columns of a tile that belong to no query: they would add to the tables' gradients.
template <class A>
ARGUS_INLINE void zero_columns_body(A* scores, A* d_scores, int64_t keys, int64_t first, int64_t last) {
  for (int64_t j = 0; j < keys; ++j) {
    for (int64_t c = first; c < last; ++c) scores[j * kQueries + c] = A{0};
    for (int64_t c = first; c < last; ++c) d_scores[j * kQueries + c] = A{0};
  }
}

template <class T, class P, class Rule>
class BackwardWorker : public FromBlockCache {
 public:
  using A = Arithmetic<T>;

  // `parts` has one entry per piece. It receives the sums of a piece if its user has several pieces.
  BackwardWorker(const Backward& call, const Rule& rule, std::vector<EventSums<A>>* parts)
      : call_(call),
        problem_(call.given),
        rule_(rule),
        bias_(problem_),
        bias_gradient_(problem_, call.d_position_bias != nullptr || call.d_time_bias != nullptr),
        parts_(parts),
        query_(matmul::right_size<P>(kQueries, problem_.width)),
        d_out_(matmul::right_size<P>(kQueries, problem_.width)),
        query_rows_(matmul::right_size<P>(problem_.width, kQueries)),
        d_out_rows_(matmul::right_size<P>(problem_.width, kQueries)),
        d_scores_packed_(matmul::right_size<P>(kQueries, kKeys)),
        scores_(kKeys * kQueries),
        d_scores_(kKeys * kQueries),
        d_query_(problem_.width * kQueries),
        transposed_(problem_.width * kQueries) {
    std::fill(factors_, factors_ + kQueries, static_cast<A>(problem_.scale));
  }

  // The sums of the task's bias gradients go to d_tables [positions + times], null where not wanted.
  void operator()(const Work& work, const Task& task, double* d_tables) {
    with_bias_gradient_ = d_tables != nullptr;
    bias_.begin_head(work.pieces[task.first].head);
    alone_.assign(static_cast<size_t>(task.last - task.first), false);
    // The pieces of a task share the sums of its tables: if one must be recomputed, all are.
    while (!run_pieces(work, task, d_tables)) {
    }
  }

 private:
  // Returns false and sets `alone_` if a piece must be recomputed query by query.
  bool run_pieces(const Work& work, const Task& task, double* d_tables) {
    if (with_bias_gradient_) bias_gradient_.begin(d_tables, d_tables + problem_.positions);
    bool done = true;
    for (int64_t i = task.first; i < task.last; ++i) {
      const Piece& piece = work.pieces[i];
      const size_t place = static_cast<size_t>(i - task.first);
      EventSums<A>& sums = piece.parts > 1 ? (*parts_)[i] : own_sums_;
      sums.zero(first_event(problem_, piece.begin), piece.end, problem_.width);
      if (alone_[place]) {
        run_alone(piece, sums);
      } else if (!run(piece, sums)) {
        alone_[place] = true;
        done = false;
      }
      if (piece.parts == 1) put_event_sums<T>(call_, piece, sums);
    }
    return done;
  }

  // Whether no gradient is NaN.
  bool run(const Piece& piece, EventSums<A>& sums) {
    const Arguments& p = problem_;
    const int64_t oldest = sums.begin;
    bool numbers = true;
    const T* keys = p.k.at<T>(piece.user_row, piece.head);
    keys_.set(keys, p.k.row_stride, oldest, piece.end, p.width);
    key_columns_.set(keys, p.k.row_stride, oldest, piece.end, p.width);
    values_.set(p.v.at<T>(piece.user_row, piece.head), p.v.row_stride, oldest, piece.end, p.width);
    const int64_t most = block_queries(piece.length * p.width * int64_t{sizeof(P)});
    for (int64_t first = piece.begin; first < piece.end; first += most) {
      const Block block(p, piece.user_row, first, std::min(most, piece.end - first));
      begin_block(piece, block);
      bool accumulate = false;
      block.for_each_tile([&](const KeyTile& tile) {
        const TileOperands operands{keys_.from(tile.begin), values_.from(tile.begin),
                                    key_columns_.from(tile.begin)};
        differentiate(block, tile, operands, sums, accumulate);
        accumulate = true;
      });
      put_query_gradient(piece, block);
      numbers = numbers && !has_nan(transposed_.get(), block.count * p.width);
    }
    return numbers && !has_nan(sums.d_k, 2 * (sums.end - sums.begin) * p.width);
  }

  void run_alone(const Piece& piece, EventSums<A>& sums) {
    const Arguments& p = problem_;
    for (int64_t query = piece.begin; query < piece.end; ++query) {
      const Block block(p, piece.user_row, query, 1);
      begin_block(piece, block);
      bool accumulate = false;
      block.for_each_seen_tile([&](const KeyTile& tile) {
        const T* keys = p.k.at<T>(piece.user_row + tile.begin, piece.head);
        const T* values = p.v.at<T>(piece.user_row + tile.begin, piece.head);
        seen_keys_.set(keys, p.k.row_stride, 0, tile.size(), p.width);
        seen_key_columns_.set(keys, p.k.row_stride, 0, tile.size(), p.width);
        seen_values_.set(values, p.v.row_stride, 0, tile.size(), p.width);
        differentiate(block, tile, {seen_keys_.from(0), seen_values_.from(0), seen_key_columns_.from(0)},
                      sums, accumulate);
        accumulate = true;
      });
      put_query_gradient(piece, block);
    }
  }

  void put_query_gradient(const Piece& piece, const Block& block) {
    const int64_t stride = problem_.row_elements();
    T* to =
        static_cast<T*>(call_.d_q) + (piece.user_row + block.first) * stride + piece.head * problem_.width;
    store_transposed(to, stride, static_cast<const A*>(d_query_.get()), static_cast<const A*>(factors_),
                     block.count, problem_.width, transposed_.get());
  }

  void begin_block(const Piece& piece, const Block& block) {
    const Arguments& p = problem_;
    const int64_t row = piece.user_row + block.first;
    const T* query = p.q.at<T>(row, piece.head);
    const T* d_out = call_.d_out.at<T>(row, piece.head);
    const int64_t q_stride = p.q.row_stride, d_stride = call_.d_out.row_stride;
    matmul::pack_right(query_.get(), query, block.count, p.width, q_stride, 1);
    matmul::pack_right(d_out_.get(), d_out, block.count, p.width, d_stride, 1);
    matmul::pack_right(query_rows_.get(), query, p.width, block.count, 1, q_stride);
    matmul::pack_right(d_out_rows_.get(), d_out, p.width, block.count, 1, d_stride);
    bias_.begin_block(piece.user_row, block);
    if (call_.log_sum_exp == nullptr) return;
    const int64_t stride = p.row_elements(), statistic = piece.head * p.rows + row;
    alignas(64) A delta[kQueries];
    ForEachIsa<&row_products_body<T, A>>::call(
        static_cast<A*>(delta), d_out, d_stride,
        static_cast<const T*>(call_.out) + row * stride + piece.head * p.width, stride,
        static_cast<const A*>(call_.d_log_sum_exp) + statistic, block.count, p.width);
    rule_.begin_backward(static_cast<const A*>(call_.log_sum_exp) + statistic, delta, block.count);
  }

  struct TileOperands {
    LeftOperand<P> keys, values, key_columns;
  };

  void differentiate(const Block& block, const KeyTile& tile, const TileOperands& from, EventSums<A>& sums,
                     bool accumulate) {
    const int64_t width = problem_.width, keys = tile.size(), columns = block.columns;
    A* scores = scores_.get();
    A* d_scores = d_scores_.get();
    matmul::multiply(scores, kQueries, from.keys.data, from.keys.stride, query_.get(), keys, columns, width,
                     false);
    const A factor =
        make_scores<A>(scores, bias_, block, tile, static_cast<A>(problem_.scale), Rule::kHidden);
    matmul::multiply(d_scores, kQueries, from.values.data, from.values.stride, d_out_.get(), keys, columns,
                     width, false);
    rule_.differentiate(scores, d_scores, keys, columns, factor);
    if (block.count < columns)
      ForEachIsa<&zero_columns_body<A>>::call(scores, d_scores, keys, block.count, columns);
    if (with_bias_gradient_) bias_gradient_.add(bias_.view(), d_scores, tile, columns);

    const int64_t place = (tile.begin - sums.begin) * width;
    const LeftOperand<P> weight_rows = rows_.set(scores, keys, columns);
    matmul::multiply(sums.d_v + place, width, weight_rows.data, weight_rows.stride, d_out_rows_.get(), keys,
                     width, block.count, true);
    const LeftOperand<P> d_score_rows = rows_.set(d_scores, keys, columns);
    matmul::multiply(sums.d_k + place, width, d_score_rows.data, d_score_rows.stride, query_rows_.get(), keys,
                     width, block.count, true);
    matmul::pack_right(d_scores_packed_.get(), d_scores, columns, keys, 1, kQueries);
    matmul::multiply(d_query_.get(), kQueries, from.key_columns.data, from.key_columns.stride,
                     d_scores_packed_.get(), width, columns, keys, accumulate);
  }

  const Backward& call_;
  const Arguments& problem_;
  Rule rule_;
  TileBias<A> bias_;
  TileBiasGradient<A> bias_gradient_;
  bool with_bias_gradient_ = false;
  std::vector<EventSums<A>>* parts_;
  EventSums<A> own_sums_;
  std::vector<bool> alone_;  // by piece of the task
  EventRows<T, P> keys_, values_, seen_keys_, seen_values_;
  EventColumns<T, P> key_columns_, seen_key_columns_;
  TileRows<P> rows_;
  Scratch<P> query_, d_out_, query_rows_, d_out_rows_, d_scores_packed_;
  Scratch<A> scores_, d_scores_, d_query_, transposed_;
  alignas(64) A factors_[kQueries];
};

}  // namespace argus::attention
