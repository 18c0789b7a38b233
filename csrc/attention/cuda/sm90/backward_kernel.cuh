// The kernel around backward_loop.cuh: which warps do what.
#pragma once

#include "attention/cuda/sm90/backward_loop.cuh"

namespace argus::attention {

template <class Kind>
__global__ void __launch_bounds__(BackwardTiles<Kind>::kThreads, 1)
    backward_loop_kernel(const __grid_constant__ BackwardSetup setup, const __grid_constant__ Backward call) {
#if defined(ARGUS_SM90A_CODE)
  using Loop = BackwardLoop<Kind>;
  using Weights = typename Kind::Weights;
  using Mask = typename Kind::Mask;
  using T = typename Kind::T;
  constexpr int kThreads = Loop::kThreads, kConsumerWarps = Loop::Tiles::kConsumerWarps;
  ARGUS_SHARED(typename Loop::Smem, smem, [1]);
  ARGUS_DYNAMIC_SHARED(unsigned char, room);
  const Arguments& given = call.given;
  const careful::Place place = Loop::Grid::place(given);
  const Block& block = place.block;
  if (block.rows == 0) return;
  if (block.padding) {
    zero_rows<T, kThreads>(key_target_of<T>(call.d_k, given, block.begin, place.head), block);
    zero_rows<T, kThreads>(key_target_of<T>(call.d_v, given, block.begin, place.head), block);
    return;
  }
  if (threadIdx.x == 0) smem->init(block);
  const Loop loop{call, setup, *smem, argus::sm90::align_to_pattern(room)};
  const bool consumer = warp_index() < kConsumerWarps;
  if constexpr (Kind::kBiases) {
    // The other warps own no keys.
    const int first = consumer ? block.first + warp_index() * 16 : block.length;
    load_rows<Mask>(given, {}, given.key_time, block, first, smem->times.rows);
    load_bias<kThreads>(given, Mask::first_head(given, place.head), Weights::kFactor,
                        loop.tiles + Loop::kTables);
  }
  const typename Loop::Keys keys(call, block, smem->keys);
  const bool any = keys.has(keys.begin);
  if (!consumer) {
    ptx::decrease_registers<Loop::Tiles::kProducerRegisters>();
    const int role = warp_index() - kConsumerWarps;
    if (any && role == 0) loop.produce(keys, block, place.head);
    if (any && role > 0 && role <= Loop::kAdders) loop.add(keys, block, place.head, role - 1);
    return;
  }
  ptx::increase_registers<Loop::Tiles::kConsumerRegisters>();
  typename Loop::Out d_k, d_v;
  tile::clear(d_k);
  tile::clear(d_v);
  if (any) loop.consume(d_k, d_v);
  if (loop.store(place.head, d_k, d_v))
    careful::key_gradient_rows<Weights, T, typename Loop::Grid>(call, loop.tiles + Loop::kTables);
#endif
}

}  // namespace argus::attention
