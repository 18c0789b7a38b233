// The second kernel of the backward pass: a block of threads takes a block of one user's keys and one head,
// and loops over the blocks of queries that see any of them. It computes the transposed scores k · q, so that
// the sums of d_k and d_v stay in the registers of the warp that owns the keys; d_out · out and the
// statistics of each query come from memory. Heads wider than 128 are done in parts, each of which computes
// the scores again. Where query heads share the key head, their gradients are summed in the order of heads.
#pragma once

#include "attention/cuda/query_gradient.cuh"

namespace argus::attention {

// Offsets in a block's shared memory, in bytes.
template <class Mask, class T, int kWidth>
struct KeySmem {
  static constexpr Shape kShape = key_shape(sizeof(T), kWidth, Mask::kGeneral);
  using Rows = RowSmem<kShape.warps, kShape.row_tiles>;
  static constexpr int kPart = key_part(sizeof(T), kWidth);
  using Keys =
      typename Mask::template Keys<kShape.warp_rows, kShape.columns, query_shape(sizeof(T), kWidth).rows>;
  static constexpr int kRowBytes = kWidth * static_cast<int>(sizeof(T));
  static constexpr int kStage = kShape.columns * kRowBytes;
  static constexpr int kNumbers = kShape.columns * 4;  // bytes of one number per query
  static constexpr int kK = 0;
  static constexpr int kV = kK + kShape.rows * kRowBytes;
  static constexpr int kQ = kV + kShape.rows * kRowBytes;
  static constexpr int kDOut = kQ + 2 * kStage;
  static constexpr int kLogSumExp = kDOut + 2 * kStage;
  static constexpr int kDelta = kLogSumExp + 2 * kNumbers;
  static constexpr int kCorrection = kDelta + 2 * kNumbers;
  static constexpr int kMask = kCorrection + 2 * kNumbers;
  static constexpr int kTime = kMask + static_cast<int>(sizeof(typename Keys::Room));
  static constexpr int kRows = kTime + 4 * kNumbers;
  static constexpr int kBias = kRows + static_cast<int>(sizeof(Rows));

