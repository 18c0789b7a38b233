// The backward pass on the CPU. Scores are recomputed tile by tile and replaced by their gradients dS; dS · C
// is added to the rows and dSᵀ · Q to the candidates. If the gradients of the losses are known beforehand,
// the forward pass runs here too: a step's scores are stored, and no product is computed twice.
//
// Rows are taken in steps. Within a step a work item is one group of candidates, which no other item shares,
// so that d_candidates needs no locks. Each item has its own partial d_query of the step; these are added in
// the order of the groups. If there are few candidates, the rows are also cut into sections, each with its
// own d_candidates. A pair that is left out has a dS of 0, which adds nothing if the operand is finite. If a
// gradient is NaN, or an operand of d_scale is not finite, tiles with such pairs are recomputed pair by pair
// without them. The cuts depend on the sizes alone, so the bits are the same for any number of threads.
#include <algorithm>
#include <cmath>

#include <torch/csrc/stable/ops.h>

#include "common/cpu/matmul.h"
#include "common/cpu/stored_type.h"
#include "sampled_softmax_loss/backward_plan.h"
#include "sampled_softmax_loss/kept_rows.h"
#include "sampled_softmax_loss/left_out.h"
#include "sampled_softmax_loss/row_gradients.h"
#include "sampled_softmax_loss/row_loss.h"
#include "sampled_softmax_loss/sampled_softmax_loss.h"
#include "sampled_softmax_loss/score_tile.h"
#include "sampled_softmax_loss/stored_scores.h"
#include "sampled_softmax_loss/workspace.h"

namespace argus::sampled_softmax_loss {
namespace {

template <class T, class P>
class Backward {
 public:
  using A = matmul::Sum<P>;

  // losses: null if the forward pass has already run and filled gradients.statistics.
  Backward(const Inputs& inputs, const Gradients& gradients, const Outputs* losses)
      : in_(inputs),
        out_(gradients),
        losses_(losses),
        left_out_(inputs),
        kept_(kept_rows<A>(inputs)),
        log_q_(padded_log_q<A>(inputs, round_up(inputs.drawn, kBlock))),
        kept_count_(static_cast<int64_t>(kept_.size())),
        width_(inputs.width),
        depth_(matmul::padded_depth<P>(inputs.width)),
        plan_(kept_count_, inputs.drawn, inputs.width, losses != nullptr),
        items_(plan_.sections * plan_.groups),
        product_(kept_count_),
        whole_(kept_count_),
        factor_(kept_count_),
        row_scale_(kept_count_),
        left_(plan_.sections * plan_.step_rows * depth_),
        right_(plan_.sections * plan_.step_rows / kTileRows * right_tile()),
        d_query_(items_ * plan_.step_rows * width_),
        sums_(3 * items_ * plan_.step_rows),
        strip_(losses == nullptr ? 0 : plan_.sections * plan_.step_rows * plan_.blocks * kBlock),
        shift_(losses == nullptr ? 0 : plan_.sections * plan_.step_rows * plan_.blocks),
        running_(losses == nullptr ? 0 : 3 * items_ * plan_.step_rows),
        d_candidates_(accumulates_in_place() ? 0 : plan_.sections * inputs.drawn * width_) {}

  void run() {
    if (losses_ != nullptr) clear_losses<A>(in_, *losses_);
    run_once();
    losses_ = nullptr;
    if (!became_nan() && !d_scale_may_be_nan()) return;
    pair_by_pair_ = true;
    run_once();
  }

 private:
  void run_once() {
    clear_left_out_rows();
    parallel(kept_count_, kRowGrain, [&](int64_t i) { prepare_product(i); });
    if (losses_ == nullptr || items_ == 0)
      parallel(kept_count_, kRowGrain, [&](int64_t i) { prepare_row(i, 0, 0, 0); });
    for (int64_t step = 0; step < plan_.steps; ++step) {
      const int64_t tiles = plan_.step_rows / kTileRows;
      parallel(plan_.sections * tiles, 1, [&](int64_t at) { pack_tile(step, at / tiles, at % tiles); });
      if (losses_ != nullptr) {
        torch::stable::parallel_for(0, items_, 1, [&](int64_t first, int64_t last) {
          Buffer<P> for_scores(matmul::right_size<P>(kBlock, width_));
          for (int64_t item = first; item < last; ++item)
            store_scores(step, item / plan_.groups, item % plan_.groups, for_scores.get());
        });
        parallel(plan_.sections * tiles, 1, [&](int64_t at) { prepare_tile(step, at / tiles, at % tiles); });
      }
      torch::stable::parallel_for(0, items_, 1, [&](int64_t first, int64_t last) {
        Scratch scratch(*this);
        for (int64_t item = first; item < last; ++item)
          work(step, item / plan_.groups, item % plan_.groups, scratch);
      });
      parallel(plan_.sections * tiles, 1, [&](int64_t at) { finish_tile(step, at / tiles, at % tiles); });
    }
    if (items_ == 0) parallel(kept_count_, kRowGrain, [&](int64_t i) { finish_row(i, 0, 0, 0); });
    finish_candidates();
    finish_scale();
  }

