// The backward pass of attention over packed histories on TMA and wgmma, of 16-bit elements, as one kernel.
//
// A block of threads takes 128 keys of one user and head, 64 a warpgroup, and loops over the blocks of 128 or
// 64 queries that see any of them. Scores and gradients of weights are computed transposed, so that the sums
// of d_k and d_v stay in registers and weights are the left operand of their products:
//
//   Sᵀ = K Qᵀ    d_Pᵀ = V d_Oᵀ    d_V += Pᵀ d_O    d_K += d_Sᵀ Q    d_Q = d_S K
//
// d_S goes through shared memory, since each warpgroup computes a part of d_Q over the keys of both. It is
// multiplied one step late: by then the other warpgroup has written its half of d_S, and the two need not be
// in step. d_Q is a sum over blocks of keys, which add their parts to memory in a fixed order: those that see
// a block of queries take turns, the last one first. Of the other four warps one brings the tiles and three
// add parts of d_Q in turn, because an addition may take longer than a step.
//
//   head   queries   shared memory, KB                                        registers of a consumer
//   64     128       K, V 32, Q, d_O 2 · 32, d_S 2 · 32, d_Q 32 = 192         sums 64, S, d_P 128
//   64     64        K, V 32, Q, d_O 2 · 16, d_S 2 · 16, d_Q 16 = 112         sums 64, S, d_P 64
//   128    64        K, V 64, Q, d_O 2 · 32, d_S 2 · 16, d_Q 32 = 192         sums 128, S, d_P 64
#pragma once

#include "attention/cuda/sm90/backward_tiles.cuh"
#include "common/cuda/sm90/bulk.cuh"
#include "common/cuda/sm90/turns.cuh"

namespace argus::attention {

// What the host works out. Numbers of the kernel's arguments take no registers.
struct BackwardSetup {
  ptx::TensorMap q, k, v, d_out;
  float scale, kept_factor;
};

template <class Kind>
struct BackwardLoop {
  using Weights = typename Kind::Weights;
  using Mask = typename Kind::Mask;
  using T = typename Kind::T;
  using Tiles = BackwardTiles<Kind>;
  static constexpr int kWidth = Kind::kWidth, kQueries = Tiles::kQueries, kKeys = Tiles::kKeys;
  static constexpr int kWarps = Tiles::kWarps, kThreads = Tiles::kThreads, kStages = Tiles::kStages;
  static constexpr int kConsumers = 32 * Tiles::kConsumerWarps, kAdders = 3;
  static constexpr bool kByRows = Tiles::kByRows;
  // Columns of a warpgroup's part of d_q are a box of keys.
  static constexpr int kKeySwizzle = kByRows || kWidth == 128 ? 128 : 64;
  // A tile has two faces: its rows as rows of an operand, and as its depth.
  template <ptx::Major kMajor, int kRows, int kDepth, int kSwizzle = 128>
  using Operand = argus::sm90::OperandTile<T, kMajor, kSwizzle, kRows, kDepth>;
  using KeyRows = Operand<ptx::Major::k, kKeys, kWidth, kKeySwizzle>;
  using KeyColumns = Operand<ptx::Major::mn, Tiles::kPartColumns, kKeys, kKeySwizzle>;
  using ValueRows = Operand<ptx::Major::k, kKeys, kWidth>;
  using QueryRows = Operand<ptx::Major::k, kQueries, kWidth>;
  using QueryColumns = Operand<ptx::Major::mn, kWidth, kQueries>;
  using ScoreColumns = Operand<ptx::Major::mn, 64, kKeys>;  // d_S, a box of 64 queries
  using Keys = typename Mask::template Keys<16, kQueries, kQueries>;
  using Rows = RowSide<Mask, 1>;
  using Sums = QuerySums<Tiles>;
  using Scores = float[1][kQueries / 8][4];
  using Packed = uint32_t[kQueries / 16][4];
  using Out = float[1][kWidth / 8][4];

