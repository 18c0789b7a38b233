// The feedback losses on the CPU, a tile of 32 rows at a time.
// The projection (products.h) gives the tile's logits transposed, one row per lane, so that task losses and
// residuals are elementwise. Backward reads the tile once more, from the cache, for both d_hidden and
// d_weight. Rows stay in the type they are multiplied in (Operand): bfloat16 where the machine has
// instructions for it, else float32.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

#include "common/cpu/element.h"
#include "common/cpu/lanes.h"
#include "common/cpu/simd.h"
#include "feedback_loss/feedback_loss.h"
#include "feedback_loss/products.h"

namespace argus::feedback_loss {
namespace {

// ln x for x ≥ 1.
ARGUS_INLINE float log_from_one(float x) {
  const int32_t bits = std::bit_cast<int32_t>(x);
  const float power = static_cast<float>((bits >> 23) - 127);
  const float fraction = std::bit_cast<float>((bits & 0x007fffff) | 0x3f800000) - 1.0f;
  const float result = fma(power, 0.693147181f, log1p_of_fraction(fraction));
  return x != x ? x : result;
}
ARGUS_INLINE double log_from_one(double x) {
  return std::log(x);
}

// A value as an operand of the products; bfloat16 operands come only from bfloat16 tensors.
template <class Operand, class T>
ARGUS_INLINE Operand as_operand(T x) {
  if constexpr (std::is_same_v<Operand, T>) {
    return x;
  } else {
    return load(x);
  }
}

// Two copies of the weight: 16 columns interleaved for the projection, one column after the other for
// d_hidden.
template <class Operand>
struct Weights {
  using A = Sum<Operand>;
  int64_t groups, width, columns;
  std::vector<Operand> by_row, by_column, zeros;
  std::vector<A> bias;

  template <class T>
  ARGUS_INLINE Weights(const Params& params, const T*)
      : groups((params.columns + kLanes - 1) / kLanes),
        width(padded_width(params.width)),
        columns(gradient_columns(params.columns)),
        by_row(static_cast<size_t>(groups * width * kLanes)),
        by_column(static_cast<size_t>(columns * width)),
        zeros(static_cast<size_t>(width)),
        bias(static_cast<size_t>(groups * kLanes)) {
    const T* weight = static_cast<const T*>(params.weight);
    for (int64_t d = 0; d < params.width; ++d) {
      for (int64_t c = 0; c < params.columns; ++c) {
        const Operand value = as_operand<Operand>(weight[d * params.columns + c]);
        by_row[c / kLine * width * kLine + place_in_line<Operand>(d, c % kLine)] = value;
        by_column[place_in_column<Operand>(c, d, width)] = value;
      }
    }
    const T* given = static_cast<const T*>(params.bias);
    for (int64_t c = 0; c < params.columns; ++c) bias[c] = load(given[c]);
  }
};

// A thread's scratch memory for one tile. Logits and residuals: [column][row].
template <class Operand>
struct Scratch {
  using A = Sum<Operand>;
  std::vector<Operand> hidden, d_hidden;
  std::vector<A> logits;
  std::vector<int32_t> targets;  // [task][row]
  A weight[kTileRows];
  int32_t observed[kTileRows];  // at least 0 if any task counts
  const Operand* row[kTileRows];
  Operand* d_row[kTileRows];