  static constexpr int64_t kRowGrain = 64;

  struct Scratch {
    Buffer<P> for_scores, for_queries, d_scores, transposed;
    Buffer<A> scores, left_out;  // left_out: nonzero if the pair is left out
    explicit Scratch(const Backward& b)
        : for_scores(matmul::right_size<P>(kBlock, b.width_)),
          for_queries(matmul::right_size<P>(b.width_, kBlock)),
          d_scores(kTileRows * kBlock),
          transposed(kBlock * matmul::padded_depth<P>(kTileRows)),
          scores(kTileRows * kBlock),
          left_out(b.pair_by_pair_ ? kTileRows * kBlock : 0) {}
  };

  template <class F>
  static void parallel(int64_t count, int64_t grain, const F& body) {
    torch::stable::parallel_for(0, count, grain, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) body(i);
    });
  }

  int64_t right_tile() const { return matmul::right_size<P>(width_, kTileRows); }
  bool accumulates_in_place() const { return std::is_same_v<T, A> && plan_.sections <= 1; }
  A scale() const { return *static_cast<const A*>(in_.scale); }
  static A at(const void* array, int64_t i) { return static_cast<const A*>(array)[i]; }

  // Rows [first, first + count) of a section's tile in a step, among the kept ones.
  int64_t first_row(int64_t step, int64_t section, int64_t tile) const {
    return section * plan_.section_rows + step * plan_.step_rows + tile * kTileRows;
  }
  int64_t rows_in(int64_t step, int64_t section, int64_t tile) const {
    const int64_t first = first_row(step, section, tile);
    const int64_t end = std::min((section + 1) * plan_.section_rows, kept_count_);
    return std::clamp(end - first, int64_t{0}, kTileRows);
  }

  void clear_left_out_rows() {
    if (kept_count_ == in_.rows) return;
    for (void* gradient : {out_.d_query, out_.d_positive}) {
      if (gradient != nullptr) std::fill_n(static_cast<T*>(gradient), in_.rows * width_, T{});
    }
  }

  void prepare_product(int64_t i) {
    const int64_t row = kept_[static_cast<size_t>(i)];
    positive_products<T>(product_.get() + i, in_, &row, 1);
  }

  void prepare_tile(int64_t step, int64_t section, int64_t tile) {
    const int64_t first = first_row(step, section, tile), count = rows_in(step, section, tile);
    for (int64_t i = 0; i < count; ++i)
      prepare_row(first + i, section * plan_.groups, plan_.groups, tile * kTileRows + i);
  }

  // The terms of the gradients of a row's scores. The sums of its scores are at `place` in each item's
  // arrays.
  void prepare_row(int64_t i, int64_t first_item, int64_t groups, int64_t place) {
    const int64_t row = kept_[static_cast<size_t>(i)];
    if (losses_ != nullptr) {
      const RunningSums<A> first = running_sums(first_item);
      const PartialSums<A> sums{first.peak + place, first.total + place, 3 * plan_.step_rows, groups};
      write_row_loss(in_, *losses_, row, product_.get()[i], sums, left_out_);
    }
    const A denominator = at(out_.statistics, row), whole = at(out_.statistics, in_.rows + row);
    const bool empty = denominator == kMinusInfinity<A>;
    A weight = in_.row_weight == nullptr ? A{1} : at(in_.row_weight, row);
    if (in_.refined) weight /= A{1} + std::exp(-denominator);
    row_scale_.get()[i] = empty ? A{0} : weight * at(out_.d_loss, row) + at(out_.d_lse, row);
    factor_.get()[i] = scale() * row_scale_.get()[i];
    // Shares of an infinite sum are NaN, like ∞ / ∞.
    constexpr A kNan = std::numeric_limits<A>::quiet_NaN();
    whole_.get()[i] = empty ? -kMinusInfinity<A> : whole == -kMinusInfinity<A> ? kNan : whole;
  }

