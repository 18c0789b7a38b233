// Gradients of the bias tables: the sum of d_score over the pairs of every entry. Each warp sums into tables
// of its own in shared memory, in the order of its tiles; a block adds its warps' and writes one part; a last
// kernel adds the parts of all blocks in their order. So the bits are the same in every run, without atomics.
#pragma once

#include "attention/cuda/scores.cuh"
#include "common/cuda/reduce.cuh"

namespace argus::attention {

// Entries of one head that can get a gradient: those of positions, then those of times.
ARGUS_HOST_DEVICE int table_entries(const Arguments& given) {
  return used_positions(given) + used_times(given);
}

ARGUS_HOST_DEVICE bool wants_tables(const Backward& call) {
  return call.d_position_bias != nullptr || call.d_time_bias != nullptr;
}

template <int kRowTiles, int kTiles>
class TableGradients {
 public:
  static constexpr int kColumns = 8 * kTiles, kStride = kColumns + 8, kPairs = 16 * kStride, kNone = 1 << 30;

  // Bytes of shared memory per warp.
  static ARGUS_HOST_DEVICE int room_bytes(const Arguments& given) {
    return (table_entries(given) + kPairs) * 4;
  }

  ARGUS_DEVICE TableGradients(const Arguments& given, const Bias& bias, float* room)
      : given_(given),
        bias_(bias),
        pairs_(room),
        position_(room + kPairs),
        time_(position_ + used_positions(given)) {
    if (room == nullptr) return;
    for (int i = lane_index(); i < table_entries(given); i += kWarpSize) position_[i] = 0.0f;
    __syncwarp();
  }

  // Adds a tile's score gradients. If the buckets differ, `keep` has stored them.
  template <class Mask>
  ARGUS_DEVICE void add(const float (&gradients)[kRowTiles][kTiles][4], const SharedEntries& shared,
                        const RowSide<Mask, kRowTiles>& rows, const ColumnSide<Mask>& columns) {
    float total = 0.0f;
    if (shared.position || shared.time >= 0)
      for_each(gradients, [&](const float& gradient, int, int, int) { total += gradient; });
    if (bias_.last_position >= 0) {
      if (shared.position) {
        far_ += total;
      } else {
        add_positions(gradients, rows, columns);
      }
    }
    if (bias_.last_time >= 0) {
      if (shared.time < 0) return add_times(gradients);
      if (shared.time != bucket_) flush();
      bucket_ = shared.time;
      bucket_sum_ += total;
    }
  }

  ARGUS_DEVICE void keep(int r, int n, int i, int bucket) {
    const uint32_t shifted = static_cast<uint32_t>(bucket) << (8 * i);
    buckets_[r][n] = i == 0 ? shifted : buckets_[r][n] | shifted;
  }

  ARGUS_DEVICE void finish() {
    flush();
    const float far = warp_sum(far_);
    __syncwarp();
    if (lane_index() == 0 && bias_.last_position >= 0) position_[bias_.last_position] += far;
  }

 private:
  ARGUS_DEVICE void add_to_time(int bucket, float sum) {
    const float total = warp_sum(sum);
    if (lane_index() == 0) time_[bucket] += total;
  }

  ARGUS_DEVICE void flush() {
    if (bucket_ >= 0) add_to_time(bucket_, bucket_sum_);
    bucket_sum_ = 0.0f;
  }

  // One bucket at a time, of those that occur among the warp's pairs.
  ARGUS_DEVICE void add_times(const float (&gradients)[kRowTiles][kTiles][4]) {
    int done = -1;
    for (;;) {
      int mine = kNone;
      for_each(gradients, [&](const float& gradient, int r, int n, int i) {
        const int bucket = static_cast<int>(buckets_[r][n] >> (8 * i) & 255u);
        if (gradient != 0.0f && bucket > done) mine = min(mine, bucket);
      });
      const int next = __reduce_min_sync(kFullWarp, mine);
      if (next == kNone) return;
      float sum = 0.0f;
      for_each(gradients, [&](const float& gradient, int r, int n, int i) {
        if (static_cast<int>(buckets_[r][n] >> (8 * i) & 255u) == next) sum += gradient;
      });
      add_to_time(next, sum);
      done = next;
    }
  }