  // Offsets in dynamic shared memory, in bytes, behind the alignment of the tiles.
  static constexpr int kScoreBytes = kQueries / 64 * ScoreColumns::kBytes;
  static constexpr int kPartBytes = 4 * Tiles::kPartFloats;
  static constexpr int kK = 0, kV = kK + KeyRows::kBytes, kQ = kV + ValueRows::kBytes;
  static constexpr int kDOut = kQ + kStages * QueryRows::kBytes;
  static constexpr int kDScores = kDOut + kStages * QueryRows::kBytes;
  static constexpr int kDQ = kDScores + 2 * kScoreBytes;
  static constexpr int kTables = kDQ + Tiles::kGroups * kPartBytes;

  static size_t shared_bytes(const Arguments& given) {
    return static_cast<size_t>(argus::sm90::kPatternBytes + kTables + BiasSmem(given).bytes);
  }

  // What the producer tells of the block of queries in a stage.
  struct Visit {
    int index, head;
    typename Mask::Reach reach;
    uint32_t dropout_stream;
    bool changes_head, more;  // a block of the head before came before, blocks follow
  };
  struct Times {
    RowSmem<kWarps, 1> rows;
    int64_t queries[kStages][kQueries];
  };
  struct Nothing {};
  struct Statistics {
    float shift[kStages][kQueries];  // −log_sum_exp in units of ln 2
    float delta[kStages][kQueries];
  };
  struct Smem {
    uint64_t keys_full;
    StageBarriers<kStages> q, d_out;
    StageBarriers<2> d_scores;
    StageBarriers<kAdders> d_q;  // of one tile: a warp that adds waits for its own steps only
    Visit visits[kStages];
    Block block;
    typename Keys::Room keys;
    std::conditional_t<Weights::kNormalised, Statistics, Nothing> statistics;
    std::conditional_t<Kind::kBiases, Times, Nothing> times;

    ARGUS_DEVICE void init(const Block& own) {
      block = own;
      ptx::mbarrier_init(&keys_full, 1);
      q.init(Tiles::kConsumerWarps);
      d_out.init(Tiles::kConsumerWarps);
      d_scores.init(Tiles::kConsumerWarps, Tiles::kConsumerWarps);
      d_q.init(Tiles::kConsumerWarps, 1);
      ptx::fence_mbarrier_init();
    }
  };

  // A block of queries of one head.
  struct Step {
    int index, head;
  };

  const Backward& call;
  const BackwardSetup& setup;
  Smem& smem;
  unsigned char* tiles;

  ARGUS_DEVICE unsigned char* q_tile(int step) const {
    return tiles + kQ + step % kStages * QueryRows::kBytes;
  }
  ARGUS_DEVICE unsigned char* d_out_tile(int step) const {
    return tiles + kDOut + step % kStages * QueryRows::kBytes;
  }
  ARGUS_DEVICE unsigned char* d_score_tile(int step) const {
    return tiles + kDScores + step % 2 * kScoreBytes;
  }
  ARGUS_DEVICE float* d_q_tile() const { return reinterpret_cast<float*>(tiles + kDQ); }

  // Every lane of a warp must call it.
  ARGUS_DEVICE Step after(const Keys& keys, Step step, int key_head) const {
    step.index = keys.next(step.index);
    if constexpr (Mask::kGeneral) {
      if (!keys.has(step.index) && ++step.head < Mask::last_head(call.given, key_head))
        step.index = keys.begin;
    }
    return step;
  }

  // The numbers of a block of queries, by all lanes of a warp.
  ARGUS_DEVICE void load_numbers(const Keys& keys, const Step& at, int step) const {
    const WarpColumns columns;
    const int stage = step % kStages, first = at.index * kQueries;
    const Side& queries = keys.queries();
    if constexpr (Weights::kNormalised) {
      const int64_t begin = at.head * call.given.rows + queries.begin;
#pragma unroll 1
      for (int i = lane_index(); i < kQueries; i += kWarpSize) {
        // Rows past the history, and those that see nothing, have weights of 0.
        float log_sum_exp = INFINITY, delta = 0.0f;
        if (first + i < queries.length) {
          log_sum_exp = floats(call.log_sum_exp)[begin + first + i];
          if (Mask::kGeneral && log_sum_exp == -INFINITY) log_sum_exp = INFINITY;
          delta = call.delta[begin + first + i];
        }
        smem.statistics.shift[stage][i] = log_sum_exp * -Weights::kFactor;
        smem.statistics.delta[stage][i] = delta;
      }
    }
    keys.load(stage, first, columns);
    if constexpr (Kind::kBiases) {
      if (call.given.time_bias != nullptr)
        columns.template copy<kQueries>(smem.times.queries[stage], call.given.query_time + queries.begin,
                                        first, queries.length);
    }
  }

