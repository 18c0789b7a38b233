// The forward pass of attention over packed histories: a block of threads takes a block of one user's queries
// and one head, and loops over the blocks of keys that these queries may see.
//
// Queries stay in shared memory. Keys and values pass through two stages: cp.async loads the next one while
// the warps work on the current one. Each warp owns 16 or 32 queries: their scores, weights and sums never
// leave its registers, because the score fragments have the layout that the product of weights and values
// takes. The grid starts with the last block of every user, which has the most keys before it.
#pragma once

#include "attention/cuda/careful_rows.cuh"
#include "attention/cuda/dropout.cuh"
#include "attention/cuda/rows.cuh"
#include "attention/cuda/scores.cuh"
#include "attention/cuda/shapes.h"

namespace argus::attention {

// Offsets in a block's shared memory, in bytes.
template <class Mask, class T, int kWidth>
struct ForwardSmem {
  static constexpr Shape kShape = forward_shape(sizeof(T), kWidth);
  using Queries = typename Mask::template Queries<kShape.warps, kShape.warp_rows, kShape.columns>;
  using Rows = RowSmem<kShape.warps, kShape.row_tiles>;
  static constexpr int kPart = forward_part(sizeof(T), kWidth);
  static constexpr int kStage = kShape.columns * kWidth * static_cast<int>(sizeof(T));
  static constexpr int kQ = 0;
  static constexpr int kK = kQ + kShape.rows * kWidth * static_cast<int>(sizeof(T));
  static constexpr int kV = kK + 2 * kStage;
  static constexpr int kTime = kV + 2 * kStage;
  static constexpr int kRows = kTime + 2 * kShape.columns * 8;
  static constexpr int kMask = kRows + static_cast<int>(sizeof(Rows));
  static constexpr int kBias = (kMask + static_cast<int>(sizeof(typename Queries::Room)) + 15) / 16 * 16;

