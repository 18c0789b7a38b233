// The forward product of triple_embedding on sm_90, of bfloat16 and half: TMA, wgmma and a weight that stays.
//
// A block keeps kColumns columns of the weight in shared memory and takes tiles of 64 events in turn. Its
// first warpgroup gathers: 16-byte chunks of rows go from their tables into a ring of four stages, 64
// elements deep, of each of the two other warpgroups. Those take every second tile each and multiply 64 ×
// kColumns sums by wgmma, so that one multiplies while the other stores. TMA brings the weight once a block,
// a box of eight elements of depth by 64 columns at a time: depth is laid out in chunks, as everywhere in
// this room, and the rows of the weight that a column's last chunk has too many become zero.
//
//   `full`   of a stage counts the four warps that gather, each of which arrives once its copies have landed
//            and its lanes have fenced them for wgmma, which reads through another proxy
//   `empty`  counts the four warps that are done with it
//
// Up to kUnderWay stages are gathered before the first of them is announced. With one more they could wait
// for a warpgroup that waits for them: it releases a stage when it has issued the next.
#pragma once

#include <algorithm>
#include <type_traits>

#include "common/cuda/sm90/capability.cuh"
#include "common/cuda/sm90/product_loop.cuh"
#include "triple_embedding/sources.cuh"

namespace argus::triple_embedding {

template <class T, class Stored, int kColumns>
struct ForwardLoop {
  static constexpr int kThreads = 384, kGroupThreads = 128, kGroupWarps = 4;
  static constexpr int kEvents = 64, kStepChunks = 8, kDepth = kStepChunks * kChunk<T>;
  static constexpr int kStages = 4, kUnderWay = 2, kRows = 4;  // rows of a stage that a thread gathers
  static constexpr int kApart = kEvents / kRows;
  // 128 · 88 + 256 · 208 = 64,512 of the 64 K of a multiprocessor; 128 of a consumer's are sums.
  static constexpr int kProducerRegisters = 88, kConsumerRegisters = 208;
  static constexpr uint32_t kConsumerBarrier = 1;
  using TileA = sm90::OperandTile<T, ptx::Major::k, 128, kEvents, kDepth>;
  using TileB = sm90::OperandTile<T, ptx::Major::mn, 128, kColumns, kDepth>;
  static constexpr int kBoxRows = kChunk<T>, kBoxBytes = kBoxRows * TileB::kWidth;
  static_assert(kBoxBytes == static_cast<int>(sm90::kPatternBytes));
  static constexpr int kRingBytes = 2 * kStages * TileA::kBytes;

  ARGUS_HOST_DEVICE static int steps(const CudaProblem& problem) {
    return (problem.chunks + kStepChunks - 1) / kStepChunks;
  }
  // The instructions' depth is two chunks.
  ARGUS_HOST_DEVICE static int products(const CudaProblem& problem) { return (problem.chunks + 1) / 2; }
  ARGUS_HOST_DEVICE static int column_tiles(const CudaProblem& problem) {
    return (problem.width + kColumns - 1) / kColumns;
  }
  ARGUS_HOST_DEVICE static int event_tiles(const CudaProblem& problem) {
    return static_cast<int>((problem.events + kEvents - 1) / kEvents);
  }
  static constexpr size_t shared_bytes(int steps) {
    return static_cast<size_t>(steps) * TileB::kBytes + kRingBytes + sm90::kPatternBytes;
  }

  static ptx::TensorMap map(const CudaProblem& problem) {
    uint64_t rows = 0;
    for (int k = 0; k < problem.count; ++k) rows += static_cast<uint64_t>(problem.columns[k].width);
    const auto width = static_cast<uint64_t>(problem.width);
    return ptx::make_tensor_map<T>({static_cast<const T*>(problem.weight), width, rows, width * sizeof(T),
                                    TileB::kBoxColumns, kBoxRows, TileB::kSwizzleBytes});
  }

  // A block's tiles of events, `tile` counting them: tiles of one number lie in the L2 for the blocks of all
  // columns.
  struct Work {
    int column, first, stride, tiles, steps;

