// Row-wise Adagrad on the CPU: a row at a time, its gradient summed in a buffer that stays in the first-level
// cache. The sum of squares runs in 16 lanes that are added in a fixed order, so the bits depend neither on
// the number of threads nor on the instruction set.
#include <cmath>
#include <cstddef>
#include <vector>

#include "common/element.h"
#include "common/simd.h"
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

// The sum of the run's gradients plus the weight decay, into `sum`.
template <class T, class G, class A>
ARGUS_INLINE void gather_gradient(const Params& params, int64_t begin, int64_t end, const T* row, A* sum) {
  const int64_t width = params.width;
  const G* gradients = static_cast<const G*>(params.gradients);
  const G* first = gradients + params.order[begin] * width;
  for (int64_t column = 0; column < width; ++column) sum[column] = load(first[column]);
  for (int64_t i = begin + 1; i < end; ++i) {
    const G* next = gradients + params.order[i] * width;
    for (int64_t column = 0; column < width; ++column) sum[column] += static_cast<A>(load(next[column]));
  }
  const A decay = static_cast<A>(params.weight_decay);
  if (decay == A{0}) return;
  for (int64_t column = 0; column < width; ++column) sum[column] += decay * load(row[column]);
}

template <class T, class G, class S>
ARGUS_INLINE void update_rows(const Params& params, int64_t first, int64_t last, Arithmetic<T>* sum) {
  using A = Arithmetic<T>;
  const int64_t width = params.width;
  S* state = static_cast<S*>(params.state);
  T* table = static_cast<T*>(params.table);
  int64_t end = first;
  for (int64_t begin = first; begin < last; begin = end) {
    const int64_t row_index = params.rows[begin];
    for (end = begin + 1; end < last && params.rows[end] == row_index;) ++end;
    if (end < last) __builtin_prefetch(table + params.rows[end] * params.table_stride, 1);
    T* row = table + row_index * params.table_stride;
    gather_gradient<T, G, A>(params, begin, end, row, sum);
    const S accumulated =
        static_cast<S>(static_cast<A>(state[row_index]) + sum_of_squares(sum, width) / static_cast<A>(width));
    state[row_index] = accumulated;
    const A denominator = std::sqrt(static_cast<A>(accumulated)) + static_cast<A>(params.eps);
    const A step = static_cast<A>(params.lr) / denominator;
    for (int64_t column = 0; column < width; ++column)
      store(row[column], load(row[column]) - step * sum[column]);
  }
}

template <class T, class G, class S>
void run(const Params& params, int64_t first, int64_t last) {
  std::vector<Arithmetic<T>> sum(static_cast<size_t>(params.width));
  ForEachIsa<&update_rows<T, G, S>>::call(params, first, last, sum.data());
}

template <class T>
void run_for_gradient(const Params& params, int64_t first, int64_t last) {
  if (params.gradient_dtype == params.table_dtype) return run<T, T, float>(params, first, last);
  run<T, float, float>(params, first, last);
}

void run_float64(const Params& params, int64_t first, int64_t last) {
  const bool wide_gradient = params.gradient_dtype == Dtype::float64;
  if (params.state_dtype == Dtype::float64) {
    return wide_gradient ? run<double, double, double>(params, first, last)
                         : run<double, float, double>(params, first, last);
  }
  wide_gradient ? run<double, double, float>(params, first, last)
                : run<double, float, float>(params, first, last);
}

}  // namespace

void update_rows_cpu(const Params& params, int64_t first, int64_t last) {
  switch (params.table_dtype) {
    case Dtype::float32:
      return run<float, float, float>(params, first, last);
    case Dtype::bfloat16:
      return run_for_gradient<BFloat16>(params, first, last);
    case Dtype::float16:
      return run_for_gradient<Float16>(params, first, last);
    case Dtype::float64:
      return run_float64(params, first, last);
  }
}

}  // namespace argus::rowwise_adagrad
