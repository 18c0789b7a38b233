// The forward pass of attention over packed histories on TMA and wgmma, of 16-bit elements.
//
// A block of threads takes 192 or 128 queries of one user and head, 64 a warpgroup, and loops over the blocks
// of 128 keys that they may see. A further warp brings queries, keys and values by TMA; keys and values have
// two stages each. S = Q Kᵀ is multiplied from shared memory; weights stay in registers as the left operand
// of P V. While a warpgroup multiplies P V of one block of keys and S of the next one, the others work on
// their scores: they take turns to issue products.
//
//   head   queries   shared memory                     registers of a thread (64 K a block)
//   64     192       24 + 2 · (16 + 16) KB = 88        32 · 128 + 160 · 384 = 65,536
//   64     128       16 + 2 · (16 + 16) KB = 80        40 · 128 + 232 · 256 = 64,512
//   128    128       32 + 2 · (32 + 32) KB = 160       the same
#pragma once

#include <type_traits>

#include "attention/cuda/causal_mask.cuh"
#include "attention/cuda/forward.cuh"
#include "attention/cuda/sm90/hide_causal.cuh"
#include "attention/cuda/sm90/stages.cuh"
#include "attention/cuda/sm90/user_box.cuh"
#include "common/cuda/sm90/capability.cuh"

namespace argus::attention {

// What a kernel is compiled for.
template <class W, class M, class Element, int kHeadWidth, bool kTables>
struct LoopKind {
  using Weights = W;
  using Mask = M;
  using T = Element;
  static constexpr int kWidth = kHeadWidth;
  static constexpr bool kBiases = kTables;
  // Found by compiling: with three warpgroups a thread has 160 registers, and dropout spilled 8 to 20 bytes,
  // SiLU of half 60.
  static constexpr bool kThreeGroups = kWidth <= 64 && !kBiases && !Mask::kGeneral &&
                                       (Weights::kNormalised || std::is_same_v<T, __nv_bfloat16>);
};

template <class Kind>
struct LoopTiles {
  static constexpr int kGroups = Kind::kThreeGroups ? 3 : 2, kStages = 2;
  static constexpr Shape kShape = make_shape(4 * kGroups, 1, 128);
  static constexpr int kPart = Kind::kWidth;
  static constexpr int kWarps = kShape.warps + 4, kThreads = 32 * kWarps;  // the last four bring the tiles
  // A block shares out what it was launched with: 128 registers a thread of 512, 168 of 384.
  static constexpr int kProducerRegisters = kGroups == 3 ? 32 : 40;
  static constexpr int kConsumerRegisters = kGroups == 3 ? 160 : 232;
};

struct ForwardMaps {
  ptx::TensorMap q, k, v;
};

template <class Kind>
struct ForwardLoop {
  using Weights = typename Kind::Weights;
  using Mask = typename Kind::Mask;
  using T = typename Kind::T;
  using Tiles = LoopTiles<Kind>;
  static constexpr int kWidth = Kind::kWidth;
  static constexpr Shape kShape = Tiles::kShape;
  static constexpr int kKeys = kShape.columns, kWarps = Tiles::kWarps, kThreads = Tiles::kThreads;
  static constexpr int kGroups = Tiles::kGroups, kStages = Tiles::kStages;
  using QueryTile = argus::sm90::OperandTile<T, ptx::Major::k, 128, kShape.rows, kWidth>;
  using KeyTile = argus::sm90::OperandTile<T, ptx::Major::k, 128, kKeys, kWidth>;
  using ValueTile = argus::sm90::OperandTile<T, ptx::Major::mn, 128, kWidth, kKeys>;
  using Queries = typename Mask::template Queries<kWarps, kShape.warp_rows, kKeys>;
  using Rows = RowSide<Mask, 1>;
  using Scores = float[1][kKeys / 8][4];
  using Packed = uint32_t[kKeys / 16][4];
  using Out = float[1][kWidth / 8][4];
  using Sums = typename Weights::template Sums<T, 1>;

  // Offsets in dynamic shared memory, in bytes, behind the alignment of the tiles.
  static constexpr int kQ = 0, kK = kQ + QueryTile::kBytes, kV = kK + kStages * KeyTile::kBytes;
  static constexpr int kTables = kV + kStages * ValueTile::kBytes;

  static size_t shared_bytes(const Arguments& given) {
    return static_cast<size_t>(argus::sm90::kPatternBytes + kTables + BiasSmem(given).bytes);
  }

