// The backward pass of attention over packed histories on the CPU, for any rule from scores to weights.
//
// For each block of queries, tile by tile (mask.h), with the scores recomputed:
//
//   scores' = K · Q',  d_weights' = V · dO'                 keys by queries
//   weights', d_scores' = rule(scale · scores' + bias, d_weights')
//   dV += weights' · dO,  dK += d_scores' · Q,  dQ' += K' · d_scores'
//   d_bias += sums of d_scores' by bucket
//
// With dropout, d_weights' and the weights' of dV are multiplied by its 0 or 1 / (1 − dropout).
//
// Five products, and no tile is transposed: weights' and d_scores' are left operands in their own layout, and
// d_scores' is packed once for dQ'. As in the forward pass, a block whose sums hold a NaN is recomputed query
// by query, over the keys that each query sees. One thread sums dK and dV of one user and head block after
// block. The queries of a long user are cut into a few pieces, whose sums are added in order at the end.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "attention/cpu/bias.h"
#include "attention/cpu/dropout.h"
#include "attention/cpu/operands.h"
#include "attention/cpu/problem.h"
#include "common/cpu/matmul.h"
#include "common/cpu/scratch.h"

namespace argus::attention {

// Sums of dK and dV over one piece's queries and heads, for the keys [begin, end).
template <class A>
struct KeySums {
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
void put_key_sums(const Backward& to, const Piece& piece, const KeySums<A>& sums) {
  const Arguments& p = to.given;
  const int64_t stride = p.key_row_elements();
  const int64_t place = (piece.user.key_row + sums.begin) * stride + piece.key_head * p.width;
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
  BackwardWorker(const Backward& call, const Rule& rule, std::vector<KeySums<A>>* parts)
      : call_(call),
        problem_(call.given),
        rule_(rule),
        bias_(problem_),
        dropout_(problem_),
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

  // The sums of the task's bias gradients go to d_tables [heads of the group, positions + times], null where
  // not wanted.
  void operator()(const Work& work, const Task& task, double* d_tables) {
    d_tables_ = d_tables;
    alone_.assign(static_cast<size_t>(task.last - task.first), false);
    // The pieces of a task share the sums of its tables: if one must be recomputed, all are.
    while (!run_pieces(work, task)) {
    }
  }

 private:
  // Returns false and sets `alone_` if a piece must be recomputed query by query.
  bool run_pieces(const Work& work, const Task& task) {
    const int64_t group = heads_of_group(problem_);
    if (d_tables_ != nullptr) std::fill(d_tables_, d_tables_ + group * entries(), 0.0);
    bool done = true;
    for (int64_t i = task.first; i < task.last; ++i) {
      const Piece& piece = work.pieces[i];
      const size_t place = static_cast<size_t>(i - task.first);
      const Span seen = keys_of_queries(problem_, piece.user, piece.begin, piece.end);
      KeySums<A>& sums = piece.parts > 1 ? (*parts_)[i] : own_sums_;
      const Span summed = piece.parts > 1 ? seen : Span{0, piece.user.keys};
      sums.zero(summed.begin, summed.end, problem_.width);
      if (!alone_[place]) pack(piece, seen);
      bool numbers = true;
      for (int64_t member = 0; member < group; ++member) {
        begin_head(piece, piece.key_head * group + member, member);
        numbers = (alone_[place] ? run_alone(piece, sums) : run(piece, sums)) && numbers;
      }
      if (!alone_[place] && (!numbers || has_nan(sums.d_k, 2 * (sums.end - sums.begin) * problem_.width))) {
        alone_[place] = true;
        done = false;
      }
      if (piece.parts == 1) put_key_sums<T>(call_, piece, sums);
    }
    return done;
  }

  int64_t entries() const { return int64_t{problem_.positions} + problem_.times; }

  void pack(const Piece& piece, Span seen) {
    const Arguments& p = problem_;
    const T* keys = p.k.at<T>(piece.user.key_row, piece.key_head);
    const T* values = p.v.at<T>(piece.user.key_row, piece.key_head);
    const int64_t readers = heads_of_group(p) * (piece.end - piece.begin);
    keys_.set(keys, p.k.row_stride, seen.begin, seen.end, p.width, readers);
    key_columns_.set(keys, p.k.row_stride, seen.begin, seen.end, p.width);
    values_.set(values, p.v.row_stride, seen.begin, seen.end, p.width, readers);
  }

  void begin_head(const Piece& piece, int64_t head, int64_t member) {
    head_ = head;
    bias_.begin_head(head);
    dropout_.begin(piece.user, head);
    if (d_tables_ != nullptr) bias_gradient_.add_to(d_tables_ + member * entries());
  }

  // Whether no gradient of a query is NaN.
  bool run(const Piece& piece, KeySums<A>& sums) {
    const Arguments& p = problem_;
    bool numbers = true;
    const int64_t most = block_queries(piece.user.keys * p.width * int64_t{sizeof(P)});
    for (int64_t first = piece.begin; first < piece.end; first += most) {
      const Block block(p, piece.user, first, std::min(most, piece.end - first));
      begin_block(piece, block);
      block.list_tiles(tiles_);
      bool accumulate = false;
      for (const KeyTile& tile : tiles_) {
        const TileOperands operands{keys_.from(tile.begin), values_.from(tile.begin),
                                    key_columns_.from(tile.begin)};
        differentiate(block, tile, operands, sums, accumulate);
        accumulate = true;
      }
      end_block(piece, block);
      numbers = numbers && !has_nan(transposed_.get(), block.count * p.width);
    }
    return numbers;
  }

  // Recomputes a piece; what is NaN now is NaN by definition.
  bool run_alone(const Piece& piece, KeySums<A>& sums) {
    const Arguments& p = problem_;
    for (int64_t query = piece.begin; query < piece.end; ++query) {
      const Block block(p, piece.user, query, 1);
      begin_block(piece, block);
      block.list_seen_tiles(tiles_);
      bool accumulate = false;
      for (const KeyTile& tile : tiles_) {
        const T* keys = p.k.at<T>(piece.user.key_row + tile.begin, piece.key_head);
        const T* values = p.v.at<T>(piece.user.key_row + tile.begin, piece.key_head);
        seen_keys_.set(keys, p.k.row_stride, 0, tile.size(), p.width, 1);
        seen_key_columns_.set(keys, p.k.row_stride, 0, tile.size(), p.width);
        seen_values_.set(values, p.v.row_stride, 0, tile.size(), p.width, 1);
        differentiate(block, tile, {seen_keys_.from(0), seen_values_.from(0), seen_key_columns_.from(0)},
                      sums, accumulate);
        accumulate = true;
      }
      end_block(piece, block);
    }
    return true;
  }

  void end_block(const Piece& piece, const Block& block) {
    if (d_tables_ != nullptr && normalised()) bias_gradient_.settle(d_statistics_);
    const int64_t stride = problem_.row_elements();
    T* to =
        static_cast<T*>(call_.d_q) + (piece.user.query_row + block.first) * stride + head_ * problem_.width;
    if (tiles_.empty()) std::fill(d_query_.get(), d_query_.get() + problem_.width * kQueries, A{0});
    store_transposed(to, stride, static_cast<const A*>(d_query_.get()), static_cast<const A*>(factors_),
                     block.count, problem_.width, transposed_.get());
  }

  void begin_block(const Piece& piece, const Block& block) {
    const Arguments& p = problem_;
    const int64_t row = piece.user.query_row + block.first;
    const T* query = p.q.at<T>(row, head_);
    const T* d_out = call_.d_out.at<T>(row, head_);
    const int64_t q_stride = p.q.row_stride, d_stride = call_.d_out.row_stride;
    matmul::pack_right(query_.get(), query, block.count, p.width, q_stride, 1);
    matmul::pack_right(d_out_.get(), d_out, block.count, p.width, d_stride, 1);
    matmul::pack_right(query_rows_.get(), query, p.width, block.count, 1, q_stride);
    matmul::pack_right(d_out_rows_.get(), d_out, p.width, block.count, 1, d_stride);
    bias_.begin_block(piece.user, block);
    dropout_.begin_block(piece.user, block);
    if (!normalised()) return;
    const int64_t stride = p.row_elements(), statistic = head_ * p.rows + row;
    alignas(64) A delta[kQueries], none[kQueries] = {};
    const A* d_statistic = call_.d_log_sum_exp == nullptr
                               ? static_cast<const A*>(none)
                               : static_cast<const A*>(call_.d_log_sum_exp) + statistic;
    ForEachIsa<&row_products_body<T, A>>::call(
        static_cast<A*>(delta), d_out, d_stride,
        static_cast<const T*>(call_.out) + row * stride + head_ * p.width, stride, d_statistic, block.count,
        p.width);
    rule_.begin_backward(static_cast<const A*>(call_.log_sum_exp) + statistic, delta, block.count);
    d_statistics_ = 0;
    for (int64_t c = 0; c < block.count; ++c) {
      if (block.all_see || !block.sees_nothing(c)) {
        d_statistics_ += d_statistic[c];
      } else {
        rule_.see_nothing_backward(c);
      }
    }
  }

  bool normalised() const { return call_.log_sum_exp != nullptr; }

  struct TileOperands {
    LeftOperand<P> keys, values, key_columns;
  };

  void differentiate(const Block& block, const KeyTile& tile, const TileOperands& from, KeySums<A>& sums,
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
    const A* kept = dropout_.present() ? dropout_.kept(tile, columns) : nullptr;
    if (kept != nullptr) dropout_.multiply(d_scores, kept, tile, columns);
    rule_.differentiate(scores, d_scores, block, tile, factor);
    if (block.count < columns)
      ForEachIsa<&zero_columns_body<A>>::call(scores, d_scores, keys, block.count, columns);
    if (d_tables_ != nullptr) {
      bias_gradient_.add(bias_.view(), d_scores, tile, columns);
      if (normalised()) bias_gradient_.add_weights(bias_.view(), scores, tile, columns);
    }
    if (kept != nullptr) dropout_.multiply(scores, kept, tile, columns);

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
  int64_t head_ = 0;  // of the queries
  TileBias<A> bias_;
  TileDropout<A> dropout_;
  TileBiasGradient<A> bias_gradient_;
  double* d_tables_ = nullptr;
  double d_statistics_ = 0;     // of the block's queries, d_log_sum_exp
  std::vector<KeyTile> tiles_;  // of the current block
  std::vector<KeySums<A>>* parts_;
  KeySums<A> own_sums_;
  std::vector<bool> alone_;  // by piece of the task
  KeyRows<T, P> keys_, values_, seen_keys_, seen_values_;
  KeyColumns<T, P> key_columns_, seen_key_columns_;
  TileRows<P> rows_;
  Scratch<P> query_, d_out_, query_rows_, d_out_rows_, d_scores_packed_;
  Scratch<A> scores_, d_scores_, d_query_, transposed_;
  alignas(64) A factors_[kQueries];
};

}  // namespace argus::attention
