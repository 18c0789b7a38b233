// The kernels of triple_embedding on the GPU.
//
//   forward         output = rows · weight + bias. Rows go from the tables into shared memory; the [T, Σ d]
//                   matrix of them never exists.
//   row_gradient    gradient · weightᵀ in float32, [T, depth]
//   weight_gradient rowsᵀ · gradient, the events in parts of a number fixed by T, the parts added in order
//   sum_windows,    the row gradients of each table, sorted by row: a warp sums a window of 32 in their
//   order, sum_runs        then what a run has in several windows is added in order. No atomics: the bits
//   repeat.
#pragma once

#include "common/cuda/reduce.cuh"
#include "triple_embedding/sources.cuh"

namespace argus::triple_embedding {

ARGUS_DEVICE int64_t tile_of(unsigned block) {
  return static_cast<int64_t>(block) * tile::kTile;
}

template <class T>
ARGUS_DEVICE void store_pair(T* to, bool paired, bool second, float x, float y) {
  if (paired) {
    // They begin at an even column of rows of even width.
    tile::Pair<T> pair;
    from_float(pair.x, x);
    from_float(pair.y, y);
    *reinterpret_cast<tile::Pair<T>*>(to) = pair;
    return;
  }
  from_float(to[0], x);
  if (second) from_float(to[1], y);
}

template <class T, class Stored>
__global__ void __launch_bounds__(tile::kThreads) forward_kernel(CudaForward forward) {
  ARGUS_DYNAMIC_SHARED(unsigned char, shared);
  const CudaProblem& problem = forward.problem;
  const int64_t event0 = tile_of(blockIdx.x);
  const int column0 = static_cast<int>(tile_of(blockIdx.y)), width = problem.width;
  const GatheredRows<T, Stored> rows{problem, problem.events};
  const Weight<T> weight = weight_of<T>(problem);
  const Operand<T, false, GatheredRows<T, Stored>> left{rows, event0, 0};
  const Operand<T, true, Weight<T>> right{weight, 0, tile::chunk_of<T>(column0)};
  Sums sums;
  tile::add_product<T>(sums, shared, left, right,
                       (problem.chunks + tile::kStageChunks - 1) / tile::kStageChunks);
  const T* bias = static_cast<const T*>(forward.bias);
  T* output = static_cast<T*>(forward.output);
  sums.for_each_pair([&](int row, int column, float x, float y) {
    const int64_t event = event0 + row;
    column += column0;
    if (event >= problem.events || column >= width) return;
    const bool second = column + 1 < width;
    if (bias != nullptr) x += to_float(bias[column]);
    if (bias != nullptr && second) y += to_float(bias[column + 1]);
    store_pair(output + event * width + column, width % 2 == 0, second, x, y);
  });
}

template <class T>
__global__ void __launch_bounds__(tile::kThreads) row_gradient_kernel(CudaBackward backward) {
  ARGUS_DYNAMIC_SHARED(unsigned char, shared);
  const CudaProblem& problem = backward.problem;
  const int64_t event0 = tile_of(blockIdx.x);
  const int element0 = static_cast<int>(tile_of(blockIdx.y)), depth = problem.chunks * kChunk<T>;
  const Matrix<T> gradient = matrix_of<T>(backward.gradient, problem.events, problem.width);
  const Weight<T> weight = weight_of<T>(problem);
  const Operand<T, false, Matrix<T>> left{gradient, event0, 0};
  const Operand<T, false, Weight<T>> right{weight, element0, 0};
  Sums sums;
  tile::add_product<T>(sums, shared, left, right, tile::stages_of<T>(problem.width));
  sums.for_each_pair([&](int row, int element, float x, float y) {
    const int64_t event = event0 + row;
    element += element0;
    if (event >= problem.events || element >= depth) return;
    // depth is a multiple of a chunk, so that pairs are whole.
    store_pair(backward.gathered_gradient + event * depth + element, true, true, x, y);
  });
}

template <class T, class Stored>
__global__ void __launch_bounds__(tile::kThreads)
    weight_gradient_kernel(CudaBackward backward, int64_t part_events) {
  ARGUS_DYNAMIC_SHARED(unsigned char, shared);
  const CudaProblem& problem = backward.problem;
  const int element0 = static_cast<int>(tile_of(blockIdx.x)), column0 = static_cast<int>(tile_of(blockIdx.y));
  const int depth = problem.chunks * kChunk<T>, width = problem.width;
  const int64_t begin = blockIdx.z * part_events;
  const int64_t end = begin + part_events < problem.events ? begin + part_events : problem.events;
  const GatheredRows<T, Stored> rows{problem, end};
  const Matrix<T> gradient = matrix_of<T>(backward.gradient, end, width);
  const Operand<T, true, GatheredRows<T, Stored>> left{rows, begin, tile::chunk_of<T>(element0)};
  const Operand<T, true, Matrix<T>> right{gradient, begin, tile::chunk_of<T>(column0)};
  const int64_t events = end > begin ? end - begin : 0;
  Sums sums;
  tile::add_product<T>(sums, shared, left, right, tile::stages_of<T>(events));
  float* part = backward.weight_parts + static_cast<int64_t>(blockIdx.z) * depth * width;
  sums.for_each_pair([&](int row, int column, float x, float y) {
    row += element0, column += column0;
    if (row >= depth || column >= width) return;
    store_pair(part + static_cast<int64_t>(row) * width + column, width % 2 == 0, column + 1 < width, x, y);
  });
}

constexpr int kPiece = 32;

// Σ term(i) for i in [begin, end), in pieces of kPiece: the rounding error of one long sum would be visibly
// larger than that of torch's pairwise sum.
template <class Term>
ARGUS_DEVICE float sum_in_pieces(int64_t begin, int64_t end, const Term& term) {
  float sum = 0.0f;
  for (int64_t first = begin; first < end; first += kPiece) {
    const int64_t last = end < first + kPiece ? end : first + kPiece;
    float piece = 0.0f;
    for (int64_t i = first; i < last; ++i) piece += term(i);
    sum += piece;
  }
  return sum;
}

ARGUS_DEVICE float sum_parts(const float* first, int64_t stride, int parts) {
  return sum_in_pieces(0, parts, [&](int64_t part) { return first[part * stride]; });
}

// One block per element of depth.
template <class T>
__global__ void weight_sum_kernel(CudaBackward backward, int parts) {
  const CudaProblem& problem = backward.problem;
  const int64_t element = blockIdx.x,
                stride = static_cast<int64_t>(problem.chunks) * kChunk<T> * problem.width;
  const int row = weight_row<T>(problem, element);
  if (row < 0) return;
  T* to = static_cast<T*>(backward.d_weight) + static_cast<int64_t>(row) * problem.width;
  const float* from = backward.weight_parts + element * problem.width;
  for (int column = static_cast<int>(threadIdx.x); column < problem.width;
       column += static_cast<int>(blockDim.x))
    from_float(to[column], sum_parts(from + column, stride, parts));
}

// One block per part of the events, one thread per column.
template <class T>
__global__ void bias_part_kernel(CudaBackward backward, int64_t part_events) {
  const int64_t begin = blockIdx.x * part_events;
  const int64_t events = backward.problem.events;
  const int64_t end = begin + part_events < events ? begin + part_events : events;
  const int width = backward.problem.width;
  const T* gradient = static_cast<const T*>(backward.gradient);
  float* part = backward.bias_parts + static_cast<int64_t>(blockIdx.x) * width;
  for (int column = static_cast<int>(threadIdx.x); column < width; column += static_cast<int>(blockDim.x))
    part[column] =
        sum_in_pieces(begin, end, [&](int64_t event) { return to_float(gradient[event * width + column]); });
}

template <class T>
__global__ void bias_sum_kernel(CudaBackward backward, int parts) {
  const int width = backward.problem.width;
  const int column = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (column < width)
    from_float(static_cast<T*>(backward.d_bias)[column],
               sum_parts(backward.bias_parts + column, width, parts));
}

// blockIdx.y is the column.
__global__ void key_kernel(CudaKeys given) {
  const int64_t event = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (event >= given.events) return;
  const int c = static_cast<int>(blockIdx.y);
  const int64_t id = given.ids[given.columns[c] * given.events + event];
  const bool known = id >= 0 && id < given.table_rows[c];
  given.keys[c * given.events + event] = given.first_keys[c] + (known ? static_cast<int32_t>(id) + 1 : 0);
}

__global__ void leader_kernel(const int32_t* keys, int64_t count, int32_t first_key, int64_t* leaders) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  leaders[i] = keys[i] != first_key && (i == 0 || keys[i - 1] != keys[i]) ? 1 : 0;
}

