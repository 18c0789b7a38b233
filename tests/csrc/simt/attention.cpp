// The launchers of causal_attention and hstu_attention on host memory, for ctypes.
#include <algorithm>

#include "attention/cuda/launch.cuh"
#include "attention_on_host.h"
#include "causal_attention/causal_attention.h"
#include "causal_attention/causal_attention_kernels.cuh"
#include "hstu_attention/hstu_attention.h"
#include "hstu_attention/hstu_attention_kernels.cuh"

using namespace attention_on_host;

ARGUS_EXPORT void causal_attention_on_host(const Forward* call, uint64_t seed, char* report, size_t bytes) {
  on_host::run(seed, report, bytes, [&] { forward(*call, argus::causal_attention::launch_forward); });
}
ARGUS_EXPORT void causal_attention_backward_on_host(const Backward* call, uint64_t seed, char* report,
                                                    size_t bytes) {
  on_host::run(seed, report, bytes, [&] { backward(*call, argus::causal_attention::launch_backward); });
}
ARGUS_EXPORT void hstu_attention_on_host(const Forward* call, uint64_t seed, char* report, size_t bytes) {
  on_host::run(seed, report, bytes, [&] { forward(*call, argus::hstu_attention::launch_forward); });
}
ARGUS_EXPORT void hstu_attention_backward_on_host(const Backward* call, uint64_t seed, char* report,
                                                  size_t bytes) {
  on_host::run(seed, report, bytes, [&] { backward(*call, argus::hstu_attention::launch_backward); });
}

ARGUS_EXPORT int64_t most_blocks(int64_t rows, int64_t users) {
  return argus::attention::most_blocks(rows, users);
}

// Calls visit(call) with tables as large as they may be, for each mask.
template <class Visit>
static void with_largest_tables(int dtype, int width, const Visit& visit) {
  static const float table = 0.0f;
  // Dropout needs the general mask.
  static const int64_t seed = 0;
  float gradient = 0.0f;
  Backward call{};
  call.given.dtype = static_cast<Dtype>(dtype);
  call.given.width = width;
  call.given.position_bias = call.given.time_bias = &table;
  call.given.positions = argus::attention::kMaxPositions;
  call.given.times = argus::kTimeBuckets;
  call.d_time_bias = &gradient;
  for (const int64_t* dropout_seed : {static_cast<const int64_t*>(nullptr), &seed}) {
    call.given.dropout_seed = dropout_seed;
    visit(call);
  }
}

// Dynamic shared memory of the hungriest kernel for heads of `width`, with tables as large as they may be.
ARGUS_EXPORT int64_t most_shared_bytes(int dtype, int width) {
  size_t most = 0;
  with_largest_tables(dtype, width, [&](const Backward& call) {
    argus::attention::with_kernel(call.given, [&]<class Mask, class T, int kWidth>() {
      most = std::max({most, argus::attention::ForwardSmem<Mask, T, kWidth>::bytes(call.given),
                       argus::attention::QuerySmem<Mask, T, kWidth>::bytes(call),
                       argus::attention::KeySmem<Mask, T, kWidth>::bytes(call)});
    });
  });
  return static_cast<int64_t>(most);
}

// Static and dynamic shared memory of the hungrier loop of sm_90, likewise.
template <class Weights>
static size_t loop_bytes(const Backward& call) {
  size_t most = 0;
  argus::attention::with_loop_kind<Weights>(call.given, [&]<class Kind>() {
    using ForwardPass = argus::attention::ForwardLoop<Kind>;
    using BackwardPass = argus::attention::BackwardLoop<Kind>;
    most = std::max(sizeof(typename ForwardPass::Smem) + ForwardPass::shared_bytes(call.given),
                    sizeof(typename BackwardPass::Smem) + BackwardPass::shared_bytes(call.given));
  });
  return most;
}

ARGUS_EXPORT int64_t most_loop_bytes(int dtype, int width) {
  size_t most = 0;
  with_largest_tables(dtype, width, [&](Backward call) {
    for (int tables = 0; tables < 2; ++tables) {
      most = std::max({most, loop_bytes<argus::causal_attention::Softmax>(call),
                       loop_bytes<argus::hstu_attention::Silu>(call)});
      // Without tables a loop may have larger tiles.
      call.given.position_bias = call.given.time_bias = nullptr;
    }
  });
  return static_cast<int64_t>(most);
}