  // A warp's; there is a block of queries.
  ARGUS_DEVICE void produce(const Keys& keys, const Block& block, int key_head) const {
    const bool leads = lane_index() == 0;
    if (leads) {
      ptx::mbarrier_arrive_expect(&smem.keys_full, KeyRows::kBytes + ValueRows::kBytes);
      load_user_rows<KeyRows>(tiles + kK, setup.k, block, key_head, block.first, &smem.keys_full);
      load_user_rows<ValueRows>(tiles + kV, setup.v, block, key_head, block.first, &smem.keys_full);
    }
    Step at{keys.begin, Mask::first_head(call.given, key_head)};
    for (int step = 0; keys.has(at.index); ++step) {
      const Step next = after(keys, at, key_head);
      const bool more = keys.has(next.index);
      smem.q.wait_empty(step);
      load_numbers(keys, at, step);
      if (leads) {
        smem.visits[step % kStages] = {at.index,
                                       at.head,
                                       keys.reach_of(at.index),
                                       Dropout(call.given, block.user, at.head).stream,
                                       step > 0 && at.index == keys.begin,
                                       more};
      }
      __syncwarp();
      if (leads) {
        const Side& queries = keys.queries();
        load_user_rows<QueryRows>(q_tile(step), setup.q, queries, at.head, at.index * kQueries,
                                  smem.q.expect(step, QueryRows::kBytes));
        smem.d_out.wait_empty(step);
        load_user_rows<QueryRows>(d_out_tile(step), setup.d_out, queries, at.head, at.index * kQueries,
                                  smem.d_out.expect(step, QueryRows::kBytes));
      }
      at = next;
    }
  }

  // Adds every kAdders-th part of d_q to memory, from step `which` on; a warp's.
  ARGUS_DEVICE void add(const Keys& keys, const Block& block, int key_head, int which) const {
    const int own = block.first / kKeys;
    const int first_tile = first_block<kQueries>(queries_in(call.given), block.user);
    Step at{keys.begin, Mask::first_head(call.given, key_head)};
    for (int step = 0; keys.has(at.index); ++step, at = after(keys, at, key_head)) {
      // On a barrier of all steps, a warp late at another's step would wait for the parity of its own next
      // one, and for ever.
      if (step % kAdders != which) continue;
      smem.d_q.wait_full(step);
      const int before = keys.template visitor_after<kKeys>(at.index);
      const int64_t tile = Sums::tile(call, first_tile + at.index, at.head);
      if (lane_index() == 0) {
        float* to = Sums::of_tile(call, tile);
        if (before == kNobody) {
          ptx::bulk_store(to, d_q_tile(), Tiles::kGroups * kPartBytes);
        } else {
          ptx::wait_turn(call.turns + tile, before);
          ptx::fence_proxy_async_global();
          ptx::bulk_add(to, d_q_tile(), Tiles::kGroups * kPartBytes);
        }
        ptx::tma_store_commit();
        ptx::tma_store_wait_read<0>();
      }
      smem.d_q.release(step);
      if (lane_index() == 0) {
        ptx::tma_store_wait<0>();
        ptx::pass_turn(call.turns + tile, own);
      }
      __syncwarp();
    }
  }

  // Found by compiling: added to a tile's descriptor, the steps of these kernels spilled 8 to 20 bytes.
  static constexpr bool kAddsToAddress = Mask::kGeneral && !Weights::kNormalised && kWidth > 64;

  template <class Tile>
  ARGUS_DEVICE static uint64_t at(const unsigned char* tile, int step) {
    if constexpr (kAddsToAddress)
      return ptx::matrix_descriptor_at(Tile::kDescriptor, tile + Tile::step_offset(step));
    return Tile::descriptor(tile, step);
  }

