// The backward pass on the CPU. The events are cut into chunks by their number alone. A chunk is processed
// tile by tile: the product of the gathered rows and the output's gradient is added to the chunk's own part
// of the weight's gradient; the product of the gradient and the weight goes to the rows of the tables. Then
// the chunks' parts are added in order, and rows that were read more than once are summed. So the result does
// not depend on the number of threads.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <memory>
#include <optional>

#include "common/cpu/matmul.h"
#include "triple_embedding/destinations.h"
#include "triple_embedding/dispatch.h"
#include "triple_embedding/gather.h"
#include "triple_embedding/projected_gradients.h"

namespace argus::triple_embedding {
namespace {

constexpr int64_t kChunkEvents = 1024;  // of a chunk at least, except the last
constexpr int64_t kMaxChunks = 32;
constexpr int64_t kChunkStep = 64;  // chunks are multiples of it

// Each index of [0, count) once, by any thread.
template <class Body>
void for_each(int64_t count, const Body& body) {
  torch::stable::parallel_for(0, count, 1, [&](int64_t first, int64_t last) {
    for (int64_t index = first; index < last; ++index) body(index);
  });
}

// Adds 16 rows to each other before they go to `sums`: the rounding error grows with the length of a sum.
template <class A, class Weight>
ARGUS_INLINE void add_rows(const Weight* rows, int64_t count, int64_t width, A* sums) {
  constexpr int64_t kPiece = 16, kColumns = 64;
  for (int64_t first = 0; first < count; first += kPiece) {
    const int64_t last = std::min(first + kPiece, count);
    for (int64_t column = 0; column < width; column += kColumns) {
      const int64_t wide = std::min(kColumns, width - column);
      A piece[kColumns] = {};
      for (int64_t i = first; i < last; ++i) {
        const Weight* row = rows + i * width + column;
        for (int64_t j = 0; j < wide; ++j) piece[j] += load(row[j]);
      }
      for (int64_t j = 0; j < wide; ++j) sums[column + j] += piece[j];
    }
  }
}

// The parts' elements [0, count), `stride` apart, added in order and rounded into `to`.
template <class A, class Weight>
ARGUS_INLINE void add_parts(A* first, int64_t stride, int64_t parts, int64_t count, Weight* to) {
  for (int64_t part = 1; part < parts; ++part) {
    const A* next = first + part * stride;
    for (int64_t j = 0; j < count; ++j) first[j] += next[j];
  }
  for (int64_t j = 0; j < count; ++j) store(to[j], first[j]);
}

template <class Operand, class Weight, class Stored>
class BackwardPass {
 public:
  using A = Arithmetic<Weight>;

  BackwardPass(const Problem& problem, Backward& backward)
      : problem_(problem),
        backward_(backward),
        layout_(lay_out(problem)),
        gradient_(static_cast<const Weight*>(backward.gradient)) {
    const int64_t wanted = std::max(kChunkEvents, (problem.events + kMaxChunks - 1) / kMaxChunks);
    chunk_ = (wanted + kChunkStep - 1) / kChunkStep * kChunkStep;
    chunks_ = std::max<int64_t>(1, (problem.events + chunk_ - 1) / chunk_);
  }

  void run() {
    prepare();
    torch::stable::parallel_for(0, chunks_, 1, [&](int64_t first, int64_t last) {
      const Scratch scratch = make_scratch();
      for (int64_t chunk = first; chunk < last; ++chunk) run_chunk(chunk, scratch);
    });
    add_chunks();
    sum_repeated_rows();
    run_projected();
  }

 private:
  bool gathers_rows() const { return layout_.depth > 0; }
  bool to_tables() const { return backward_.tables && gathers_rows(); }
  bool to_weight() const { return backward_.weight && gathers_rows(); }

  void prepare() {
    destinations_.resize(problem_.tables.size());
    if (to_tables()) {
      std::vector<int64_t> readers(problem_.tables.size());
      for (const Part& part : layout_.gathered) ++readers[static_cast<size_t>(part.table_index)];
      for_each(static_cast<int64_t>(readers.size()), [&](int64_t place) {
        const size_t index = static_cast<size_t>(place);
        if (readers[index] > 0)
          destinations_[index] = Destinations<A>(backward_.rows[index], readers[index] * problem_.events,
                                                 problem_.tables[index].width);
      });
      pack_weight();
    }
    const size_t width = static_cast<size_t>(problem_.width), chunks = static_cast<size_t>(chunks_);
    if (to_weight()) weight_parts_.reset(new A[chunks * static_cast<size_t>(layout_.depth) * width]);
    if (backward_.bias) bias_parts_.assign(chunks * width, A{0});
  }

