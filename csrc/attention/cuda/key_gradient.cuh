// The second kernel of the backward pass: a block of threads takes a block of one user's keys and one head,
// and loops over the blocks of queries that see any of them. It computes the transposed scores k · q, so that
// the sums of d_k and d_v stay in the registers of the warp that owns the keys; d_out · out and the
// statistics of each query come from memory. Heads wider than 128 are done in parts, each of which computes
// the scores again.
#pragma once

#include "attention/cuda/query_gradient.cuh"

namespace argus::attention {

// Offsets in a block's shared memory, in bytes.
template <class T, int kWidth>
struct KeySmem {
  static constexpr Shape kShape = key_shape(sizeof(T), kWidth);
  using Rows = RowSmem<kShape.warps, kShape.row_tiles>;
  static constexpr int kPart = key_part(sizeof(T), kWidth);
  static constexpr int kBoundRows = QuerySmem<T, kWidth>::kShape.rows;
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
  static constexpr int kVisible = kCorrection + 2 * kNumbers;
  static constexpr int kTime = kVisible + 2 * kNumbers;
  static constexpr int kRows = kTime + 4 * kNumbers;
  static constexpr int kBias = kRows + static_cast<int>(sizeof(Rows));

  static size_t bytes(const Backward& call) {
    return static_cast<size_t>(kBias + BiasSmem(call.given).bytes);
  }
};

// The blocks of kQueries queries that a block of keys must visit. An entry of visible_bounds covers
// `kBoundRows` queries.
template <int kQueries, int kBoundRows>
struct QueryBlocks {
  static_assert(kBoundRows % kQueries == 0);
  const int32_t* bounds;  // of the user; null if every event before the query is visible
  int first_key, begin, own_end, end;

  ARGUS_DEVICE QueryBlocks(const Backward& call, const Block& block) {
    const Arguments& given = call.given;
    bounds = nullptr;
    if (given.visible != nullptr)
      bounds = call.visible_bounds + 2 * static_cast<int64_t>(first_block<kBoundRows>(given, block.user));
    first_key = block.first;
    const int last_key = block.first + block.rows - 1;
    const int last =
        given.window > block.length ? block.length - 1 : min(block.length - 1, last_key + given.window - 1);
    own_end = last_key / kQueries + 1;
    end = last / kQueries + 1;
    begin = skip(first_key / kQueries);
  }
  ARGUS_DEVICE int skip(int index) const {
    while (bounds != nullptr && index >= own_end && index < end && reach(index).none_sees <= first_key)
      ++index;
    return index;
  }
  ARGUS_DEVICE int next(int index) const { return skip(index + 1); }