  // What the producer tells of the block of keys in a stage.
  struct Visit {
    int first;  // key
    bool more;  // blocks follow
  };
  struct Times {
    RowSmem<kWarps, 1> rows;
    int64_t keys[kStages][kKeys];
  };
  struct NoTimes {};
  // What is read once a block of keys, or once at the end, takes no registers of the main loop.
  struct Smem {
    uint64_t q_full;
    StageBarriers<kStages> k, v;
    Visit visits[kStages];
    Block block;
    Side keys;
    uint32_t dropout_stream;
    typename Queries::Room queries;
    std::conditional_t<Kind::kBiases, Times, NoTimes> times;
  };

  const Forward& call;
  Smem& smem;
  unsigned char* tiles;

  ARGUS_DEVICE unsigned char* k_tile(int step) const { return tiles + kK + step % kStages * KeyTile::kBytes; }
  ARGUS_DEVICE unsigned char* v_tile(int step) const {
    return tiles + kV + step % kStages * ValueTile::kBytes;
  }

  // The times of a block of keys, by all lanes of a warp.
  ARGUS_DEVICE void load_times(const Side& keys, int first, int step) const {
    if constexpr (Kind::kBiases) {
      if (call.given.time_bias == nullptr) return;
      int64_t* to = smem.times.keys[step % kStages];
      const int64_t* from = call.given.key_time + keys.begin + first;
      for (int i = lane_index(); i < kKeys; i += kWarpSize) to[i] = first + i < keys.length ? from[i] : 0;
    }
  }

  // A warp's; there is a block of keys.
  ARGUS_DEVICE void produce(const ForwardMaps& maps, const Queries& queries, const Block& block,
                            const Side& keys) const {
    const int head = static_cast<int>(blockIdx.y), key_head = Mask::key_head(call.given, head);
    const bool leads = lane_index() == 0;
    if (leads) {
      ptx::mbarrier_arrive_expect(&smem.q_full, QueryTile::kBytes);
      load_user_rows<QueryTile>(tiles + kQ, maps.q, block, head, block.first, &smem.q_full);
    }
    int index = queries.begin;
    for (int step = 0; queries.has(index); ++step) {
      const int next = queries.next(index), first = index * kKeys;
      smem.k.wait_empty(step);
      load_times(keys, first, step);
      __syncwarp();
      if (leads) {
        smem.visits[step % kStages] = {first, queries.has(next)};
        load_user_rows<KeyTile>(k_tile(step), maps.k, keys, key_head, first,
                                smem.k.expect(step, KeyTile::kBytes));
        smem.v.wait_empty(step);
        load_user_rows<ValueTile>(v_tile(step), maps.v, keys, key_head, first,
                                  smem.v.expect(step, ValueTile::kBytes));
      }
      index = next;
    }
  }

  // Issues the products of the warpgroup's queries and a block of keys.
  ARGUS_DEVICE void score(Scores& scores, const unsigned char* q, int step) const {
    const unsigned char* k = k_tile(step);
    ptx::wgmma_fence();
#pragma unroll
    for (int i = 0; i < KeyTile::kSteps; ++i)
      ptx::wgmma<ptx::Major::k, ptx::Major::k>(flat(scores), QueryTile::descriptor(q, i),
                                               KeyTile::descriptor(k, i), i > 0, T{});
    ptx::wgmma_commit();
  }

  // Issues those of weights and values, which are added to `out`.
  ARGUS_DEVICE void add_values(Out& out, const Packed& weights, int step) const {
    const unsigned char* v = v_tile(step);
    ptx::wgmma_fence();
#pragma unroll
    for (int i = 0; i < ValueTile::kSteps; ++i)
      ptx::wgmma<ptx::Major::mn>(flat(out), weights[i], ValueTile::descriptor(v, i), true, T{});
    ptx::wgmma_commit();
  }

  // The warp's first query.
  ARGUS_DEVICE int first_row() const { return smem.block.first + warp_index() * kShape.warp_rows; }

  ARGUS_DEVICE Rows own_rows() const {
    Rows rows{first_row(), Queries::row_numbers(smem.queries), nullptr, nullptr};
    if constexpr (Kind::kBiases) {
      rows.time = smem.times.rows.time[warp_index()];
      rows.span = &smem.times.rows.span[warp_index()];
    }
    return rows;
  }
  ARGUS_DEVICE ColumnSide<Mask> columns_at(int first_key, int step) const {
    ColumnSide<Mask> columns{first_key, smem.keys.length, {}, nullptr};
    if constexpr (Kind::kBiases) columns.time = smem.times.keys[step % kStages];
    return columns;
  }

  // The exponent multiplies products by the scale, which must be positive: one instruction less a pair.
  static constexpr bool kScalesLate = Weights::kNormalised && !Kind::kBiases;