  // 16 rows at a time.
  template <class Mask>
  ARGUS_DEVICE void add_positions(const float (&gradients)[kRowTiles][kTiles][4],
                                  const RowSide<Mask, kRowTiles>& rows, const ColumnSide<Mask>& columns) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      __syncwarp();
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
          pairs_[row_within(0, i) * kStride + column_within(n, i)] = gradients[r][n][i];
      }
      __syncwarp();
      if constexpr (Mask::kGeneral) {
        add_by_row(r, rows, columns);
      } else {
        add_by_diagonal(rows.first + 16 * r - columns.first);
      }
    }
  }

  // Where a query's position is its place, all pairs on a diagonal share one entry. `corner` is the distance
  // of the pair in the first row and column.
  ARGUS_DEVICE void add_by_diagonal(int corner) {
    float ahead = 0.0f;
    for (int i = lane_index(); i < kColumns + 15; i += kWarpSize) {
      const int diagonal = i - (kColumns - 1), apart = corner + diagonal;
      if (apart < 0 && given_.visible == nullptr) continue;
      float sum = 0.0f;
      for (int row = max(0, diagonal); row < min(16, kColumns + diagonal); ++row)
        sum += pairs_[row * kStride + row - diagonal];
      if (apart < 0) {
        ahead += sum;
      } else if (apart < bias_.last_position) {
        position_[apart] += sum;
      } else {
        far_ += sum;
      }
    }
    if (given_.visible != nullptr && corner < kColumns - 1) add_ahead(ahead);
  }

  // A lane takes every 32nd column. No two pairs of a row share an entry, but those far apart and those of
  // keys ahead of the query.
  template <class Mask>
  ARGUS_DEVICE void add_by_row(int r, const RowSide<Mask, kRowTiles>& rows, const ColumnSide<Mask>& columns) {
    float ahead = 0.0f;
#pragma unroll 1
    for (int row = 0; row < 16; ++row) {
      const int within = 16 * r + row;
      const int corner = Mask::row_position(rows.numbers, within, rows.first + within) - columns.first;
      for (int column = lane_index(); column < kColumns; column += kWarpSize) {
        const int apart = corner - column;
        const float gradient = pairs_[row * kStride + column];
        if (apart >= bias_.last_position) {
          far_ += gradient;
        } else if (apart < 0) {
          ahead += gradient;
        } else {
          position_[apart] += gradient;
        }
      }
      __syncwarp();
    }
    add_ahead(ahead);
  }

  // Of keys ahead of their query, whose distance counts as 0.
  ARGUS_DEVICE void add_ahead(float sum) {
    const float total = warp_sum(sum);
    __syncwarp();
    if (lane_index() == 0) position_[0] += total;
  }

  const Arguments& given_;
  const Bias& bias_;
  float* pairs_;     // [16, kStride]
  float* position_;  // the warp's tables
  float* time_;
  uint32_t buckets_[kRowTiles][kTiles];  // one byte per pair
  int bucket_ = -1;                      // shared by the previous tiles
  float bucket_sum_ = 0.0f, far_ = 0.0f;
};

ARGUS_DEVICE float* table_part(const Backward& call, int block, int head) {
  return call.table_parts +
         (static_cast<int64_t>(block) * call.given.heads + head) * table_entries(call.given);
}

// Writes the block's part; `rooms` are the warps' tables, or null for zeros. Returns whether one of the
// thread's entries, every kWarps · 32nd, is NaN.
template <int kWarps>
ARGUS_DEVICE bool store_table_part(const Backward& call, const float* rooms, int room_floats, int skipped,
                                   int block, int head) {
  const int entries = table_entries(call.given);
  float* part = table_part(call, block, head);
  bool nan = false;
  for (int i = static_cast<int>(threadIdx.x); i < entries; i += kWarps * kWarpSize) {
    float sum = 0.0f;
    for (int warp = 0; rooms != nullptr && warp < kWarps; ++warp)
      sum += rooms[warp * room_floats + skipped + i];
    part[i] = sum;
    nan = nan || is_nan(sum);
  }
  return nan;
}

constexpr int kSumWarps = 8;

// Adds the parts of `blocks` blocks: a block of threads takes 32 columns of a head's two tables, a warp every
// eighth part.
template <class Weights>
__global__ void __launch_bounds__(kSumWarps* kWarpSize) sum_tables_kernel(Backward call, int64_t blocks) {
  ARGUS_SHARED(double, sums, [kSumWarps][kWarpSize]);
  const Arguments& given = call.given;
  const int lane = lane_index(), warp = warp_index(), head = static_cast<int>(blockIdx.y);
  const int column = static_cast<int>(blockIdx.x) * kWarpSize + lane, time = column - given.positions;
  const bool of_time = time >= 0;
  const int entry = of_time ? (time < used_times(given) ? used_positions(given) + time : -1)
                            : (column < used_positions(given) ? column : -1);
  double sum = 0.0;
  if (entry >= 0) {
    const int64_t entries = table_entries(given);
    for (int64_t block = warp; block < blocks; block += kSumWarps)
      sum += static_cast<double>(call.table_parts[(block * given.heads + head) * entries + entry]);
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp > 0) return;
  for (int other = 1; other < kSumWarps; ++other) sum += sums[other][lane];
  float* table = floats(of_time ? call.d_time_bias : call.d_position_bias);
  const int columns = of_time ? given.times : given.positions, place = of_time ? time : column;
  if (table != nullptr && place < columns)
    table[static_cast<int64_t>(head) * columns + place] = static_cast<float>(sum);
}

}  // namespace argus::attention
