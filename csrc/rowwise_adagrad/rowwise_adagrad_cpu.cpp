// Row-wise Adagrad on the CPU: a row at a time, its gradient summed in a buffer that stays in L1.
#include <cstddef>
#include <vector>

#include "common/cpu/element.h"
#include "common/cpu/row_adagrad.h"
#include "common/cpu/row_runs.h"
#include "common/cpu/simd.h"
#include "rowwise_adagrad/rowwise_adagrad.h"

namespace argus::rowwise_adagrad {
namespace {

template <class T, class G, class S>
ARGUS_INLINE void update_rows(const Params* given, const RowOrder* order, int64_t first, int64_t last,
                              Arithmetic<T>* sum) {
  const Params& params = *given;
  const row_adagrad::Settings settings{params.lr, params.eps, params.weight_decay};
  T* table = static_cast<T*>(params.table);
  S* state = static_cast<S*>(params.state);
  row_runs::for_each_run(
      static_cast<const G*>(params.gradients), params.width, *order, first, last, sum,
      [&](int64_t row) ARGUS_INLINE_LAMBDA {
        row_runs::prefetch(table + row * params.table_stride, params.width * sizeof(T));
        row_runs::prefetch(state + row, 1);
      },
      [&](int64_t row) ARGUS_INLINE_LAMBDA {
        row_adagrad::update_row(settings, sum, params.width, table + row * params.table_stride, state + row);
      });
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