  static size_t bytes(const Arguments& given) { return static_cast<size_t>(kBias + BiasSmem(given).bytes); }
};

template <class Weights, class Mask, class T, int kWidth>
__global__ void __launch_bounds__(forward_shape(sizeof(T), kWidth).threads, 1)
    forward_kernel(const __grid_constant__ Forward call) {
  using Smem = ForwardSmem<Mask, T, kWidth>;
  constexpr Shape kShape = Smem::kShape;
  constexpr int kThreads = kShape.threads, kKeys = kShape.columns, kWarpRows = kShape.warp_rows;
  ARGUS_DYNAMIC_SHARED(unsigned char, room);
  const Arguments& given = call.given;
  const int head = static_cast<int>(blockIdx.y), part = static_cast<int>(blockIdx.z) * Smem::kPart;
  const Block block =
      find_block<kShape.rows>(queries_in(given), static_cast<int>(gridDim.x - 1 - blockIdx.x));
  if (block.rows == 0) return;
  // Pointers to the results are made where they are used: made before the main loop they would hold registers
  // during it.
  const auto log_sum_exp = [&] { return floats(call.log_sum_exp) + head * given.rows + block.begin; };
  if (block.padding) {
    if (part > 0) return;
    zero_rows<T, kThreads>(target_of<T>(call.out, given, block.begin, head), block);
    if constexpr (Weights::kNormalised) {
      for (int i = static_cast<int>(threadIdx.x); i < block.rows; i += kThreads)
        log_sum_exp()[block.first + i] = 0.0f;
    }
    return;
  }

  const int warp = warp_index();
  const Side keys = Mask::other_side(given, block, true);
  const int key_head = Mask::key_head(given, head);
  T* q_tile = reinterpret_cast<T*>(room + Smem::kQ);
  const tile::Source<T> q = source_of<T>(given.q, given, block.begin, head);
  const tile::Source<T> k = source_of<T>(given.k, given, keys.begin, key_head);
  const tile::Source<T> v = source_of<T>(given.v, given, keys.begin, key_head);
  const auto stage_of = [&](int base, int stage) {
    return reinterpret_cast<T*>(room + base + stage * Smem::kStage);
  };
  const auto times_of = [&](int stage) {
    return reinterpret_cast<int64_t*>(room + Smem::kTime) + stage * kKeys;
  };
  const auto load = [&](int stage, int index) {
    const int first = index * kKeys;
    tile::copy_async<T, kWidth, kKeys, kThreads>(stage_of(Smem::kK, stage), k, first, keys.length);
    tile::copy_async<T, kWidth, kKeys, kThreads>(stage_of(Smem::kV, stage), v, first, keys.length);
    if (given.time_bias != nullptr)
      copy_column<kKeys, kThreads>(times_of(stage), given.key_time + keys.begin, first, keys.length);
    ptx::cp_async_commit();
  };

  tile::copy_async<T, kWidth, kShape.rows, kThreads>(q_tile, q, block.first, block.length);
  const int first = block.first + warp * kWarpRows;
  auto rows = load_rows<Mask, kShape.warps, kShape.row_tiles>(
      given, {}, given.query_time, block, first, *reinterpret_cast<typename Smem::Rows*>(room + Smem::kRows));
  const typename Smem::Queries queries(given, block, keys, first,
                                       *reinterpret_cast<typename Smem::Queries::Room*>(room + Smem::kMask));
  rows.numbers = queries.rows();
  // Under the causal mask a query sees itself.
  if (!Mask::kGeneral || queries.has(queries.begin)) {
    load(0, queries.begin);
  } else {
    finish_copies();
  }
  const Bias bias = load_bias<kThreads>(given, head, Weights::kFactor, room + Smem::kBias);
  const float scale = static_cast<float>(given.scale) * Weights::kFactor;

  const Dropout dropout(given, block.user, head);
  const Weights weights(given);
  typename Weights::template Sums<T, kShape.row_tiles> sums;
  float out[kShape.row_tiles][Smem::kPart / 8][4];
  tile::clear(out);
  int stage = 0;
  for (int index = queries.begin, next; queries.has(index); index = next, stage ^= 1) {
    next = queries.next(index);
    ptx::cp_async_wait<0>();
    __syncthreads();
    if (queries.has(next)) load(stage ^ 1, next);
    const ColumnSide<Mask> columns{index * kKeys, keys.length, {}, times_of(stage)};
    const Cover cover = queries.cover(columns.first);
    if (cover.none) continue;

    float scores[kShape.row_tiles][kKeys / 8][4];
    tile::clear(scores);
    tile::add_rows_product<T, kWidth>(scores, q_tile + warp * kWarpRows * kWidth, stage_of(Smem::kK, stage));
    add_bias<true>(scores, scale, bias, rows, columns, KeepNothing{});
    if (!cover.all) hide<true>(scores, Weights::kHidden, given.window, rows, columns);
    weights.weigh(scores, sums, out);
    if constexpr (Mask::kGeneral) {
      if (dropout.drops()) {
        const auto dropped = dropped_rows<kKeys / 8>(dropout, rows, columns);
        for_each(scores,
                 [&](float& score, int r, int n, int i) { score *= dropout.factor(dropped(r, n, i)); });
      }
    }
    tile::add_columns_product<T, kWidth>(out, scores, stage_of(Smem::kV, stage) + part);
  }

  float factor[kShape.row_tiles][2];
#pragma unroll
  for (int r = 0; r < kShape.row_tiles; ++r) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int place = first + row_within(r, 2 * half);
      const float finished = weights.finish(sums, r, half);
      const bool sees = place < block.length && !Mask::sees_nothing(rows.numbers, row_within(r, 2 * half));
      factor[r][half] = sees ? finished : 0.0f;
      if constexpr (Weights::kNormalised) {
        if (place < block.length && part == 0 && lane_index() % 4 == 0)
          log_sum_exp()[place] = weights.log_sum_exp(sums, r, half);
      }
    }
  }
  if (store_rows(target_of<T>(call.out, given, block.begin, head), q_tile + warp * kWarpRows * kWidth, out,
                 factor, first, block.length, part))
    careful::forward_rows<Weights, T, ForwardTiles<sizeof(T), kWidth>>(call, room + Smem::kBias);
}

}  // namespace argus::attention
