// The kernels before and after that of backward_loop.cuh: what it reads of queries, and d_q from its sums.
#pragma once

#include "attention/cuda/sm90/backward_tiles.cuh"

namespace argus::attention {

constexpr int kNoTurn = -1;  // nothing was added to a tile of d_q

// One of a block of queries and a head: softmax's delta = d_out · out − d_log_sum_exp, 0 where a query sees
// nothing, and what the block sees. Where gradients of bias tables are wanted, their kernel has stored delta.
template <class Kind>
struct BackwardPreparation {
  using Mask = typename Kind::Mask;
  using T = typename Kind::T;
  using Tiles = BackwardTiles<Kind>;
  static constexpr int kQueries = Tiles::kQueries, kWarps = 4, kThreads = 32 * kWarps;
  static constexpr int kWarpRows = kQueries / kWarps;
  static constexpr int kRowLanes = Kind::kWidth / kChunk<T>;  // lanes that share a row
  using Queries = typename Mask::template Queries<kWarps, kWarpRows, Tiles::kKeys>;

  // One of the warp's rows; kRowLanes lanes share it.
  static ARGUS_DEVICE void store_delta(const Backward& call, const Block& block, int head, int place) {
    const Arguments& given = call.given;
    const int column = lane_index() % kRowLanes * kChunk<T>;
    float sum = 0.0f;
    if (place < block.length && column < given.width) {
      const tile::Source<T> d_out = source_of<T>(call.d_out, given, block.begin, head);
      const T* out = static_cast<const T*>(call.out) + dense_offset(given, block.begin + place, head);
      const uint4 left = *reinterpret_cast<const uint4*>(d_out.data + place * d_out.stride + column);
      const uint4 right = *reinterpret_cast<const uint4*>(out + column);
      T x[kChunk<T>], y[kChunk<T>];
      memcpy(x, &left, sizeof(x));
      memcpy(y, &right, sizeof(y));
#pragma unroll
      for (int i = 0; i < kChunk<T>; ++i) sum = fmaf(to_float(x[i]), to_float(y[i]), sum);
    }
#pragma unroll
    for (int lanes = kRowLanes / 2; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(kFullWarp, sum, lanes);
    if (place >= block.length || lane_index() % kRowLanes > 0) return;
    const int64_t at = head * given.rows + block.begin + place;
    const bool nothing = Mask::kGeneral && floats(call.log_sum_exp)[at] == -INFINITY;
    call.delta[at] = nothing ? 0.0f : sum - floats(call.d_log_sum_exp)[at];
  }
};

template <class Kind>
__global__ void __launch_bounds__(BackwardPreparation<Kind>::kThreads)
    backward_preparation_kernel(const __grid_constant__ Backward call) {
#if defined(ARGUS_SM90A_CODE)
  using Preparation = BackwardPreparation<Kind>;
  using Mask = typename Kind::Mask;
  const Arguments& given = call.given;
  const int head = static_cast<int>(blockIdx.y), index = static_cast<int>(blockIdx.x);
  const Block block = find_block<Preparation::kQueries>(queries_in(given), index);
  if (block.rows == 0 || block.padding) return;
  if (threadIdx.x == 0) call.turns[QuerySums<BackwardTiles<Kind>>::tile(call, index, head)] = kNoTurn;
  const int first = block.first + warp_index() * Preparation::kWarpRows;
  if (head == 0 && (Mask::kGeneral || given.visible != nullptr)) {
    ARGUS_SHARED(typename Preparation::Queries::Room, room, [1]);
    const typename Preparation::Queries queries(given, block, Mask::other_side(given, block, true), first,
                                                room[0]);
    queries.store_reach(call, index);
  }
  if (Kind::kBiases && wants_tables(call)) return;
  if constexpr (Kind::Weights::kNormalised) {
    constexpr int kRows = kWarpSize / Preparation::kRowLanes;  // at a time
#pragma unroll 2
    for (int row = 0; row < Preparation::kWarpRows; row += kRows)
      Preparation::store_delta(call, block, head, first + row + lane_index() / Preparation::kRowLanes);
  }
#endif
}

// d_q of a block of queries and a head, or of one part of its columns.
template <class Kind>
struct BackwardFinish {
  using Tiles = BackwardTiles<Kind>;
  using Mask = typename Kind::Mask;
  struct Sizes {
    static constexpr Shape kShape = make_shape(Tiles::kByRows ? 8 : 4, 1, Tiles::kKeys);
    static constexpr int kPart = Tiles::kPartColumns;
  };
  static constexpr Shape kShape = Sizes::kShape;
  static constexpr int kParts = Kind::kWidth / Sizes::kPart;
  static constexpr int kTileBytes = kShape.rows * Sizes::kPart * 2;

  static size_t shared_bytes(const Arguments& given) {
    return static_cast<size_t>(kTileBytes + BiasSmem(given).bytes);
  }
};

template <class Kind>
__global__ void __launch_bounds__(BackwardFinish<Kind>::kShape.threads)
    backward_finish_kernel(const __grid_constant__ Backward call) {
#if defined(ARGUS_SM90A_CODE)
  using Finish = BackwardFinish<Kind>;
  using Weights = typename Kind::Weights;
  using T = typename Kind::T;
  using Sums = QuerySums<BackwardTiles<Kind>>;
  using Grid = careful::QueryGrid<typename Finish::Sizes>;
  constexpr Shape kShape = Finish::kShape;
  constexpr int kPart = Grid::kPart;
  ARGUS_DYNAMIC_SHARED(unsigned char, room);
  const Arguments& given = call.given;
  const careful::Place place = Grid::place(given);
  const Block& block = place.block;
  const Target<T> target = target_of<T>(call.d_q, given, block.begin, place.head);
  if (block.rows == 0) return;
  if (block.padding) {
    if (place.part == 0) zero_rows<T, kShape.threads>(target, block);
    return;
  }
  if constexpr (Kind::kBiases) {
    load_bias<kShape.threads>(given, place.head, Weights::kFactor, room + Finish::kTileBytes);
    __syncthreads();
  }
  const int64_t tile = Sums::tile(call, static_cast<int>(gridDim.x - 1 - blockIdx.x), place.head);
  const int group = Finish::kParts > 1 ? static_cast<int>(blockIdx.z) : warp_index() / 4;
  float sums[1][kPart / 8][4];
  tile::clear(sums);
  if (call.turns[tile] != kNoTurn) {
    const float* from = Sums::of_tile(call, tile) + Sums::place(group);
#pragma unroll
    for (int i = 0; i < Sums::kRegisters; i += 4) {
      const float4 four = *reinterpret_cast<const float4*>(from + Sums::after(i));
      memcpy(flat(sums) + i, &four, sizeof(four));
    }
  }
  const float by = static_cast<float>(given.scale) * Weights(given).gradient_factor();
  const float factor[1][2] = {{by, by}};
  T* own = reinterpret_cast<T*>(room) + warp_index() * kShape.warp_rows * kPart;
  const int first = block.first + warp_index() * kShape.warp_rows;
  if (store_rows(target, own, sums, factor, first, block.length, place.part))
    careful::query_gradient_rows<Weights, T, Grid>(call, room + Finish::kTileBytes);
#endif
}

}  // namespace argus::attention