    ARGUS_DEVICE explicit Work(const CudaProblem& problem) {
      const int side = column_tiles(problem), block = static_cast<int>(blockIdx.x);
      column = block % side * kColumns;
      first = block / side;
      stride = static_cast<int>(gridDim.x) / side;
      const int all = event_tiles(problem);
      tiles = first < all ? (all - first + stride - 1) / stride : 0;
      steps = ForwardLoop::steps(problem);
    }
    ARGUS_DEVICE int64_t event(int tile) const {
      return (first + static_cast<int64_t>(tile) * stride) * kEvents;
    }
  };

  struct Position {
    int tile = 0, step = 0;

    ARGUS_DEVICE void advance(const Work& work) {
      if (++step == work.steps) step = 0, ++tile;
    }
  };

  // The rings of the two warpgroups, one after the other.
  struct Rings {
    uint64_t *full, *empty;
    unsigned char* stages;

    // How many steps the ring of the tile had before.
    ARGUS_DEVICE static int use(const Work& work, const Position& at) {
      return at.tile / 2 * work.steps + at.step;
    }
    ARGUS_DEVICE static int stage(int half, int use) { return half * kStages + use % kStages; }
    ARGUS_DEVICE static uint32_t parity(int use) { return static_cast<uint32_t>(use / kStages % 2); }
    ARGUS_DEVICE unsigned char* tile(int stage) const { return stages + stage * TileA::kBytes; }
  };

  // Of a step: the column of the thread's chunk, and its ids.
  struct Rows {
    int column;
    int64_t ids[kRows];
  };

  // A thread gathers the same chunk of every kApart-th event: eight threads read 128 bytes of a row.
  ARGUS_DEVICE static int own_chunk() { return static_cast<int>(threadIdx.x) % kStepChunks; }
  ARGUS_DEVICE static int own_row() { return static_cast<int>(threadIdx.x) / kStepChunks; }

  // columns: the column of each chunk.
  ARGUS_DEVICE static void look_up(Rows& rows, const CudaProblem& problem, const uint8_t* columns,
                                   const Work& work, const Position& at) {
    const int chunk = at.step * kStepChunks + own_chunk();
    const bool real = at.tile < work.tiles && chunk < problem.chunks;
    rows.column = real ? columns[chunk] : 0;
    const int64_t event = work.event(at.tile) + own_row();
    const int left = real ? static_cast<int>(min(problem.events - event, int64_t{kEvents})) : 0;
    const int64_t* ids = problem.ids + rows.column * problem.events + event;
#pragma unroll
    for (int i = 0; i < kRows; ++i) rows.ids[i] = kApart * i < left ? ids[kApart * i] : -1;
  }

  ARGUS_DEVICE static void fill(unsigned char* tile, const Rows& rows, const CudaProblem& problem, int step) {
    static_assert(kApart % 8 == 0);  // one swizzle for all of a thread's rows
    const int chunk = step * kStepChunks + own_chunk();
    unsigned char* to = tile + TileA::chunk_offset(own_row(), own_chunk());
    const CudaColumn& column = problem.columns[rows.column];
    if constexpr (std::is_same_v<T, Stored>) {
      if (column.aligned) {
        const int first = (chunk - column.first_chunk) * kChunk<T>;
        const int bytes = min((column.width - first) * static_cast<int>(sizeof(T)), kChunkBytes);
        const T* from = static_cast<const T*>(column.table) + first;
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
          const bool known = static_cast<uint64_t>(rows.ids[i]) < static_cast<uint64_t>(column.rows);
          ptx::cp_async<kChunkBytes>(to + i * kApart * TileA::kWidth,
                                     from + (known ? rows.ids[i] * column.row_stride : 0), known ? bytes : 0);
        }
        return;
      }
    }
    const GatheredRows<T, Stored> source{problem, problem.events};
#pragma unroll
    for (int i = 0; i < kRows; ++i)
      source.copy_row(to + i * kApart * TileA::kWidth, rows.column, chunk, rows.ids[i]);
  }