  // A tile of queries as the left operand of the scores and as the right operand of dSᵀ · Q.
  void pack_tile(int64_t step, int64_t section, int64_t tile) {
    const int64_t count = rows_in(step, section, tile);
    if (count == 0) return;
    Buffer<T> rows(count * width_);
    gather_rows(rows.get(), in_.query, kept_.data() + first_row(step, section, tile), count, width_);
    matmul::pack_left<P, T>(left(section, tile), rows.get(), count, width_, width_, 1);
    matmul::pack_right<P, T>(right(section, tile), rows.get(), width_, count, 1, width_);
  }
  P* left(int64_t section, int64_t tile) const {
    return left_.get() + (section * plan_.step_rows + tile * kTileRows) * depth_;
  }
  P* right(int64_t section, int64_t tile) const {
    return right_.get() + (section * plan_.step_rows / kTileRows + tile) * right_tile();
  }

  A* strip(int64_t section, int64_t tile, int64_t block) const {
    const int64_t tiles = plan_.step_rows / kTileRows;
    return strip_.get() + ((section * tiles + tile) * plan_.blocks + block) * kTileRows * kBlock;
  }

  // [tile rows, blocks]: the shift of the exponentials of a row's block.
  A* shift(int64_t section, int64_t tile, int64_t block) const {
    return shift_.get() + (section * plan_.step_rows + tile * kTileRows) * plan_.blocks + block;
  }
  RunningSums<A> running_sums(int64_t item) const {
    A* sums = running_.get() + 3 * item * plan_.step_rows;
    return {sums, sums + plan_.step_rows, sums + 2 * plan_.step_rows};
  }

  // The scores of one group of candidates with one section's rows of the step, and the rows' sums over them.
  void store_scores(int64_t step, int64_t section, int64_t group, P* for_scores) {
    const int64_t item = section * plan_.groups + group;
    const RunningSums<A> sums = running_sums(item);
    std::fill_n(sums.peak, plan_.step_rows, kMinusInfinity<A>);
    std::fill_n(sums.total, plan_.step_rows, A{0});
    std::fill_n(sums.moment, plan_.step_rows, A{0});
    for (int64_t block = plan_.first_block(group); block < plan_.first_block(group + 1); ++block) {
      const int64_t columns = std::min(kBlock, in_.drawn - block * kBlock);
      const T* from = static_cast<const T*>(in_.candidates) + block * kBlock * width_;
      matmul::pack_right<P, T>(for_scores, from, columns, width_, width_, 1);
      for (int64_t tile = 0; tile * kTileRows < plan_.step_rows; ++tile) {
        const int64_t first = first_row(step, section, tile), count = rows_in(step, section, tile);
        if (count == 0) break;
        A* scores = strip(section, tile, block);
        matmul::multiply<P>(scores, kBlock, left(section, tile), depth_, for_scores, count, columns, width_,
                            false);
        const ScoreTile<A> scored = score_tile(scores, first, count, block, columns);
        const int64_t rows = tile * kTileRows;
        ForEachIsa<&store_exponentials_body<A>>::call(
            scored, RunningSums<A>{sums.peak + rows, sums.total + rows, sums.moment + rows},
            shift(section, tile, block), plan_.blocks);
      }
    }
  }

  // Turns a tile of products into scores; pairs that are left out get −∞.
  ScoreTile<A> score_tile(A* scores, int64_t first, int64_t count, int64_t block, int64_t columns) const {
    for (int64_t i = 0; i < count; ++i) {
      left_out_.of_row(kept_[static_cast<size_t>(first + i)], block * kBlock)
          .cross_out(scores + i * kBlock, block * kBlock, block * kBlock + columns);
    }
    return {scores, count, columns, product_.get() + first, log_q_.data() + block * kBlock, scale()};
  }

