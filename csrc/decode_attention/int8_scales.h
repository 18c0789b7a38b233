// The scales of an int8 cache, one for each row of a head: read on the CPU after a chunk's scores and before
// its weighted sum.
#pragma once

#include <cstdint>

#include "common/cpu/simd.h"
#include "decode_attention/decode_attention.h"
#include "decode_attention/history_pages.h"

namespace argus::decode_attention {

// The scales of an int8 cache's keys and values.
struct ScalePages {
  Pages<float> keys, values;
  int64_t key_head_stride, value_head_stride;

  explicit ScalePages(const Params& params)
      : keys{params.key_scales, params.key_scale_page_stride, params.key_scale_slot_stride},
        values{params.value_scales, params.value_scale_page_stride, params.value_scale_slot_stride},
        key_head_stride(params.key_scale_head_stride),
        value_head_stride(params.value_scale_head_stride) {}
};

// The scales of one piece, prefetched beside its keys: between the two passes over a chunk nothing hides that
// a page's are somewhere else than the last page's.
struct ScalesAhead {
  const float *keys, *values;
  int64_t kv_heads, key_head_stride, value_head_stride;

  ARGUS_INLINE ScalesAhead(const Params& params, const ScalePages& scales, const Chunk& chunk, int64_t place)
      : keys(rows_from(params, scales.keys, chunk.user, chunk.begin + place, chunk.end).first),
        values(rows_from(params, scales.values, chunk.user, chunk.begin + place, chunk.end).first),
        kv_heads(params.kv_heads),
        key_head_stride(scales.key_head_stride),
        value_head_stride(scales.value_head_stride) {}

  // Called every fourth event: takes a quarter of the heads in turn, of each the cache line of sixteen
  // events. All heads at once stall: int8 was 1.32 times as fast as bfloat16 then, and 1.37 times so.
  ARGUS_INLINE void prefetch_at(int64_t event) const {
    const int64_t first = event / 16 * 16;
    for (int64_t head = event / 4 % 4; head < kv_heads; head += 4) {
      prefetch(keys, (head * key_head_stride + first) * int64_t{sizeof(float)});
      prefetch(values, (head * value_head_stride + first) * int64_t{sizeof(float)});
    }
  }
};

// The scores of each event times its rows' scales, and 2⁻²⁴ for what a code reads as. PagedCache has the
// scales of a head side by side.
ARGUS_INLINE void multiply_by_scales(const Params& params, const Chunk& chunk, const Pages<float>& scales,
                                     int64_t head_stride, float* scores) {
  for_each_piece<float>(params, chunk, scales, {},
                        [&](int64_t place, const Piece<float>& piece) ARGUS_INLINE_LAMBDA {
                          const int64_t count = piece.now.count, stride = piece.now.stride;
                          for (int64_t head = 0; head < params.kv_heads; ++head) {
                            float* of_head = scores + head * params.chunk + place;
                            const float* from = piece.now.first + head * head_stride;
                            if (stride == 1) {
                              for (int64_t event = 0; event < count; ++event)
                                of_head[event] *= from[event] * 0x1p-24f;
                            } else {
                              for (int64_t event = 0; event < count; ++event)
                                of_head[event] *= from[event * stride] * 0x1p-24f;
                            }
                          }
                        });
}

}  // namespace argus::decode_attention