  Scratch(const Weights<Operand>& weights, int64_t tasks)
      : hidden(static_cast<size_t>(kTileRows * weights.width)),
        d_hidden(static_cast<size_t>(kTileRows * weights.width)),
        logits(static_cast<size_t>(weights.groups * kLanes * kTileRows)),
        targets(static_cast<size_t>(tasks * kTileRows)) {}
};

template <class A>
ARGUS_INLINE A row_weight(const Params& params, int64_t row) {
  return params.row_weight == nullptr ? A{1} : static_cast<const A*>(params.row_weight)[row];
}

// Weights and targets of the tile's rows; a target is -1 if the pair of row and task does not count.
template <class Operand>
ARGUS_INLINE void fetch_targets(const Params& params, int64_t first, int64_t count,
                                Scratch<Operand>& scratch) {
  using A = Sum<Operand>;
  for (int64_t r = 0; r < kTileRows; ++r) {
    scratch.weight[r] = r < count ? row_weight<A>(params, first + r) : A{0};
    scratch.observed[r] = -1;
  }
  for (int64_t task = 0; task < params.tasks; ++task) {
    int32_t* to = scratch.targets.data() + task * kTileRows;
    const int64_t* from = params.targets + first * params.tasks + task;
    for (int64_t r = 0; r < count; ++r) to[r] = static_cast<int32_t>(from[r * params.tasks]);
    for (int64_t r = count; r < kTileRows; ++r) to[r] = -1;
    for (int64_t r = 0; r < kTileRows; ++r) {
      to[r] = scratch.weight[r] != A{0} ? to[r] : -1;
      scratch.observed[r] = scratch.observed[r] > to[r] ? scratch.observed[r] : to[r];
    }
  }
}

// Points scratch.row at the rows of the tile: at the caller's memory if it can be read in place, else at a
// converted and padded copy; at zeros if a row counts for no task.
template <class T, class Operand>
ARGUS_INLINE void fetch_rows(const Params& params, const Weights<Operand>& weights, int64_t first,
                             Scratch<Operand>& scratch) {
  for (int64_t r = 0; r < kTileRows; ++r) {
    scratch.row[r] = weights.zeros.data();
    if (scratch.observed[r] < 0) continue;
    const T* from = static_cast<const T*>(params.hidden) + (first + r) * params.hidden_stride;
    if constexpr (std::is_same_v<T, Operand>) {
      if (weights.width == params.width) {
        scratch.row[r] = from;
        continue;
      }
    }
    Operand* to = scratch.hidden.data() + r * weights.width;
    for (int64_t d = 0; d < params.width; ++d) to[d] = as_operand<Operand>(from[d]);
    scratch.row[r] = to;
  }
}

// Rows this many bytes ahead are prefetched: half of the first-level cache.
constexpr uintptr_t kBytesAhead = 1 << 14;

template <class T, class Operand>
void project(const Params& params, const Weights<Operand>& weights, int64_t row, Scratch<Operand>& scratch) {
  const int64_t columns = params.columns;
  const uintptr_t row_bytes = static_cast<uintptr_t>(params.hidden_stride) * sizeof(T);
  const uintptr_t rows_ahead = std::max<uintptr_t>(8, kBytesAhead / std::max<uintptr_t>(1, row_bytes));
  const uintptr_t begin = reinterpret_cast<uintptr_t>(params.hidden);
  const Ahead ahead{begin + (static_cast<uintptr_t>(row) + rows_ahead) * row_bytes, row_bytes};
  for (int64_t first = 0; first < columns; first += kLine) {
    project_tile(scratch.row, ahead, weights.by_row.data() + first * weights.width,
                 weights.bias.data() + first, weights.width, std::min(kLine, columns - first),
                 scratch.logits.data() + first * kTileRows);
  }
}

// The terms of the loss or residual of 16 rows, for one task. `z` points at its first logit.
template <class A>
struct TaskRows {
  const A* z;
  int64_t classes;
  Lanes<A> weight;
  Lanes<int32_t> target;

  ARGUS_INLINE Lanes<A> logit(int64_t c) const { return Lanes<A>::load(z + c * kTileRows); }

  // The logit with the sign for which σ gives the probability of the wrong class.
  ARGUS_INLINE Lanes<A> wrong_logit() const {
    return map_lanes<A>([](A x, int32_t y) ARGUS_INLINE_LAMBDA { return y > 0 ? -x : x; }, logit(0), target);
  }

  ARGUS_INLINE Lanes<A> largest() const {
    Lanes<A> found = logit(0);
    for (int64_t c = 1; c < classes; ++c)
      found = map_lanes<A>([](A a, A b) ARGUS_INLINE_LAMBDA { return b > a ? b : a; }, found, logit(c));
    return found;
  }

  ARGUS_INLINE Lanes<A> exponential(int64_t c, Lanes<A> most) const {
    return map_lanes<A>([](A x, A m) ARGUS_INLINE_LAMBDA { return fast_exp(x - m); }, logit(c), most);
  }

  ARGUS_INLINE Lanes<A> denominator(Lanes<A> most) const {
    Lanes<A> sum = exponential(0, most);
    for (int64_t c = 1; c < classes; ++c)
      sum = map_lanes<A>([](A a, A b) ARGUS_INLINE_LAMBDA { return a + b; }, sum, exponential(c, most));
    return sum;
  }

  ARGUS_INLINE Lanes<A> target_logit() const {
    Lanes<A> found = logit(0);
    for (int32_t c = 1; c < classes; ++c) {
      found = map_lanes<A>([=](int32_t y, A so_far, A x) ARGUS_INLINE_LAMBDA { return y == c ? x : so_far; },
                           target, found, logit(c));
    }
    return found;
  }