  // Issues Sᵀ, or d_Pᵀ: the warpgroup's rows of keys or values, and a block of queries.
  template <class Left>
  ARGUS_DEVICE static void multiply_rows(Scores& to, const unsigned char* left, const unsigned char* right) {
    ptx::wgmma_fence();
#pragma unroll
    for (int i = 0; i < Left::kSteps; ++i)
      ptx::wgmma<ptx::Major::k, ptx::Major::k>(flat(to), at<Left>(left, i), at<QueryRows>(right, i), i > 0,
                                               T{});
    ptx::wgmma_commit();
  }

  // Issues what is added to d_v or d_k: weights or their gradients, and rows of d_out or of queries.
  ARGUS_DEVICE static void add_columns(Out& to, const Packed& left, const unsigned char* right) {
    ptx::wgmma_fence();
#pragma unroll
    for (int i = 0; i < QueryColumns::kSteps; ++i)
      ptx::wgmma<ptx::Major::mn>(flat(to), left[i], at<QueryColumns>(right, i), true, T{});
    ptx::wgmma_commit();
  }

  // The same for all lanes, as the compiler is to know.
  ARGUS_DEVICE static int own_group() { return __shfl_sync(kFullWarp, warp_index() / 4, 0); }
  // The warp's first key.
  ARGUS_DEVICE int first_row() const { return smem.block.first + warp_index() * 16; }
  ARGUS_DEVICE Rows own_rows() const {
    Rows rows{first_row(), {}, nullptr, nullptr};
    if constexpr (Kind::kBiases) {
      rows.time = smem.times.rows.time[warp_index()];
      rows.span = &smem.times.rows.span[warp_index()];
    }
    return rows;
  }
  ARGUS_DEVICE const Visit& visit(int step) const { return smem.visits[step % kStages]; }
  ARGUS_DEVICE ColumnSide<Mask> columns_at(int step) const {
    ColumnSide<Mask> columns{visit(step).index * kQueries, smem.keys.queries.length,
                             Keys::columns_of(smem.keys, call.given, visit(step).reach, step % kStages),
                             nullptr};
    if constexpr (Kind::kBiases) columns.time = smem.times.queries[step % kStages];
    return columns;
  }

  // The exponent multiplies products by the scale, as in the forward loop.
  static constexpr bool kScalesLate = Weights::kNormalised && !Kind::kBiases;

  // Products to masked scores, without the scale where it comes late.
  ARGUS_DEVICE void finish_scores(Scores& scores, int step) const {
    const Rows rows = own_rows();
    const ColumnSide<Mask> columns = columns_at(step);
    if constexpr (Kind::kBiases) {
      add_bias<false>(scores, setup.scale, bias_in(call.given, tiles + kTables), rows, columns,
                      KeepNothing{});
    } else if constexpr (!kScalesLate) {
      for_each(scores, [&](float& one, int, int, int) { one *= setup.scale; });
    }
    if (Keys::covers(smem.keys, call.given, visit(step).reach, visit(step).index, rows.first)) return;
    if constexpr (Mask::kGeneral) {
      hide<false>(scores, Weights::kHidden, call.given.window, rows, columns);
    } else {
      hide_causal_transposed(scores, Weights::kHidden, call.given.window, rows, columns);
    }
  }

  // Which pairs of the step drop.
  using Dropped = PairBits<1, kQueries / 8>;
  ARGUS_DEVICE Dropped dropped_pairs(int step) const {
    Dropped dropped;
    if constexpr (Mask::kGeneral) {
      const Dropout dropout(call.given, visit(step).dropout_stream);
      if (dropout.drops()) dropped = dropped_columns<kQueries / 8>(dropout, own_rows(), columns_at(step));
    }
    return dropped;
  }

  // A number of each of the lane's two columns of tile n.
  ARGUS_DEVICE static float2 of_columns(const float* numbers, int n) {
    return *reinterpret_cast<const float2*>(numbers + column_within(n, 0));
  }

