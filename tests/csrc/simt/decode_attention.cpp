// The launcher of decode_attention on host memory, for ctypes.
#include "decode_attention/decode_attention.h"

#include <cstring>
#include <string>
#include <vector>

#include "common/cuda/device.cuh"

namespace {

using argus::Dtype;
using argus::decode_attention::Params;
using argus::simt::DeviceBuffer;

// What a page tensor spans in bytes, its last row included.
size_t span(const Params& params, int64_t page_stride, int64_t slot_stride, int64_t row, size_t element) {
  if (params.pages == 0) return 0;
  const int64_t last = (params.pages - 1) * page_stride + (params.page_size - 1) * slot_stride;
  return static_cast<size_t>(last + row) * element;
}

void decode(Params params, uint64_t seed) {
  const size_t element = params.dtype == Dtype::float32 ? 4 : 2;
  const int64_t row = params.kv_heads * params.width;
  const size_t users = static_cast<size_t>(params.users), rows = static_cast<size_t>(params.rows);
  const size_t heads = static_cast<size_t>(params.heads);
  const size_t queries = rows * heads * static_cast<size_t>(params.width) * element;
  const size_t vectors = rows * static_cast<size_t>(row) * element;
  const DeviceBuffer q("q", params.q, queries), k("k", params.k, params.k ? vectors : 0),
      v("v", params.v, params.v ? vectors : 0);
  const size_t kept = params.key_scales != nullptr ? 1 : element;
  const DeviceBuffer keys("key_pages", params.key_pages,
                          span(params, params.key_page_stride, params.key_slot_stride, row, kept));
  const DeviceBuffer values("value_pages", params.value_pages,
                            span(params, params.value_page_stride, params.value_slot_stride, row, kept));
  const auto scales = [&](const char* name, float* given, int64_t page_stride, int64_t slot_stride,
                          int64_t head_stride) {
    const int64_t row = (params.kv_heads - 1) * head_stride + 1;
    const size_t bytes = given ? span(params, page_stride, slot_stride, row, 4) : 0;
    return DeviceBuffer(name, static_cast<void*>(given), bytes);
  };
  const DeviceBuffer key_scales = scales("key_scales", params.key_scales, params.key_scale_page_stride,
                                         params.key_scale_slot_stride, params.key_scale_head_stride);
  const DeviceBuffer value_scales =
      scales("value_scales", params.value_scales, params.value_scale_page_stride,
             params.value_scale_slot_stride, params.value_scale_head_stride);
  const DeviceBuffer times("time_pages", static_cast<void*>(params.time_pages),
                           span(params, params.time_page_stride, params.time_slot_stride, 1, 8));
  const DeviceBuffer table("block_table", static_cast<const void*>(params.block_table),
                           users * static_cast<size_t>(params.table_width) * 4);
  const DeviceBuffer lengths("lengths", static_cast<const void*>(params.lengths), users * 4);
  const DeviceBuffer offsets("offsets", static_cast<const void*>(params.offsets),
                             params.offsets ? (users + 1) * 4 : 0);
  const DeviceBuffer position("position_bias", params.position_bias,
                              heads * static_cast<size_t>(params.position_buckets) * 4);
  const size_t time_buckets = static_cast<size_t>(params.time_buckets);
  const DeviceBuffer time("time_bias", params.time_bias, heads * time_buckets * 4);
  const DeviceBuffer query_time("query_time", static_cast<const void*>(params.query_time),
                                params.query_time ? rows * 8 : 0);
  const DeviceBuffer key_time("key_time", static_cast<const void*>(params.key_time),
                              params.key_time ? rows * 8 : 0);
  const DeviceBuffer out("out", params.out, queries);
  params.chunk = params.chunk > 0
                     ? params.chunk
                     : argus::decode_attention::cuda_chunk_events(params.table_width * params.page_size);
  std::vector<float> results(static_cast<size_t>(argus::decode_attention::cuda_rows_at_once(params) *
                                                 argus::decode_attention::cuda_chunks(params) *
                                                 argus::decode_attention::cuda_partial_elements(params)),
                             std::nanf(""));
  const DeviceBuffer partial("partial", static_cast<void*>(results.data()), results.size() * 4);

  const auto or_null = [](const void* given, const DeviceBuffer& buffer) {
    return given == nullptr ? nullptr : buffer.as<void>();
  };
  const auto times_or_null = [&](const int64_t* given, const DeviceBuffer& buffer) {
    return static_cast<const int64_t*>(or_null(given, buffer));
  };
  params.q = q.as<void>();
  params.k = or_null(params.k, k);
  params.v = or_null(params.v, v);
  params.key_pages = keys.as<void>();
  params.value_pages = values.as<void>();
  params.time_pages = times.as<int64_t>();
  if (params.key_scales != nullptr) {
    params.key_scales = key_scales.as<float>();
    params.value_scales = value_scales.as<float>();
  }
  params.block_table = table.as<int32_t>();
  params.lengths = lengths.as<int32_t>();
  params.offsets = static_cast<const int32_t*>(or_null(params.offsets, offsets));
  params.position_bias = or_null(params.position_bias, position);
  params.time_bias = or_null(params.time_bias, time);
  params.query_time = times_or_null(params.query_time, query_time);
  params.key_time = times_or_null(params.key_time, key_time);
  params.out = out.as<void>();
  params.partial = partial.as<void>();
  argus::simt::set_seed(seed);
  argus::decode_attention::launch_cuda(params, nullptr);
  keys.copy_back();
  values.copy_back();
  if (params.key_scales != nullptr) {
    key_scales.copy_back();
    value_scales.copy_back();
  }
  times.copy_back();
  out.copy_back();
}

}  // namespace

// Leaves the executor's report, or the empty string, in `report`.
extern "C" __attribute__((visibility("default"))) void decode_attention_on_host(const Params* params,
                                                                                uint64_t seed, char* report,
                                                                                size_t bytes) {
  std::string text;
  try {
    decode(*params, seed);
  } catch (const std::exception& error) {
    text = error.what();
  }
  std::strncpy(report, text.c_str(), bytes - 1);
  report[bytes - 1] = '\0';
}