  ARGUS_DEVICE Reach reach(int index) const {
    if (bounds == nullptr) return {index * kQueries + 1, kNoWindow};
    const int entry = index * kQueries / kBoundRows;
    return {bounds[2 * entry], bounds[2 * entry + 1]};
  }
};

template <class Weights, class T, int kWidth>
__global__ void __launch_bounds__(key_shape(sizeof(T), kWidth).threads, 1)
    key_gradient_kernel(const __grid_constant__ Backward call) {
  using Smem = KeySmem<T, kWidth>;
  constexpr Shape kShape = Smem::kShape;
  constexpr int kThreads = kShape.threads, kQueries = kShape.columns, kWarpRows = kShape.warp_rows;
  constexpr int kRowTiles = kShape.row_tiles, kTiles = kQueries / 8, kPart = Smem::kPart;
  constexpr bool kCorrected = Weights::kNormalised && sizeof(T) == 4;
  ARGUS_DYNAMIC_SHARED(unsigned char, room);
  const Arguments& given = call.given;
  const int head = static_cast<int>(blockIdx.y), part = static_cast<int>(blockIdx.z) * kPart;
  // The first keys of a user are seen by the most queries.
  const Block block = find_block<kShape.rows>(given, static_cast<int>(blockIdx.x));
  if (block.rows == 0) return;
  const Target<T> d_k_target = target_of<T>(call.d_k, given, block.begin, head);
  const Target<T> d_v_target = target_of<T>(call.d_v, given, block.begin, head);
  if (block.padding) {
    if (part > 0) return;
    zero_rows<T, kThreads>(d_k_target, block);
    zero_rows<T, kThreads>(d_v_target, block);
    return;
  }

  const int warp = warp_index(), first = block.first + warp * kWarpRows;
  const tile::Source<T> q = source_of<T>(given.q, given, block.begin, head);
  const tile::Source<T> d_out = source_of<T>(call.d_out, given, block.begin, head);
  const int64_t statistics = head * given.rows + block.begin;
  const auto tile_of = [&](int base, int stage) {
    return reinterpret_cast<T*>(room + base + stage * Smem::kStage);
  };
  const auto numbers_of = [&](int base, int stage) {
    return reinterpret_cast<float*>(room + base) + stage * kQueries;
  };
  const auto visible_at = [&](int stage) {
    return reinterpret_cast<int*>(room + Smem::kVisible) + stage * kQueries;
  };
  const auto times_of = [&](int stage) {
    return reinterpret_cast<int64_t*>(room + Smem::kTime) + stage * kQueries;
  };
  const auto load = [&](int stage, int index) {
    const int begin = index * kQueries, length = block.length;
    tile::copy_async<T, kWidth, kQueries, kThreads>(tile_of(Smem::kQ, stage), q, begin, length);
    tile::copy_async<T, kWidth, kQueries, kThreads>(tile_of(Smem::kDOut, stage), d_out, begin, length);
    if constexpr (Weights::kNormalised) {
      copy_column<kQueries, kThreads>(numbers_of(Smem::kLogSumExp, stage),
                                      floats(call.log_sum_exp) + statistics, begin, length);
      copy_column<kQueries, kThreads>(numbers_of(Smem::kDelta, stage), call.delta + statistics, begin,
                                      length);
    }
    if constexpr (kCorrected)
      copy_column<kQueries, kThreads>(numbers_of(Smem::kCorrection, stage), call.correction + statistics,
                                      begin, length);
    if (given.visible != nullptr)
      copy_column<kQueries, kThreads>(visible_at(stage), given.visible + block.begin, begin, length);
    if (given.time_bias != nullptr)
      copy_column<kQueries, kThreads>(times_of(stage), given.query_time + block.begin, begin, length);
    ptx::cp_async_commit();
  };

  tile::copy_async<T, kWidth, kShape.rows, kThreads>(
      tile_of(Smem::kK, 0), source_of<T>(given.k, given, block.begin, head), block.first, block.length);
  tile::copy_async<T, kWidth, kShape.rows, kThreads>(
      tile_of(Smem::kV, 0), source_of<T>(given.v, given, block.begin, head), block.first, block.length);
  const auto rows = load_rows<false, kShape.warps, kRowTiles>(
      given, block.begin, block.length, first, *reinterpret_cast<typename Smem::Rows*>(room + Smem::kRows));
  const QueryBlocks<kQueries, Smem::kBoundRows> blocks(call, block);
  load(0, blocks.begin);
  const Bias bias = load_bias<kThreads>(given, head, Weights::kFactor, room + Smem::kBias);
  const float scale = static_cast<float>(given.scale) * Weights::kFactor;

  const Weights weights(given);
  float d_k[kRowTiles][kPart / 8][4], d_v[kRowTiles][kPart / 8][4];
  tile::clear(d_k);
  tile::clear(d_v);
  int stage = 0;
  for (int index = blocks.begin, next; index < blocks.end; index = next, stage ^= 1) {
    next = blocks.next(index);
    ptx::cp_async_wait<0>();
    __syncthreads();
    if (next < blocks.end) load(stage ^ 1, next);
    const int first_query = index * kQueries, last_query = first_query + kQueries - 1;
    const int last_key = first + kWarpRows - 1;
    if (last_query < first || first_query - last_key >= given.window) continue;
    const ColumnSide columns{first_query, block.length,
                             given.visible == nullptr ? nullptr : visible_at(stage), times_of(stage)};
    const bool all = last_key < blocks.reach(index).all_see && last_query - first < given.window &&
                     last_query < block.length;

    float scores[kRowTiles][kTiles][4], gradients[kRowTiles][kTiles][4];
    tile::clear(scores);
    tile::clear(gradients);
    const int own = warp * kWarpRows * kWidth;
    tile::add_rows_product<T, kWidth>(scores, tile_of(Smem::kK, 0) + own, tile_of(Smem::kQ, stage));
    add_bias<false>(scores, scale, bias, rows, columns, KeepNothing{});
    if (!all) hide<false>(scores, Weights::kHidden, given.window, rows, columns);
    tile::add_rows_product<T, kWidth>(gradients, tile_of(Smem::kV, 0) + own, tile_of(Smem::kDOut, stage));
    for_each(scores, [&](float& score, int r, int n, int i) {
      RowStatistics row{0.0f, 0.0f, 1.0f};
      const int column = column_within(n, i);
      if constexpr (Weights::kNormalised)
        row = {numbers_of(Smem::kLogSumExp, stage)[column], numbers_of(Smem::kDelta, stage)[column], 1.0f};
      if constexpr (kCorrected) row.correction = numbers_of(Smem::kCorrection, stage)[column];
      weights.differentiate(score, gradients[r][n][i], row, T{});
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
  const bool nan_k = store(d_k_target, Smem::kK, d_k, static_cast<float>(given.scale));
  const bool nan_v = store(d_v_target, Smem::kV, d_v, 1.0f);
  if (nan_k || nan_v) careful::key_gradient_rows<Weights, T, Smem>(call, room);
}

}  // namespace argus::attention