  // One group of candidates against one section's rows of the step.
  void work(int64_t step, int64_t section, int64_t group, Scratch& scratch) {
    const int64_t item = section * plan_.groups + group;
    A* sums = sums_.get() + 3 * item * plan_.step_rows;
    std::fill_n(sums, 3 * plan_.step_rows, A{0});
    if (losses_ != nullptr) take_moments(step, section, item, sums + plan_.step_rows);
    for (int64_t block = plan_.first_block(group); block < plan_.first_block(group + 1); ++block) {
      const int64_t columns = std::min(kBlock, in_.drawn - block * kBlock);
      const T* from = static_cast<const T*>(in_.candidates) + block * kBlock * width_;
      if (losses_ == nullptr)
        matmul::pack_right<P, T>(scratch.for_scores.get(), from, columns, width_, width_, 1);
      matmul::pack_right<P, T>(scratch.for_queries.get(), from, width_, columns, 1, width_);
      for (int64_t tile = 0; tile * kTileRows < plan_.step_rows; ++tile) {
        const int64_t count = rows_in(step, section, tile);
        if (count == 0) break;
        const int64_t first = first_row(step, section, tile);
        const bool some_left_out = pair_by_pair_ && mark_left_out(first, count, block, columns, scratch);
        A* tile_sums = sums + tile * kTileRows;
        losses_ == nullptr ? d_scores(first, count, left(section, tile), block, columns, tile_sums, scratch)
                           : scale_stored(section, tile, first, count, block, columns, tile_sums, scratch);
        A* d_query = d_query_.get() + (item * plan_.step_rows + tile * kTileRows) * width_;
        const bool first_block = block == plan_.first_block(group), first_tile = step == 0 && tile == 0;
        if (some_left_out) {
          add_pairs(first, count, block, columns, first_block, d_query, first_tile, section, scratch);
          continue;
        }
        if (out_.d_query != nullptr)
          matmul::multiply<P>(d_query, width_, scratch.d_scores.get(), kBlock, scratch.for_queries.get(),
                              count, width_, columns, !first_block);
        if (out_.d_candidates != nullptr) {
          const int64_t turned_depth = matmul::padded_depth<P>(count);
          matmul::pack_left<P, P>(scratch.transposed.get(), scratch.d_scores.get(), columns, count, 1,
                                  kBlock);
          matmul::multiply<P>(d_candidates(section) + block * kBlock * width_, width_,
                              scratch.transposed.get(), turned_depth, right(section, tile), columns, width_,
                              count, !first_tile);
        }
      }
    }
  }

  // Marks the tile's left-out pairs in scratch.left_out; returns whether there are any.
  bool mark_left_out(int64_t first, int64_t count, int64_t block, int64_t columns, Scratch& scratch) {
    A* marks = scratch.left_out.get();
    std::fill_n(marks, count * kBlock, A{0});
    for (int64_t i = 0; i < count; ++i) {
      left_out_.of_row(kept_[static_cast<size_t>(first + i)], block * kBlock)
          .cross_out(marks + i * kBlock, block * kBlock, block * kBlock + columns);
    }
    return std::any_of(marks, marks + count * kBlock, [](A mark) { return mark != A{0}; });
  }

  // The two products of a tile over the pairs that are not left out.
  void add_pairs(int64_t first, int64_t count, int64_t block, int64_t columns, bool first_block, A* d_query,
                 bool first_tile, int64_t section, Scratch& scratch) {
    const T* queries = static_cast<const T*>(in_.query);
    const T* candidates = static_cast<const T*>(in_.candidates) + block * kBlock * width_;
    A* d_candidates =
        out_.d_candidates == nullptr ? nullptr : this->d_candidates(section) + block * kBlock * width_;
    if (first_block) std::fill_n(d_query, count * width_, A{0});
    if (first_tile && d_candidates != nullptr) std::fill_n(d_candidates, columns * width_, A{0});
    for (int64_t i = 0; i < count; ++i) {
      const T* query = queries + kept_[static_cast<size_t>(first + i)] * width_;
      for (int64_t c = 0; c < columns; ++c) {
        if (scratch.left_out.get()[i * kBlock + c] != A{0}) continue;
        const A d_score = static_cast<A>(load(scratch.d_scores.get()[i * kBlock + c]));
        add_scaled<T>(d_query + i * width_, candidates + c * width_, d_score, width_);
        if (d_candidates != nullptr) add_scaled<T>(d_candidates + c * width_, query, d_score, width_);
      }
    }
  }

  template <class Row>
  static void add_scaled(A* to, const Row* row, A factor, int64_t width) {
    for (int64_t d = 0; d < width; ++d) to[d] += factor * static_cast<A>(load(row[d]));
  }

