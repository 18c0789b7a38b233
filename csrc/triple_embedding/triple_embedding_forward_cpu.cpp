// The forward pass on the CPU. The projected tables come first, each with a row of zeros for missing ids
// after its own: zero times an infinite weight is NaN, as it is for gathered rows. Then each tile of events
// is gathered, multiplied by the packed weight, and finished: bias and rows of the projected tables added,
// rounded once.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>

#include "common/cpu/matmul.h"
#include "triple_embedding/dispatch.h"
#include "triple_embedding/gather.h"

namespace argus::triple_embedding {
namespace {

constexpr int64_t kBlock = 64;  // columns of the output that are finished together, in registers

// `count` rows of `sums` plus bias plus the rows that addends[i · parts …] point at, rounded into `output`.
template <class Weight>
ARGUS_INLINE void finish_rows(const Arithmetic<Weight>* sums, const Arithmetic<Weight>* bias,
                              const Arithmetic<Weight>* const* addends, int64_t parts, int64_t count,
                              int64_t width, Weight* output) {
  using A = Arithmetic<Weight>;
  for (int64_t i = 0; i < count; ++i, sums += width, output += width, addends += parts) {
    int64_t column = 0;
    for (; column + kBlock <= width; column += kBlock) {
      A total[kBlock];
      for (int64_t j = 0; j < kBlock; ++j) total[j] = sums[column + j] + bias[column + j];
      for (int64_t part = 0; part < parts; ++part) {
        const A* addend = addends[part] + column;
        for (int64_t j = 0; j < kBlock; ++j) total[j] += addend[j];
      }
      for (int64_t j = 0; j < kBlock; ++j) store(output[column + j], total[j]);
    }
    for (; column < width; ++column) {
      A total = sums[column] + bias[column];
      for (int64_t part = 0; part < parts; ++part) total += addends[part][column];
      store(output[column], total);
    }
  }
}

template <class Operand, class Weight, class Stored>
class ForwardPass {
 public:
  using A = Arithmetic<Weight>;

  ForwardPass(const Problem& problem, const void* bias, void* output)
      : problem_(problem), layout_(lay_out(problem)), output_(static_cast<Weight*>(output)) {
    bias_.assign(static_cast<size_t>(problem.width), A{0});
    const Weight* given = static_cast<const Weight*>(bias);
    if (given != nullptr)
      std::transform(given, given + problem.width, bias_.begin(), [](Weight x) { return load(x); });
  }

  void run() {
    pack_weight();
    project_tables();
    const int64_t tile = tile_events(problem_), tiles = (problem_.events + tile - 1) / tile;
    torch::stable::parallel_for(0, tiles, 1, [&](int64_t first, int64_t last) {
      Scratch scratch(*this);
      for (int64_t index = first; index < last; ++index)
        finish_tile(index * tile, std::min(tile, problem_.events - index * tile), scratch);
    });
  }

 private:
  struct Scratch {
    explicit Scratch(const ForwardPass& pass) {
      const size_t rows = static_cast<size_t>(tile_events(pass.problem_));
      // The padding of a row is read by the product and never written.
      gathered.assign(rows * matmul::padded_depth<Operand>(pass.layout_.depth), Operand{});
      sums.assign(rows * static_cast<size_t>(pass.problem_.width), A{0});
      addends.resize(rows * pass.layout_.projected.size());
    }
    std::vector<Operand> gathered;
    std::vector<A> sums;
    std::vector<const A*> addends;
  };

  const Weight* weight_rows(int64_t row) const {
    return static_cast<const Weight*>(problem_.weight) + row * problem_.width;
  }

  // The weight's rows of all gathered columns as one operand.
  void pack_weight() {
    if (layout_.depth == 0) return;
    const int64_t width = problem_.width;
    std::vector<Weight> together(static_cast<size_t>(layout_.depth * width));
    for (const Part& part : layout_.gathered) {
      const Weight* from = weight_rows(part.offset);
      std::copy(from, from + part.table->width * width, together.data() + part.place * width);
    }
    packed_.reset(new Operand[static_cast<size_t>(matmul::right_size<Operand>(width, layout_.depth))]);
    matmul::pack_right(packed_.get(), together.data(), width, layout_.depth, int64_t{1}, width);
  }

  void project_tables() {
    const int64_t parts = static_cast<int64_t>(layout_.projected.size());
    stack_.reset(new A[static_cast<size_t>((layout_.height + parts) * problem_.width)]);
    torch::stable::parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
      for (int64_t index = first; index < last; ++index) project(index);
    });
  }

  // The projected rows of a part: those of its table, then that of a missing id.
  A* projected(int64_t index) const {
    return stack_.get() + (layout_.projected[static_cast<size_t>(index)].place + index) * problem_.width;
  }

  void project(int64_t index) {
    const Part& part = layout_.projected[static_cast<size_t>(index)];
    const Table& table = *part.table;
    const int64_t width = problem_.width, stride = matmul::padded_depth<Operand>(table.width);
    const int64_t count = table.rows + 1;
    std::vector<int64_t> ids(static_cast<size_t>(count));
    std::iota(ids.begin(), ids.end(), int64_t{0});
    ids.back() = kSkippedRow;
    std::vector<Operand> rows(static_cast<size_t>(count * stride));
    ForEachIsa<&gather_rows<Operand, Weight, Stored>>::call(
        part.table, static_cast<const int64_t*>(ids.data()), count, count, rows.data(), stride);
    std::vector<Operand> right(static_cast<size_t>(matmul::right_size<Operand>(width, table.width)));
    matmul::pack_right(right.data(), weight_rows(part.offset), width, table.width, int64_t{1}, width);
    matmul::multiply(projected(index), width, static_cast<const Operand*>(rows.data()), stride,
                     static_cast<const Operand*>(right.data()), count, width, table.width, false);
  }

  void finish_tile(int64_t first, int64_t count, Scratch& scratch) const {
    const int64_t width = problem_.width, stride = matmul::padded_depth<Operand>(layout_.depth);
    if (layout_.depth > 0) {
      gather_tile<Operand, Weight, Stored>(problem_, layout_, first, count, scratch.gathered.data(), stride);
      matmul::multiply(scratch.sums.data(), width, static_cast<const Operand*>(scratch.gathered.data()),
                       stride, static_cast<const Operand*>(packed_.get()), count, width, layout_.depth,
                       false);
    }
    const int64_t parts = static_cast<int64_t>(layout_.projected.size());
    for (int64_t index = 0; index < parts; ++index) {
      const Part& part = layout_.projected[static_cast<size_t>(index)];
      const A* rows = projected(index);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t id = part.ids[first + i];
        scratch.addends[static_cast<size_t>(i * parts + index)] =
            rows + (id < 0 ? part.table->rows : id) * width;
      }
    }
    ForEachIsa<&finish_rows<Weight>>::call(static_cast<const A*>(scratch.sums.data()), bias_.data(),
                                           static_cast<const A* const*>(scratch.addends.data()), parts, count,
                                           width, output_ + first * width);
  }

  const Problem& problem_;
  const Layout layout_;
  Weight* const output_;
  std::vector<A> bias_;
  std::unique_ptr<Operand[]> packed_;
  std::unique_ptr<A[]> stack_;
};

}  // namespace

void forward_cpu(const Problem& problem, const void* bias, void* output) {
  if (problem.events == 0 || problem.width == 0) return;
  with_types(problem, [&]<class Operand, class Weight, class Stored>() {
    ForwardPass<Operand, Weight, Stored>(problem, bias, output).run();
  });
}

}  // namespace argus::triple_embedding