ARGUS_DEVICE int64_t row_at(const CudaRowSums& sums, int64_t i) {
  return int64_t{sums.keys[i]} - sums.first_key - 1;
}

// The row of the table's gradient for the run at sorted position i.
template <class Stored>
ARGUS_DEVICE Stored* run_values(const CudaRowSums& sums, int64_t i) {
  const int64_t to = sums.slots == nullptr ? row_at(sums, i) : sums.slots[i] - 1;
  return static_cast<Stored*>(sums.values) + to * sums.width;
}

ARGUS_DEVICE bool same_run(const CudaRowSums& sums, int64_t i, int64_t next) {
  return i >= 0 && next < sums.count && sums.keys[i] == sums.keys[next];
}

ARGUS_DEVICE bool in_table(const CudaRowSums& sums, int64_t i) {
  return sums.keys[i] != sums.first_key;
}

ARGUS_DEVICE int64_t global_warp() {
  return (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / kWarpSize;
}

// One warp per window. Each lane holds the address of one entry; then all lanes loop over the entries, one
// column per lane.
template <class Stored>
__global__ void sum_windows_kernel(CudaRowSums sums) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int64_t window = global_warp(), first = window * kWindow;
  if (first >= sums.count) return;
  const int64_t mine = first + lane;
  int64_t offset = -1;
  bool ends = false;
  if (mine < sums.count && in_table(sums, mine)) {
    const int64_t position = sums.positions[mine] - sums.first_position;
    const int reader = static_cast<int>(position / sums.events);
    offset = (position - reader * sums.events) * sums.depth + sums.first_elements[reader];
    ends = lane == kWindow - 1 || !same_run(sums, mine, mine + 1);
    const bool leads = !same_run(sums, mine - 1, mine);
    if (leads && sums.slots != nullptr) sums.unique_rows[sums.slots[mine] - 1] = row_at(sums, mine);
  }
  const unsigned end_mask = __ballot_sync(kFullWarp, ends);
  for (int column0 = 0; column0 < sums.width; column0 += kWarpSize) {
    const int column = column0 + lane;
    const bool active = column < sums.width;
    float sum = 0.0f;
    bool whole = !in_table(sums, first) || !same_run(sums, first - 1, first);
    for (int i = 0; i < kWindow; ++i) {
      const int64_t from = __shfl_sync(kFullWarp, offset, i);
      if (from < 0) continue;
      if (active) sum += sums.gathered_gradient[from + column];
      if ((end_mask >> i & 1u) == 0) continue;
      const bool goes_on = same_run(sums, first + i, first + i + 1);
      if (active && whole && !goes_on) from_float(run_values<Stored>(sums, first + i)[column], sum);
      if (active && !whole) sums.heads[window * sums.width + column] = sum;
      if (active && whole && goes_on) sums.tails[window * sums.width + column] = sum;
      sum = 0.0f;
      whole = true;
    }
  }
}

// One warp per window: if a run begins in it and continues, adds the run's sums in the later windows.
template <class Stored>
__global__ void sum_runs_kernel(CudaRowSums sums) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int64_t window = global_warp(), first = window * kWindow, last = first + kWindow - 1;
  if (last >= sums.count || !in_table(sums, last) || !same_run(sums, last, last + 1)) return;
  const bool began_before = sums.keys[first] == sums.keys[last] && same_run(sums, first - 1, first);
  if (began_before) return;
  for (int column = lane; column < sums.width; column += kWarpSize) {
    float sum = sums.tails[window * sums.width + column];
    int64_t end = last;
    do {
      sum += sums.heads[(end + 1) / kWindow * sums.width + column];
      end += kWindow;
    } while (same_run(sums, last, end) && same_run(sums, end, end + 1));
    from_float(run_values<Stored>(sums, last)[column], sum);
  }
}

}  // namespace argus::triple_embedding