  // 0 if the task does not count, even if the logit is NaN.
  ARGUS_INLINE Lanes<A> weighed(Lanes<A> x) const {
    const Lanes<A> product = map_lanes<A>([](A a, A w) ARGUS_INLINE_LAMBDA { return a * w; }, x, weight);
    return map_lanes<A>([](A a, int32_t y) ARGUS_INLINE_LAMBDA { return y >= 0 ? a : A{0}; }, product,
                        target);
  }

  ARGUS_INLINE Lanes<A> loss() const {
    if (classes == 1) {
      const Lanes<A> x = wrong_logit();
      return map_lanes<A>([](A a) ARGUS_INLINE_LAMBDA { return softplus(a); }, x);
    }
    const Lanes<A> most = largest();
    const Lanes<A> above =
        map_lanes<A>([](A m, A x) ARGUS_INLINE_LAMBDA { return m - x; }, most, target_logit());
    const Lanes<A> log_sum =
        map_lanes<A>([](A s) ARGUS_INLINE_LAMBDA { return log_from_one(s); }, denominator(most));
    return map_lanes<A>([](A a, A b) ARGUS_INLINE_LAMBDA { return a + b; }, above, log_sum);
  }
};

template <class Operand>
ARGUS_INLINE TaskRows<Sum<Operand>> task_rows(const Scratch<Operand>& scratch, int64_t task, int64_t column,
                                              int64_t classes, int64_t r) {
  return {scratch.logits.data() + column * kTileRows + r, classes,
          Lanes<Sum<Operand>>::load(scratch.weight + r),
          Lanes<int32_t>::load(scratch.targets.data() + task * kTileRows + r)};
}

// Residuals times weight and factor in place of the logits.
template <class A>
ARGUS_INLINE void put_residuals(const TaskRows<A>& rows, A factor, A* to) {
  const auto put = [&](int64_t c, Lanes<A> residual) ARGUS_INLINE_LAMBDA {
    const Lanes<A> scaled =
        map_lanes<A>([=](A x) ARGUS_INLINE_LAMBDA { return x * factor; }, rows.weighed(residual));
    map_lanes<A>([](A x, int32_t y) ARGUS_INLINE_LAMBDA { return y >= 0 ? x : A{0}; }, scaled, rows.target)
        .store(to + c * kTileRows);
  };
  if (rows.classes == 1) {
    const Lanes<A> wrong =
        map_lanes<A>([](A x) ARGUS_INLINE_LAMBDA { return sigmoid(x); }, rows.wrong_logit());
    return put(0, map_lanes<A>([](A s, int32_t y) ARGUS_INLINE_LAMBDA { return y > 0 ? -s : s; }, wrong,
                               rows.target));
  }
  const Lanes<A> most = rows.largest();
  Lanes<A> sum = rows.exponential(0, most);
  sum.store(to);
  for (int64_t c = 1; c < rows.classes; ++c) {
    const Lanes<A> e = rows.exponential(c, most);
    e.store(to + c * kTileRows);
    sum = map_lanes<A>([](A a, A b) ARGUS_INLINE_LAMBDA { return a + b; }, sum, e);
  }
  for (int32_t c = 0; c < rows.classes; ++c) {
    const Lanes<A> probability = map_lanes<A>([](A e, A s) ARGUS_INLINE_LAMBDA { return e / s; },
                                              Lanes<A>::load(to + c * kTileRows), sum);
    put(c, map_lanes<A>(
               [=](A p, int32_t y) ARGUS_INLINE_LAMBDA {
                 const A hit = y == c ? A{1} : A{0};
                 return p - hit;
               },
               probability, rows.target));
  }
}

// d_hidden of the tile's rows and their part of d_weight, from the residuals, which have replaced the logits.
template <class Operand>
void spread(const Weights<Operand>& weights, const Scratch<Operand>& scratch, Sum<Operand>* d_weight) {
  for (int64_t first = 0; first < weights.columns; first += kMaxColumns) {
    const int64_t columns = std::min(kMaxColumns, weights.columns - first), place = first * weights.width;
    spread_tile(scratch.row, scratch.d_row, scratch.logits.data() + first * kTileRows,
                weights.by_column.data() + place, d_weight + place, weights.width, columns, first > 0);
  }
}

template <class T, class Operand>
ARGUS_INLINE void forward_blocks(const Params& params, int64_t first, int64_t last, double* losses) {
  using A = Sum<Operand>;
  const Weights<Operand> weights(params, static_cast<const T*>(nullptr));
  Scratch<Operand> scratch(weights, params.tasks);
  for (int64_t block = first; block < last; ++block) {
    double* found = losses + block * params.tasks;
    std::fill(found, found + params.tasks, 0.0);
    const int64_t end = std::min(params.rows, (block + 1) * block_rows(params.rows));
    for (int64_t row = block * block_rows(params.rows); row < end; row += kTileRows) {
      const int64_t count = std::min(kTileRows, end - row);
      fetch_targets(params, row, count, scratch);
      fetch_rows<T>(params, weights, row, scratch);
      project<T>(params, weights, row, scratch);
      int64_t column = 0;
      for (int64_t task = 0; task < params.tasks; column += params.classes[task++]) {
        for (int64_t r = 0; r < kTileRows; r += kLanes) {
          const TaskRows<A> rows = task_rows(scratch, task, column, params.classes[task], r);
          found[task] += static_cast<double>(sum_of_lanes(rows.weighed(rows.loss())));
        }
      }
    }
  }
}

template <class T, class Operand>
ARGUS_INLINE void point_at_gradients(const Weights<Operand>& weights, const Params& params, T* d_hidden,
                                     int64_t row, int64_t count, Scratch<Operand>& scratch) {
  for (int64_t r = 0; r < kTileRows; ++r) {
    scratch.d_row[r] = scratch.d_hidden.data() + r * weights.width;
    if constexpr (std::is_same_v<T, Operand>) {
      if (r < count && weights.width == params.width) scratch.d_row[r] = d_hidden + (row + r) * params.width;
    }
  }
}

template <class T, class Operand>
ARGUS_INLINE void store_gradients(const Weights<Operand>& weights, const Params& params, T* d_hidden,
                                  int64_t row, int64_t count, const Scratch<Operand>& scratch) {
  if (std::is_same_v<T, Operand> && weights.width == params.width) return;
  for (int64_t r = 0; r < count; ++r) {
    T* to = d_hidden + (row + r) * params.width;
    for (int64_t d = 0; d < params.width; ++d) store(to[d], load(scratch.d_row[r][d]));
  }
}

template <class T, class Operand>
ARGUS_INLINE void backward_blocks(const Params& params, const double* factors, int64_t first, int64_t last,
                                  T* d_hidden, Sum<Operand>* d_weight_parts, Sum<Operand>* d_bias_parts) {
  using A = Sum<Operand>;
  const Weights<Operand> weights(params, static_cast<const T*>(nullptr));
  Scratch<Operand> scratch(weights, params.tasks);
  for (int64_t block = first; block < last; ++block) {
    A* d_weight = d_weight_parts + block * weights.columns * weights.width;
    A* d_bias = d_bias_parts + block * weights.columns;
    std::fill(d_weight, d_weight + weights.columns * weights.width, A{0});
    std::fill(d_bias, d_bias + weights.columns, A{0});
    const int64_t end = std::min(params.rows, (block + 1) * block_rows(params.rows));
    for (int64_t row = block * block_rows(params.rows); row < end; row += kTileRows) {
      const int64_t count = std::min(kTileRows, end - row);
      fetch_targets(params, row, count, scratch);
      fetch_rows<T>(params, weights, row, scratch);
      project<T>(params, weights, row, scratch);
      int64_t column = 0;
      for (int64_t task = 0; task < params.tasks; column += params.classes[task++]) {
        for (int64_t r = 0; r < kTileRows; r += kLanes) {
          put_residuals(task_rows(scratch, task, column, params.classes[task], r),
                        static_cast<A>(factors[task]), scratch.logits.data() + column * kTileRows + r);
        }
      }
      for (int64_t c = 0; c < params.columns; ++c)
        d_bias[c] += lane_sum(scratch.logits.data() + c * kTileRows, kTileRows);
      std::fill(scratch.logits.begin() + params.columns * kTileRows, scratch.logits.end(), A{0});
      point_at_gradients<T>(weights, params, d_hidden, row, count, scratch);
      spread(weights, scratch, d_weight);
      store_gradients<T>(weights, params, d_hidden, row, count, scratch);
    }
  }
}

// Calls visit with the stored type and the type of the products. The bfloat16 products of products.h compute
// d_hidden only from all columns at once.
template <class Visit>
void with_types(const Params& params, Visit&& visit) {
  switch (params.dtype) {
    case Dtype::float32:
      return visit.template operator()<float, float>();
    case Dtype::float64:
      return visit.template operator()<double, double>();
    case Dtype::bfloat16:
      if (matmul::bfloat16_unit() != matmul::BFloat16Unit::none && params.columns <= kMaxColumns) {
        return visit.template operator()<BFloat16, BFloat16>();
      }
      return visit.template operator()<BFloat16, float>();
    case Dtype::float16:
      return visit.template operator()<Float16, float>();
  }
}

// Targets are walked through in groups of this many rows, whose elements lie side by side: one vector loop
// for any number of tasks.
constexpr int64_t kGroupRows = 8;

// How many of the rows observed each task.
ARGUS_INLINE void count_observed(const int64_t* targets, int64_t rows, int64_t tasks, double* counts) {
  const int64_t group = kGroupRows * tasks, whole = rows / kGroupRows * group;
  std::vector<int64_t> found(static_cast<size_t>(group));
  int64_t* const to = found.data();
  for (int64_t i = 0; i < whole; i += group) {
    for (int64_t j = 0; j < group; ++j) to[j] += targets[i + j] >= 0 ? 1 : 0;
  }
  for (int64_t i = whole; i < rows * tasks; ++i) to[i % tasks] += targets[i] >= 0 ? 1 : 0;
  std::fill(counts, counts + tasks, 0.0);
  for (int64_t j = 0; j < group; ++j) counts[j % tasks] += static_cast<double>(to[j]);
}

// Clears `fit` if a target is neither -1 nor a class of its task.
ARGUS_INLINE void compare_targets(const int64_t* targets, int64_t rows, int64_t tasks, const int64_t* classes,
                                  bool* fit) {
  const int64_t group = kGroupRows * tasks, whole = rows / kGroupRows * group;
  std::vector<int64_t> highest(static_cast<size_t>(group)), outside(static_cast<size_t>(group));
  for (int64_t j = 0; j < group; ++j) highest[static_cast<size_t>(j)] = highest_target(classes[j % tasks]);
  const int64_t* const most = highest.data();
  int64_t* const wrong = outside.data();
  for (int64_t i = 0; i < whole; i += group) {
    for (int64_t j = 0; j < group; ++j)
      wrong[j] |= (targets[i + j] < -1 ? 1 : 0) | (targets[i + j] > most[j] ? 1 : 0);
  }
  for (int64_t i = whole; i < rows * tasks; ++i)
    wrong[i % tasks] |= (targets[i] < -1 ? 1 : 0) | (targets[i] > most[i % tasks] ? 1 : 0);
  for (int64_t j = 0; j < group; ++j) *fit = *fit && wrong[j] == 0;
}

}  // namespace

void sum_weights_cpu(const Params& params, int64_t first, int64_t last, double* weights) {
  const auto sum_blocks = [&]<class A>(A) {
    for (int64_t block = first; block < last; ++block) {
      const int64_t begin = block * block_rows(params.rows);
      const int64_t end = std::min(params.rows, begin + block_rows(params.rows));
      double* to = weights + block * params.tasks;
      if (params.row_weight == nullptr) {
        ForEachIsa<&count_observed>::call(params.targets + begin * params.tasks, end - begin, params.tasks,
                                          to);
        continue;
      }
      for (int64_t task = 0; task < params.tasks; ++task) {
        // Four independent sums, which the processor adds to in parallel.
        double sums[4] = {};
        for (int64_t row = begin; row < end; ++row) {
          const bool observed = params.targets[row * params.tasks + task] >= 0;
          sums[row % 4] += observed ? static_cast<double>(row_weight<A>(params, row)) : 0.0;
        }
        to[task] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
      }
    }
  };
  params.dtype == Dtype::float64 ? sum_blocks(double{}) : sum_blocks(float{});
}

bool targets_fit_cpu(const Params& params, int64_t first, int64_t last) {
  const int64_t begin = first * block_rows(params.rows);
  const int64_t end = std::min(params.rows, last * block_rows(params.rows));
  bool fit = true;
  ForEachIsa<&compare_targets>::call(params.targets + begin * params.tasks, end - begin, params.tasks,
                                     params.classes, &fit);
  return fit;
}

void forward_cpu(const Params& params, int64_t first, int64_t last, double* losses) {
  with_types(params, [&]<class T, class Operand>() {
    ForEachIsa<&forward_blocks<T, Operand>>::template call<const Params&>(params, first, last, losses);
  });
}

void backward_cpu(const Params& params, const double* factors, int64_t first, int64_t last, void* d_hidden,
                  void* d_weight_parts, void* d_bias_parts) {
  with_types(params, [&]<class T, class Operand>() {
    using A = Sum<Operand>;
    ForEachIsa<&backward_blocks<T, Operand>>::template call<const Params&>(
        params, factors, first, last, static_cast<T*>(d_hidden), static_cast<A*>(d_weight_parts),
        static_cast<A*>(d_bias_parts));
  });
}

}  // namespace argus::feedback_loss