  // Products to masked scores, without the scale where it comes late.
  ARGUS_DEVICE void finish_scores(Scores& scores, int first_key, int step, float scale) const {
    const Rows rows = own_rows();
    const ColumnSide<Mask> columns = columns_at(first_key, step);
    if constexpr (Kind::kBiases) {
      add_bias<true>(scores, scale, bias_in(call.given, tiles + kTables), rows, columns, KeepNothing{});
    } else if constexpr (!kScalesLate) {
      for_each(scores, [&](float& one, int, int, int) { one *= scale; });
    }
    if (Queries::covers(smem.queries, rows.first, call.given.window, first_key)) return;
    if constexpr (Mask::kGeneral) {
      hide<true>(scores, Weights::kHidden, call.given.window, rows, columns);
    } else {
      hide_causal(scores, Weights::kHidden, call.given.window, rows, columns);
    }
  }

  // Scores to weights; earlier sums are to be multiplied by `rescale`.
  ARGUS_DEVICE static void weigh(const Weights& weights, Scores& scores, Sums& sums, float scale,
                                 float (&rescale)[2]) {
    if constexpr (kScalesLate) {
#pragma unroll
      for (int half = 0; half < 2; ++half) rescale[half] = weights.weigh_row(scores, sums, 0, half, scale);
    } else if constexpr (Weights::kNormalised) {
#pragma unroll
      for (int half = 0; half < 2; ++half)
        rescale[half] = weights.weigh_row(scores, sums, 0, half, typename Weights::One{});
    } else {
      Out nothing;
      weights.weigh(scores, sums, nothing);
    }
  }

  ARGUS_DEVICE void drop(Scores& weights, int first_key, int step) const {
    const Dropout dropout(call.given, smem.dropout_stream);
    if (!dropout.drops()) return;
    const auto dropped = dropped_rows<kKeys / 8>(dropout, own_rows(), columns_at(first_key, step));
    for_each(weights, [&](float& one, int r, int n, int i) { one *= dropout.factor(dropped(r, n, i)); });
  }

  // Products to weights, in the order that frees the stage of keys early.
  ARGUS_DEVICE void weigh_block(const Weights& weights, Scores& scores, int first_key, int step, float scale,
                                Sums& sums, float (&rescale)[2]) const {
    if constexpr (!Kind::kBiases) smem.k.release(step);
    finish_scores(scores, first_key, step, scale);
    if constexpr (Kind::kBiases) smem.k.release(step);
    weigh(weights, scores, sums, scale, rescale);
    if constexpr (Mask::kGeneral) drop(scores, first_key, step);
  }

  // A warpgroup's weighted sums of values; there is a block of keys.
  ARGUS_DEVICE void consume(const Weights& weights, Sums& sums, Out& out) const {
    const int group = __shfl_sync(kFullWarp, warp_index() / 4, 0);
    const int next_group = group + 1 < kGroups ? group + 1 : 0;
    const unsigned char* q = tiles + kQ + group * 64 * QueryTile::kWidth;
    const float scale = static_cast<float>(call.given.scale) * Weights::kFactor;
    Scores scores;
    Packed packed;
    float rescale[2];
    ptx::mbarrier_wait(&smem.q_full, 0);
    smem.k.wait_full(0);
    score(scores, q, 0);
    Visit visit = smem.visits[0];
    ptx::wgmma_wait<0>(flat(scores));
    weigh_block(weights, scores, visit.first, 0, scale, sums, rescale);
    pack(packed, scores, T{});
    if (group + 1 == kGroups && visit.more) give_turn(0);
    int step = 0;
    while (visit.more) {
      ++step;
      take_turn(group);
      smem.k.wait_full(step);
      score(scores, q, step);
      visit = smem.visits[step % kStages];
      smem.v.wait_full(step - 1);
      add_values(out, packed, step - 1);
      // Every turn is waited for: after the last block of keys the first warpgroup has none.
      if (next_group > 0 || visit.more) give_turn(next_group);
      ptx::wgmma_wait<1>(flat(scores));
      weigh_block(weights, scores, visit.first, step, scale, sums, rescale);
      ptx::wgmma_wait<0>(flat(out));
      smem.v.release(step - 1);
      if constexpr (Weights::kNormalised) {
#pragma unroll
        for (int half = 0; half < 2; ++half) weights.rescale_row(out, rescale[half], 0, half);
      }
      pack(packed, scores, T{});
    }
    smem.v.wait_full(step);
    add_values(out, packed, step);
    ptx::wgmma_wait<0>(flat(out));
  }

  // Of a warpgroup, to issue its products.
  ARGUS_DEVICE static void take_turn(int group) {
    ptx::named_barrier_sync(static_cast<uint32_t>(1 + group), 256);
  }
  ARGUS_DEVICE static void give_turn(int group) {
    ptx::named_barrier_arrive(static_cast<uint32_t>(1 + group), 256);
  }

