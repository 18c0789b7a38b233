// Sampled softmax with logQ correction over N rows and M candidates of width D; the N × M scores are never
// stored.
//
//   r_nm = scale · (⟨q_n, c_m⟩ − ⟨q_n, p_n⟩) − log_q[m], left out if the candidate is the positive or belongs
//   to the row's owner standard: L = log(e^{−positive_log_q} + Σ_m e^r), Z = L                     loss = w ·
//   L refined:  Z = log Σ_m e^r, L = Z + log(1 − Q⁺) − log K                       loss = w · σ(L) · L
//
// and lse = L + scale · ⟨q, p⟩. L and Z are the statistics that the backward pass starts from: a candidate's
// share of the denominator is e^{r − Z}.
#pragma once

#include <cstdint>

#include "common/torch/dtype.h"

namespace argus::sampled_softmax_loss {

// Statistics are float32, or float64 if dtype is. All arrays are contiguous; null if not given.
struct Inputs {
  const void* query;               // [rows, width], dtype
  const void* positive;            // [rows, width], dtype
  const void* candidates;          // [drawn, width], dtype
  const int64_t* positive_ids;     // [rows]
  const int64_t* candidate_ids;    // [drawn]
  const void* log_q;               // [drawn], statistics
  const void* positive_log_q;      // [rows], statistics, or null
  const void* scale;               // one number, statistics
  const void* row_weight;          // [rows], statistics, or null
  const int64_t* query_owner;      // [rows], or null
  const int64_t* candidate_owner;  // [drawn], or null
  int64_t rows;
  int64_t drawn;
  int64_t width;
  Dtype dtype;
  bool refined;
};

struct Outputs {
  void* loss;        // [rows], statistics
  void* lse;         // [rows], statistics
  void* statistics;  // [2, rows]: L, Z
};

struct Gradients {
  const void* d_loss;      // [rows], statistics
  const void* d_lse;       // [rows], statistics
  const void* statistics;  // [2, rows]: L, Z
  // Null where not wanted.
  void* d_query;       // [rows, width], dtype
  void* d_positive;    // [rows, width], dtype
  void* d_candidates;  // [drawn, width], dtype
  void* d_scale;       // one number, statistics
};

// On the CPU, on torch's threads; the bits are the same for any number of them.
void forward_cpu(const Inputs& inputs, const Outputs& outputs);
void backward_cpu(const Inputs& inputs, const Gradients& gradients);
// Both passes in three products instead of four; losses.statistics and gradients.statistics share memory.
void forward_and_backward_cpu(const Inputs& inputs, const Outputs& losses, const Gradients& gradients);

}  // namespace argus::sampled_softmax_loss
