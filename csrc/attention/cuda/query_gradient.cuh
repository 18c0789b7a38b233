// The first kernel of the backward pass: a block of threads takes a block of one user's queries and one head,
// and loops over the blocks of keys that these queries may see, as the forward pass does. It recomputes the
// weights and writes d_q, its part of the bias tables' gradients, and what the second kernel needs: each
// query's delta, and the range of keys that the block's queries see. delta is d_out · out, and weights are
// exp(score − log_sum_exp), where that is exact enough. In float32 the rounding of log_sum_exp would be an
// error of every weight in the row, and the sums of a table's gradients would add up the errors of delta from
// the rounding of 16-bit outputs. In these cases a first walk over the keys sums the weights, which corrects
// them in float32, and computes delta.
//
// Where the backward pass runs on TMA and wgmma, the same code sums the gradients of bias tables alone,
// before it: without d_q, and with delta for the loop that follows.
#pragma once

#include "attention/cuda/careful_rows.cuh"
#include "attention/cuda/dropout.cuh"
#include "attention/cuda/rows.cuh"
#include "attention/cuda/shapes.h"
#include "attention/cuda/tables.cuh"
#include "common/cuda/sm90/capability.cuh"

namespace argus::attention {

// Offsets in a block's shared memory, in bytes.
template <class Mask, class T, int kWidth>
struct QuerySmem {
  static constexpr Shape kShape = query_shape(sizeof(T), kWidth, Mask::kGeneral);
  using Queries = typename Mask::template Queries<kShape.warps, kShape.warp_rows, kShape.columns>;
  using Rows = RowSmem<kShape.warps, kShape.row_tiles>;
  static constexpr int kPart = query_part(sizeof(T), kWidth);
  static constexpr int kRowBytes = kWidth * static_cast<int>(sizeof(T));
  static constexpr int kStage = kShape.columns * kRowBytes;
  static constexpr int kQ = 0;
  static constexpr int kDOut = kQ + kShape.rows * kRowBytes;
  static constexpr int kK = kDOut + kShape.rows * kRowBytes;
  static constexpr int kV = kK + 2 * kStage;
  static constexpr int kTime = kV + 2 * kStage;
  static constexpr int kRows = kTime + 2 * kShape.columns * 8;
  static constexpr int kMask = kRows + static_cast<int>(sizeof(Rows));
  static constexpr int kBias = (kMask + static_cast<int>(sizeof(typename Queries::Room)) + 15) / 16 * 16;

  using Tables = TableGradients<kShape.row_tiles, kShape.columns / 8>;

  static size_t bytes(const Backward& call) {
    const int tables = wants_tables(call) ? kShape.warps * Tables::room_bytes(call.given) : 0;
    return static_cast<size_t>(kBias + BiasSmem(call.given).bytes + tables);
  }
};

// d_out · out − d_log_sum_exp of the lane's rows, 0 of those that see nothing, written for the second kernel;
// the four lanes of a row share its width.
template <class Mask, class T, int kRowTiles>
ARGUS_DEVICE void compute_delta(RowStatistics (&rows)[kRowTiles][2], const Backward& call, const Block& block,
                                int head, int first) {
  constexpr int kChunk = argus::kChunk<T>;
  const Arguments& given = call.given;
  const tile::Source<T> d_out = source_of<T>(call.d_out, given, block.begin, head);
  const T* out = static_cast<const T*>(call.out) + dense_offset(given, block.begin, head);
  const int64_t statistics = head * given.rows + block.begin, stride = dense_offset(given, 1, 0);
  // Read once: nvcc takes the stores below for stores to the arguments, and would not unroll the loop.
  const int width = given.width;
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int place = first + row_within(r, 2 * half);
      float sum = 0.0f;
      for (int column = lane_index() % 4 * kChunk; place < block.length && column < width;
           column += 4 * kChunk) {
        const uint4 left = *reinterpret_cast<const uint4*>(d_out.data + place * d_out.stride + column);
        const uint4 right = *reinterpret_cast<const uint4*>(out + place * stride + column);
        T x[kChunk], y[kChunk];
        memcpy(x, &left, sizeof(x));
        memcpy(y, &right, sizeof(y));
#pragma unroll
        for (int i = 0; i < kChunk; ++i) sum = fmaf(to_float(x[i]), to_float(y[i]), sum);
      }
      sum += __shfl_xor_sync(kFullWarp, sum, 1);
      sum += __shfl_xor_sync(kFullWarp, sum, 2);
      if (place >= block.length) continue;
      const bool nothing = Mask::kGeneral && rows[r][half].log_sum_exp == INFINITY;
      rows[r][half].delta = nothing ? 0.0f : sum - floats(call.d_log_sum_exp)[statistics + place];
      if (lane_index() % 4 == 0) call.delta[statistics + place] = rows[r][half].delta;
    }
  }
}