  // right[k, n] = weight of output column k and gathered element n.
  void pack_weight() {
    const int64_t width = problem_.width;
    std::vector<Weight> together(static_cast<size_t>(layout_.depth * width));
    for (const Part& part : layout_.gathered) {
      const Weight* from = static_cast<const Weight*>(problem_.weight) + part.offset * width;
      std::copy(from, from + part.table->width * width, together.data() + part.place * width);
    }
    packed_weight_.reset(new Operand[static_cast<size_t>(matmul::right_size<Operand>(layout_.depth, width))]);
    matmul::pack_right(packed_weight_.get(), together.data(), layout_.depth, width, width, int64_t{1});
  }

  // Written before it is read, so not initialised.
  template <class T>
  struct Memory {
    void take(int64_t size) { memory.reset(new T[static_cast<size_t>(size)]); }
    T* data() const { return memory.get(); }
    std::unique_ptr<T[]> memory;
  };

  struct Scratch {
    Memory<Operand> gathered, transposed, right, left;
    Memory<A> product;
  };

  Scratch make_scratch() const {
    const int64_t tile = tile_events(problem_), width = problem_.width, depth = layout_.depth;
    Scratch scratch;
    if (to_weight()) {
      scratch.gathered.take(tile * depth);
      scratch.transposed.take(depth * matmul::padded_depth<Operand>(tile));
      scratch.right.take(matmul::right_size<Operand>(width, tile));
    }
    if (to_tables()) {
      if (!takes_gradient_as_it_is()) scratch.left.take(tile * matmul::padded_depth<Operand>(width));
      scratch.product.take(tile * depth);
    }
    return scratch;
  }

  void run_chunk(int64_t chunk, const Scratch& scratch) {
    const int64_t begin = chunk * chunk_, end = std::min(begin + chunk_, problem_.events);
    const int64_t tile = tile_events(problem_);
    for (int64_t first = begin; first < end; first += tile) {
      const int64_t count = std::min(tile, end - first);
      if (to_weight()) add_to_weight(chunk, first, count, first > begin, scratch);
      if (to_tables()) scatter_to_tables(first, count, scratch);
      if (backward_.bias)
        ForEachIsa<&add_rows<A, Weight>>::call(gradient_ + first * problem_.width, count, problem_.width,
                                               bias_parts_.data() + chunk * problem_.width);
    }
    if (begin >= end && to_weight())
      std::fill_n(weight_parts_.get() + chunk * layout_.depth * problem_.width,
                  layout_.depth * problem_.width, A{0});
  }

  // Gathered rowsᵀ · gradient.
  void add_to_weight(int64_t chunk, int64_t first, int64_t count, bool accumulate, const Scratch& scratch) {
    const int64_t width = problem_.width, depth = layout_.depth;
    gather_tile<Operand, Weight, Stored>(problem_, layout_, first, count, scratch.gathered.data(), depth);
    matmul::pack_left(scratch.transposed.data(), static_cast<const Operand*>(scratch.gathered.data()), depth,
                      count, int64_t{1}, depth);
    matmul::pack_right(scratch.right.data(), gradient_ + first * width, width, count, int64_t{1}, width);
    matmul::multiply(weight_parts_.get() + chunk * depth * width, width,
                     static_cast<const Operand*>(scratch.transposed.data()),
                     matmul::padded_depth<Operand>(count), static_cast<const Operand*>(scratch.right.data()),
                     depth, width, count, accumulate);
  }

  bool takes_gradient_as_it_is() const {
    return std::is_same_v<Operand, Weight> && matmul::padded_depth<Operand>(problem_.width) == problem_.width;
  }

  const Operand* gradient_rows(int64_t first, int64_t count, const Scratch& scratch) const {
    const Weight* from = gradient_ + first * problem_.width;
    if constexpr (std::is_same_v<Operand, Weight>) {
      if (takes_gradient_as_it_is()) return from;
    }
    matmul::pack_left(scratch.left.data(), from, count, problem_.width, problem_.width, int64_t{1});
    return scratch.left.data();
  }

