// The feedback losses on the CPU, a tile of 32 rows at a time.
//
// The projection (products.h) leaves the few logits of the tile turned, a lane a row: task losses and
// residuals are elementwise there. Backward reads the tile once more, from the cache, for d_hidden and
// d_weight at once.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "common/element.h"
#include "common/lanes.h"
#include "common/simd.h"
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

// The weight twice over: 16 columns side by side for the projection, one column after the other for d_hidden.
template <class A>
struct Weights {
  int64_t groups, width, columns;
  std::vector<A> by_row, by_column, bias, zeros;

  template <class T>
  Weights(const Params& params, const T*)
      : groups((params.columns + kLanes - 1) / kLanes),
        width(padded_width(params.width)),
        columns(gradient_columns(params.columns)),
        by_row(static_cast<size_t>(groups * width * kLanes)),
        by_column(static_cast<size_t>(columns * width)),
        bias(static_cast<size_t>(groups * kLanes)),
        zeros(static_cast<size_t>(width)) {
    const T* weight = static_cast<const T*>(params.weight);
    for (int64_t d = 0; d < params.width; ++d) {
      for (int64_t c = 0; c < params.columns; ++c) {
        const A value = load(weight[d * params.columns + c]);
        by_row[((c / kLanes) * width + d) * kLanes + c % kLanes] = value;
        by_column[c * width + d] = value;
      }
    }
    const T* given = static_cast<const T*>(params.bias);
    for (int64_t c = 0; c < params.columns; ++c) bias[c] = load(given[c]);
  }
};

// What one thread works with, of one tile. Logits and residuals: [column][row].
template <class A>
struct Scratch {
  std::vector<A> hidden, d_hidden, logits, largest, total;
  A weight[kTileRows];
  int32_t target[kTileRows];
  const A* row[kTileRows];
  A* d_row[kTileRows];

  explicit Scratch(const Weights<A>& weights)
      : hidden(static_cast<size_t>(kTileRows * weights.width)),
        d_hidden(static_cast<size_t>(kTileRows * weights.width)),
        logits(static_cast<size_t>(weights.groups * kLanes * kTileRows)),
        largest(kTileRows),
        total(kTileRows) {}
};

template <class A>
ARGUS_INLINE A row_weight(const Params& params, int64_t row) {
  return params.row_weight == nullptr ? A{1} : static_cast<const A*>(params.row_weight)[row];
}

template <class A>
ARGUS_INLINE bool counts_for_any_task(const Params& params, int64_t row) {
  if (row_weight<A>(params, row) == A{0}) return false;
  const int64_t* target = params.targets + row * params.tasks;
  for (int64_t task = 0; task < params.tasks; ++task) {
    if (target[task] >= 0) return true;
  }
  return false;
}

// Points scratch.row at the rows of the tile: at the caller's memory where it can be read as it is, at a
// converted and padded copy elsewhere, at zeros where a row counts for nothing or is past the end.
template <class T>
ARGUS_INLINE void fetch_rows(const Params& params, const Weights<Arithmetic<T>>& weights, int64_t first,
                             int64_t count, Scratch<Arithmetic<T>>& scratch) {
  using A = Arithmetic<T>;
  const bool as_it_is = std::is_same_v<T, A> && weights.width == params.width;
  for (int64_t r = 0; r < kTileRows; ++r) {
    scratch.row[r] = weights.zeros.data();
    if (r >= count || !counts_for_any_task<A>(params, first + r)) continue;
    const T* from = static_cast<const T*>(params.hidden) + (first + r) * params.hidden_stride;
    if constexpr (std::is_same_v<T, A>) {
      if (as_it_is) {
        scratch.row[r] = from;
        continue;
      }
    }
    A* to = scratch.hidden.data() + r * weights.width;
    for (int64_t d = 0; d < params.width; ++d) to[d] = load(from[d]);
    scratch.row[r] = to;
  }
}

template <class A>
void project(const Weights<A>& weights, int64_t columns, Scratch<A>& scratch) {
  for (int64_t first = 0; first < columns; first += kLine) {
    project_tile(scratch.row, weights.by_row.data() + first * weights.width, weights.bias.data() + first,
                 weights.width, std::min(kLine, columns - first), scratch.logits.data() + first * kTileRows);
  }
}