// The code of kernels for the tables alone is for sm_90a alone.
#if defined(ARGUS_SM90A_CODE)
constexpr bool kHasTableKernels = true;
#else
constexpr bool kHasTableKernels = false;
#endif

// kTablesAlone: nothing of d_q, in heads that are not done in parts. (Two kernels around one function took up
// to seven registers more, and for heads of 256 spilled 32 bytes.)
template <class Weights, class Mask, class T, int kWidth, bool kTablesAlone = false>
__global__ void __launch_bounds__(query_shape(sizeof(T), kWidth).threads, 1)
    query_gradient_kernel(const __grid_constant__ Backward call) {
  using Smem = QuerySmem<Mask, T, kWidth>;
  constexpr Shape kShape = Smem::kShape;
  constexpr int kThreads = kShape.threads, kKeys = kShape.columns, kWarpRows = kShape.warp_rows;
  constexpr int kRowTiles = kShape.row_tiles, kTiles = kKeys / 8;
  static_assert(!kTablesAlone || Smem::kPart == kWidth);
  ARGUS_DYNAMIC_SHARED(unsigned char, room);
  if (kTablesAlone && !kHasTableKernels) return;
  const Arguments& given = call.given;
  const int head = static_cast<int>(blockIdx.y), part = static_cast<int>(blockIdx.z) * Smem::kPart;
  const int block_index = static_cast<int>(gridDim.x - 1 - blockIdx.x);
  const Block block = find_block<kShape.rows>(queries_in(given), block_index);
  // The block of the first part of the head's width does the work that is done once per row.
  const bool leads = part == 0, tables_wanted = kTablesAlone || wants_tables(call),
             sums_tables = leads && tables_wanted;
  const bool two_walks = Weights::kNormalised && (sizeof(T) == 4 || tables_wanted);
  const Target<T> target = target_of<T>(call.d_q, given, block.begin, head);
  if (block.rows == 0 || block.padding) {
    if (!leads) return;
    if (tables_wanted) store_table_part<kShape.warps>(call, nullptr, 0, 0, block_index, head);
    if (!kTablesAlone && block.rows > 0) zero_rows<T, kThreads>(target, block);
    return;
  }

  const int warp = warp_index(), first = block.first + warp * kWarpRows;
  const Side keys = Mask::other_side(given, block, true);
  const int key_head = Mask::key_head(given, head);
  const tile::Source<T> k = source_of<T>(given.k, given, keys.begin, key_head);
  const tile::Source<T> v = source_of<T>(given.v, given, keys.begin, key_head);
  const auto tile_of = [&](int base, int stage) {
    return reinterpret_cast<T*>(room + base + stage * Smem::kStage);
  };
  const auto times_of = [&](int stage) {
    return reinterpret_cast<int64_t*>(room + Smem::kTime) + stage * kKeys;
  };
  const auto load = [&](int stage, int index) {
    const int begin = index * kKeys;
    tile::copy_async<T, kWidth, kKeys, kThreads>(tile_of(Smem::kK, stage), k, begin, keys.length);
    tile::copy_async<T, kWidth, kKeys, kThreads>(tile_of(Smem::kV, stage), v, begin, keys.length);
    if (given.time_bias != nullptr)
      copy_column<kKeys, kThreads>(times_of(stage), given.key_time + keys.begin, begin, keys.length);
    ptx::cp_async_commit();
  };

  tile::copy_async<T, kWidth, kShape.rows, kThreads>(
      tile_of(Smem::kQ, 0), source_of<T>(given.q, given, block.begin, head), block.first, block.length);
  tile::copy_async<T, kWidth, kShape.rows, kThreads>(
      tile_of(Smem::kDOut, 0), source_of<T>(call.d_out, given, block.begin, head), block.first, block.length);
  auto rows = load_rows<Mask, kShape.warps, kRowTiles>(
      given, {}, given.query_time, block, first, *reinterpret_cast<typename Smem::Rows*>(room + Smem::kRows));
  const typename Smem::Queries queries(given, block, keys, first,
                                       *reinterpret_cast<typename Smem::Queries::Room*>(room + Smem::kMask));
  rows.numbers = queries.rows();
  if (!kTablesAlone && head == 0 && leads) queries.store_reach(call, block_index);
  const Bias bias = load_bias<kThreads>(given, head, Weights::kFactor, room + Smem::kBias);
  const float scale = static_cast<float>(given.scale) * Weights::kFactor;
  const int room_floats = Smem::Tables::room_bytes(given) / 4;
  float* const table_rooms = reinterpret_cast<float*>(room + Smem::kBias + BiasSmem(given).bytes);
  typename Smem::Tables tables(given, bias, tables_wanted ? table_rooms + warp * room_floats : nullptr);

  // A row past the history, or one that sees nothing, has weights of 0.
  RowStatistics statistics[kRowTiles][2];
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int place = first + row_within(r, 2 * half);
      statistics[r][half] = {INFINITY, 0.0f, 1.0f};
      if (Weights::kNormalised && place < block.length) {
        const float log_sum_exp = floats(call.log_sum_exp)[head * given.rows + block.begin + place];
        if (!Mask::kGeneral || log_sum_exp != -INFINITY) statistics[r][half].log_sum_exp = log_sum_exp;
      }
    }
  }
  if constexpr (Weights::kNormalised && sizeof(T) == 2) {
    if (!two_walks) compute_delta<Mask, T>(statistics, call, block, head, first);
  }

  const Dropout dropout(given, block.user, head);
  const Weights weights(given);
  // visit(scores, gradients of weights, …) for every block of keys.
  const auto walk = [&](auto visit) {
    if (Mask::kGeneral && !queries.has(queries.begin)) return finish_copies();
    load(0, queries.begin);
    int stage = 0;
    for (int index = queries.begin, next; queries.has(index); index = next, stage ^= 1) {
      next = queries.next(index);
      ptx::cp_async_wait<0>();
      __syncthreads();
      if (queries.has(next)) load(stage ^ 1, next);
      const ColumnSide<Mask> columns{index * kKeys, keys.length, {}, times_of(stage)};
      const Cover cover = queries.cover(columns.first);
      if (cover.none) continue;

      float scores[kRowTiles][kTiles][4], gradients[kRowTiles][kTiles][4];
      tile::clear(scores);
      tile::clear(gradients);
      const int own = warp * kWarpRows * kWidth;
      tile::add_rows_product<T, kWidth>(scores, tile_of(Smem::kQ, 0) + own, tile_of(Smem::kK, stage));
      const SharedEntries shared =
          add_bias<true>(scores, scale, bias, rows, columns,
                         [&](int r, int n, int i, int bucket) { tables.keep(r, n, i, bucket); });
      if (!cover.all) hide<true>(scores, Weights::kHidden, given.window, rows, columns);
      tile::add_rows_product<T, kWidth>(gradients, tile_of(Smem::kDOut, 0) + own, tile_of(Smem::kV, stage));
      if constexpr (Mask::kGeneral) {
        if (dropout.drops()) {
          const auto dropped = dropped_rows<kTiles>(dropout, rows, columns);
          for_each(gradients, [&](float& gradient, int r, int n, int i) {
            gradient *= dropout.factor(dropped(r, n, i));
          });
        }
      }
      visit(scores, gradients, shared, columns, stage);
    }
  };

  if constexpr (Weights::kNormalised) {
    if (two_walks) {
      float total[kRowTiles][2] = {}, product[kRowTiles][2] = {};
      walk([&](auto& scores, auto& gradients, const SharedEntries&, const ColumnSide<Mask>&, int) {
        for_each(scores, [&](float& score, int r, int n, int i) {
          const float weight = Weights::weight(score, statistics[r][i / 2], T{});
          total[r][i / 2] += weight;
          product[r][i / 2] = fmaf(weight, gradients[r][n][i], product[r][i / 2]);
        });
      });
      __syncthreads();
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float sum = Weights::row_sum(total[r][half]), dot = Weights::row_sum(product[r][half]);
          const int place = first + row_within(r, 2 * half);
          if (place >= block.length) continue;
          const int64_t at = head * given.rows + block.begin + place;
          RowStatistics& row = statistics[r][half];
          row.correction = 1.0f / sum;
          row.delta = dot * row.correction - floats(call.d_log_sum_exp)[at];
          if (Mask::kGeneral && row.log_sum_exp == INFINITY) row.correction = 1.0f, row.delta = 0.0f;
          if (!leads || lane_index() % 4 > 0) continue;
          if constexpr (sizeof(T) == 4) call.correction[at] = row.correction;
          call.delta[at] = row.delta;
        }
      }
    }
  }

  [[maybe_unused]] float d_q[kRowTiles][Smem::kPart / 8][4];
  if constexpr (!kTablesAlone) tile::clear(d_q);
  walk([&](auto& scores, auto& gradients, const SharedEntries& shared, const ColumnSide<Mask>& columns,
           int stage) {
    for_each(scores, [&](float& score, int r, int n, int i) {
      weights.differentiate(score, gradients[r][n][i], statistics[r][i / 2], T{});
    });
    if (sums_tables) tables.add(gradients, shared, rows, columns);
    if constexpr (!kTablesAlone)
      tile::add_columns_product<T, kWidth>(d_q, gradients, tile_of(Smem::kK, stage) + part);
  });

  bool nan = false;
  if constexpr (!kTablesAlone) {
    float factor[kRowTiles][2];
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) factor[r][0] = factor[r][1] = static_cast<float>(given.scale);
    nan = store_rows(target, tile_of(Smem::kQ, 0) + warp * kWarpRows * kWidth, d_q, factor, first,
                     block.length, part);
  } else if constexpr (Weights::kNormalised) {
    // A delta of NaN would have made its row of d_q NaN.
    for (const auto& halves : statistics)
      for (const RowStatistics& row : halves) nan = nan || is_nan(row.delta);
    nan = __any_sync(kFullWarp, nan) != 0;
  }
  bool table_nan = false;
  if (sums_tables) {
    tables.finish();
    __syncthreads();
    table_nan = store_table_part<kShape.warps>(call, table_rooms, room_floats, Smem::Tables::kPairs,
                                               block_index, head);
  }
  using Grid = careful::QueryGrid<QueryTiles<sizeof(T), kWidth>>;
  if constexpr (!kTablesAlone) {
    if (nan) careful::query_gradient_rows<Weights, T, Grid>(call, room + Smem::kBias);
  } else if constexpr (Weights::kNormalised) {
    if (nan) careful::delta_rows<Weights, T, Grid>(call, room + Smem::kBias);
  }
  if (!sums_tables || !__syncthreads_or(table_nan)) return;
  careful::add_table_part<Weights, T, kWidth>(call, room + Smem::kBias);
}

}  // namespace argus::attention
