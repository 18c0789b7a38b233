// The forward pass of attention over packed histories on the CPU, for any rule from scores to weights.
//
// For each block of queries: out' = 0, then tile by tile (problem.h)
//   scores' = K · Q'          keys × queries: a query's statistics stay in one lane, no sum across lanes
//   weights' = rule(scale · scores' + bias, −∞ where the mask hides)
//   out' += V' · weights'
// A hidden key of a tile has weight 0, which adds nothing if the value is finite. If a sum is NaN, the block
// is recomputed query by query, over the keys that each query sees, so a NaN reaches only the queries that
// see it.
//
// At the end out = out' transposed, times the rule's factor. ' marks a transpose; K is read from the tensor,
// V is transposed once per piece of work, Q once per block, and each tile of weights is packed once.
#pragma once

#include <cstdint>

#include "attention/cpu/bias.h"
#include "attention/cpu/operands.h"
#include "attention/cpu/problem.h"
#include "common/cpu/matmul.h"
#include "common/cpu/scratch.h"

namespace argus::attention {

// A Rule turns tiles of scores into weights and keeps what a block of queries needs for it:
// causal_attention's softmax_rule.h and hstu_attention's silu_rule.h.
template <class T, class P, class Rule>
class ForwardWorker : public FromBlockCache {
 public:
  using A = Arithmetic<T>;

  // `statistics` [heads, rows], or null.
  ForwardWorker(const Arguments& problem, const Rule& rule, T* out, A* statistics)
      : problem_(problem),
        rule_(rule),
        bias_(problem),
        out_(out),
        statistics_(statistics),
        query_(matmul::right_size<P>(kQueries, problem.width)),
        weights_(matmul::right_size<P>(kQueries, kKeys)),
        scores_(kKeys * kQueries),
        sums_(problem.width * kQueries),
        transposed_(problem.width * kQueries) {}

  void operator()(const Work& work, const Task& task) {
    bias_.begin_head(work.pieces[task.first].head);
    for (int64_t i = task.first; i < task.last; ++i) run(work.pieces[i]);
  }

 private:
  void run(const Piece& piece) {
    const Arguments& p = problem_;
    const int64_t oldest = first_event(p, piece.begin);
    keys_.set(p.k.at<T>(piece.user_row, piece.head), p.k.row_stride, oldest, piece.end, p.width);
    values_.set(p.v.at<T>(piece.user_row, piece.head), p.v.row_stride, oldest, piece.end, p.width);
    const int64_t most = block_queries(piece.length * p.width * int64_t{sizeof(P)});
    for (int64_t first = piece.begin; first < piece.end; first += most) {
      const Block block(p, piece.user_row, first, std::min(most, piece.end - first));
      begin(piece, block);
      bool accumulate = false;
      block.for_each_tile([&](const KeyTile& tile) {
        add_tile(block, tile, keys_.from(tile.begin), values_.from(tile.begin), accumulate);
        accumulate = true;
      });
      finish(piece, block);
      if (!has_nan(transposed_.get(), block.count * p.width)) continue;
      for (int64_t query = first; query < first + block.count; ++query) attend_alone(piece, query);
    }
  }

  void attend_alone(const Piece& piece, int64_t query) {
    const Arguments& p = problem_;
    const Block block(p, piece.user_row, query, 1);
    begin(piece, block);
    bool accumulate = false;
    block.for_each_seen_tile([&](const KeyTile& tile) {
      const int64_t row = piece.user_row + tile.begin;
      seen_keys_.set(p.k.at<T>(row, piece.head), p.k.row_stride, 0, tile.size(), p.width);
      seen_values_.set(p.v.at<T>(row, piece.head), p.v.row_stride, 0, tile.size(), p.width);
      add_tile(block, tile, seen_keys_.from(0), seen_values_.from(0), accumulate);
      accumulate = true;
    });
    finish(piece, block);
  }

  void begin(const Piece& piece, const Block& block) {
    const Arguments& p = problem_;
    bias_.begin_block(piece.user_row, block);
    matmul::pack_right(query_.get(), p.q.at<T>(piece.user_row + block.first, piece.head), block.count,
                       p.width, p.q.row_stride, 1);
    rule_.begin();
  }

  void add_tile(const Block& block, const KeyTile& tile, LeftOperand<P> keys, LeftOperand<P> values,
                bool accumulate) {
    const Arguments& p = problem_;
    A* scores = scores_.get();
    matmul::multiply(scores, kQueries, keys.data, keys.stride, query_.get(), tile.size(), block.columns,
                     p.width, false);
    const A factor = make_scores<A>(scores, bias_, block, tile, static_cast<A>(p.scale), Rule::kHidden);
    rule_.weigh(scores, tile.size(), block.columns, factor);
    matmul::pack_right(weights_.get(), scores, block.columns, tile.size(), 1, kQueries);
    if (accumulate) rule_.correct(sums_.get(), p.width, block.columns);
    matmul::multiply(sums_.get(), kQueries, values.data, values.stride, weights_.get(), p.width,
                     block.columns, tile.size(), accumulate);
  }

  void finish(const Piece& piece, const Block& block) {
    const Arguments& p = problem_;
    const int64_t row = piece.user_row + block.first;
    const int64_t stride = p.row_elements();
    T* to = out_ + row * stride + piece.head * p.width;
    store_transposed(to, stride, static_cast<const A*>(sums_.get()), rule_.factors(), block.count, p.width,
                     transposed_.get());
    if (statistics_ == nullptr) return;
    for (int64_t c = 0; c < block.count; ++c) statistics_[piece.head * p.rows + row + c] = rule_.statistic(c);
  }

  const Arguments& problem_;
  Rule rule_;
  TileBias<A> bias_;
  T* out_;
  A* statistics_;
  EventRows<T, P> keys_, seen_keys_;
  EventColumns<T, P> values_, seen_values_;
  Scratch<P> query_, weights_;
  Scratch<A> scores_, sums_, transposed_;
};

}  // namespace argus::attention