// Weight and target of the tile's rows for one task; weight 0 and target −1 where it does not count.
template <class A>
ARGUS_INLINE void fetch_targets(const Params& params, int64_t first, int64_t count, int64_t task,
                                Scratch<A>& scratch) {
  for (int64_t r = 0; r < kTileRows; ++r) {
    const int64_t target = r < count ? params.targets[(first + r) * params.tasks + task] : -1;
    const A weight = r < count ? row_weight<A>(params, first + r) : A{0};
    const bool counts = target >= 0 && weight != A{0};
    scratch.weight[r] = counts ? weight : A{0};
    scratch.target[r] = counts ? static_cast<int32_t>(target) : -1;
  }
}

// For 16 rows of one task: what a row's loss or residual is made of. `z` points at its first logit.
template <class A>
struct TaskRows {
  const A* z;
  int64_t classes;
  Lanes<A> weight;
  Lanes<int32_t> target;

  ARGUS_INLINE Lanes<A> logit(int64_t c) const { return Lanes<A>::load(z + c * kTileRows); }

  // The logit with the sign under which σ of it is the probability of being wrong.
  ARGUS_INLINE Lanes<A> wrong_logit() const {
    return map_lanes<A>([](A x, int32_t y) ARGUS_LANE_FUNCTION { return y > 0 ? -x : x; }, logit(0), target);
  }

  ARGUS_INLINE Lanes<A> largest() const {
    Lanes<A> found = logit(0);
    for (int64_t c = 1; c < classes; ++c)
      found = map_lanes<A>([](A a, A b) ARGUS_LANE_FUNCTION { return b > a ? b : a; }, found, logit(c));
    return found;
  }

  ARGUS_INLINE Lanes<A> exponential(int64_t c, Lanes<A> most) const {
    return map_lanes<A>([](A x, A m) ARGUS_LANE_FUNCTION { return fast_exp(x - m); }, logit(c), most);
  }

  ARGUS_INLINE Lanes<A> denominator(Lanes<A> most) const {
    Lanes<A> sum = exponential(0, most);
    for (int64_t c = 1; c < classes; ++c)
      sum = map_lanes<A>([](A a, A b) ARGUS_LANE_FUNCTION { return a + b; }, sum, exponential(c, most));
    return sum;
  }

  ARGUS_INLINE Lanes<A> target_logit() const {
    Lanes<A> found = logit(0);
    for (int32_t c = 1; c < classes; ++c) {
      found = map_lanes<A>([=](int32_t y, A so_far, A x) ARGUS_LANE_FUNCTION { return y == c ? x : so_far; },
                           target, found, logit(c));
    }
    return found;
  }

  // 0 where the task does not count, even where the logit is NaN.
  ARGUS_INLINE Lanes<A> weighed(Lanes<A> x) const {
    const Lanes<A> product = map_lanes<A>([](A a, A w) ARGUS_LANE_FUNCTION { return a * w; }, x, weight);
    return map_lanes<A>([](A a, int32_t y) ARGUS_LANE_FUNCTION { return y >= 0 ? a : A{0}; }, product,
                        target);
  }

  ARGUS_INLINE Lanes<A> loss() const {
    if (classes == 1) {
      const Lanes<A> x = wrong_logit();
      return map_lanes<A>([](A a) ARGUS_LANE_FUNCTION { return softplus(a); }, x);
    }
    const Lanes<A> most = largest();
    const Lanes<A> above =
        map_lanes<A>([](A m, A x) ARGUS_LANE_FUNCTION { return m - x; }, most, target_logit());
    const Lanes<A> log_sum =
        map_lanes<A>([](A s) ARGUS_LANE_FUNCTION { return log_from_one(s); }, denominator(most));
    return map_lanes<A>([](A a, A b) ARGUS_LANE_FUNCTION { return a + b; }, above, log_sum);
  }
};

