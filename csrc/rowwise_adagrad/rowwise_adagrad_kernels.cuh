// Row-wise Adagrad on the GPU, on rows sorted with their gradients' positions.
//
// One warp per sorted position. The warp at the first position of a run of equal rows sums the run's
// gradients and updates the row; the others exit. Runs of popular rows are long (tens of thousands), so a run
// is cut into pieces of kPiece positions, counted from its beginning: sum_pieces_kernel sums the whole pieces
// after the first in parallel, and the leading warp adds up its own first piece, the sums of the whole ones
// and the rest. The order of additions depends on the run's length alone, so the bits do not depend on the
// rest of the batch. The gradient is summed twice, once for the mean of its squares and once for the update,
// so that no width needs a buffer.
#pragma once

#include "common/cuda/device.cuh"
#include "common/cuda/reduce.cuh"
#include "rowwise_adagrad/rowwise_adagrad.h"

namespace argus::rowwise_adagrad {

// Whether positions [begin, begin + kPiece) belong to the run of position `run`.
ARGUS_DEVICE bool is_whole_piece(const Params& params, int64_t begin, int64_t run) {
  const int64_t last = begin + kPiece - 1;
  return last < params.count && params.rows[last] == params.rows[run];
}

// How many of the kPiece positions from `begin` on belong to the run at `run`; the same in all lanes.
ARGUS_DEVICE int64_t length_of_rest(const Params& params, int64_t begin, int64_t run, int lane) {
  int64_t length = 0;
  for (int64_t at = begin; at < begin + kPiece; at += kWarpSize) {
    const bool inside = at + lane < params.count && params.rows[at + lane] == params.rows[run];
    const int found = __popc(__ballot_sync(kFullWarp, inside));
    length += found;
    if (found < kWarpSize) break;
  }
  return length;
}

template <class G>
ARGUS_DEVICE float sum_of_positions(const Params& params, int64_t begin, int64_t end, int64_t column) {
  const G* gradients = static_cast<const G*>(params.gradients);
  float sum = 0.0f;
#pragma unroll 4
  for (int64_t i = begin; i < end; ++i) sum += to_float(gradients[params.order[i] * params.width + column]);
  return sum;
}

// A run: its first piece ends at `first_end`, `pieces` whole ones follow, the rest ends at `end`.
struct Run {
  int64_t begin, first_end, pieces, end;
};

ARGUS_DEVICE Run run_at(const Params& params, int64_t begin, int lane) {
  Run run{begin, begin, 0, begin};
  if (!is_whole_piece(params, begin, begin)) {
    run.first_end = run.end = begin + length_of_rest(params, begin, begin, lane);
    return run;
  }
  run.first_end = begin + kPiece;
  while (is_whole_piece(params, run.first_end + run.pieces * kPiece, begin)) ++run.pieces;
  const int64_t rest = run.first_end + run.pieces * kPiece;
  run.end = rest + length_of_rest(params, rest, begin, lane);
  return run;
}

template <class T, class G>
ARGUS_DEVICE float gradient_at(const Params& params, const T* row, const Run& run, int64_t column) {
  float sum = sum_of_positions<G>(params, run.begin, run.first_end, column);
#pragma unroll 4
  for (int64_t piece = 0; piece < run.pieces; ++piece)
    sum += params.piece_sums[(run.first_end / kPiece + piece) * params.width + column];
  sum += sum_of_positions<G>(params, run.first_end + run.pieces * kPiece, run.end, column);
  // A decay of 0 leaves the table out of the sum, even its infinities.
  if (params.weight_decay == 0.0) return sum;
  return sum + static_cast<float>(params.weight_decay) * to_float(row[column]);
}

template <class T, class G>
ARGUS_DEVICE void update_run(const Params& params, int64_t begin, int lane) {
  const int64_t row_index = params.rows[begin];
  const Run run = run_at(params, begin, lane);
  T* row = static_cast<T*>(params.table) + row_index * params.table_stride;
  float* state = static_cast<float*>(params.state) + row_index;

  float squares = 0.0f;
  for (int64_t column = lane; column < params.width; column += kWarpSize) {
    const float g = gradient_at<T, G>(params, row, run, column);
    squares += g * g;
  }
  const float accumulated = *state + warp_sum(squares) / static_cast<float>(params.width);
  const float step = static_cast<float>(params.lr) / (sqrtf(accumulated) + static_cast<float>(params.eps));
  for (int64_t column = lane; column < params.width; column += kWarpSize) {
    const float g = gradient_at<T, G>(params, row, run, column);
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

// The first position whose row is not below that of `position`.
ARGUS_DEVICE int64_t beginning_of_run(const Params& params, int64_t position) {
  const int64_t row = params.rows[position];
  int64_t low = 0, high = position;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (params.rows[middle] < row) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// Writes piece_sums[w] if a whole piece that is not its run's first begins in the window of positions [w ·
// kPiece, (w + 1) · kPiece). There is at most one, and position w · kPiece belongs to its run. One warp per
// window.
template <class G>
__global__ void sum_pieces_kernel(Params params) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * blockDim.x / kWarpSize;
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / kWarpSize;
  for (int64_t window = first; window < params.count / kPiece; window += warps) {
    const int64_t position = window * kPiece, row = params.rows[position];
    if (row < 0 || row >= params.table_rows || !is_whole_piece(params, position, position)) continue;
    const int64_t run = beginning_of_run(params, position);
    const int64_t begin = run + (position - run + kPiece - 1) / kPiece * kPiece;
    if (begin == run || !is_whole_piece(params, begin, run)) continue;
    for (int64_t column = lane; column < params.width; column += kWarpSize)
      params.piece_sums[window * params.width + column] =
          sum_of_positions<G>(params, begin, begin + kPiece, column);
  }
}

}  // namespace argus::rowwise_adagrad
