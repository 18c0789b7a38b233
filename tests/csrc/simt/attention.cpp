// The launchers of causal_attention and hstu_attention on host memory, for ctypes.
#include <algorithm>

#include "attention/cuda/launch.cuh"
#include "attention_on_host.h"
#include "causal_attention/causal_attention.h"
#include "hstu_attention/hstu_attention.h"

namespace {

using namespace attention_on_host;

void backward(Backward call, BackwardLauncher launch) {
  Device device;
  const Arguments given = call.given;
  const int64_t statistics = given.rows * given.heads;
  const int64_t blocks = argus::attention::most_blocks(given.rows, given.users);
  device.heads("d_out", call.d_out, given, given.rows, given.heads);
  device.dense("out", call.out, given);
  device.floats("log_sum_exp", call.log_sum_exp, statistics);
  device.floats("d_log_sum_exp", call.d_log_sum_exp, statistics);
  device.dense_result("d_q", call.d_q, given);
  device.key_result("d_k", call.d_k, given);
  device.key_result("d_v", call.d_v, given);
  device.float_results("d_position_bias", call.d_position_bias, int64_t{given.heads} * given.positions);
  device.float_results("d_time_bias", call.d_time_bias, int64_t{given.heads} * given.times);
  device.results("delta", call.delta, statistics);
  device.results("correction", call.correction, statistics);
  device.results("reach", call.reach, argus::attention::kReachNumbers * blocks);
  device.results("table_parts", call.table_parts, blocks * given.heads * (given.positions + given.times));
  device.arguments(call.given);
  launch(call, nullptr);
  device.copy_back();
}

}  // namespace

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

// Dynamic shared memory of the hungriest kernel for heads of `width`, with tables as large as they may be.
ARGUS_EXPORT int64_t most_shared_bytes(int dtype, int width) {
  static const float table = 0.0f;
  Backward call{};
  call.given.dtype = static_cast<Dtype>(dtype);
  call.given.width = width;
  call.given.position_bias = call.given.time_bias = &table;
  call.given.positions = argus::attention::kMaxPositions;
  call.given.times = argus::kTimeBuckets;
  float gradient = 0.0f;
  call.d_time_bias = &gradient;
  size_t most = 0;
  // Dropout needs the general mask.
  static const int64_t seed = 0;
  for (const int64_t* dropout_seed : {static_cast<const int64_t*>(nullptr), &seed}) {
    call.given.dropout_seed = dropout_seed;
    argus::attention::with_kernel(call.given, [&]<class Mask, class T, int kWidth>() {
      most = std::max({most, argus::attention::ForwardSmem<Mask, T, kWidth>::bytes(call.given),
                       argus::attention::QuerySmem<Mask, T, kWidth>::bytes(call),
                       argus::attention::KeySmem<Mask, T, kWidth>::bytes(call)});
    });
  }
  return static_cast<int64_t>(most);
}