  // A share of 0 times a product of −∞ makes only d_scale NaN, so the other gradients do not show it.
  bool d_scale_may_be_nan() const {
    if (out_.d_scale == nullptr) return false;
    const auto is_finite = [](const T* values, int64_t size) {
      bool found = true;
      for (int64_t i = 0; i < size; ++i) found &= load(values[i]) - load(values[i]) == A{0};
      return found;
    };
    const T* query = static_cast<const T*>(in_.query);
    return !is_finite(static_cast<const T*>(in_.candidates), in_.drawn * width_) ||
           !std::all_of(kept_.begin(), kept_.end(),
                        [&](int64_t row) { return is_finite(query + row * width_, width_); });
  }

  // Makes a row's moment NaN if a candidate that is not left out has a product of −∞.
  void add_infinite_products(int64_t first, int64_t count, int64_t columns, A* moment,
                             const Scratch& scratch) const {
    for (int64_t i = 0; i < count; ++i) {
      const A* row = scratch.scores.get() + i * kBlock;
      const A* left_out = scratch.left_out.get() + i * kBlock;
      for (int64_t c = 0; c < columns; ++c) {
        const bool infinite = row[c] - product_.get()[first + i] == kMinusInfinity<A>;
        if (infinite && left_out[c] == A{0}) moment[i] = std::numeric_limits<A>::quiet_NaN();
      }
    }
  }

  bool became_nan() const {
    const auto any = [](const void* gradient, int64_t size) {
      const T* values = static_cast<const T*>(gradient);
      bool found = false;
      for (int64_t i = 0; values != nullptr && i < size; ++i) found |= load(values[i]) != load(values[i]);
      return found;
    };
    return any(out_.d_query, in_.rows * width_) || any(out_.d_candidates, in_.drawn * width_);
  }

  // scratch.d_scores: the gradients of the scores of `count` kept rows from `first` on, in one block.
  void d_scores(int64_t first, int64_t count, const P* left, int64_t block, int64_t columns, A* sums,
                Scratch& scratch) {
    A* scores = scratch.scores.get();
    matmul::multiply<P>(scores, kBlock, left, depth_, scratch.for_scores.get(), count, columns, width_,
                        false);
    if (pair_by_pair_) add_infinite_products(first, count, columns, sums + plan_.step_rows, scratch);
    const ScoreTile<A> scored = score_tile(scores, first, count, block, columns);
    ForEachIsa<&share_gradients_body<P, A>>::call(scored, row_shares(first, sums), scratch.d_scores.get());
  }

  // The same from the stored exponentials.
  void scale_stored(int64_t section, int64_t tile, int64_t first, int64_t count, int64_t block,
                    int64_t columns, A* sums, Scratch& scratch) {
    const ScoreTile<A> scored{strip(section, tile, block), count, columns, nullptr, nullptr, A{0}};
    ForEachIsa<&scale_exponentials_body<P, A>>::call(
        scored, row_shares(first, sums), shift(section, tile, block), plan_.blocks, scratch.d_scores.get());
  }

  RowShares<A> row_shares(int64_t first, A* sums) const {
    return {whole_.get() + first, factor_.get() + first, sums, sums + plan_.step_rows,
            sums + 2 * plan_.step_rows};
  }

  // The moments of a group's candidates, summed when the exponentials were stored.
  void take_moments(int64_t step, int64_t section, int64_t item, A* moment) {
    const RunningSums<A> sums = running_sums(item);
    const int64_t first = first_row(step, section, 0);
    const int64_t end = std::min((section + 1) * plan_.section_rows, kept_count_);
    for (int64_t i = 0; i < std::min(plan_.step_rows, end - first); ++i)
      moment[i] = sums.moment[i] * std::exp(shift_of(sums.peak[i]) - whole_.get()[first + i]);
  }

  A* d_candidates(int64_t section) const {
    if (accumulates_in_place()) return static_cast<A*>(out_.d_candidates);
    return d_candidates_.get() + section * in_.drawn * width_;
  }

  void finish_tile(int64_t step, int64_t section, int64_t tile) {
    const int64_t first = first_row(step, section, tile), count = rows_in(step, section, tile);
    for (int64_t i = 0; i < count; ++i)
      finish_row(first + i, section * plan_.groups, plan_.groups, tile * kTileRows + i);
  }