  static size_t bytes(const Backward& call) {
    return static_cast<size_t>(kBias + BiasSmem(call.given).bytes);
  }
};

// Weights that are divided by a long history's length may be no normal numbers of half.
template <class T>
constexpr bool kDividesLate = std::is_same_v<T, __half>;

template <class Weights, class T>
ARGUS_DEVICE void differentiate(const Weights& weights, float& score, float& gradient,
                                const RowStatistics& row, T) {
  if constexpr (kDividesLate<T>) {
    weights.differentiate_undivided(score, gradient, row, T{});
  } else {
    weights.differentiate(score, gradient, row, T{});
  }
}

// A block of queries of one head.
struct Step {
  int index, head;
};

template <class Weights, class Mask, class T, int kWidth>
__global__ void __launch_bounds__(key_shape(sizeof(T), kWidth, Mask::kGeneral).threads, 1)
    key_gradient_kernel(const __grid_constant__ Backward call) {
  using Smem = KeySmem<Mask, T, kWidth>;
  constexpr Shape kShape = Smem::kShape;
  constexpr int kThreads = kShape.threads, kQueries = kShape.columns, kWarpRows = kShape.warp_rows;
  constexpr int kRowTiles = kShape.row_tiles, kTiles = kQueries / 8, kPart = Smem::kPart;
  constexpr bool kCorrected = Weights::kNormalised && sizeof(T) == 4;
  ARGUS_DYNAMIC_SHARED(unsigned char, room);
  const Arguments& given = call.given;
  const int key_head = static_cast<int>(blockIdx.y), part = static_cast<int>(blockIdx.z) * kPart;
  // The first keys of a user are seen by the most queries.
  const Block block = find_block<kShape.rows>(keys_in(given), static_cast<int>(blockIdx.x));
  if (block.rows == 0) return;
  const Target<T> d_k_target = key_target_of<T>(call.d_k, given, block.begin, key_head);
  const Target<T> d_v_target = key_target_of<T>(call.d_v, given, block.begin, key_head);
  if (block.padding) {
    if (part > 0) return;
    zero_rows<T, kThreads>(d_k_target, block);
    zero_rows<T, kThreads>(d_v_target, block);
    return;
  }

  const int warp = warp_index(), first = block.first + warp * kWarpRows;
  const auto tile_of = [&](int base, int stage) {
    return reinterpret_cast<T*>(room + base + stage * Smem::kStage);
  };
  const auto numbers_of = [&](int base, int stage) {
    return reinterpret_cast<float*>(room + base) + stage * kQueries;
  };
  const auto times_of = [&](int stage) {
    return reinterpret_cast<int64_t*>(room + Smem::kTime) + stage * kQueries;
  };
  const typename Smem::Keys keys(call, block,
                                 *reinterpret_cast<typename Smem::Keys::Room*>(room + Smem::kMask));
  const auto load = [&](int stage, const Step& step) {
    const Side& queries = keys.queries();
    const int begin = step.index * kQueries, length = queries.length;
    const int64_t statistics = step.head * given.rows + queries.begin;
    tile::copy_async<T, kWidth, kQueries, kThreads>(
        tile_of(Smem::kQ, stage), source_of<T>(given.q, given, queries.begin, step.head), begin, length);
    tile::copy_async<T, kWidth, kQueries, kThreads>(tile_of(Smem::kDOut, stage),
                                                    source_of<T>(call.d_out, given, queries.begin, step.head),
                                                    begin, length);
    if constexpr (Weights::kNormalised) {
      copy_column<kQueries, kThreads>(numbers_of(Smem::kLogSumExp, stage),
                                      floats(call.log_sum_exp) + statistics, begin, length);
      copy_column<kQueries, kThreads>(numbers_of(Smem::kDelta, stage), call.delta + statistics, begin,
                                      length);
    }
    if constexpr (kCorrected)
      copy_column<kQueries, kThreads>(numbers_of(Smem::kCorrection, stage), call.correction + statistics,
                                      begin, length);
    keys.load(stage, begin, BlockColumns<kThreads>{});
    if (given.time_bias != nullptr)
      copy_column<kQueries, kThreads>(times_of(stage), given.query_time + queries.begin, begin, length);
    ptx::cp_async_commit();
  };

  tile::copy_async<T, kWidth, kShape.rows, kThreads>(
      tile_of(Smem::kK, 0), source_of<T>(given.k, given, block.begin, key_head), block.first, block.length);
  tile::copy_async<T, kWidth, kShape.rows, kThreads>(
      tile_of(Smem::kV, 0), source_of<T>(given.v, given, block.begin, key_head), block.first, block.length);
  const auto rows = load_rows<Mask, kShape.warps, kRowTiles>(
      given, {}, given.key_time, block, first, *reinterpret_cast<typename Smem::Rows*>(room + Smem::kRows));
  const Step begin{keys.begin, Mask::first_head(given, key_head)};
  const auto after = [&](Step step) {
    step.index = keys.next(step.index);
    if constexpr (Mask::kGeneral) {
      if (!keys.has(step.index) && ++step.head < Mask::last_head(given, key_head)) step.index = keys.begin;
    }
    return step;
  };
  if (keys.has(begin.index)) {
    load(0, begin);
  } else {
    finish_copies();
  }
  const Bias bias = load_bias<kThreads>(given, begin.head, Weights::kFactor, room + Smem::kBias);
  Dropout dropout(given, block.user, begin.head);
  const float scale = static_cast<float>(given.scale) * Weights::kFactor;

  const Weights weights(given);
  float d_k[kRowTiles][kPart / 8][4], d_v[kRowTiles][kPart / 8][4];
  tile::clear(d_k);
  tile::clear(d_v);
  int stage = 0;
  for (Step step = begin, next; keys.has(step.index); step = next, stage ^= 1) {
    next = after(step);
    ptx::cp_async_wait<0>();
    __syncthreads();
    if (keys.has(next.index)) load(stage ^ 1, next);
    if constexpr (Mask::kGeneral) {
      if (step.index == begin.index && step.head != begin.head) {
        load_bias<kThreads>(given, step.head, Weights::kFactor, room + Smem::kBias);
        dropout = Dropout(given, block.user, step.head);
        __syncthreads();
      }
    }
    const Cover cover = keys.cover(step.index, first);
    if (cover.none) continue;
    const ColumnSide<Mask> columns{step.index * kQueries, keys.queries().length,
                                   keys.columns(stage, step.index), times_of(stage)};

    float scores[kRowTiles][kTiles][4], gradients[kRowTiles][kTiles][4];
    tile::clear(scores);
    tile::clear(gradients);
    const int own = warp * kWarpRows * kWidth;
    tile::add_rows_product<T, kWidth>(scores, tile_of(Smem::kK, 0) + own, tile_of(Smem::kQ, stage));
    add_bias<false>(scores, scale, bias, rows, columns, KeepNothing{});
    if (!cover.all) hide<false>(scores, Weights::kHidden, given.window, rows, columns);
    tile::add_rows_product<T, kWidth>(gradients, tile_of(Smem::kV, 0) + own, tile_of(Smem::kDOut, stage));
    PairBits<kRowTiles, kTiles> dropped;
    if constexpr (Mask::kGeneral) {
      if (dropout.drops()) dropped = dropped_columns<kTiles>(dropout, rows, columns);
    }
    for_each(scores, [&](float& score, int r, int n, int i) {
      RowStatistics row{0.0f, 0.0f, 1.0f};
      const int column = column_within(n, i);
      if constexpr (Weights::kNormalised)
        row = {numbers_of(Smem::kLogSumExp, stage)[column], numbers_of(Smem::kDelta, stage)[column], 1.0f};
      if constexpr (kCorrected) row.correction = numbers_of(Smem::kCorrection, stage)[column];
      if constexpr (Mask::kGeneral) {
        // A query that sees nothing has weights of 0.
        if (row.log_sum_exp == -INFINITY) row.log_sum_exp = INFINITY;
        const float factor = dropout.factor(dropped(r, n, i));
        gradients[r][n][i] *= factor;
        differentiate(weights, score, gradients[r][n][i], row, T{});
        score *= factor;
      } else {
        differentiate(weights, score, gradients[r][n][i], row, T{});
      }
    });
    tile::add_columns_product<T, kWidth>(d_v, scores, tile_of(Smem::kDOut, stage) + part);
    tile::add_columns_product<T, kWidth>(d_k, gradients, tile_of(Smem::kQ, stage) + part);
  }

  float factor[kRowTiles][2];
  const auto store = [&](const Target<T>& target, int base, const auto& sums, float by) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) factor[r][0] = factor[r][1] = by;
    return store_rows(target, tile_of(base, 0) + warp * kWarpRows * kWidth, sums, factor, first, block.length,
                      part);
  };
  const float divided = kDividesLate<T> ? weights.gradient_factor() : 1.0f;
  const bool nan_k = store(d_k_target, Smem::kK, d_k, static_cast<float>(given.scale) * divided);
  const bool nan_v = store(d_v_target, Smem::kV, d_v, divided);
  // Both masks have the same rows.
  using Grid = careful::KeyGrid<KeyTiles<sizeof(T), kWidth, true>>;
  if (nan_k || nan_v) careful::key_gradient_rows<Weights, T, Grid>(call, room + Smem::kBias);
}

}  // namespace argus::attention
