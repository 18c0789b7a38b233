// Launches the kernels of attention over histories for a weight policy, an element type and a head width.
// Grid sizes depend only on the numbers of rows and users: the host does not wait for the GPU.
#pragma once

#include "attention/cuda/backward.cuh"
#include "attention/cuda/causal_mask.cuh"
#include "attention/cuda/forward.cuh"
#include "attention/cuda/general_mask.cuh"
#include "attention/cuda/query_launch.cuh"
#include "attention/cuda/sm90/launch.cuh"
#include "common/cuda/stored_type.cuh"

namespace argus::attention {

// Calls run.template operator()<T, kWidth>() for the arguments' type and the narrowest kernel that holds
// their heads.
template <class T, class Run>
void with_width(const Arguments& given, Run run) {
  if (given.width <= 64) return run.template operator()<T, 64>();
  if (given.width <= 128) return run.template operator()<T, 128>();
  run.template operator()<T, 256>();
}

// Calls run.template operator()<Mask, T, kWidth>().
template <class Run>
void with_kernel(const Arguments& given, Run run) {
  with_device_type(given.dtype, [&]<class T>() {
    with_width<T>(given, [&]<class, int kWidth>() {
      if (given.causal()) return run.template operator()<CausalMask, T, kWidth>();
      run.template operator()<GeneralMask, T, kWidth>();
    });
  });
}

template <class Weights>
void launch_forward(const char* op, const Forward& call, void* stream) {
  const Arguments& given = call.given;
  if (given.heads == 0) return;
  if constexpr (sm90::kInLibrary) {
    if (fits_loops<Weights>(given) && sm90::is_current_device())
      return launch_forward_loop<Weights>(op, call, stream);
  }
  with_kernel(given, [&]<class Mask, class T, int kWidth>() {
    using Smem = ForwardSmem<Mask, T, kWidth>;
    launch(op, forward_kernel<Weights, Mask, T, kWidth>,
           shape_of<Smem::kShape.rows>(queries_in(given), given.heads, Smem::kShape, Smem::bytes(given),
                                       kWidth / Smem::kPart),
           stream, call);
  });
}

// Where this is not 0, the backward pass runs on TMA and wgmma and takes as much.
template <class Weights>
LoopScratch backward_scratch(const Backward& call) {
  if constexpr (sm90::kInLibrary) {
    if (call.given.heads > 0 && fits_loops<Weights>(call.given) && sm90::is_current_device())
      return loop_scratch<Weights>(call);
  }
  return {};
}

template <class Weights>
void launch_backward(const char* op, const Backward& call, void* stream) {
  const Arguments& given = call.given;
  if (given.heads == 0) return;
  if constexpr (sm90::kInLibrary) {
    if (call.turns != nullptr) return launch_backward_loop<Weights>(op, call, stream);
  }
  with_kernel(given, [&]<class Mask, class T, int kWidth>() {
    using Key = KeySmem<Mask, T, kWidth>;
    launch(op, query_gradient_kernel<Weights, Mask, T, kWidth>, query_launch<Mask, T, kWidth>(call), stream,
           call);
    launch(op, key_gradient_kernel<Weights, Mask, T, kWidth>,
           shape_of<Key::kShape.rows>(keys_in(given), given.key_heads, Key::kShape, Key::bytes(call),
                                      kWidth / Key::kPart),
           stream, call);
    if (wants_tables(call)) launch_table_sums<Weights, Mask, T, kWidth>(op, call, stream);
  });
}

}  // namespace argus::attention
