// argus_native::decode_attention: checks, allocation, registration. Compiled into both op libraries.
#include "decode_attention/decode_attention.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <limits>
#include <memory>
#include <optional>
#include <unordered_map>

#include "attention/relative_bias.h"
#include "common/torch/check.h"
#include "common/torch/memory.h"
#include "common/torch/stream.h"
#include "decode_attention/history_chunks.h"

namespace argus::decode_attention {
namespace {

constexpr const char* kOp = "decode_attention";

using Optional = std::optional<Tensor>;

// The arguments in the schema's order, contiguous where the kernels need it.
struct Arguments {
  Tensor q, key_pages, value_pages, time_pages, block_table, lengths;
  Optional k, v, position_bias, time_bias, query_time, key_time;
  double scale;
  std::optional<int64_t> window;
  Optional offsets;
  std::optional<double> divisor;
  Optional key_scales, value_scales;
};

void check_pages(const char* name, const Tensor& pages, const Arguments& given) {
  check_shape(kOp, name, pages, "[pages, page_size, Hk, Dh]",
              {given.key_pages.size(0), given.key_pages.size(1), given.key_pages.size(2), given.q.size(2)});
  check_dtype(kOp, name, pages, {given.key_scales ? ScalarType::Char : given.q.scalar_type()});
  check_same_device(kOp, name, pages, "q", given.q);
  const bool dense_heads = pages.size(3) <= 1 || pages.stride(3) == 1;
  const bool dense_events = pages.size(2) <= 1 || pages.stride(2) == pages.size(3);
  if (pages.numel() > 0 && !(dense_heads && dense_events))
    fail(kOp, name, " is not contiguous within an event, expected heads and widths side by side");
  if (given.k) check_no_overlap(kOp, name, pages);
}

void check_scales(const Arguments& given) {
  if (given.key_scales.has_value() != given.value_scales.has_value())
    fail(kOp, "one of key_scales and value_scales is given, expected both or neither");
  if (!given.key_scales) return;
  check_dtype(kOp, "q", given.q, {ScalarType::Float});
  for (const auto& [name, scales] :
       {std::pair{"key_scales", &given.key_scales}, std::pair{"value_scales", &given.value_scales}}) {
    check_shape(kOp, name, **scales, "[pages, page_size, Hk]",
                {given.key_pages.size(0), given.key_pages.size(1), given.key_pages.size(2)});
    check_dtype(kOp, name, **scales, {ScalarType::Float});
    check_same_device(kOp, name, **scales, "q", given.q);
    if (given.k) check_no_overlap(kOp, name, **scales);
  }
}

void check_rows(const char* name, const Optional& tensor, const Arguments& given, bool vectors) {
  if (!tensor) return;
  const Tensor& q = given.q;
  if (vectors) {
    check_shape(kOp, name, *tensor, "[Tq, Hk, Dh]", {q.size(0), given.key_pages.size(2), q.size(2)});
    check_dtype(kOp, name, *tensor, {q.scalar_type()});
  } else {
    check_shape(kOp, name, *tensor, "[Tq]", {q.size(0)});
    check_dtype(kOp, name, *tensor, {ScalarType::Long});
  }
  check_same_device(kOp, name, *tensor, "q", q);
}

void check_biases(const Arguments& given) {
  for (const auto& [name, table] :
       {std::pair{"position_bias", &given.position_bias}, std::pair{"time_bias", &given.time_bias}}) {
    if (!*table) continue;
    check_shape(kOp, name, **table, "[H, buckets]", {given.q.size(1), -1});
    check_dtype(kOp, name, **table,
                {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half, ScalarType::Double});
    check_same_device(kOp, name, **table, "q", given.q);
    if ((*table)->size(1) == 0) fail(kOp, name, " has no bucket, expected at least 1");
  }
  if (given.time_bias && !given.query_time)
    fail(kOp, "query_time is not given, expected it beside time_bias");
}

int64_t users_of(const Arguments& given) {
  return given.offsets ? given.offsets->size(0) - 1 : given.q.size(0);
}

void check_users(const Arguments& given) {
  const Tensor& q = given.q;
  if (given.offsets) {
    check_shape(kOp, "offsets", *given.offsets, "[B + 1]", {-1});
    check_dtype(kOp, "offsets", *given.offsets, {ScalarType::Int});
    check_same_device(kOp, "offsets", *given.offsets, "q", q);
    if (given.offsets->size(0) == 0)
      fail(kOp, "offsets is empty, expected [B + 1] values, the first of them 0");
  }
  check_shape(kOp, "block_table", given.block_table, "[B, max_pages]", {users_of(given), -1});
  check_dtype(kOp, "block_table", given.block_table, {ScalarType::Int});
  check_shape(kOp, "lengths", given.lengths, "[B]", {users_of(given)});
  check_dtype(kOp, "lengths", given.lengths, {ScalarType::Int});
}

void check_numbers(const Arguments& given) {
  if (given.window && *given.window < 1)
    fail(kOp, "window is ", *given.window, ", expected at least 1, or none for no limit");
  if (given.divisor && !(*given.divisor > 0))
    fail(kOp, "divisor is ", *given.divisor, ", expected a number above 0");
}

void check(const Arguments& given) {
  const Tensor& q = given.q;
  check_numbers(given);
  check_shape(kOp, "q", q, "[Tq, H, Dh]", {-1, -1, -1});
  if (q.is_cpu()) {
    check_dtype(kOp, "q", q, {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half, ScalarType::Double});
  } else {
    check_dtype(kOp, "q", q, {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half});
  }
  check_shape(kOp, "key_pages", given.key_pages, "[pages, page_size, Hk, Dh]", {-1, -1, -1, q.size(2)});
  if (given.key_pages.size(1) == 0) fail(kOp, "key_pages has page size 0");
  const int64_t heads = q.size(1), kv_heads = given.key_pages.size(2);
  if (kv_heads == 0 ? heads > 0 : heads % kv_heads != 0)
    fail(kOp, "key_pages has ", kv_heads, " heads, expected a divisor of q's ", heads);
  check_scales(given);
  check_pages("key_pages", given.key_pages, given);
  check_pages("value_pages", given.value_pages, given);
  check_shape(kOp, "time_pages", given.time_pages, "[pages, page_size]",
              {given.key_pages.size(0), given.key_pages.size(1)});
  check_dtype(kOp, "time_pages", given.time_pages, {ScalarType::Long});
  check_users(given);
  for (const auto& [name, tensor] :
       {std::pair{"time_pages", &given.time_pages}, std::pair{"block_table", &given.block_table},
        std::pair{"lengths", &given.lengths}})
    check_same_device(kOp, name, *tensor, "q", q);
  if (given.k && given.key_time) check_no_overlap(kOp, "time_pages", given.time_pages);
  if (given.k.has_value() != given.v.has_value())
    fail(kOp, "one of k and v is given, expected both or neither");
  check_rows("k", given.k, given, true);
  check_rows("v", given.v, given, true);
  check_rows("query_time", given.query_time, given, false);
  check_rows("key_time", given.key_time, given, false);
  check_biases(given);
}

// A bias table in the type that the kernels compute in.
Optional arithmetic(const char* name, const Optional& table, const Tensor& q) {
  if (!table) return table;
  const ScalarType wide = q.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  return dense(kOp, name, *table, wide);
}

Arguments prepared(const Arguments& given) {
  Arguments ready = given;
  ready.q = dense(kOp, "q", given.q);
  ready.block_table = dense(kOp, "block_table", given.block_table);
  ready.lengths = dense(kOp, "lengths", given.lengths);
  ready.offsets = dense(kOp, "offsets", given.offsets);
  ready.k = dense(kOp, "k", given.k);
  ready.v = dense(kOp, "v", given.v);
  ready.query_time = dense(kOp, "query_time", given.query_time);
  ready.key_time = given.k ? dense(kOp, "key_time", given.key_time) : std::nullopt;
  ready.position_bias = arithmetic("position_bias", given.position_bias, given.q);
  ready.time_bias = arithmetic("time_bias", given.time_bias, given.q);
  return ready;
}

const void* data(const Optional& tensor) {
  return tensor ? tensor->const_data_ptr() : nullptr;
}

Params make_params(const Arguments& given, Tensor& out) {
  const int64_t heads = given.q.size(1), kv_heads = given.key_pages.size(2);
  const auto times = [](const Optional& tensor) { return static_cast<const int64_t*>(data(tensor)); };
  const auto scales = [](const Optional& tensor) {
    return tensor ? static_cast<float*>(tensor->mutable_data_ptr()) : nullptr;
  };
  const auto stride = [](const Optional& tensor, int64_t dim) { return tensor ? tensor->stride(dim) : 0; };
  return Params{
      .q = given.q.const_data_ptr(),
      .key_pages = given.key_pages.mutable_data_ptr(),
      .value_pages = given.value_pages.mutable_data_ptr(),
      .key_scales = scales(given.key_scales),
      .value_scales = scales(given.value_scales),
      .time_pages = static_cast<int64_t*>(given.time_pages.mutable_data_ptr()),
      .block_table = static_cast<const int32_t*>(given.block_table.const_data_ptr()),
      .lengths = static_cast<const int32_t*>(given.lengths.const_data_ptr()),
      .offsets = static_cast<const int32_t*>(data(given.offsets)),
      .k = data(given.k),
      .v = data(given.v),
      .position_bias = data(given.position_bias),
      .time_bias = data(given.time_bias),
      .cell_bucket = nullptr,
      .cell_edge = nullptr,
      .query_time = times(given.query_time),
      .key_time = times(given.key_time),
      .out = out.mutable_data_ptr(),
      .partial = nullptr,
      .users = users_of(given),
      .rows = given.q.size(0),
      .heads = heads,
      .kv_heads = kv_heads,
      .group = heads / std::max<int64_t>(kv_heads, 1),
      .width = given.q.size(2),
      .pages = given.key_pages.size(0),
      .page_size = given.key_pages.size(1),
      .table_width = given.block_table.size(1),
      .key_page_stride = given.key_pages.stride(0),
      .key_slot_stride = given.key_pages.stride(1),
      .value_page_stride = given.value_pages.stride(0),
      .value_slot_stride = given.value_pages.stride(1),
      .time_page_stride = given.time_pages.stride(0),
      .time_slot_stride = given.time_pages.stride(1),
      .key_scale_page_stride = stride(given.key_scales, 0),
      .key_scale_slot_stride = stride(given.key_scales, 1),
      .key_scale_head_stride = stride(given.key_scales, 2),
      .value_scale_page_stride = stride(given.value_scales, 0),
      .value_scale_slot_stride = stride(given.value_scales, 1),
      .value_scale_head_stride = stride(given.value_scales, 2),
      .position_buckets = given.position_bias ? given.position_bias->size(1) : 0,
      .time_buckets = given.time_bias ? given.time_bias->size(1) : 0,
      .window = given.window.value_or(std::numeric_limits<int64_t>::max()),
      .chunk = 0,
      .scale = given.scale,
      .divisor = given.divisor.value_or(0.0),
      .dtype = dtype_of(given.q),
  };
}

#ifndef ARGUS_CUDA_LIBRARY

void check_offsets(const Params& params) {
  if (params.offsets == nullptr) return;
  if (params.offsets[0] != 0) fail(kOp, "offsets[0] is ", params.offsets[0], ", expected 0");
  for (int64_t user = 0; user < params.users; ++user) {
    if (params.offsets[user + 1] >= params.offsets[user]) continue;
    fail(kOp, "offsets[", user + 1, "] is ", params.offsets[user + 1], ", expected at least offsets[", user,
         "] = ", params.offsets[user]);
  }
  if (params.offsets[params.users] > params.rows)
    fail(kOp, "offsets[", params.users, "] is ", params.offsets[params.users], ", expected at most the ",
         params.rows, " rows given");
}

void check_history(const Params& params, int64_t user) {
  const int64_t length = params.lengths[user];
  const int64_t capacity = saturating_product(params.table_width, params.page_size);
  if (length < 0 || length > capacity)
    fail(kOp, "lengths[", user, "] is ", length, ", expected 0 to ", capacity);
  if (new_events(params, user) > length)
    fail(kOp, "lengths[", user, "] is ", length, ", expected at least the user's ", new_events(params, user),
         " new events");
  const int32_t* table = params.block_table + user * params.table_width;
  for (int64_t slot = 0; slot * params.page_size < length; ++slot) {
    if (table[slot] >= 0 && table[slot] < params.pages) continue;
    fail(kOp, "user ", user, " has length ", length, " but no page for its events from ",
         slot * params.page_size, " on: block_table[", user, ", ", slot, "] is ", table[slot],
         ", expected 0 to ", params.pages - 1, "; reserve it first");
  }
}

// A page that a user appends to must belong to that user alone: the append would change the history of any
// other user of the page.
void check_appended_pages(const Params& params) {
  std::unordered_map<int32_t, int64_t> writer;
  for (int64_t user = 0; user < params.users; ++user) {
    const int64_t length = params.lengths[user], events = new_events(params, user);
    if (events == 0) continue;
    const int32_t* table = params.block_table + user * params.table_width;
    for (int64_t slot = (length - events) / params.page_size; slot * params.page_size < length; ++slot) {
      const auto [found, fresh] = writer.emplace(table[slot], user);
      if (fresh) continue;
      fail(kOp, "users [", found->second, ", ", user, "] would all append to page ", table[slot],
           ", expected a page of its own for each");
    }
  }
}

// Chunks are distributed over the threads one by one; small calls stay on the calling thread.
constexpr int64_t kBytesWorthAThread = 1 << 17;

// `appends`: k and v are given. A flag, because at width 0 their data pointers are null.
void run_on_cpu(Params& params, bool appends) {
  const int64_t element_bytes = params.key_scales != nullptr     ? 1
                                : params.dtype == Dtype::float64 ? 8
                                : params.dtype == Dtype::float32 ? 4
                                                                 : 2;
  const int64_t row_bytes = params.kv_heads * params.width * element_bytes;
  params.chunk = chunk_events(2 * row_bytes);
  if (appends) {
    const int64_t grain = std::max<int64_t>(1, kBytesWorthAThread / std::max<int64_t>(2 * row_bytes, 1));
    torch::stable::parallel_for(0, params.users, grain,
                                [&](int64_t first, int64_t last) { append_cpu(params, first, last); });
  }
  if (params.heads == 0 || params.width == 0) return;
  const HistoryChunks histories(params);
  const auto results = std::make_unique_for_overwrite<double[]>(
      static_cast<size_t>(histories.count() * partial_elements(params)));
  params.partial = results.get();
  const int64_t chunk_bytes = std::max<int64_t>(2 * row_bytes * params.chunk, 1);
  const int64_t grain = std::max<int64_t>(1, kBytesWorthAThread / chunk_bytes);
  torch::stable::parallel_for(0, histories.count(), grain, [&](int64_t first, int64_t last) {
    attend_cpu(params, histories.chunks(), first, last);
  });
  const int64_t members = params.rows * params.group;
  const int64_t member_bytes = row_bytes * (1 + histories.count() / std::max<int64_t>(members, 1));
  torch::stable::parallel_for(
      0, members, std::max<int64_t>(1, kBytesWorthAThread / std::max<int64_t>(member_bytes, 1)),
      [&](int64_t first, int64_t last) { combine_cpu(params, histories.first(), first, last); });
}

Tensor decode_on_cpu(Tensor q, Tensor key_pages, Tensor value_pages, Tensor time_pages, Tensor block_table,
                     Tensor lengths, Optional k, Optional v, Optional position_bias, Optional time_bias,
                     Optional query_time, Optional key_time, double scale, std::optional<int64_t> window,
                     Optional offsets, std::optional<double> divisor, Optional key_scales,
                     Optional value_scales) {
  const Arguments given{q,     key_pages, value_pages,   time_pages, block_table, lengths,
                        k,     v,         position_bias, time_bias,  query_time,  key_time,
                        scale, window,    offsets,       divisor,    key_scales,  value_scales};
  check(given);
  const Arguments ready = prepared(given);
  Tensor out = empty(q, {q.size(0), q.size(1), q.size(2)});
  Params params = make_params(ready, out);
  check_offsets(params);
  for (int64_t user = 0; user < params.users; ++user) check_history(params, user);
  if (k) check_appended_pages(params);
  const TimeBuckets buckets(params.time_buckets);
  params.cell_bucket = buckets.cells().first;
  params.cell_edge = buckets.cells().edge;
  if (params.rows > 0) run_on_cpu(params, k.has_value());
  return out;
}

#else

Tensor decode_on_cuda(Tensor q, Tensor key_pages, Tensor value_pages, Tensor time_pages, Tensor block_table,
                      Tensor lengths, Optional k, Optional v, Optional position_bias, Optional time_bias,
                      Optional query_time, Optional key_time, double scale, std::optional<int64_t> window,
                      Optional offsets, std::optional<double> divisor, Optional key_scales,
                      Optional value_scales) {
  const Arguments given{q,     key_pages, value_pages,   time_pages, block_table, lengths,
                        k,     v,         position_bias, time_bias,  query_time,  key_time,
                        scale, window,    offsets,       divisor,    key_scales,  value_scales};
  check(given);
  if (q.size(2) > kWidest) fail(kOp, "q has head width ", q.size(2), ", expected at most ", kWidest);
  const CurrentStream stream(q);
  const Arguments ready = prepared(given);
  Tensor out = empty(q, {q.size(0), q.size(1), q.size(2)});
  Params params = make_params(ready, out);
  if (params.rows == 0 || params.heads == 0 || params.width == 0) return out;
  params.chunk = cuda_chunk_events(params.table_width * params.page_size);
  const int64_t elements = cuda_rows_at_once(params) * cuda_chunks(params) * cuda_partial_elements(params);
  Tensor partial = empty(q, {elements}, ScalarType::Float);
  params.partial = partial.mutable_data_ptr();
  launch_cuda(params, stream.get());
  return out;
}

#endif

}  // namespace
}  // namespace argus::decode_attention

#ifndef ARGUS_CUDA_LIBRARY

STABLE_TORCH_LIBRARY_FRAGMENT(argus_native, m) {
  m.def(
      "decode_attention(Tensor q, Tensor(a!) key_pages, Tensor(b!) value_pages, Tensor(c!) time_pages, "
      "Tensor block_table, Tensor lengths, Tensor? k, Tensor? v, Tensor? position_bias, Tensor? time_bias, "
      "Tensor? query_time, Tensor? key_time, float scale, int? window, Tensor? offsets=None, "
      "float? divisor=None, Tensor(d!)? key_scales=None, Tensor(e!)? value_scales=None) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(argus_native, CPU, m) {
  m.impl("decode_attention", TORCH_BOX(&argus::decode_attention::decode_on_cpu));
}

#else

STABLE_TORCH_LIBRARY_IMPL(argus_native, CUDA, m) {
  m.impl("decode_attention", TORCH_BOX(&argus::decode_attention::decode_on_cuda));
}

#endif
