// The three rules on the CPU: a row at a time, its gradient summed in a buffer that stays in L1.
#include <cmath>
#include <vector>

#include "common/cpu/row_runs.h"
#include "common/cpu/stored_type.h"
#include "row_optimizers/row_optimizers.h"

namespace argus::row_optimizers {
namespace {

template <class T, class A>
ARGUS_INLINE void add_decay(A decay, A* gradient, const T* row, int64_t width) {
  if (decay == A{0}) return;
  for (int64_t j = 0; j < width; ++j) gradient[j] += decay * load(row[j]);
}

template <class T, class A>
ARGUS_INLINE void sgd(const Params& params, A* gradient, T* row, A*, A*) {
  const A lr = static_cast<A>(params.lr);
  add_decay(static_cast<A>(params.weight_decay), gradient, row, params.width);
  for (int64_t j = 0; j < params.width; ++j) store(row[j], load(row[j]) - lr * gradient[j]);
}

template <class T, class A>
ARGUS_INLINE void adagrad(const Params& params, A* gradient, T* row, A* sum, A*) {
  const A lr = static_cast<A>(params.lr), eps = static_cast<A>(params.eps);
  add_decay(static_cast<A>(params.weight_decay), gradient, row, params.width);
  for (int64_t j = 0; j < params.width; ++j) {
    sum[j] += gradient[j] * gradient[j];
    store(row[j], load(row[j]) - lr * gradient[j] / (std::sqrt(sum[j]) + eps));
  }
}

template <class T, class A>
ARGUS_INLINE void adam(const Params& params, A* gradient, T* row, A* mean, A* square) {
  const A lr = static_cast<A>(params.lr), eps = static_cast<A>(params.eps);
  const A to_mean = static_cast<A>(1.0 - params.beta1), to_square = static_cast<A>(1.0 - params.beta2);
  for (int64_t j = 0; j < params.width; ++j) {
    mean[j] += to_mean * (gradient[j] - mean[j]);
    square[j] += to_square * (gradient[j] * gradient[j] - square[j]);
    store(row[j], load(row[j]) - lr * mean[j] / (std::sqrt(square[j]) + eps));
  }
}

template <class T, auto Rule>
ARGUS_INLINE void update_rows(const Params* given, const RowOrder* order, int64_t first, int64_t last,
                              Arithmetic<T>* sum) {
  using A = Arithmetic<T>;
  const Params& params = *given;
  T* table = static_cast<T*>(params.table);
  A* first_state = static_cast<A*>(params.first_state);
  A* second_state = static_cast<A*>(params.second_state);
  const int64_t width = params.width, state_bytes = width * static_cast<int64_t>(sizeof(A));
  row_runs::for_each_run(
      static_cast<const T*>(params.gradients), width, *order, first, last, sum,
      [&](int64_t row) ARGUS_INLINE_LAMBDA {
        row_runs::prefetch(table + row * params.table_stride, width * sizeof(T));
        if (first_state != nullptr) row_runs::prefetch(first_state + row * width, state_bytes);
        if (second_state != nullptr) row_runs::prefetch(second_state + row * width, state_bytes);
      },
      [&](int64_t row) ARGUS_INLINE_LAMBDA {
        Rule(params, sum, table + row * params.table_stride,
             first_state == nullptr ? nullptr : first_state + row * width,
             second_state == nullptr ? nullptr : second_state + row * width);
      });
}

template <class T, auto Rule>
void run(const Params& params, const RowOrder& order, int64_t first, int64_t last) {
  std::vector<Arithmetic<T>> sum(static_cast<size_t>(params.width));
  ForEachIsa<&update_rows<T, Rule>>::call(&params, &order, first, last, sum.data());
}

}  // namespace

void update_rows_cpu(const Params& params, const RowOrder& order, int64_t first, int64_t last) {
  with_stored_type(params.dtype, [&]<class T>() {
    using A = Arithmetic<T>;
    switch (params.rule) {
      case Rule::sgd:
        return run<T, &sgd<T, A>>(params, order, first, last);
      case Rule::adagrad:
        return run<T, &adagrad<T, A>>(params, order, first, last);
      case Rule::adam:
        return run<T, &adam<T, A>>(params, order, first, last);
    }
  });
}

}  // namespace argus::row_optimizers