  // Scores and gradients of weights to weights and gradients of scores, as left operands of products; the
  // latter go to shared memory, too.
  ARGUS_DEVICE void differentiate(Scores& scores, const Scores& gradients, Packed& weight_rows,
                                  Packed& gradient_rows, const Dropped& dropped, int step) const {
    const bool drops = Mask::kGeneral && call.given.dropout_seed != nullptr;
    unsigned char* const to = d_score_tile(step);
    const int lane =
        ScoreColumns::chunk_offset(warp_index() * 16 + lane_index() / 4, 0) + lane_index() % 4 * 4;
#pragma unroll
    for (int n = 0; n < kQueries / 8; ++n) {
      float2 shift{}, delta{};
      if constexpr (Weights::kNormalised) {
        shift = of_columns(smem.statistics.shift[step % kStages], n);
        delta = of_columns(smem.statistics.delta[step % kStages], n);
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float weight[2], gradient[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int at = 2 * half + i;
          float& score = scores[0][n][at];
          const float by = i == 0 ? shift.x : shift.y;
          if constexpr (kScalesLate) {
            weight[i] = Weights::weight_of(score, by, setup.scale, T{});
          } else {
            weight[i] = Weights::weight_of(score, by, T{});
          }
          gradient[i] = gradients[0][n][at];
          if (drops) {
            const float factor = dropped(0, n, at) ? 0.0f : setup.kept_factor;
            weight[i] *= factor;
            gradient[i] *= factor;
          }
          gradient[i] = Weights::gradient_of(score, gradient[i], i == 0 ? delta.x : delta.y);
        }
        weight_rows[n / 2][n % 2 * 2 + half] = argus::packed(weight[0], weight[1], T{});
        const uint32_t word = argus::packed(gradient[0], gradient[1], T{});
        gradient_rows[n / 2][n % 2 * 2 + half] = word;
        // Eight rows further the swizzle is the same.
        const int place = (lane ^ n % 8 * kChunkBytes) + half * 8 * ScoreColumns::kWidth;
        *reinterpret_cast<uint32_t*>(to + n / 8 * ScoreColumns::kBytes + place) = word;
      }
    }
  }

  // A step but for d_q; returns whether another one follows. One group of products after the other is waited
  // for: with more of them under way the sums of a head of 128 do not fit the registers.
  ARGUS_DEVICE bool work(int step, Out& d_k, Out& d_v) const {
    Scores scores, gradients;
    Packed weight_rows, gradient_rows;
    smem.d_scores.wait_empty(step);
    smem.q.wait_full(step);
    multiply_rows<KeyRows>(scores, anew(tiles + kK) + own_group() * 64 * KeyRows::kWidth, q_tile(step));
    const auto multiply_values = [&] {
      smem.d_out.wait_full(step);
      multiply_rows<ValueRows>(gradients, anew(tiles + kV) + own_group() * 64 * ValueRows::kWidth,
                               d_out_tile(step));
    };
    // Masking 128 queries, or with the whole rule beside the sums of wide heads, takes their registers.
    constexpr bool kLate = kByRows || (Mask::kGeneral && kWidth > 64);
    if constexpr (!kLate) multiply_values();
    ptx::wgmma_wait<kLate ? 0 : 1>(flat(scores));
    Dropped dropped;
    // Found by compiling: in the other order each type spilled 4 bytes.
    constexpr bool kDropsFirst = std::is_same_v<T, __half>;
    if constexpr (kDropsFirst) dropped = dropped_pairs(step);
    finish_scores(scores, step);
    if constexpr (!kDropsFirst) dropped = dropped_pairs(step);
    if constexpr (kLate) multiply_values();
    const bool more = visit(step).more;
    ptx::wgmma_wait<0>(flat(gradients));
    differentiate(scores, gradients, weight_rows, gradient_rows, dropped, step);
    ptx::fence_proxy_async();
    smem.d_scores.fill(step);
    add_columns(d_v, weight_rows, d_out_tile(anew(step)));
    add_columns(d_k, gradient_rows, q_tile(anew(step)));
    ptx::wgmma_wait<0>(flat(d_v));
    ptx::wgmma_wait<0>(flat(d_k));
    smem.d_out.release(step);
    smem.q.release(step);
    return more;
  }

