// A row's loss, log-sum-exp and statistics from the sums over its candidates.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "sampled_softmax_loss/left_out.h"
#include "sampled_softmax_loss/sampled_softmax_loss.h"
#include "sampled_softmax_loss/score_tile.h"

namespace argus::sampled_softmax_loss {

// log(e^a + e^b); either may be infinite.
inline double log_add(double a, double b) {
  if (std::isnan(a) || std::isnan(b)) return a + b;
  const double high = std::fmax(a, b);
  return std::isinf(high) ? high : high + std::log1p(std::exp(std::fmin(a, b) - high));
}

// A row's peak and sum for each part of the candidates, `stride` numbers apart.
template <class A>
struct PartialSums {
  const A* peak;
  const A* total;
  int64_t stride;
  int64_t count;

  // The log-sum-exp over all candidates, the parts taken in order.
  double log_sum_exp() const {
    double highest = -std::numeric_limits<double>::infinity(), sum = 0.0;
    for (int64_t part = 0; part < count; ++part)
      highest = std::fmax(highest, static_cast<double>(peak[part * stride]));
    const double shift = shift_of(highest);
    for (int64_t part = 0; part < count; ++part)
      sum += static_cast<double>(total[part * stride]) *
             std::exp(static_cast<double>(peak[part * stride]) - shift);
    return shift + std::log(sum);
  }
};

// The results of a row of weight 0.
template <class A>
void clear_losses(const Inputs& inputs, const Outputs& outputs) {
  std::fill_n(static_cast<A*>(outputs.loss), inputs.rows, A{0});
  std::fill_n(static_cast<A*>(outputs.lse), inputs.rows, A{0});
  std::fill_n(static_cast<A*>(outputs.statistics), 2 * inputs.rows, A{0});
}

// product: ⟨query, positive⟩ of the row.
template <class A>
void write_row_loss(const Inputs& inputs, const Outputs& outputs, int64_t row, A product,
                    const PartialSums<A>& parts, const LeftOut& left_out) {
  const auto value = [row](const void* array, double otherwise) {
    return array == nullptr ? otherwise : static_cast<double>(static_cast<const A*>(array)[row]);
  };
  const double negatives = parts.log_sum_exp();
  const double log_q = value(inputs.positive_log_q, 0.0);
  double denominator = 0.0, loss = 0.0;
  if (inputs.refined) {
    const double count = static_cast<double>(std::max<int64_t>(left_out.count_kept(row), 1));
    denominator = negatives + std::log1p(-std::exp(log_q)) - std::log(count);
    loss = std::isinf(denominator) && denominator < 0 ? 0.0 : denominator / (1.0 + std::exp(-denominator));
  } else {
    loss = denominator = log_add(-log_q, negatives);
  }
  const double scale = static_cast<double>(*static_cast<const A*>(inputs.scale));
  A* statistics = static_cast<A*>(outputs.statistics);
  static_cast<A*>(outputs.loss)[row] = static_cast<A>(value(inputs.row_weight, 1.0) * loss);
  static_cast<A*>(outputs.lse)[row] = static_cast<A>(denominator + scale * static_cast<double>(product));
  statistics[row] = static_cast<A>(denominator);
  statistics[inputs.rows + row] = static_cast<A>(inputs.refined ? negatives : denominator);
}

}  // namespace argus::sampled_softmax_loss
