// The forward pass of attention over packed histories on the CPU, for any rule from scores to weights.
//
// For each block of queries: out' = 0, then tile by tile (attention_problem.h)
//
//   scores' = K · Q'          keys by queries: a query's statistics run down a lane, no sum across lanes
//   weights' = rule(scale · scores' + bias, −∞ where the mask hides)
//   out' += V' · weights'
//
// and at the end out = out' turned, divided by what the rule says. ' is turned; K is read from the tensor, V
// is turned once for a piece of work, Q once for a block, and a tile of weights is packed once.
#pragma once

#include <cstdint>

#include "common/attention_bias.h"
#include "common/attention_operands.h"
#include "common/attention_problem.h"
#include "common/matmul.h"
#include "common/scratch.h"

namespace argus::attention {

// A Rule turns tiles of scores into weights and keeps what a block of queries needs for it:
// causal_attention's softmax_rule.h and hstu_attention's silu_rule.h.
template <class T, class P, class Rule>
class ForwardWorker {
 public:
  using A = Arithmetic<T>;

  // `statistics` [heads, rows], or null.
  ForwardWorker(const Problem<T>& problem, const Rule& rule, T* out, A* statistics)
      : problem_(problem),
        rule_(rule),
        bias_(problem),
        out_(out),
        statistics_(statistics),
        query_(matmul::right_size<P>(kQueries, problem.width)),
        weights_(matmul::right_size<P>(kQueries, kKeys)),
        scores_(kKeys * kQueries),
        sums_(problem.width * kQueries),
        turned_(problem.width * kQueries) {}

  void operator()(const Work& work, const Task& task) {
    bias_.begin_head(work.pieces[task.first].head);
    for (int64_t i = task.first; i < task.last; ++i) run(work.pieces[i]);
  }

 private:
  void run(const Piece& piece) {
    const Problem<T>& p = problem_;
    const int64_t oldest = first_event(p, piece.begin);
    keys_.set(p.k.at(piece.user_row, piece.head), p.k.row_stride, oldest, piece.end, p.width);
    values_.set(p.v.at(piece.user_row, piece.head), p.v.row_stride, oldest, piece.end, p.width);
    const int64_t most = block_queries(piece.length * p.width * int64_t{sizeof(P)});
    for (int64_t first = piece.begin; first < piece.end; first += most) {
      const Block block(p, piece.user_row, first, std::min(most, piece.end - first));
      bias_.begin_block(piece.user_row, block);
      attend(piece, block);
      finish(piece, block);
    }
  }

  void attend(const Piece& piece, const Block& block) {
    const Problem<T>& p = problem_;
    matmul::pack_right(query_.get(), p.q.at(piece.user_row + block.first, piece.head), block.count, p.width,
                       p.q.row_stride, 1);
    rule_.begin();
    bool accumulate = false;
    block.for_each_tile([&](const KeyTile& tile) {
      A* scores = scores_.get();
      matmul::multiply(scores, kQueries, keys_.from(tile.begin), keys_.stride(), query_.get(), tile.size(),
                       block.columns, p.width, false);
      const A factor = make_scores<A>(scores, bias_, block, tile, p.scale, Rule::kHidden);
      rule_.weigh(scores, tile.size(), block.columns, factor);
      matmul::pack_right(weights_.get(), scores, block.columns, tile.size(), 1, kQueries);
      if (accumulate) rule_.correct(sums_.get(), p.width, block.columns);
      matmul::multiply(sums_.get(), kQueries, values_.from(tile.begin), values_.stride(tile.begin),
                       weights_.get(), p.width, block.columns, tile.size(), accumulate);
      accumulate = true;
    });
  }

  void finish(const Piece& piece, const Block& block) {
    const Problem<T>& p = problem_;
    const int64_t row = piece.user_row + block.first;
    const int64_t stride = p.heads * p.width;
    T* to = out_ + row * stride + piece.head * p.width;
    put_turned(to, stride, static_cast<const A*>(sums_.get()), rule_.factors(), block.count, p.width,
               turned_.get());
    if (statistics_ == nullptr) return;
    for (int64_t c = 0; c < block.count; ++c) statistics_[piece.head * p.rows + row + c] = rule_.statistic(c);
  }

  const Problem<T>& problem_;
  Rule rule_;
  TileBias<A> bias_;
  T* out_;
  A* statistics_;
  EventRows<T, P> keys_;
  EventColumns<T, P> values_;
  Scratch<P> query_, weights_;
  Scratch<A> scores_, sums_, turned_;
};

}  // namespace argus::attention