template <class A>
ARGUS_INLINE TaskRows<A> task_rows(const Scratch<A>& scratch, int64_t column, int64_t classes, int64_t r) {
  return {scratch.logits.data() + column * kTileRows + r, classes, Lanes<A>::load(scratch.weight + r),
          Lanes<int32_t>::load(scratch.target + r)};
}

// Residuals times weight and factor in place of the logits.
template <class A>
ARGUS_INLINE void put_residuals(const TaskRows<A>& rows, A factor, A* to) {
  const auto put = [&](int64_t c, Lanes<A> residual) ARGUS_LANE_FUNCTION {
    const Lanes<A> scaled =
        map_lanes<A>([=](A x) ARGUS_LANE_FUNCTION { return x * factor; }, rows.weighed(residual));
    map_lanes<A>([](A x, int32_t y) ARGUS_LANE_FUNCTION { return y >= 0 ? x : A{0}; }, scaled, rows.target)
        .store(to + c * kTileRows);
  };
  if (rows.classes == 1) {
    const Lanes<A> wrong =
        map_lanes<A>([](A x) ARGUS_LANE_FUNCTION { return sigmoid(x); }, rows.wrong_logit());
    return put(0, map_lanes<A>([](A s, int32_t y) ARGUS_LANE_FUNCTION { return y > 0 ? -s : s; }, wrong,
                               rows.target));
  }
  const Lanes<A> most = rows.largest();
  const Lanes<A> sum = rows.denominator(most);
  for (int32_t c = 0; c < rows.classes; ++c) {
    const Lanes<A> probability =
        map_lanes<A>([](A e, A s) ARGUS_LANE_FUNCTION { return e / s; }, rows.exponential(c, most), sum);
    put(c, map_lanes<A>(
               [=](A p, int32_t y) ARGUS_LANE_FUNCTION {
                 const A hit = y == c ? A{1} : A{0};
                 return p - hit;
               },
               probability, rows.target));
  }
}

// d_hidden of the tile's rows and their part of d_weight, from the residuals that stand where the logits
// stood.
template <class A>
void spread(const Weights<A>& weights, const Scratch<A>& scratch, A* d_weight) {
  for (int64_t first = 0; first < weights.columns; first += kMostColumns) {
    const int64_t columns = std::min(kMostColumns, weights.columns - first), place = first * weights.width;
    spread_tile(scratch.row, scratch.d_row, scratch.logits.data() + first * kTileRows,
                weights.by_column.data() + place, d_weight + place, weights.width, columns, first > 0);
  }
}

template <class T>
ARGUS_INLINE void forward_blocks(const Params& params, int64_t first, int64_t last, double* losses) {
  using A = Arithmetic<T>;
  const Weights<A> weights(params, static_cast<const T*>(nullptr));
  Scratch<A> scratch(weights);
  for (int64_t block = first; block < last; ++block) {
    double* found = losses + block * params.tasks;
    std::fill(found, found + params.tasks, 0.0);
    const int64_t end = std::min(params.rows, (block + 1) * block_rows(params.rows));
    for (int64_t row = block * block_rows(params.rows); row < end; row += kTileRows) {
      const int64_t count = std::min(kTileRows, end - row);
      fetch_rows<T>(params, weights, row, count, scratch);
      project(weights, params.columns, scratch);
      int64_t column = 0;
      for (int64_t task = 0; task < params.tasks; column += params.classes[task++]) {
        fetch_targets(params, row, count, task, scratch);
        for (int64_t r = 0; r < kTileRows; r += kLanes) {
          const TaskRows<A> rows = task_rows(scratch, column, params.classes[task], r);
          found[task] += static_cast<double>(sum_of_lanes(rows.weighed(rows.loss())));
        }
      }
    }
  }
}

template <class T>
ARGUS_INLINE void point_at_gradients(const Weights<Arithmetic<T>>& weights, const Params& params, T* d_hidden,
                                     int64_t row, int64_t count, Scratch<Arithmetic<T>>& scratch) {
  for (int64_t r = 0; r < kTileRows; ++r) {
    scratch.d_row[r] = scratch.d_hidden.data() + r * weights.width;
    if constexpr (std::is_same_v<T, Arithmetic<T>>) {
      if (r < count && weights.width == params.width) scratch.d_row[r] = d_hidden + (row + r) * params.width;
    }
  }
}

