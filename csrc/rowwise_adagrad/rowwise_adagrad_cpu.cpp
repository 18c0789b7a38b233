// Row-wise Adagrad on the CPU: a row at a time, its gradient summed in a buffer that stays in L1. The sum of
// squares runs in 16 lanes that are added in a fixed order, so the bits depend neither on the number of
// threads nor on the instruction set.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "common/cpu/element.h"
#include "common/cpu/row_order.h"
#include "common/cpu/simd.h"
#include "rowwise_adagrad/rowwise_adagrad.h"

namespace argus::rowwise_adagrad {
namespace {

constexpr int64_t kLanes = 16;

template <class A>
ARGUS_INLINE A sum_of_squares(const A* x, int64_t width) {
  A lanes[kLanes] = {};
  int64_t column = 0;
  for (; column + kLanes <= width; column += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += x[column + lane] * x[column + lane];
  }
  for (int64_t lane = 0; column + lane < width; ++lane) lanes[lane] += x[column + lane] * x[column + lane];
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

// Rows, states and gradients lie at random addresses: they are prefetched this many runs ahead.
constexpr int64_t kAhead = 8;
constexpr int64_t kLineBytes = 64;

ARGUS_INLINE void prefetch(const void* from, int64_t bytes) {
  const char* line = static_cast<const char*>(from);
  for (int64_t offset = 0; offset < bytes; offset += kLineBytes) __builtin_prefetch(line + offset, 1);
}

template <class T, class G, class S>
ARGUS_INLINE void prefetch_run(const Params& params, const RowOrder& order, int64_t run) {
  const int64_t row = order.rows()[run];
  prefetch(static_cast<const T*>(params.table) + row * params.table_stride, params.width * sizeof(T));
  prefetch(static_cast<const S*>(params.state) + row, 1);
  const int64_t given = order.position(order.begin(run));
  prefetch(static_cast<const G*>(params.gradients) + given * params.width, params.width * sizeof(G));
}

// The sum of the run's gradients plus the weight decay, into `sum`.
template <class T, class G, class A>
ARGUS_INLINE void gather_gradient(const Params& params, const RowOrder& order, int64_t run, const T* row,
                                  A* sum) {
  const int64_t width = params.width;
  const G* gradients = static_cast<const G*>(params.gradients);
  const G* first = gradients + order.position(order.begin(run)) * width;
  for (int64_t column = 0; column < width; ++column) sum[column] = load(first[column]);
  for (int64_t i = order.begin(run) + 1; i < order.begin(run + 1); ++i) {
    const G* next = gradients + order.position(i) * width;
    for (int64_t column = 0; column < width; ++column) sum[column] += static_cast<A>(load(next[column]));
  }
  const A decay = static_cast<A>(params.weight_decay);
  if (decay == A{0}) return;
  for (int64_t column = 0; column < width; ++column) sum[column] += decay * load(row[column]);
}

template <class T, class G, class S>
ARGUS_INLINE void update_rows(const Params* given, const RowOrder* row_order, int64_t first, int64_t last,
                              Arithmetic<T>* sum) {
  using A = Arithmetic<T>;
  const Params& params = *given;
  const RowOrder& order = *row_order;
  const int64_t width = params.width;
  for (int64_t run = first; run < std::min(first + kAhead, last); ++run)
    prefetch_run<T, G, S>(params, order, run);
  for (int64_t run = first; run < last; ++run) {
    if (run + kAhead < last) prefetch_run<T, G, S>(params, order, run + kAhead);
    const int64_t row_index = order.rows()[run];
    S& state = static_cast<S*>(params.state)[row_index];
    T* row = static_cast<T*>(params.table) + row_index * params.table_stride;
    gather_gradient<T, G, A>(params, order, run, row, sum);
    state = static_cast<S>(static_cast<A>(state) + sum_of_squares(sum, width) / static_cast<A>(width));
    const A denominator = std::sqrt(static_cast<A>(state)) + static_cast<A>(params.eps);
    const A step = static_cast<A>(params.lr) / denominator;
    for (int64_t column = 0; column < width; ++column)
      store(row[column], load(row[column]) - step * sum[column]);
  }
}

template <class T, class G, class S>
void run(const Params& params, const RowOrder& order, int64_t first, int64_t last) {
  std::vector<Arithmetic<T>> sum(static_cast<size_t>(params.width));
  ForEachIsa<&update_rows<T, G, S>>::call(&params, &order, first, last, sum.data());
}

template <class T>
void run_for_gradient(const Params& params, const RowOrder& order, int64_t first, int64_t last) {
  if (params.gradient_dtype == params.table_dtype) return run<T, T, float>(params, order, first, last);
  run<T, float, float>(params, order, first, last);
}

void run_float64(const Params& params, const RowOrder& order, int64_t first, int64_t last) {
  const bool wide_gradient = params.gradient_dtype == Dtype::float64;
  if (params.state_dtype == Dtype::float64) {
    return wide_gradient ? run<double, double, double>(params, order, first, last)
                         : run<double, float, double>(params, order, first, last);
  }
  wide_gradient ? run<double, double, float>(params, order, first, last)
                : run<double, float, float>(params, order, first, last);
}

}  // namespace

void update_rows_cpu(const Params& params, const RowOrder& order, int64_t first, int64_t last) {
  switch (params.table_dtype) {
    case Dtype::float32:
      return run<float, float, float>(params, order, first, last);
    case Dtype::bfloat16:
      return run_for_gradient<BFloat16>(params, order, first, last);
    case Dtype::float16:
      return run_for_gradient<Float16>(params, order, first, last);
    case Dtype::float64:
      return run_float64(params, order, first, last);
  }
}

}  // namespace argus::rowwise_adagrad
