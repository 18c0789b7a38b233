// Parameters and launchers of the CUDA kernels of pairwise_loss.
#pragma once

#include <cstdint>

#include "common/torch/dtype.h"

namespace argus::pairwise_loss {

// Events are in the order (user, time); those that can be in no pair (padding, negative grades) come last,
// with user `users`. All pointers are to device memory.
struct CudaParams {
  const void* scores;           // [count], in the user's order
  const int64_t* grades;        // [count], in the user's order
  const int64_t* order;         // [count], the row of the k-th event: a permutation; other values are skipped
  const int64_t* sorted_times;  // [count]
  const int32_t* sorted_users;  // [count]
  int64_t count;
  int64_t window;
  int32_t users;
  Dtype dtype;

  // Scratch: the events in their order, and the begin and end of each one's partners.
  float* sorted_scores;      // [count]
  int64_t* sorted_grades;    // [count]
  int32_t* begin;            // [count]
  int32_t* end;              // [count]
  double* part_loss;         // [cuda_parts(count)]
  int64_t* part_pairs;       // [cuda_parts(count)]
  int64_t* part_concordant;  // [cuda_parts(count)]

  // Forward.
  float* loss;
  int64_t* pairs;
  int64_t* concordant;

  // Backward.
  const float* d_loss;
  void* d_scores;  // [count], the elements that `order` names are written
};

// Events of one block, one per lane.
constexpr int64_t kBlockEvents = 32;

inline int64_t cuda_parts(int64_t count) {
  return (count + kBlockEvents - 1) / kBlockEvents;
}

// Enqueue on `stream`, a cudaStream_t; count ≥ 1.
void launch_forward_cuda(const CudaParams& params, void* stream);
void launch_backward_cuda(const CudaParams& params, void* stream);

}  // namespace argus::pairwise_loss