  // The stage's copies have landed; wgmma may read them once all four warps have said so.
  ARGUS_DEVICE static void announce(const Rings& rings, const Work& work, Position& at) {
    ptx::fence_proxy_async();
    __syncwarp();
    if (lane_index() == 0) ptx::mbarrier_arrive(rings.full + Rings::stage(at.tile % 2, Rings::use(work, at)));
    at.advance(work);
  }

  // Ids are read two steps ahead of their rows, into registers that the loop's two halves alternate between:
  // moved from one to the other, they would be waited for.
  ARGUS_DEVICE static void produce(const Rings& rings, const CudaProblem& problem, const uint8_t* columns,
                                   const Work& work) {
    Position looked, filled, announced;
    Rows rows[2];
#pragma unroll
    for (Rows& one : rows) {
      look_up(one, problem, columns, work, looked);
      looked.advance(work);
    }
    const int total = work.tiles * work.steps;
    for (int first = 0; first < total; first += 2) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (first + i >= total) break;
        const int use = Rings::use(work, filled), stage = Rings::stage(filled.tile % 2, use);
        ptx::mbarrier_wait(rings.empty + stage, Rings::parity(use) ^ 1);
        fill(rings.tile(stage), rows[i], problem, filled.step);
        ptx::cp_async_commit();
        filled.advance(work);
        look_up(rows[i], problem, columns, work, looked);
        looked.advance(work);
        if (first + i < kUnderWay) continue;
        ptx::cp_async_wait<kUnderWay>();
        announce(rings, work, announced);
      }
    }
    ptx::cp_async_wait_all();
    while (announced.tile < work.tiles) announce(rings, work, announced);
  }

  // Eight rows of depth of the block's weight, in the box of 64 columns.
  ARGUS_DEVICE static unsigned char* weight_box(unsigned char* weight, int chunk, int box) {
    return weight + chunk / kStepChunks * TileB::kBytes + box * TileB::kBoxBytes +
           chunk % kStepChunks * kBoxBytes;
  }

  ARGUS_DEVICE static void load_weight(unsigned char* weight, const ptx::TensorMap& map,
                                       const CudaProblem& problem, int column0, uint64_t* loaded) {
    ptx::mbarrier_arrive_expect(loaded, static_cast<uint32_t>(problem.chunks * TileB::kBoxes * kBoxBytes));
    for (int k = 0; k < problem.count; ++k) {
      const CudaColumn& column = problem.columns[k];
      for (int row = 0; row < column.width; row += kBoxRows) {
        for (int box = 0; box < TileB::kBoxes; ++box)
          ptx::tma_load(weight_box(weight, column.first_chunk + row / kBoxRows, box), map,
                        column0 + box * TileB::kBoxColumns, column.offset + row, loaded);
      }
    }
  }

  // By both consumers: zeros for the rows of depth that no row of the weight has, of the last chunk of a
  // column and of the one past the last of an odd number. TMA has put the next column's there, or nothing.
  ARGUS_DEVICE static void clear_past_columns(unsigned char* weight, const CudaProblem& problem) {
    constexpr int kRowChunks = kColumns / kChunk<T>;
    const auto clear = [&](int chunk, int row) {
      for (int i = static_cast<int>(threadIdx.x) - kGroupThreads; i < kRowChunks; i += 2 * kGroupThreads)
        tile::clear_chunk(weight_box(weight, chunk, i / kStepChunks) + row * TileB::kWidth +
                          i % kStepChunks * kChunkBytes);
    };
    for (int k = 0; k < problem.count; ++k) {
      const CudaColumn& column = problem.columns[k];
      for (int row = column.width % kBoxRows; row % kBoxRows != 0; ++row)
        clear(column.first_chunk + column.width / kBoxRows, row);
    }
    if (problem.chunks % 2 == 0) return;
    for (int row = 0; row < kBoxRows; ++row) clear(problem.chunks, row);
  }

  ARGUS_DEVICE static void release(const Rings& rings, int half, int use) {
    if (lane_index() == 0) ptx::mbarrier_arrive(rings.empty + Rings::stage(half, use));
  }

  // A number of products that the compiler knows: between the fence and the commit stands no branch.
  template <int kProducts>
  ARGUS_DEVICE static void add(float (&sums)[kColumns / 2], const unsigned char* a, const unsigned char* b,
                               bool first) {
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kProducts; ++k)
      ptx::wgmma<ptx::Major::k, ptx::Major::mn>(sums, TileA::descriptor(a, k), TileB::descriptor(b, k),
                                                !first || k > 0, T{});
    ptx::wgmma_commit();
  }
  template <int kMost = TileA::kSteps>
  ARGUS_DEVICE static void add_up_to(int products, float (&sums)[kColumns / 2], const unsigned char* a,
                                     const unsigned char* b, bool first) {
    if constexpr (kMost > 1) {
      if (products < kMost) return add_up_to<kMost - 1>(products, sums, a, b, first);
    }
    add<kMost>(sums, a, b, first);
  }

  // The sums of one tile; `use` counts on from tile to tile.
  ARGUS_DEVICE static void multiply(float (&sums)[kColumns / 2], const Rings& rings,
                                    const unsigned char* weight, int half, int products, int& use) {
    for (int product = 0; product < products; product += TileA::kSteps, ++use) {
      const int stage = Rings::stage(half, use);
      ptx::mbarrier_wait(rings.full + stage, Rings::parity(use));
      const unsigned char* b = weight + product / TileA::kSteps * TileB::kBytes;
      add_up_to(products - product, sums, rings.tile(stage), b, product == 0);
      ptx::wgmma_wait<1>();
      if (product > 0) release(rings, half, use - 1);
    }
    ptx::wgmma_wait<0>(sums);
    release(rings, half, use - 1);
  }

  // Four lanes hold a pair of columns each of four times eight columns: afterwards all of one of the four.
  ARGUS_DEVICE static void exchange(uint32_t (&words)[4]) {
#pragma unroll
    for (int mask = 1; mask <= 2; mask *= 2) {
      const bool high = (lane_index() & mask) != 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if ((i & mask) != 0) continue;
        const uint32_t sent = high ? words[i] : words[i + mask];
        const uint32_t received = __shfl_xor_sync(kFullWarp, sent, mask);
        (high ? words[i] : words[i + mask]) = received;
      }
    }
  }

  // The outputs of a tile that begins at this event, 16 bytes a lane: four lanes write 64 bytes of a row.
  ARGUS_DEVICE static void store(const float (&sums)[kColumns / 2], const CudaForward& forward,
                                 const float* bias, int64_t event0, int column0) {
    const CudaProblem& problem = forward.problem;
    T* output = static_cast<T*>(forward.output);
#pragma unroll
    for (int group = 0; group < kColumns / 8; group += 4) {
#pragma unroll
      for (int lower = 0; lower < 2; ++lower) {
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int sum = 4 * (group + i) + 2 * lower, column = sm90::column_of_sum(sum);
          words[i] = packed(sums[sum] + bias[column], sums[sum + 1] + bias[column + 1], T{});
        }
        exchange(words);
        const int64_t event = event0 + sm90::row_of_sum(2 * lower);
        const int column = column0 + 8 * (group + lane_index() % 4);
        if (event < problem.events && column < problem.width)
          *reinterpret_cast<uint4*>(output + event * problem.width + column) =
              make_uint4(words[0], words[1], words[2], words[3]);
      }
    }
  }

  ARGUS_DEVICE static void consume(const Rings& rings, unsigned char* weight, float* bias,
                                   const CudaForward& forward, const Work& work, uint64_t* loaded) {
    const CudaProblem& problem = forward.problem;
    // The same in all lanes: ptxas would serialize products in a loop that threads may leave one by one.
    const int half = __shfl_sync(kFullWarp, static_cast<int>(threadIdx.x) / kGroupThreads, 0) - 1;
    for (int i = static_cast<int>(threadIdx.x) - kGroupThreads; i < kColumns; i += 2 * kGroupThreads) {
      // x + −0 is x, also where x is 0.
      const bool given = forward.bias != nullptr && work.column + i < problem.width;
      bias[i] = given ? to_float(static_cast<const T*>(forward.bias)[work.column + i]) : -0.0f;
    }
    ptx::mbarrier_wait(loaded, 0);
    clear_past_columns(weight, problem);
    ptx::fence_proxy_async();
    ptx::named_barrier_sync(kConsumerBarrier, 2 * kGroupThreads);
    int use = 0;
    for (int tile = half; tile < work.tiles; tile += 2) {
      float sums[kColumns / 2];
      multiply(sums, rings, weight, half, products(problem), use);
      store(sums, forward, bias, work.event(tile), work.column);
    }
  }

  ARGUS_DEVICE static void run(const ptx::TensorMap& map, const CudaForward& forward) {
    ARGUS_SHARED(uint64_t, full, [2 * kStages]);
    ARGUS_SHARED(uint64_t, empty, [2 * kStages]);
    ARGUS_SHARED(uint64_t, loaded, [1]);
    ARGUS_SHARED(float, bias, [kColumns]);
    ARGUS_SHARED(uint8_t, columns, [kMaxLoopChunks]);
    ARGUS_DYNAMIC_SHARED(unsigned char, buffer);
    const Rings rings{full, empty, sm90::align_to_pattern(buffer)};
    unsigned char* weight = rings.stages + kRingBytes;
    const Work work(forward.problem);
    if (threadIdx.x == 0) {
      for (int stage = 0; stage < 2 * kStages; ++stage) {
        ptx::mbarrier_init(full + stage, kGroupWarps);
        ptx::mbarrier_init(empty + stage, kGroupWarps);
      }
      ptx::mbarrier_init(loaded, 1);
      ptx::fence_mbarrier_init();
    }
    for (int chunk = static_cast<int>(threadIdx.x); chunk < forward.problem.chunks; chunk += kThreads)
      columns[chunk] = static_cast<uint8_t>(column_of(forward.problem, chunk));
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < kGroupThreads) {
      ptx::decrease_registers<kProducerRegisters>();
      if (threadIdx.x == 0) load_weight(weight, map, forward.problem, work.column, loaded);
      produce(rings, forward.problem, columns, work);
    } else {
      ptx::increase_registers<kConsumerRegisters>();
      consume(rings, weight, bias, forward, work, loaded);
    }
  }
};

