// The gradients through projected tables. With S_k[r] the sum of the output's gradients over the events of
// column k that read row r, a table's gradient is Σ_k S_k · weight_kᵀ and the weight's is tableᵀ · S_k: one
// small product each, whatever the number of events.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "common/cpu/matmul.h"
#include "triple_embedding/gather.h"

namespace argus::triple_embedding {

// Columns of the output's gradient that are summed together. The sums of one slice, for all columns, stay in
// L2.
constexpr int64_t kSlice = 32;

// Adds columns [0, lanes) of the gradient's rows to the sums of the rows that the parts read, in the order of
// the events.
template <class Weight>
ARGUS_INLINE void add_by_row(const Weight* gradient, int64_t stride, int64_t events, int64_t lanes,
                             const Part* parts, int64_t count, Arithmetic<Weight>* sums) {
  using A = Arithmetic<Weight>;
  for (int64_t t = 0; t < events; ++t, gradient += stride) {
    A row[kSlice] = {};
    if (lanes == kSlice) {
      for (int64_t j = 0; j < kSlice; ++j) row[j] = load(gradient[j]);
    } else {
      for (int64_t j = 0; j < lanes; ++j) row[j] = load(gradient[j]);
    }
    for (int64_t part = 0; part < count; ++part) {
      const int64_t id = parts[part].ids[t];
      if (id < 0) continue;
      A* to = sums + (parts[part].place + id) * kSlice;
      for (int64_t j = 0; j < kSlice; ++j) to[j] += row[j];
    }
  }
}

// S of all projected columns, in slices: sums of rows [0, height), kSlice elements each.
template <class Weight>
class SlicedSums {
 public:
  using A = Arithmetic<Weight>;

  SlicedSums(const Problem& problem, const Layout& layout)
      : height_(layout.height),
        width_(problem.width),
        sums_(new A[static_cast<size_t>(slices() * layout.height * kSlice)]) {}

  int64_t slices() const { return (width_ + kSlice - 1) / kSlice; }
  int64_t lanes(int64_t slice) const { return std::min(kSlice, width_ - slice * kSlice); }
  A* rows(int64_t slice, const Part& part) const {
    return sums_.get() + (slice * height_ + part.place) * kSlice;
  }

  void fill(int64_t slice, const Weight* gradient, int64_t events, const std::vector<Part>& parts) {
    A* sums = sums_.get() + slice * height_ * kSlice;
    std::fill_n(sums, height_ * kSlice, A{0});
    ForEachIsa<&add_by_row<Weight>>::call(gradient + slice * kSlice, width_, events, lanes(slice),
                                          parts.data(), static_cast<int64_t>(parts.size()), sums);
  }

 private:
  int64_t height_, width_;
  std::unique_ptr<A[]> sums_;
};

// Σ_k S_k · weight_kᵀ over the parts that read one table, in their order: [rows, width of the table].
template <class Weight>
std::vector<Arithmetic<Weight>> table_gradient(const Problem& problem, const SlicedSums<Weight>& sums,
                                               const std::vector<Part>& parts, const Table& table) {
  using A = Arithmetic<Weight>;
  std::vector<A> total(static_cast<size_t>(table.rows * table.width));
  std::vector<A> right(static_cast<size_t>(matmul::right_size<A>(table.width, kSlice)));
  for (const Part& part : parts) {
    if (part.table != &table) continue;
    const Weight* weight = static_cast<const Weight*>(problem.weight) + part.offset * problem.width;
    for (int64_t slice = 0; slice < sums.slices(); ++slice) {
      const int64_t lanes = sums.lanes(slice);
      matmul::pack_right(right.data(), weight + slice * kSlice, table.width, lanes, problem.width,
                         int64_t{1});
      matmul::multiply(total.data(), table.width, static_cast<const A*>(sums.rows(slice, part)), kSlice,
                       static_cast<const A*>(right.data()), table.rows, table.width, lanes, true);
    }
  }
  return total;
}

// tableᵀ · S_k into column k's rows of the weight's gradient. Table rows that the column did not read count
// as zero, whatever they hold.
template <class Weight, class Stored>
void weight_gradient(const Problem& problem, const SlicedSums<Weight>& sums, const Part& part,
                     Weight* d_weight) {
  using A = Arithmetic<Weight>;
  const Table& table = *part.table;
  const int64_t width = problem.width;
  std::vector<int64_t> read(static_cast<size_t>(table.rows), int64_t{-1});
  for (int64_t t = 0; t < problem.events; ++t) {
    if (part.ids[t] >= 0) read[static_cast<size_t>(part.ids[t])] = part.ids[t];
  }
  std::vector<A> rows(static_cast<size_t>(table.rows * table.width)), left(rows.size());
  ForEachIsa<&gather_rows<A, Weight, Stored>>::call(part.table, static_cast<const int64_t*>(read.data()),
                                                    table.rows, table.rows, rows.data(), table.width);
  matmul::pack_left(left.data(), static_cast<const A*>(rows.data()), table.width, table.rows, int64_t{1},
                    table.width);
  std::vector<A> right(static_cast<size_t>(matmul::right_size<A>(kSlice, table.rows)));
  std::vector<A> product(static_cast<size_t>(table.width * width));
  for (int64_t slice = 0; slice < sums.slices(); ++slice) {
    const int64_t lanes = sums.lanes(slice);
    matmul::pack_right(right.data(), static_cast<const A*>(sums.rows(slice, part)), lanes, table.rows,
                       int64_t{1}, kSlice);
    matmul::multiply(product.data() + slice * kSlice, width, static_cast<const A*>(left.data()), table.rows,
                     static_cast<const A*>(right.data()), table.width, lanes, table.rows, false);
  }
  Weight* to = d_weight + part.offset * width;
  for (size_t i = 0; i < product.size(); ++i) store(to[i], product[i]);
}

}  // namespace argus::triple_embedding
