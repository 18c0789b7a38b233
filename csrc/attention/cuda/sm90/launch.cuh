// Which calls of attention's forward pass run on TMA and wgmma, and their launch.
#pragma once

#include "attention/cuda/causal_mask.cuh"
#include "attention/cuda/general_mask.cuh"
#include "attention/cuda/sm90/forward_loop.cuh"
#include "common/cuda/stored_type.cuh"

namespace argus::attention {

// Nothing here depends on who shares the batch: a user's results would have other bits. The largest score of
// softmax is that of the largest product.
template <class Weights>
bool fits_forward_loop(const Arguments& given) {
  const bool scaled = !Weights::kNormalised || given.scale > 0.0;
  return scaled && given.dtype != Dtype::float32 && given.width <= 128 && given.rows > 0 &&
         given.rows < kLastRow && given.key_rows > 0 && given.key_rows < kLastRow;
}

template <class Kind>
void launch_loop_kernel(const char* op, const Forward& call, void* stream) {
  using Loop = ForwardLoop<Kind>;
  using T = typename Kind::T;
  const Arguments& given = call.given;
  const ForwardMaps maps{
      user_map<T, typename Loop::QueryTile>(given.q, given.heads, given.width),
      user_map<T, typename Loop::KeyTile>(given.k, given.key_heads, given.width),
      user_map<T, typename Loop::ValueTile>(given.v, given.key_heads, given.width),
  };
  const LaunchShape shape{dim3(static_cast<unsigned>(block_count<Loop::kShape.rows>(queries_in(given))),
                               static_cast<unsigned>(given.heads)),
                          dim3(Loop::kThreads), Loop::shared_bytes(given)};
  launch(op, forward_loop_kernel<Kind>, shape, stream, maps, call);
}

// Of a call that fits_forward_loop().
template <class Weights>
void launch_forward_loop(const char* op, const Forward& call, void* stream) {
  const Arguments& given = call.given;
  const auto with_mask = [&]<class T, int kWidth, bool kBiases>() {
    if (given.causal())
      return launch_loop_kernel<LoopKind<Weights, CausalMask, T, kWidth, kBiases>>(op, call, stream);
    launch_loop_kernel<LoopKind<Weights, GeneralMask, T, kWidth, kBiases>>(op, call, stream);
  };
  const auto with_biases = [&]<class T, int kWidth>() {
    if (given.position_bias == nullptr && given.time_bias == nullptr)
      return with_mask.template operator()<T, kWidth, false>();
    with_mask.template operator()<T, kWidth, true>();
  };
  with_device_type(given.dtype, [&]<class T>() {
    if constexpr (sizeof(T) == 2) {
      if (given.width <= 64) return with_biases.template operator()<T, 64>();
      with_biases.template operator()<T, 128>();
    }
  });
}

}  // namespace argus::attention