template <class T, class Stored, int kColumns>
__global__ void __launch_bounds__(ForwardLoop<T, Stored, kColumns>::kThreads, 1)
    loop_forward_kernel(const __grid_constant__ ptx::TensorMap weight,
                        const __grid_constant__ CudaForward forward) {
#if defined(ARGUS_SM90A_CODE)
  ForwardLoop<T, Stored, kColumns>::run(weight, forward);
#endif
}

template <class T, class Stored, int kColumns>
void launch_forward_loop(const char* op, const CudaForward& forward, void* stream) {
  using Loop = ForwardLoop<T, Stored, kColumns>;
  const CudaProblem& problem = forward.problem;
  const int side = Loop::column_tiles(problem);
  const int each = std::clamp(forward.loop_blocks / side, 1, Loop::event_tiles(problem));
  const LaunchShape shape{dim3(static_cast<unsigned>(side * each)), dim3(Loop::kThreads),
                          Loop::shared_bytes(Loop::steps(problem))};
  launch(op, loop_forward_kernel<T, Stored, kColumns>, shape, stream, Loop::map(problem), forward);
}

// 128 columns of a weight of up to kMaxLoopChunks fit beside the rings, 256 of half of them.
template <class T, class Stored>
void launch_forward_loop(const char* op, const CudaForward& forward, void* stream) {
  const bool wide = forward.problem.width > 128 && 2 * forward.problem.chunks <= kMaxLoopChunks;
  wide ? launch_forward_loop<T, Stored, 256>(op, forward, stream)
       : launch_forward_loop<T, Stored, 128>(op, forward, stream);
}

}  // namespace argus::triple_embedding