  // Writes the results of a warp, through the part of the query tile that its warpgroup read; returns whether
  // one of them is NaN.
  ARGUS_DEVICE bool store(const Weights& weights, Sums& sums, const Out& out) const {
    const Arguments& given = call.given;
    const int head = static_cast<int>(blockIdx.y), first = first_row();
    const Side side = smem.block;
    const auto numbers = Queries::row_numbers(smem.queries);
    float factor[1][2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int within = row_within(0, 2 * half), place = first + within;
      const float finished = weights.finish(sums, 0, half);
      factor[0][half] = place < side.length && !Mask::sees_nothing(numbers, within) ? finished : 0.0f;
      if constexpr (Weights::kNormalised) {
        if (place < side.length && lane_index() % 4 == 0)
          floats(call.log_sum_exp)[head * given.rows + side.begin + place] =
              weights.log_sum_exp(sums, 0, half);
      }
    }
    ptx::named_barrier_sync(static_cast<uint32_t>(1 + kGroups + warp_index() / 4), 128);
    ptx::fence_proxy_async();
    T* tile = reinterpret_cast<T*>(tiles + kQ) + warp_index() * kShape.warp_rows * 64;
    bool nan = false;
#pragma unroll
    for (int part = 0; part < kWidth; part += 64) {
      const auto& columns = reinterpret_cast<const float (&)[1][8][4]>(out[0][part / 8]);
      nan |= store_rows(target_of<T>(call.out, given, side.begin, head), tile, columns, factor, first,
                        side.length, part);
    }
    return nan;
  }
};

template <class Kind>
__global__ void __launch_bounds__(LoopTiles<Kind>::kThreads, 1)
    forward_loop_kernel(const __grid_constant__ ForwardMaps maps, const __grid_constant__ Forward call) {
#if defined(ARGUS_SM90A_CODE)
  using Loop = ForwardLoop<Kind>;
  using Weights = typename Kind::Weights;
  using Mask = typename Kind::Mask;
  using T = typename Kind::T;
  constexpr int kThreads = Loop::kThreads;
  constexpr Shape kShape = Loop::kShape;
  ARGUS_SHARED(typename Loop::Smem, smem, [1]);
  ARGUS_DYNAMIC_SHARED(unsigned char, room);
  const Arguments& given = call.given;
  const Block block =
      find_block<kShape.rows>(queries_in(given), static_cast<int>(gridDim.x - 1 - blockIdx.x));
  if (block.rows == 0) return;
  if (block.padding) {
    const int head = static_cast<int>(blockIdx.y);
    zero_rows<T, kThreads>(target_of<T>(call.out, given, block.begin, head), block);
    if constexpr (Weights::kNormalised) {
      for (int i = static_cast<int>(threadIdx.x); i < block.rows; i += kThreads)
        floats(call.log_sum_exp)[head * given.rows + block.begin + block.first + i] = 0.0f;
    }
    return;
  }
  const bool consumer = warp_index() < kShape.warps;
  const Side keys = Mask::other_side(given, block, true);
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(&smem->q_full, 1);
    smem->k.init(kShape.warps);
    smem->v.init(kShape.warps);
    ptx::fence_mbarrier_init();
    smem->block = block;
    smem->keys = keys;
    if constexpr (Mask::kGeneral)
      smem->dropout_stream = Dropout(given, block.user, static_cast<int>(blockIdx.y)).stream;
  }
  const Loop loop{call, *smem, argus::sm90::align_to_pattern(room)};
  // The producer owns no queries.
  const int first = consumer ? block.first + warp_index() * kShape.warp_rows : block.length;
  if constexpr (Kind::kBiases) {
    load_rows<Mask>(given, {}, given.query_time, block, first, smem->times.rows);
    load_bias<kThreads>(given, static_cast<int>(blockIdx.y), Weights::kFactor, loop.tiles + Loop::kTables);
  }
  const typename Loop::Queries queries(given, block, keys, first, smem->queries);
  const bool any = queries.has(queries.begin);
  if (!consumer) {
    ptx::decrease_registers<Loop::Tiles::kProducerRegisters>();
    if (any && warp_index() == kShape.warps) loop.produce(maps, queries, block, keys);
    return;
  }
  ptx::increase_registers<Loop::Tiles::kConsumerRegisters>();
  const Weights weights(given);
  typename Loop::Sums sums;
  typename Loop::Out out;
  tile::clear(out);
  if (any) loop.consume(weights, sums, out);
  if (loop.store(weights, sums, out))
    careful::forward_rows<Weights, T, typename Loop::Tiles>(call, loop.tiles + Loop::kTables);
#endif
}

}  // namespace argus::attention