  // Adds the groups' partial results of a row, which are at `place` in each item's arrays, and writes its
  // gradients.
  void finish_row(int64_t i, int64_t first_item, int64_t groups, int64_t place) {
    A share{0}, moment{0}, d_score{0};
    for (int64_t item = first_item; item < first_item + groups; ++item) {
      const A* sums = sums_.get() + 3 * item * plan_.step_rows + place;
      share += sums[0];
      moment += sums[plan_.step_rows];
      d_score += sums[2 * plan_.step_rows];
    }
    const int64_t row = kept_[static_cast<size_t>(i)];
    const A whole = whole_.get()[i];  // +∞ if every candidate is left out
    A own{0};
    if (!in_.refined) {
      const A log_q = in_.positive_log_q == nullptr ? A{0} : at(in_.positive_log_q, row);
      own = std::exp(-log_q - whole);
    }
    // The shares and the positive's share add up to 1 except for the rounding of `whole`, which this
    // corrects.
    const A correction = share + own > A{0} ? A{1} / (share + own) : A{0};
    const bool empty = whole == -kMinusInfinity<A>;
    const A d_lse = empty ? A{0} : at(out_.d_lse, row);
    const A d_positive_score = d_lse - row_scale_.get()[i] * share * correction;
    row_scale_.get()[i] = row_scale_.get()[i] * moment * correction + d_lse * product_.get()[i];
    const RowGradients<T, A> gradients{
        .query = static_cast<const T*>(in_.query) + row * width_,
        .positive = static_cast<const T*>(in_.positive) + row * width_,
        .partial = d_query_.get() + (first_item * plan_.step_rows + place) * width_,
        .partial_stride = plan_.step_rows * width_,
        .groups = groups,
        .width = width_,
        .correction = correction,
        .positive_factor = scale() * d_lse - d_score * correction,
        .query_factor = scale() * d_positive_score,
        .d_query = out_.d_query == nullptr ? nullptr : static_cast<T*>(out_.d_query) + row * width_,
        .d_positive = out_.d_positive == nullptr ? nullptr : static_cast<T*>(out_.d_positive) + row * width_,
    };
    ForEachIsa<&write_row_body<T, A>>::call(gradients);
  }

  // Adds the sections' d_candidates in order and rounds once.
  void finish_candidates() {
    if (out_.d_candidates == nullptr) return;
    T* to = static_cast<T*>(out_.d_candidates);
    if (items_ == 0) {
      std::fill_n(to, in_.drawn * width_, T{});
      return;
    }
    if (accumulates_in_place()) return;
    parallel(in_.drawn, kRowGrain, [&](int64_t m) {
      ForEachIsa<&write_candidate_body<T, A>>::call(to + m * width_, d_candidates_.get() + m * width_,
                                                    plan_.sections, in_.drawn * width_, width_);
    });
  }

  void finish_scale() {
    if (out_.d_scale == nullptr) return;
    double sum = 0.0;
    for (int64_t i = 0; i < kept_count_; ++i) sum += static_cast<double>(row_scale_.get()[i]);
    *static_cast<A*>(out_.d_scale) = static_cast<A>(sum);
  }

  const Inputs& in_;
  const Gradients& out_;
  const Outputs* losses_;
  LeftOut left_out_;
  std::vector<int64_t> kept_;
  std::vector<A> log_q_;
  int64_t kept_count_, width_, depth_;
  BackwardPlan plan_;
  int64_t items_;
  bool pair_by_pair_ = false;
  Buffer<A> product_, whole_, factor_;  // of the kept rows
  Buffer<A> row_scale_;                 // gradient of a row's log-sum-exp; finally its part of d_scale
  Buffer<P> left_, right_;              // the step's queries, tile by tile
  Buffer<A> d_query_;                   // [items, step rows, width]
  Buffer<A> sums_;                      // [items, 3, step rows]: as in RowShares
  // Only if losses_ are computed too:
  Buffer<A> strip_;         // [sections, tiles, blocks]: the step's scores, see stored_scores.h
  Buffer<A> shift_;         // [sections, step rows, blocks]
  Buffer<A> running_;       // [items, 3, step rows]: as in RunningSums
  Buffer<A> d_candidates_;  // [sections, candidates, width]
};

void run(const Inputs& inputs, const Gradients& gradients, const Outputs* losses) {
  with_stored_type(inputs.dtype, [&]<class T>() {
    matmul::with_operand<T>([&]<class P>() { Backward<T, P>(inputs, gradients, losses).run(); });
  });
}

}  // namespace

void backward_cpu(const Inputs& inputs, const Gradients& gradients) {
  run(inputs, gradients, nullptr);
}

void forward_and_backward_cpu(const Inputs& inputs, const Outputs& losses, const Gradients& gradients) {
  run(inputs, gradients, &losses);
}

}  // namespace argus::sampled_softmax_loss
