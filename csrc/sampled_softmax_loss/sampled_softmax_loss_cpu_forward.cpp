// The forward pass on the CPU. The candidates are packed once; a thread multiplies a tile of rows by all of
// them and keeps a peak and a sum for each row. If there are few tiles, the candidates are cut into chunks,
// whose peaks and sums are combined in order. The cut depends on the sizes alone.
#include <algorithm>

#include <torch/csrc/stable/ops.h>

#include "common/cpu/matmul.h"
#include "common/cpu/stored_type.h"
#include "sampled_softmax_loss/kept_rows.h"
#include "sampled_softmax_loss/left_out.h"
#include "sampled_softmax_loss/row_loss.h"
#include "sampled_softmax_loss/sampled_softmax_loss.h"
#include "sampled_softmax_loss/score_tile.h"
#include "sampled_softmax_loss/workspace.h"

namespace argus::sampled_softmax_loss {
namespace {

constexpr int64_t kWorkItems = 16;  // at least, if the sizes allow it

template <class T, class P>
class Forward {
 public:
  using A = matmul::Sum<P>;

  Forward(const Inputs& inputs, const Outputs& outputs)
      : in_(inputs),
        out_(outputs),
        left_out_(inputs),
        kept_(kept_rows<A>(inputs)),
        log_q_(padded_log_q<A>(inputs, round_up(inputs.drawn, kBlock))),
        depth_(matmul::padded_depth<P>(inputs.width)),
        kept_count_(static_cast<int64_t>(kept_.size())),
        tiles_(divide_up(kept_count_, kTileRows)),
        blocks_(divide_up(inputs.drawn, kBlock)),
        chunks_(tiles_ == 0
                    ? 1
                    : std::clamp(divide_up(kWorkItems, tiles_), int64_t{1}, std::max(blocks_, int64_t{1}))),
        right_(blocks_ * matmul::right_size<P>(kBlock, inputs.width)),
        product_(kept_count_),
        peak_(chunks_ * kept_count_),
        total_(chunks_ * kept_count_) {}

  void run() {
    clear_losses<A>(in_, out_);
    torch::stable::parallel_for(0, blocks_, 1, [&](int64_t first, int64_t last) {
      for (int64_t block = first; block < last; ++block) pack(block);
    });
    torch::stable::parallel_for(0, tiles_, 1, [&](int64_t first, int64_t last) {
      for (int64_t tile = first; tile < last; ++tile)
        positive_products<T>(product_.get() + tile * kTileRows, in_, rows_of(tile), rows_in(tile));
    });
    torch::stable::parallel_for(0, tiles_ * chunks_, 1, [&](int64_t first, int64_t last) {
      Buffer<T> rows(kTileRows * in_.width);
      Buffer<P> left(kTileRows * depth_);
      Buffer<A> scores(kTileRows * kBlock);
      for (int64_t item = first; item < last; ++item)
        sum_up(item / chunks_, item % chunks_, rows.get(), left.get(), scores.get());
    });
    torch::stable::parallel_for(0, kept_count_, kFinishGrain, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) finish(i);
    });
  }

 private:
  static constexpr int64_t kFinishGrain = 256;

  int64_t candidates_in(int64_t block) const { return std::min(kBlock, in_.drawn - block * kBlock); }
  int64_t rows_in(int64_t tile) const { return std::min(kTileRows, kept_count_ - tile * kTileRows); }
  const int64_t* rows_of(int64_t tile) const { return kept_.data() + tile * kTileRows; }
  P* right(int64_t block) const { return right_.get() + block * matmul::right_size<P>(kBlock, in_.width); }

  void pack(int64_t block) {
    const T* from = static_cast<const T*>(in_.candidates) + block * kBlock * in_.width;
    matmul::pack_right<P, T>(right(block), from, candidates_in(block), in_.width, in_.width, 1);
  }

  // Peak and sum of a tile's rows over one chunk of the candidates.
  void sum_up(int64_t tile, int64_t chunk, T* rows, P* left, A* scores) {
    const int64_t count = rows_in(tile), first_block = blocks_ * chunk / chunks_;
    const int64_t last_block = blocks_ * (chunk + 1) / chunks_;
    gather_rows(rows, in_.query, rows_of(tile), count, in_.width);
    matmul::pack_left<P, T>(left, rows, count, in_.width, in_.width, 1);
    std::vector<RowLeftOut> left_out;
    for (int64_t i = 0; i < count; ++i)
      left_out.push_back(left_out_.of_row(rows_of(tile)[i], first_block * kBlock));
    A* peak = peak_.get() + chunk * kept_count_ + tile * kTileRows;
    A* total = total_.get() + chunk * kept_count_ + tile * kTileRows;
    std::fill_n(peak, count, kMinusInfinity<A>);
    std::fill_n(total, count, A{0});
    for (int64_t block = first_block; block < last_block; ++block) {
      const int64_t first = block * kBlock, columns = candidates_in(block);
      matmul::multiply<P>(scores, kBlock, left, depth_, right(block), count, columns, in_.width, false);
      for (int64_t i = 0; i < count; ++i)
        left_out[static_cast<size_t>(i)].cross_out(scores + i * kBlock, first, first + columns);
      const ScoreTile<A> scored{
          scores, count, columns, product_.get() + tile * kTileRows, log_q_.data() + first, scale()};
      ForEachIsa<&add_to_log_sum_exp_body<A>>::call(scored, peak, total);
    }
  }

  void finish(int64_t i) {
    const PartialSums<A> chunks{peak_.get() + i, total_.get() + i, kept_count_, chunks_};
    write_row_loss(in_, out_, kept_[static_cast<size_t>(i)], product_.get()[i], chunks, left_out_);
  }

  A scale() const { return *static_cast<const A*>(in_.scale); }

  const Inputs& in_;
  const Outputs& out_;
  LeftOut left_out_;
  std::vector<int64_t> kept_;
  std::vector<A> log_q_;
  int64_t depth_, kept_count_, tiles_, blocks_, chunks_;
  Buffer<P> right_;         // the candidates, packed block by block
  Buffer<A> product_;       // ⟨query, positive⟩ of the kept rows
  Buffer<A> peak_, total_;  // [chunks, kept rows]
};

template <class T>
void run(const Inputs& inputs, const Outputs& outputs) {
  matmul::with_operand<T>([&]<class P>() { Forward<T, P>(inputs, outputs).run(); });
}

}  // namespace

void forward_cpu(const Inputs& inputs, const Outputs& outputs) {
  with_stored_type(inputs.dtype, [&]<class T>() { run<T>(inputs, outputs); });
}

}  // namespace argus::sampled_softmax_loss
