// Which calls of attention run on TMA and wgmma, and their launches.
#pragma once

#include "attention/cuda/causal_mask.cuh"
#include "attention/cuda/general_mask.cuh"
#include "attention/cuda/query_launch.cuh"
#include "attention/cuda/sm90/backward_ends.cuh"
#include "attention/cuda/sm90/backward_kernel.cuh"
#include "common/cuda/stored_type.cuh"

namespace argus::attention {

// Nothing here depends on who shares the batch: a user's results would have other bits. The largest score of
// softmax is that of the largest product.
template <class Weights>
bool fits_loops(const Arguments& given) {
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

// Calls run.template operator()<LoopKind<…>>() for arguments that fit a loop.
template <class Weights, class Run>
void with_loop_kind(const Arguments& given, Run run) {
  const auto with_mask = [&]<class T, int kWidth, bool kBiases>() {
    if (given.causal()) return run.template operator()<LoopKind<Weights, CausalMask, T, kWidth, kBiases>>();
    run.template operator()<LoopKind<Weights, GeneralMask, T, kWidth, kBiases>>();
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

// Of a call that fits_loops().
template <class Weights>
void launch_forward_loop(const char* op, const Forward& call, void* stream) {
  with_loop_kind<Weights>(call.given, [&]<class Kind>() { launch_loop_kernel<Kind>(op, call, stream); });
}

// Tiles of d_q for `rows` queries.
template <class Kind>
int64_t query_tiles(const Arguments& given) {
  return block_count<BackwardTiles<Kind>::kQueries>(queries_in(given)) * given.heads;
}

template <class Weights>
LoopScratch loop_scratch(const Backward& call) {
  LoopScratch scratch{};
  with_loop_kind<Weights>(call.given, [&]<class Kind>() {
    const int64_t tiles = query_tiles<Kind>(call.given);
    scratch = {tiles * BackwardTiles<Kind>::kTileFloats, tiles};
  });
  return scratch;
}

template <class Kind>
void launch_backward_kernels(const char* op, const Backward& call, void* stream) {
  using Loop = BackwardLoop<Kind>;
  using T = typename Kind::T;
  using Weights = typename Kind::Weights;
  using Mask = typename Kind::Mask;
  using Finish = BackwardFinish<Kind>;
  const Arguments& given = call.given;
  const auto blocks = static_cast<unsigned>(query_tiles<Kind>(given) / given.heads);
  const auto heads = static_cast<unsigned>(given.heads);
  const bool tables = Kind::kBiases && wants_tables(call);
  if constexpr (Kind::kBiases) {
    if (tables)
      launch(op, query_gradient_kernel<Weights, Mask, T, Kind::kWidth, true>,
             query_launch<Mask, T, Kind::kWidth>(call), stream, call);
  }
  launch(op, backward_preparation_kernel<Kind>,
         {dim3(blocks, heads), dim3(BackwardPreparation<Kind>::kThreads)}, stream, call);
  const BackwardSetup setup{
      user_map<T, typename Loop::QueryRows>(given.q, given.heads, given.width),
      user_map<T, typename Loop::KeyRows>(given.k, given.key_heads, given.width),
      user_map<T, typename Loop::ValueRows>(given.v, given.key_heads, given.width),
      user_map<T, typename Loop::QueryRows>(call.d_out, given.heads, given.width),
      static_cast<float>(given.scale) * Weights::kFactor,
      static_cast<float>(given.kept_factor),
  };
  const int64_t key_blocks = block_count<Loop::kKeys>(keys_in(given)) * given.key_heads;
  LaunchShape shape{dim3(static_cast<unsigned>(key_blocks)), dim3(Loop::kThreads), Loop::shared_bytes(given)};
  shape.in_order = true;
  launch(op, backward_loop_kernel<Kind>, shape, stream, setup, call);
  launch(op, backward_finish_kernel<Kind>,
         {dim3(blocks, heads, Finish::kParts), dim3(Finish::kShape.threads), Finish::shared_bytes(given)},
         stream, call);
  if (tables) launch_table_sums<Weights, Mask, T, Kind::kWidth>(op, call, stream);
}

// Of a call that fits_loops(). The gradients of bias tables stay on mma.sync, in a kernel of their own.
template <class Weights>
void launch_backward_loop(const char* op, const Backward& call, void* stream) {
  with_loop_kind<Weights>(call.given, [&]<class Kind>() { launch_backward_kernels<Kind>(op, call, stream); });
}

}  // namespace argus::attention