  // The warpgroup's part of d_q of a step, for the warps that add it.
  ARGUS_DEVICE void finish_part(int step) const {
    const int group = own_group();
    const unsigned char* left = d_score_tile(step) + (kByRows ? group * ScoreColumns::kBytes : 0);
    const unsigned char* right = anew(tiles + kK) + (kByRows ? 0 : group * KeyColumns::kBytes);
    float part[Sums::kRegisters];
    smem.d_scores.wait_full(step);
    ptx::wgmma_fence();
#pragma unroll
    for (int i = 0; i < KeyColumns::kSteps; ++i)
      ptx::wgmma<ptx::Major::mn, ptx::Major::mn>(part, at<ScoreColumns>(left, i), at<KeyColumns>(right, i),
                                                 i > 0, T{});
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>(part);
    smem.d_scores.release(step);
    if (step > 0) smem.d_q.wait_released(step - 1);
    float* const to = d_q_tile() + Sums::place(group);
#pragma unroll
    for (int i = 0; i < Sums::kRegisters; i += 4)
      *reinterpret_cast<float4*>(to + Sums::after(i)) =
          make_float4(part[i], part[i + 1], part[i + 2], part[i + 3]);
    ptx::fence_proxy_async();
    smem.d_q.fill(step);
  }

  // Where query heads share the key head, every one has its own tables.
  ARGUS_DEVICE void change_head(int step) const {
    if constexpr (Mask::kGeneral && Kind::kBiases) {
      smem.q.wait_full(step);
      if (!visit(step).changes_head) return;
      ptx::named_barrier_sync(1, kConsumers);
      load_bias<kConsumers>(call.given, visit(step).head, Weights::kFactor, tiles + kTables);
      ptx::named_barrier_sync(1, kConsumers);
    }
  }

  // A warpgroup's gradients of its keys and values; there is a block of queries.
  ARGUS_DEVICE void consume(Out& d_k, Out& d_v) const {
    ptx::mbarrier_wait(&smem.keys_full, 0);
    int step = 0;
    for (bool more = true; more; ++step) {
      change_head(step);
      more = work(step, d_k, d_v);
      if (step > 0) finish_part(step - 1);
    }
    finish_part(step - 1);
  }

  // Writes the results of a warp, through the part of the values' tile that its warpgroup read; returns
  // whether one of them is NaN.
  ARGUS_DEVICE bool store(int key_head, const Out& d_k, const Out& d_v) const {
    const Arguments& given = call.given;
    const Side block = smem.block;
    T* tile = reinterpret_cast<T*>(tiles + kV) + warp_index() * 16 * 64;
    ptx::named_barrier_sync(2 + static_cast<uint32_t>(warp_index() / 4), 128);
    ptx::fence_proxy_async();
    const auto store_one = [&](void* to, const Out& sums, float by) {
      const float factor[1][2] = {{by, by}};
      bool nan = false;
#pragma unroll
      for (int part = 0; part < kWidth; part += 64) {
        const auto& columns = reinterpret_cast<const float (&)[1][8][4]>(sums[0][part / 8]);
        nan |= store_rows(key_target_of<T>(to, given, block.begin, key_head), tile, columns, factor,
                          first_row(), block.length, part);
      }
      return nan;
    };
    const float factor = Weights(given).gradient_factor();
    const bool nan_k = store_one(call.d_k, d_k, static_cast<float>(given.scale) * factor);
    return store_one(call.d_v, d_v, factor) || nan_k;
  }

  // The grid is one row of blocks: those of one block of keys and all heads follow one another, and blocks of
  // keys come last first.
  struct Grid {
    static constexpr Shape kShape = make_shape(Tiles::kConsumerWarps, 1, kQueries);
    static constexpr int kPart = kWidth;

    static ARGUS_DEVICE careful::Place place(const Arguments& given) {
      const int heads = given.key_heads, index = static_cast<int>(blockIdx.x);
      const int blocks = static_cast<int>(gridDim.x) / heads;
      return {find_block<kKeys>(keys_in(given), blocks - 1 - index / heads), index % heads, 0};
    }
  };
};

}  // namespace argus::attention