template <class T>
ARGUS_INLINE void store_gradients(const Weights<Arithmetic<T>>& weights, const Params& params, T* d_hidden,
                                  int64_t row, int64_t count, const Scratch<Arithmetic<T>>& scratch) {
  if (std::is_same_v<T, Arithmetic<T>> && weights.width == params.width) return;
  for (int64_t r = 0; r < count; ++r) {
    T* to = d_hidden + (row + r) * params.width;
    for (int64_t d = 0; d < params.width; ++d) store(to[d], scratch.d_row[r][d]);
  }
}

template <class T>
ARGUS_INLINE void backward_blocks(const Params& params, const double* factors, int64_t first, int64_t last,
                                  T* d_hidden, Arithmetic<T>* d_weight_parts, Arithmetic<T>* d_bias_parts) {
  using A = Arithmetic<T>;
  const Weights<A> weights(params, static_cast<const T*>(nullptr));
  Scratch<A> scratch(weights);
  for (int64_t block = first; block < last; ++block) {
    A* d_weight = d_weight_parts + block * weights.columns * weights.width;
    A* d_bias = d_bias_parts + block * weights.columns;
    std::fill(d_weight, d_weight + weights.columns * weights.width, A{0});
    std::fill(d_bias, d_bias + weights.columns, A{0});
    const int64_t end = std::min(params.rows, (block + 1) * block_rows(params.rows));
    for (int64_t row = block * block_rows(params.rows); row < end; row += kTileRows) {
      const int64_t count = std::min(kTileRows, end - row);
      fetch_rows<T>(params, weights, row, count, scratch);
      project(weights, params.columns, scratch);
      int64_t column = 0;
      for (int64_t task = 0; task < params.tasks; column += params.classes[task++]) {
        fetch_targets(params, row, count, task, scratch);
        for (int64_t r = 0; r < kTileRows; r += kLanes) {
          put_residuals(task_rows(scratch, column, params.classes[task], r), static_cast<A>(factors[task]),
                        scratch.logits.data() + column * kTileRows + r);
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

template <class Visit>
void with_stored(Dtype dtype, Visit&& visit) {
  switch (dtype) {
    case Dtype::float32:
      return visit.template operator()<float>();
    case Dtype::float64:
      return visit.template operator()<double>();
    case Dtype::bfloat16:
      return visit.template operator()<BFloat16>();
    case Dtype::float16:
      return visit.template operator()<Float16>();
  }
}

}  // namespace

void sum_weights_cpu(const Params& params, int64_t first, int64_t last, double* weights) {
  const bool wide = params.dtype == Dtype::float64;
  for (int64_t block = first; block < last; ++block) {
    double* found = weights + block * params.tasks;
    std::fill(found, found + params.tasks, 0.0);
    const int64_t end = std::min(params.rows, (block + 1) * block_rows(params.rows));
    for (int64_t row = block * block_rows(params.rows); row < end; ++row) {
      const double weight =
          wide ? row_weight<double>(params, row) : static_cast<double>(row_weight<float>(params, row));
      const int64_t* target = params.targets + row * params.tasks;
      for (int64_t task = 0; task < params.tasks; ++task) found[task] += target[task] >= 0 ? weight : 0.0;
    }
  }
}

void forward_cpu(const Params& params, int64_t first, int64_t last, double* losses) {
  with_stored(params.dtype, [&]<class T>() {
    ForEachIsa<&forward_blocks<T>>::template call<const Params&>(params, first, last, losses);
  });
}

void backward_cpu(const Params& params, const double* factors, int64_t first, int64_t last, void* d_hidden,
                  void* d_weight_parts, void* d_bias_parts) {
  with_stored(params.dtype, [&]<class T>() {
    using A = Arithmetic<T>;
    ForEachIsa<&backward_blocks<T>>::template call<const Params&>(
        params, factors, first, last, static_cast<T*>(d_hidden), static_cast<A*>(d_weight_parts),
        static_cast<A*>(d_bias_parts));
  });
}

}  // namespace argus::feedback_loss
