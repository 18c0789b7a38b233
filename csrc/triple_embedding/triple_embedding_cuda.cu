// Launches the kernels of triple_embedding.
#include <algorithm>

#include "common/cuda/stored_type.cuh"
#include "triple_embedding/counting_kernels.cuh"
#include "triple_embedding/forward_loop_sm90.cuh"
#include "triple_embedding/triple_embedding_cuda.h"
#include "triple_embedding/triple_embedding_kernels.cuh"

namespace argus::triple_embedding {
namespace {

constexpr const char* kOp = "triple_embedding";
constexpr int64_t kWeightPartEvents = 1024, kBiasPartEvents = 256;
constexpr int kMaxWeightParts = 32, kMaxBiasParts = 1024;
constexpr unsigned kSimpleThreads = 256;

unsigned blocks(int64_t count, int64_t each) {
  return static_cast<unsigned>((count + each - 1) / each);
}

int parts_of(int64_t events, int64_t part_events, int most) {
  return static_cast<int>(std::clamp<int64_t>((events + part_events - 1) / part_events, 1, most));
}

// A multiple of every stage's depth.
int64_t events_a_part(int64_t events, int parts) {
  constexpr int64_t kStep = 32;
  return std::max<int64_t>(kStep, (events + parts * kStep - 1) / (parts * kStep) * kStep);
}

template <class T, class Stored>
void launch_forward_typed(const CudaForward& forward, void* stream) {
  const CudaProblem& problem = forward.problem;
  if constexpr (sizeof(T) == 2) {
    if (forward.loop_blocks > 0) {
      launch_forward_loop<T, Stored>(kOp, forward, stream);
      return;
    }
  }
  const LaunchShape shape{dim3(blocks(problem.events, tile::kTile), blocks(problem.width, tile::kTile)),
                          dim3(tile::kThreads), tile::kProductBytes};
  launch(kOp, forward_kernel<T, Stored>, shape, stream, forward);
}

template <class T, class Stored>
void launch_weight_gradient(const CudaBackward& backward, void* stream) {
  const CudaProblem& problem = backward.problem;
  const int parts = weight_parts(problem.events), elements = depth(problem);
  const LaunchShape shape{
      dim3(blocks(elements, tile::kTile), blocks(problem.width, tile::kTile), static_cast<unsigned>(parts)),
      dim3(tile::kThreads), tile::kProductBytes};
  launch(kOp, weight_gradient_kernel<T, Stored>, shape, stream, backward,
         events_a_part(problem.events, parts));
  const LaunchShape simple{dim3(static_cast<unsigned>(elements)), dim3(kSimpleThreads)};
  launch(kOp, weight_sum_kernel<T>, simple, stream, backward, parts);
}

template <class T>
void launch_bias_gradient(const CudaBackward& backward, void* stream) {
  const CudaProblem& problem = backward.problem;
  const int parts = bias_parts(problem.events);
  const LaunchShape shape{dim3(static_cast<unsigned>(parts)), dim3(kSimpleThreads)};
  launch(kOp, bias_part_kernel<T>, shape, stream, backward, events_a_part(problem.events, parts));
  const LaunchShape simple{dim3(blocks(problem.width, kSimpleThreads)), dim3(kSimpleThreads)};
  launch(kOp, bias_sum_kernel<T>, simple, stream, backward, parts);
}

template <class T, class Stored>
void launch_backward_typed(const CudaBackward& backward, void* stream) {
  const CudaProblem& problem = backward.problem;
  const int elements = depth(problem);
  if (problem.width == 0) return;
  if (backward.gathered_gradient != nullptr && problem.events > 0 && elements > 0) {
    const LaunchShape shape{dim3(blocks(problem.events, tile::kTile), blocks(elements, tile::kTile)),
                            dim3(tile::kThreads), tile::kProductBytes};
    launch(kOp, row_gradient_kernel<T>, shape, stream, backward);
  }
  if (backward.d_weight != nullptr && elements > 0) launch_weight_gradient<T, Stored>(backward, stream);
  if (backward.d_bias != nullptr) launch_bias_gradient<T>(backward, stream);
}

template <class Stored>
void launch_row_sums_typed(const CudaRowSums& sums, void* stream) {
  const int64_t windows = (sums.count + kWindow - 1) / kWindow;
  const LaunchShape shape{dim3(blocks(windows, kSimpleThreads / kWarpSize)), dim3(kSimpleThreads)};
  launch(kOp, sum_windows_kernel<Stored>, shape, stream, sums);
  launch(kOp, sum_runs_kernel<Stored>, shape, stream, sums);
}

// Calls visit.operator()<T, Stored>().
template <class Visit>
void with_types(const CudaProblem& problem, const Visit& visit) {
  const bool wide_tables = problem.table_dtype == Dtype::float32;
  with_device_type(problem.dtype, [&]<class T>() {
    wide_tables ? visit.template operator()<T, float>() : visit.template operator()<T, T>();
  });
}

int chunk_of(const CudaProblem& problem) {
  return problem.dtype == Dtype::float32 ? kChunk<float> : kChunk<__half>;
}

}  // namespace

void lay_out_chunks(CudaProblem& problem) {
  const int chunk = chunk_of(problem);
  const int64_t bytes = problem.table_dtype == Dtype::float32 ? 4 : 2;
  problem.chunks = 0;
  for (int k = 0; k < problem.count; ++k) {
    CudaColumn& column = problem.columns[k];
    column.first_chunk = problem.chunks;
    problem.chunks += (column.width + chunk - 1) / chunk;
    const uintptr_t address = reinterpret_cast<uintptr_t>(column.table);
    column.aligned = address % kChunkBytes == 0 && column.row_stride * bytes % kChunkBytes == 0 &&
                     (column.column_stride == 1 || column.width <= 1);
  }
}

int depth(const CudaProblem& problem) {
  return problem.chunks * chunk_of(problem);
}

int weight_parts(int64_t events) {
  return parts_of(events, kWeightPartEvents, kMaxWeightParts);
}

int bias_parts(int64_t events) {
  return parts_of(events, kBiasPartEvents, kMaxBiasParts);
}

bool fits_product_loop(const CudaForward& forward) {
  constexpr int64_t kMost = 1 << 30;
  const CudaProblem& problem = forward.problem;
  const int64_t row_bytes = 2 * static_cast<int64_t>(problem.width);
  return problem.dtype != Dtype::float32 && problem.width > 0 && problem.events <= kMost &&
         problem.chunks > 0 && problem.chunks <= kMaxLoopChunks &&
         tile::lies_on_chunks(problem.weight, row_bytes) && tile::lies_on_chunks(forward.output, row_bytes);
}

int product_loop_blocks(const CudaForward& forward) {
  return fits_product_loop(forward) && sm90::is_current_device() ? sm90::multiprocessors() : 0;
}

void launch_forward(const CudaForward& forward, void* stream) {
  if (forward.problem.events == 0 || forward.problem.width == 0) return;
  with_types(forward.problem,
             [&]<class T, class Stored>() { launch_forward_typed<T, Stored>(forward, stream); });
}

void launch_backward(const CudaBackward& backward, void* stream) {
  with_types(backward.problem,
             [&]<class T, class Stored>() { launch_backward_typed<T, Stored>(backward, stream); });
}

void launch_keys(const CudaKeys& keys, void* stream) {
  if (keys.events == 0 || keys.count == 0) return;
  const LaunchShape shape{dim3(blocks(keys.events, kSimpleThreads), static_cast<unsigned>(keys.count)),
                          dim3(kSimpleThreads)};
  launch(kOp, key_kernel, shape, stream, keys);
}

int64_t counted_chunks(int64_t events) {
  return (events + kCountedEvents - 1) / kCountedEvents;
}

void lay_out_counts(CudaCounts& counts) {
  const CudaKeys& keys = counts.keys;
  counts.lines_in_all = 0;
  for (int first = 0, last = 0; first < keys.count; first = last) {
    while (last < keys.count && keys.first_keys[last] == keys.first_keys[first]) ++last;
    for (int c = first; c < last; ++c) {
      counts.lines[c] = counts.lines_in_all + c - first;
      counts.readers[c] = last - first;
    }
    counts.lines_in_all += (keys.table_rows[first] + 1) * (last - first);
  }
}

static LaunchShape counted_shape(const CudaCounts& counts) {
  return {dim3(static_cast<unsigned>(counted_chunks(counts.keys.events)),
               static_cast<unsigned>(counts.keys.count)),
          dim3(kCountWarps * kWarpSize)};
}

void launch_counts(const CudaCounts& counts, void* stream) {
  if (counts.keys.events == 0 || counts.keys.count == 0) return;
  launch(kOp, count_kernel, counted_shape(counts), stream, counts);
}

void launch_places(const CudaCounts& counts, void* stream) {
  if (counts.keys.events == 0 || counts.keys.count == 0) return;
  launch(kOp, place_kernel, counted_shape(counts), stream, counts);
}

void launch_leaders(const int32_t* keys, int64_t count, int32_t first_key, int64_t* leaders, void* stream) {
  if (count == 0) return;
  const LaunchShape shape{dim3(blocks(count, kSimpleThreads)), dim3(kSimpleThreads)};
  launch(kOp, leader_kernel, shape, stream, keys, count, first_key, leaders);
}

void launch_row_sums(const CudaRowSums& sums, void* stream) {
  if (sums.count == 0) return;
  with_device_type(sums.dtype, [&]<class T>() { launch_row_sums_typed<T>(sums, stream); });
}

}  // namespace argus::triple_embedding
