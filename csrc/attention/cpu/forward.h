// The forward pass of attention over packed histories on the CPU, for any rule from scores to weights.
//
// For each block of queries: out' = 0, then tile by tile (mask.h)
//   scores' = K · Q'          keys × queries: a query's statistics stay in one lane, no sum across lanes
//   weights' = rule(scale · scores' + bias, −∞ where the mask hides), times dropout's 0 or 1 / (1 − dropout)
//   out' += V' · weights'
//
// A hidden key of a tile has weight 0, which adds nothing if the value is finite. If a sum is NaN, the block
// is recomputed query by query, over the keys that each query sees, so a NaN reaches only the queries that
// see it.
//
// At the end out = out' transposed, times the rule's factor. ' marks a transpose; K is read from the tensor,
// V is transposed once per piece of work, Q once per block, and each tile of weights is packed once.
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
        dropout_(problem),
        out_(out),
        statistics_(statistics),
        query_(matmul::right_size<P>(kQueries, problem.width)),
        weights_(matmul::right_size<P>(kQueries, kKeys)),
        scores_(kKeys * kQueries),
        sums_(problem.width * kQueries),
        transposed_(problem.width * kQueries) {}

  void operator()(const Work& work, const Task& task) {
    for (int64_t i = task.first; i < task.last; ++i) run(work.pieces[i]);
  }

 private:
  void run(const Piece& piece) {
    const Arguments& p = problem_;
    const User& user = piece.user;
    const Span keys = keys_of_queries(p, user, piece.begin, piece.end);
    const int64_t group = heads_of_group(p), readers = group * (piece.end - piece.begin);
    keys_.set(p.k.at<T>(user.key_row, piece.key_head), p.k.row_stride, keys.begin, keys.end, p.width,
              readers);
    values_.set(p.v.at<T>(user.key_row, piece.key_head), p.v.row_stride, keys.begin, keys.end, p.width);
    for (int64_t member = 0; member < group; ++member) run_head(piece, piece.key_head * group + member);
  }

  void run_head(const Piece& piece, int64_t head) {
    const Arguments& p = problem_;
    bias_.begin_head(head);
    dropout_.begin(piece.user, head);
    const int64_t most = block_queries(piece.user.keys * p.width * int64_t{sizeof(P)});
    for (int64_t first = piece.begin; first < piece.end; first += most) {
      const Block block(p, piece.user, first, std::min(most, piece.end - first));
      begin(piece, head, block);
      block.list_tiles(tiles_);
      bool accumulate = false;
      for (const KeyTile& tile : tiles_) {
        add_tile(block, tile, keys_.from(tile.begin), values_.from(tile.begin), accumulate);
        accumulate = true;
      }
      finish(piece, head, block);
      if (!has_nan(transposed_.get(), block.count * p.width)) continue;
      for (int64_t query = first; query < first + block.count; ++query) attend_alone(piece, head, query);
    }
  }

  void attend_alone(const Piece& piece, int64_t head, int64_t query) {
    const Arguments& p = problem_;
    const Block block(p, piece.user, query, 1);
    begin(piece, head, block);
    block.list_seen_tiles(tiles_);
    bool accumulate = false;
    for (const KeyTile& tile : tiles_) {
      const int64_t row = piece.user.key_row + tile.begin;
      seen_keys_.set(p.k.at<T>(row, piece.key_head), p.k.row_stride, 0, tile.size(), p.width, 1);
      seen_values_.set(p.v.at<T>(row, piece.key_head), p.v.row_stride, 0, tile.size(), p.width);
      add_tile(block, tile, seen_keys_.from(0), seen_values_.from(0), accumulate);
      accumulate = true;
    }
    finish(piece, head, block);
  }

  void begin(const Piece& piece, int64_t head, const Block& block) {
    const Arguments& p = problem_;
    bias_.begin_block(piece.user, block);
    dropout_.begin_block(piece.user, block);
    matmul::pack_right(query_.get(), p.q.at<T>(piece.user.query_row + block.first, head), block.count,
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
    rule_.weigh(scores, block, tile, factor);
    if (dropout_.present())
      dropout_.multiply(scores, dropout_.kept(tile, block.columns), tile, block.columns);
    matmul::pack_right(weights_.get(), scores, block.columns, tile.size(), 1, kQueries);
    if (accumulate) rule_.correct(sums_.get(), p.width, block.columns);
    matmul::multiply(sums_.get(), kQueries, values.data, values.stride, weights_.get(), p.width,
                     block.columns, tile.size(), accumulate);
  }

  void finish(const Piece& piece, int64_t head, const Block& block) {
    const Arguments& p = problem_;
    const int64_t row = piece.user.query_row + block.first;
    const int64_t stride = p.row_elements();
    if (tiles_.empty()) std::fill(sums_.get(), sums_.get() + p.width * kQueries, A{0});
    for (int64_t c = 0; !block.all_see && c < kQueries; ++c)
      if (block.sees_nothing(c)) rule_.see_nothing(c);
    T* to = out_ + row * stride + head * p.width;
    store_transposed(to, stride, static_cast<const A*>(sums_.get()), rule_.factors(), block.count, p.width,
                     transposed_.get());
    if (statistics_ == nullptr) return;
    for (int64_t c = 0; c < block.count; ++c) statistics_[head * p.rows + row + c] = rule_.statistic(c);
  }

  const Arguments& problem_;
  Rule rule_;
  TileBias<A> bias_;
  TileDropout<A> dropout_;
  std::vector<KeyTile> tiles_;  // of the current block
  T* out_;
  A* statistics_;
  KeyRows<T, P> keys_, seen_keys_;
  KeyColumns<T, P> values_, seen_values_;
  Scratch<P> query_, weights_;
  Scratch<A> scores_, sums_, transposed_;
};

}  // namespace argus::attention