  // Gradient · weightᵀ, each column's part to the rows of its table.
  void scatter_to_tables(int64_t first, int64_t count, const Scratch& scratch) {
    const int64_t width = problem_.width, depth = layout_.depth;
    matmul::multiply(scratch.product.data(), depth, gradient_rows(first, count, scratch),
                     matmul::padded_depth<Operand>(width), static_cast<const Operand*>(packed_weight_.get()),
                     count, depth, width, false);
    for (const Part& part : layout_.gathered) {
      const size_t index = static_cast<size_t>(part.table_index);
      const Destinations<A>& to = destinations_[index];
      const RowSink<A, Stored> sink(backward_.rows[index], part.table->width);
      ForEachIsa<&scatter_rows<A, Stored>>::call(scratch.product.data() + part.place, depth,
                                                 to.places() + part.reader * problem_.events + first, count,
                                                 problem_.events - first, &sink, to.waiting());
    }
  }

  void add_chunks() {
    const int64_t width = problem_.width;
    if (to_weight()) {
      for (const Part& part : layout_.gathered) {
        for_each(part.table->width, [&](int64_t row) {
          ForEachIsa<&add_parts<A, Weight>>::call(
              weight_parts_.get() + (part.place + row) * width, layout_.depth * width, chunks_, width,
              static_cast<Weight*>(backward_.d_weight) + (part.offset + row) * width);
        });
      }
    }
    if (backward_.bias)
      ForEachIsa<&add_parts<A, Weight>>::call(bias_parts_.data(), width, chunks_, width,
                                              static_cast<Weight*>(backward_.d_bias));
  }

  void sum_repeated_rows() {
    if (!to_tables()) return;
    for (size_t index = 0; index < destinations_.size(); ++index) {
      const Destinations<A>& from = destinations_[index];
      const int64_t width = problem_.tables[index].width;
      const RowSink<A, Stored> sink(backward_.rows[index], width);
      torch::stable::parallel_for(0, static_cast<int64_t>(from.repeated().size()), 64,
                                  [&](int64_t first, int64_t last) {
                                    std::vector<A> sum(static_cast<size_t>(width));
                                    for (int64_t i = first; i < last; ++i) {
                                      const auto& row = from.repeated()[static_cast<size_t>(i)];
                                      ForEachIsa<&sum_waiting<A, Stored>>::call(
                                          static_cast<const A*>(from.waiting()) + row.first * width,
                                          row.times, sum.data(), &sink, row.to);
                                    }
                                  });
    }
  }

  void run_projected() {
    if (layout_.projected.empty() || !(backward_.tables || backward_.weight)) return;
    SlicedSums<Weight> sums(problem_, layout_);
    for_each(sums.slices(),
             [&](int64_t slice) { sums.fill(slice, gradient_, problem_.events, layout_.projected); });
    // First what reads the tables: fused, their gradients change them.
    if (backward_.weight) {
      for_each(static_cast<int64_t>(layout_.projected.size()), [&](int64_t part) {
        weight_gradient<Weight, Stored>(problem_, sums, layout_.projected[static_cast<size_t>(part)],
                                        static_cast<Weight*>(backward_.d_weight));
      });
    }
    if (backward_.tables)
      for_each(static_cast<int64_t>(problem_.tables.size()),
               [&](int64_t table) { write_table_gradient(static_cast<size_t>(table), sums); });
  }

  void write_table_gradient(size_t index, const SlicedSums<Weight>& sums) {
    const Table& table = problem_.tables[index];
    if (!table.projected) return;
    std::vector<A> total = table_gradient<Weight>(problem_, sums, layout_.projected, table);
    const RowGradients& rows = backward_.rows[index];
    const RowSink<A, Stored> sink(rows, table.width);
    ForEachIsa<&put_runs<A, Stored>>::call(&rows.order, rows.dense, total.data(), &sink);
  }

  const Problem& problem_;
  const Backward& backward_;
  const Layout layout_;
  const Weight* const gradient_;
  int64_t chunk_ = 0, chunks_ = 0;
  std::vector<Destinations<A>> destinations_;
  std::unique_ptr<Operand[]> packed_weight_;
  std::unique_ptr<A[]> weight_parts_;
  std::vector<A> bias_parts_;
};

}  // namespace

void backward_cpu(const Problem& problem, Backward& backward) {
  with_types(problem, [&]<class Operand, class Weight, class Stored>() {
    BackwardPass<Operand, Weight, Stored>(problem, backward).run();
  });
}

}  // namespace argus::triple_embedding
