// decode_linear on the CPU. It is bound by reading the weights: they are read once, row by row in address
// order, and every row of x is multiplied by a row of weights while that is in L1. A product is summed in 16
// lanes in an order that does not depend on the other rows of the call.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/cpu/column_blocks.h"
#include "common/cpu/stored_type.h"
#include "common/cpu/vector_math.h"
#include "decode_linear/decode_linear.h"

namespace argus::decode_linear {
namespace {

using namespace column_blocks;

constexpr int64_t kPrefetchBytes = 16384;  // into L2
constexpr int64_t kTogether = 4;           // outputs whose lanes are summed together; rows held in registers

// Calls visit(column, vectors) for each block of a dense row; the columns past the last are zero.
template <class T, class Visit>
ARGUS_INLINE void for_each_block(const T* row, int64_t columns, const Visit& visit) {
  constexpr int64_t kColumns = Block<T>::kColumns;
  LaneVector<Arithmetic<T>> x[Block<T>::kVectors];
  int64_t column = 0;
  for (; column + kColumns <= columns; column += kColumns) {
    Block<T>::load(row + column, x);
    visit(column, x);
  }
  if (column < columns) {
    load_part<T>(row + column, columns - column, x);
    visit(column, x);
  }
}

template <class A>
ARGUS_INLINE void store_lanes(A* to, LaneVector<A> x) {
  std::memcpy(to, &x, sizeof(x));
}

// The sum of a row of whole vectors.
template <class A>
ARGUS_INLINE A sum_of_row(const A* row, int64_t columns) {
  A lanes[kTogether * kLanes] = {};
  LaneVector<A> sum = {};
  for (int64_t column = 0; column < columns; column += kLanes) sum += load_lanes(row + column);
  store_lanes<A>(lanes, sum);
  return sums_of_four(lanes)[0];
}

template <class A>
ARGUS_INLINE A squares_of_row(const A* row, int64_t columns) {
  A lanes[kTogether * kLanes] = {};
  LaneVector<A> sum = {};
  for (int64_t column = 0; column < columns; column += kLanes) {
    const LaneVector<A> x = load_lanes(row + column);
    sum += x * x;
  }
  store_lanes<A>(lanes, sum);
  return sums_of_four(lanes)[0];
}

// Mean and variance in two passes; the elements past the last column stay zero.
template <class T>
ARGUS_INLINE void normalise(const Params& params, Arithmetic<T>* row) {
  using A = Arithmetic<T>;
  constexpr int64_t kColumns = Block<T>::kColumns;
  const int64_t columns = (params.inputs + kColumns - 1) / kColumns * kColumns;
  const A count = static_cast<A>(params.inputs);
  const A mean = sum_of_row(row, columns) / count;
  for (int64_t column = 0; column < columns; ++column) row[column] -= mean;
  for (int64_t column = params.inputs; column < columns; ++column)
    row[columns - kColumns + Block<T>::lane(column % kColumns)] = A{0};
  const A variance = squares_of_row(row, columns) / count;
  const A factor = A{1} / std::sqrt(variance + static_cast<A>(params.eps));
  for_each_block<T>(static_cast<const T*>(params.norm_weight), params.inputs,
                    [&](int64_t column, const auto& scale) ARGUS_INLINE_LAMBDA {
                      for (int64_t vector = 0; vector < Block<T>::kVectors; ++vector) {
                        A* to = row + column + vector * kLanes;
                        store_lanes<A>(to, load_lanes(to) * factor * scale[vector]);
                      }
                    });
  for_each_block<T>(static_cast<const T*>(params.norm_bias), params.inputs,
                    [&](int64_t column, const auto& shift) ARGUS_INLINE_LAMBDA {
                      for (int64_t vector = 0; vector < Block<T>::kVectors; ++vector) {
                        A* to = row + column + vector * kLanes;
                        store_lanes<A>(to, load_lanes(to) + shift[vector]);
                      }
                    });
}

template <class T>
ARGUS_INLINE void prepare(const Params& params) {
  using A = Arithmetic<T>;
  for (int64_t row = 0; row < params.rows; ++row) {
    const T* x = static_cast<const T*>(params.x) + row * params.inputs;
    A* to = static_cast<A*>(params.prepared) + row * prepared_columns(params.inputs);
    for_each_block<T>(x, params.inputs, [&](int64_t column, const auto& block) ARGUS_INLINE_LAMBDA {
      for (int64_t vector = 0; vector < Block<T>::kVectors; ++vector)
        store_lanes<A>(to + column + vector * kLanes, block[vector]);
    });
    if (params.norm_weight != nullptr) normalise<T>(params, to);
  }
}

// The lanes of kRows rows times kOutputs rows of weights. lane_sums holds [rows, kTogether, kLanes]; every
// lane is summed in the same order whatever kRows and kOutputs are.
template <class T, int64_t kOutputs, int64_t kRows>
ARGUS_INLINE void multiply_rows(const Params& params, const T* weight, int64_t first_row,
                                Arithmetic<T>* lane_sums) {
  using A = Arithmetic<T>;
  constexpr int64_t kVectors = Block<T>::kVectors, kColumns = Block<T>::kColumns;
  const int64_t inputs = params.inputs, stride = prepared_columns(inputs);
  const A* x = static_cast<const A*>(params.prepared) + first_row * stride;
  LaneVector<A> sums[kOutputs][kRows] = {};
  LaneVector<A> w[kOutputs][kVectors];
  const auto add = [&](int64_t column) ARGUS_INLINE_LAMBDA {
#pragma GCC unroll 4
    for (int64_t row = 0; row < kRows; ++row) {
#pragma GCC unroll 2
      for (int64_t vector = 0; vector < kVectors; ++vector) {
        const LaneVector<A> factor = load_lanes(x + row * stride + column + vector * kLanes);
#pragma GCC unroll 4
        for (int64_t output = 0; output < kOutputs; ++output) sums[output][row] += factor * w[output][vector];
      }
    }
  };
  int64_t column = 0;
  for (; column + kColumns <= inputs; column += kColumns) {
#pragma GCC unroll 4
    for (int64_t output = 0; output < kOutputs; ++output) {
      const T* from = weight + output * inputs + column;
      // With one row the hardware's prefetching keeps up; with several it falls behind.
      if constexpr (kRows > 1) __builtin_prefetch(reinterpret_cast<const char*>(from) + kPrefetchBytes, 0, 2);
      Block<T>::load(from, w[output]);
    }
    add(column);
  }
  if (column < inputs) {
#pragma GCC unroll 4
    for (int64_t output = 0; output < kOutputs; ++output)
      load_part<T>(weight + output * inputs + column, inputs - column, w[output]);
    add(column);
  }
#pragma GCC unroll 4
  for (int64_t output = 0; output < kOutputs; ++output) {
#pragma GCC unroll 4
    for (int64_t row = 0; row < kRows; ++row)
      store_lanes<A>(lane_sums + ((first_row + row) * kTogether + output) * kLanes, sums[output][row]);
  }
}

template <class T, int64_t kOutputs>
ARGUS_INLINE void multiply_some_rows(const Params& params, const T* weight, int64_t first_row, int64_t count,
                                     Arithmetic<T>* lane_sums) {
  switch (count) {
    case 1:
      return multiply_rows<T, kOutputs, 1>(params, weight, first_row, lane_sums);
    case 2:
      return multiply_rows<T, kOutputs, 2>(params, weight, first_row, lane_sums);
    case 3:
      return multiply_rows<T, kOutputs, 3>(params, weight, first_row, lane_sums);
    default:
      return multiply_rows<T, kOutputs, 4>(params, weight, first_row, lane_sums);
  }
}

// Up to kTogether rows of weights. The first rows of x read them one after the other, in address order; the
// further rows find them in L1 and take kTogether at once, which loads x less often.
template <class T>
ARGUS_INLINE void multiply_outputs(const Params& params, const T* weight, int64_t count,
                                   Arithmetic<T>* lane_sums) {
  const int64_t streaming = std::min(kTogether, params.rows);
  for (int64_t output = 0; output < count; ++output)
    multiply_some_rows<T, 1>(params, weight + output * params.inputs, 0, streaming,
                             lane_sums + output * kLanes);
  for (int64_t row = streaming; row < params.rows; row += kTogether) {
    const int64_t rows = std::min(kTogether, params.rows - row);
    if (count == kTogether) {
      multiply_some_rows<T, kTogether>(params, weight, row, rows, lane_sums);
    } else {
      for (int64_t output = 0; output < count; ++output)
        multiply_some_rows<T, 1>(params, weight + output * params.inputs, row, rows,
                                 lane_sums + output * kLanes);
    }
  }
}

// `products` holds kTileOutputs sums of one row, of which `count` are used.
template <class T>
ARGUS_INLINE void finish(const Params& params, int64_t row, int64_t output, int64_t count,
                         Arithmetic<T>* products) {
  const T* bias = static_cast<const T*>(params.bias);
  const T* residual = static_cast<const T*>(params.residual);
  T* out = static_cast<T*>(params.out) + row * params.outputs + output;
  if (bias != nullptr) {
    for (int64_t i = 0; i < count; ++i) products[i] += load(bias[output + i]);
  }
  if (params.gelu) {
    // Without the pragma the loop is unrolled before it can be vectorised.
#pragma GCC unroll 1
    for (int64_t i = 0; i < kTileOutputs; ++i) products[i] = gelu(products[i]);
  }
  if (residual != nullptr) {
    const T* added = residual + row * params.outputs + output;
    for (int64_t i = 0; i < count; ++i) products[i] += load(added[i]);
  }
  for (int64_t i = 0; i < count; ++i) store(out[i], products[i]);
}

template <class T>
ARGUS_INLINE void multiply(const Params& params, int64_t first, int64_t last) {
  using A = Arithmetic<T>;
  alignas(64) A lane_sums[kMaxRows * kTogether * kLanes] = {};
  alignas(64) A products[kMaxRows * kTileOutputs] = {};
  const T* weight = static_cast<const T*>(params.weight);
  for (int64_t tile = first; tile < last; ++tile) {
    const int64_t output = tile * kTileOutputs, count = std::min(kTileOutputs, params.outputs - output);
    for (int64_t four = 0; four < count; four += kTogether) {
      multiply_outputs<T>(params, weight + (output + four) * params.inputs, std::min(kTogether, count - four),
                          lane_sums);
      for (int64_t row = 0; row < params.rows; ++row) {
        const Quad<A> sums = sums_of_four(lane_sums + row * kTogether * kLanes);
        std::memcpy(products + row * kTileOutputs + four, &sums, sizeof(sums));
      }
    }
    for (int64_t row = 0; row < params.rows; ++row)
      finish<T>(params, row, output, count, products + row * kTileOutputs);
  }
}

}  // namespace

void prepare_cpu(const Params& params) {
  with_stored_type(params.dtype, [&]<class T>() { ForEachIsa<&prepare<T>>::call(params); });
}

void multiply_cpu(const Params& params, int64_t first, int64_t last) {
  with_stored_type(params.dtype, [&]<class T>() { ForEachIsa<&multiply<T>>::call(params, first, last); });
}

}  // namespace argus::decode_linear
