// Row-wise Adagrad on the GPU. One warp looks at each sorted position; the warp at the first position of a
// run of equal rows sums the run's gradients in order and updates the row, the others leave. The gradient is
// summed twice, once for the mean of its squares and once for the update, so that no width needs a buffer.
#pragma once

#include "common/device.cuh"
#include "common/reduce.cuh"
#include "rowwise_adagrad/rowwise_adagrad.h"

namespace argus::rowwise_adagrad {

template <class T, class G>
ARGUS_DEVICE float gradient_at(const Params& params, const T* row, int64_t begin, int64_t end,
                               int64_t column) {
  const G* gradients = static_cast<const G*>(params.gradients);
  float sum = 0.0f;
  for (int64_t i = begin; i < end; ++i) sum += to_float(gradients[params.order[i] * params.width + column]);
  return sum + static_cast<float>(params.weight_decay) * to_float(row[column]);
}

ARGUS_DEVICE int64_t end_of_run(const Params& params, int64_t begin) {
  int64_t end = begin + 1;
  while (end < params.count && params.rows[end] == params.rows[begin]) ++end;
  return end;
}

template <class T, class G>
ARGUS_DEVICE void update_run(const Params& params, int64_t begin, int lane) {
  const int64_t row_index = params.rows[begin];
  const int64_t end = end_of_run(params, begin);
  T* row = static_cast<T*>(params.table) + row_index * params.table_stride;
  float* state = static_cast<float*>(params.state) + row_index;

  float squares = 0.0f;
  for (int64_t column = lane; column < params.width; column += kWarpSize) {
    const float g = gradient_at<T, G>(params, row, begin, end, column);
    squares += g * g;
  }
  const float accumulated = *state + warp_sum(squares) / static_cast<float>(params.width);
  const float step = static_cast<float>(params.lr) / (sqrtf(accumulated) + static_cast<float>(params.eps));
  for (int64_t column = lane; column < params.width; column += kWarpSize) {
    const float g = gradient_at<T, G>(params, row, begin, end, column);
    from_float(row[column], to_float(row[column]) - step * g);
  }
  __syncwarp();
  if (lane == 0) *state = accumulated;
}

template <class T, class G>
__global__ void update_kernel(Params params) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * blockDim.x / kWarpSize;
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / kWarpSize;
  for (int64_t position = first; position < params.count; position += warps) {
    const int64_t row = params.rows[position];
    const bool leads = position == 0 || params.rows[position - 1] != row;
    if (leads && row >= 0 && row < params.table_rows) update_run<T, G>(params, position, lane);
  }
}

}  // namespace argus::rowwise_adagrad
