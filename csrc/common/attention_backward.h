// The backward pass of attention over packed histories on the CPU, for any rule from scores to weights.
//
// For each block of queries, tile by tile (attention_problem.h), with the scores computed again:
//
//   scores' = K · Q',  d_weights' = V · dO'                 keys by queries
//   weights', d_scores' = rule(scale · scores' + bias, d_weights')
//   dV += weights' · dO,  dK += d_scores' · Q,  dQ' += K' · d_scores'
//   d_bias += sums of d_scores' by bucket
//
// Five products and no tile is turned: weights' and d_scores' are left operands as they lie, and d_scores' is
// packed once for dQ'. dK and dV of one user and head are summed block after block by one thread; a long
// user's queries are cut into a few pieces, whose sums are added in their order at the end.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "common/attention_bias.h"
#include "common/attention_operands.h"
#include "common/attention_problem.h"
#include "common/matmul.h"
#include "common/scratch.h"

namespace argus::attention {

template <class T>
struct Gradients {
  using A = Arithmetic<T>;

  Packed<const T> d_out;
  const T* out;  // [rows, heads, width] contiguous; null where the rule keeps no statistic, like the next two
  const A* statistic;    // [heads, rows]
  const A* d_statistic;  // [heads, rows]
  T* d_q;                // [rows, heads, width] contiguous, as the next two
  T* d_k;
  T* d_v;
  A* d_position_bias;  // [heads, positions], null where not wanted
  A* d_time_bias;      // [heads, times], null where not wanted
};

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
void put_event_sums(const Problem<T>& p, const Gradients<T>& to, const Piece& piece,
                    const EventSums<A>& sums) {
  const int64_t stride = p.heads * p.width;
  const int64_t place = (piece.user_row + sums.begin) * stride + piece.head * p.width;
  const int64_t rows = sums.end - sums.begin;
  const auto put = [&](T* gradient, const A* from, A factor) {
    ForEachIsa<&put_rows_body<T, A>>::call(gradient + place, stride, from, factor, rows, p.width);
  };
  put(to.d_k, sums.d_k, p.scale);
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

template <class T, class P, class Rule>
class BackwardWorker {
 public:
  using A = Arithmetic<T>;

  // `parts`: by piece, where the sums of a piece go that is not its user's only one.
  BackwardWorker(const Problem<T>& problem, const Rule& rule, const Gradients<T>& gradients,
                 std::vector<EventSums<A>>* parts)
      : problem_(problem),
        rule_(rule),
        bias_(problem),
        bias_gradient_(problem),
        gradients_(gradients),
        parts_(parts),
        query_(matmul::right_size<P>(kQueries, problem.width)),
        d_out_(matmul::right_size<P>(kQueries, problem.width)),
        query_rows_(matmul::right_size<P>(problem.width, kQueries)),
        d_out_rows_(matmul::right_size<P>(problem.width, kQueries)),
        d_scores_packed_(matmul::right_size<P>(kQueries, kKeys)),
        scores_(kKeys * kQueries),
        d_scores_(kKeys * kQueries),
        d_query_(problem.width * kQueries),
        turned_(problem.width * kQueries) {
    std::fill(factors_, factors_ + kQueries, problem.scale);
  }

  // The sums of the task's bias gradients go to d_tables [positions + times], null where not wanted.
  void operator()(const Work& work, const Task& task, double* d_tables) {
    with_bias_gradient_ = d_tables != nullptr;
    if (with_bias_gradient_) bias_gradient_.begin(d_tables, d_tables + problem_.positions);
    bias_.begin_head(work.pieces[task.first].head);
    for (int64_t i = task.first; i < task.last; ++i) {
      const Piece& piece = work.pieces[i];
      EventSums<A>& sums = piece.parts > 1 ? (*parts_)[i] : own_sums_;
      run(piece, sums);
      if (piece.parts == 1) put_event_sums(problem_, gradients_, piece, sums);
    }
  }

 private:
  void run(const Piece& piece, EventSums<A>& sums) {
    const Problem<T>& p = problem_;
    const int64_t oldest = first_event(p, piece.begin);
    const T* keys = p.k.at(piece.user_row, piece.head);
    keys_.set(keys, p.k.row_stride, oldest, piece.end, p.width);
    key_columns_.set(keys, p.k.row_stride, oldest, piece.end, p.width);
    values_.set(p.v.at(piece.user_row, piece.head), p.v.row_stride, oldest, piece.end, p.width);
    sums.zero(oldest, piece.end, p.width);
    const int64_t most = block_queries(piece.length * p.width * int64_t{sizeof(P)});
    for (int64_t first = piece.begin; first < piece.end; first += most) {
      const Block block(p, piece.user_row, first, std::min(most, piece.end - first));
      begin_block(piece, block);
      bool accumulate = false;
      block.for_each_tile([&](const KeyTile& tile) {
        differentiate(block, tile, sums, accumulate);
        accumulate = true;
      });
      const int64_t stride = p.heads * p.width;
      T* to = gradients_.d_q + (piece.user_row + first) * stride + piece.head * p.width;
      put_turned(to, stride, static_cast<const A*>(d_query_.get()), static_cast<const A*>(factors_),
                 block.count, p.width, turned_.get());
    }
  }

  void begin_block(const Piece& piece, const Block& block) {
    const Problem<T>& p = problem_;
    const int64_t row = piece.user_row + block.first;
    const T* query = p.q.at(row, piece.head);
    const T* d_out = gradients_.d_out.at(row, piece.head);
    const int64_t q_stride = p.q.row_stride, d_stride = gradients_.d_out.row_stride;
    matmul::pack_right(query_.get(), query, block.count, p.width, q_stride, 1);
    matmul::pack_right(d_out_.get(), d_out, block.count, p.width, d_stride, 1);
    matmul::pack_right(query_rows_.get(), query, p.width, block.count, 1, q_stride);
    matmul::pack_right(d_out_rows_.get(), d_out, p.width, block.count, 1, d_stride);
    bias_.begin_block(piece.user_row, block);
    if (gradients_.statistic == nullptr) return;
    const int64_t stride = p.heads * p.width, statistic = piece.head * p.rows + row;
    alignas(64) A delta[kQueries];
    ForEachIsa<&row_products_body<T, A>>::call(static_cast<A*>(delta), d_out, d_stride,
                                               gradients_.out + row * stride + piece.head * p.width, stride,
                                               gradients_.d_statistic + statistic, block.count, p.width);
    rule_.begin_backward(gradients_.statistic + statistic, delta, block.count);
  }

  void differentiate(const Block& block, const KeyTile& tile, EventSums<A>& sums, bool accumulate) {
    const int64_t width = problem_.width, keys = tile.size(), columns = block.columns;
    A* scores = scores_.get();
    A* d_scores = d_scores_.get();
    matmul::multiply(scores, kQueries, keys_.from(tile.begin), keys_.stride(), query_.get(), keys, columns,
                     width, false);
    const A factor = make_scores<A>(scores, bias_, block, tile, problem_.scale, Rule::kHidden);
    matmul::multiply(d_scores, kQueries, values_.from(tile.begin), values_.stride(), d_out_.get(), keys,
                     columns, width, false);
    rule_.differentiate(scores, d_scores, keys, columns, factor);
    if (with_bias_gradient_) bias_gradient_.add(bias_.view(), d_scores, tile, columns);

    const int64_t place = (tile.begin - sums.begin) * width;
    const P* weight_rows = rows_.set(scores, keys, columns);
    matmul::multiply(sums.d_v + place, width, weight_rows, rows_.stride(), d_out_rows_.get(), keys, width,
                     block.count, true);
    const P* d_score_rows = rows_.set(d_scores, keys, columns);
    matmul::multiply(sums.d_k + place, width, d_score_rows, rows_.stride(), query_rows_.get(), keys, width,
                     block.count, true);
    matmul::pack_right(d_scores_packed_.get(), d_scores, columns, keys, 1, kQueries);
    matmul::multiply(d_query_.get(), kQueries, key_columns_.from(tile.begin), key_columns_.stride(tile.begin),
                     d_scores_packed_.get(), width, columns, keys, accumulate);
  }

  const Problem<T>& problem_;
  Rule rule_;
  TileBias<A> bias_;
  TileBiasGradient<A> bias_gradient_;
  bool with_bias_gradient_ = false;
  const Gradients<T>& gradients_;
  std::vector<EventSums<A>>* parts_;
  EventSums<A> own_sums_;
  EventRows<T, P> keys_, values_;
  EventColumns<T, P> key_columns_;
  TileRows<P> rows_;
  Scratch<P> query_, d_out_, query_rows_, d_out_rows_, d_scores_packed_;
  Scratch<A> scores_, d_scores_, d_query_, turned_;
  alignas(64) A factors_[kQueries];
};

}  // namespace argus::attention
