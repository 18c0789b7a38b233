// Kernels that know neither torch nor an instruction set, on drawn values: prints a hash of each one's result
// bits, so that another processor's can be compared.
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <numeric>
#include <vector>

#include "common/cpu/element.h"
#include "common/cpu/matmul.h"
#include "common/cpu/row_order.h"
#include "common/cpu/vector_math.h"
#include "decode_linear/decode_linear.h"
#include "host/hash.h"
#include "host/pack.h"
#include "host/sketch.h"
#include "pairwise_loss/pairwise_loss.h"
#include "rowwise_adagrad/rowwise_adagrad.h"

namespace {

using namespace argus;

// splitmix64: the same numbers everywhere.
struct Random {
  uint64_t state;
  uint64_t next() { return host::mix(state += 0x9e3779b97f4a7c15u); }
  int64_t below(int64_t bound) { return static_cast<int64_t>(next() % static_cast<uint64_t>(bound)); }
  // In [-2, 2), exact in float.
  double real() { return static_cast<double>(below(1 << 20)) / (1 << 18) - 2.0; }
};

template <class T>
std::vector<T> reals(Random& random, size_t count) {
  std::vector<T> values(count);
  for (T& value : values) store(value, static_cast<Arithmetic<T>>(random.real()));
  return values;
}

std::vector<int64_t> integers(Random& random, size_t count, int64_t bound) {
  std::vector<int64_t> values(count);
  for (int64_t& value : values) value = random.below(bound);
  return values;
}

// FNV-1a of the bytes.
template <class T>
void report(const char* name, const std::vector<T>& values) {
  uint64_t hash = 0xcbf29ce484222325u;
  const auto* bytes = reinterpret_cast<const unsigned char*>(values.data());
  for (size_t i = 0; i < values.size() * sizeof(T); ++i) hash = (hash ^ bytes[i]) * 0x100000001b3u;
  std::printf("%s %zu %016" PRIx64 "\n", name, values.size(), hash);
}

template <class Operand, class Stored>
void products(const char* name, Random& random) {
  constexpr int64_t kRows = 7, kColumns = 45, kDepth = 301;
  const auto left = reals<Stored>(random, kRows * kDepth), right = reals<Stored>(random, kColumns * kDepth);
  std::vector<Operand> packed_left(kRows * matmul::padded_depth<Operand>(kDepth));
  std::vector<Operand> packed_right(matmul::right_size<Operand>(kColumns, kDepth));
  std::vector<matmul::Sum<Operand>> out(kRows * kColumns);
  matmul::pack_left(packed_left.data(), left.data(), kRows, kDepth, kDepth, 1);
  matmul::pack_right(packed_right.data(), right.data(), kColumns, kDepth, kDepth, 1);
  matmul::multiply(out.data(), kColumns, packed_left.data(), matmul::padded_depth<Operand>(kDepth),
                   packed_right.data(), kRows, kColumns, kDepth, false);
  report(name, out);
}

void functions(Random& random) {
  const auto x = reals<float>(random, 4096);
  std::vector<float> out;
  for (const float value : x) {
    out.push_back(fast_exp(20 * value));
    out.push_back(softplus(9 * value));
    out.push_back(sigmoid(9 * value));
    out.push_back(gelu(3 * value));
  }
  report("functions", out);
}

template <class T>
void dense_layer(const char* name, Random& random, Dtype dtype) {
  constexpr int64_t kRows = 3, kInputs = 70, kOutputs = 37;
  const auto x = reals<T>(random, kRows * kInputs), weight = reals<T>(random, kOutputs * kInputs);
  const auto bias = reals<T>(random, kOutputs), residual = reals<T>(random, kRows * kOutputs);
  const auto norm_weight = reals<T>(random, kInputs), norm_bias = reals<T>(random, kInputs);
  std::vector<T> out(kRows * kOutputs);
  std::vector<double> prepared(kRows * decode_linear::prepared_columns(kInputs));
  const decode_linear::Params params{.x = x.data(),
                                     .weight = weight.data(),
                                     .bias = bias.data(),
                                     .norm_weight = norm_weight.data(),
                                     .norm_bias = norm_bias.data(),
                                     .residual = residual.data(),
                                     .out = out.data(),
                                     .prepared = prepared.data(),
                                     .rows = kRows,
                                     .inputs = kInputs,
                                     .outputs = kOutputs,
                                     .eps = 1e-5,
                                     .gelu = true,
                                     .dtype = dtype};
  decode_linear::prepare_cpu(params);
  decode_linear::multiply_cpu(params, 0,
                              (kOutputs + decode_linear::kTileOutputs - 1) / decode_linear::kTileOutputs);
  report(name, out);
}

void pairs(Random& random) {
  constexpr int64_t kEvents = 600;
  const auto scores = reals<float>(random, kEvents);
  const auto grades = integers(random, kEvents, 3), times = integers(random, kEvents, 5000);
  pairwise_loss::TimeOrder<float> order(kEvents);
  pairwise_loss::put_rows_in_time_order(order, 0, grades.data(), times.data(), 0, kEvents);
  for (int64_t k = 0; k < kEvents; ++k) order.scores[k] = scores[order.rows[k]];
  pairwise_loss::put_grades(order, 0, kEvents, grades.data());
  pairwise_loss::put_windows(order, 0, kEvents, times.data(), 300);
  const int64_t parts = pairwise_loss::part_count(order.padded_count());
  std::vector<pairwise_loss::Totals> totals(parts);
  std::vector<float> gradients(order.padded_count());
  pairwise_loss::forward_cpu(order, 0, parts, totals.data());
  pairwise_loss::backward_cpu(order, 0, parts, gradients.data());
  report("pairwise_loss", totals);
  report("pairwise_loss_backward", gradients);
}

void adagrad(Random& random) {
  constexpr int64_t kTable = 50, kWidth = 33, kCount = 200;
  auto table = reals<float>(random, kTable * kWidth);
  std::vector<float> state(kTable, 0.5f);
  const auto gradients = reals<float>(random, kCount * kWidth);
  const auto rows = integers(random, kCount, kTable);
  const int64_t* list = rows.data();
  const RowOrder order("rowwise_adagrad", {&list, 1}, kCount, kTable);
  rowwise_adagrad::Params params{};
  params.table = table.data();
  params.state = state.data();
  params.gradients = gradients.data();
  params.table_rows = kTable;
  params.table_stride = params.width = kWidth;
  params.count = kCount;
  params.table_dtype = params.state_dtype = params.gradient_dtype = Dtype::float32;
  params.lr = 0.1, params.eps = 1e-8, params.weight_decay = 0.01;
  rowwise_adagrad::update_rows_cpu(params, order, 0, order.runs());
  report("rowwise_adagrad", table);
  report("rowwise_adagrad_state", state);
}

void host_helpers(Random& random) {
  constexpr int64_t kIds = 5000, kHashes = 4, kSlots = 1021;
  const auto ids = integers(random, kIds, 700);
  std::vector<uint64_t> keys(kHashes);
  for (uint64_t& key : keys) key = random.next();
  std::vector<int64_t> slots(kHashes * kIds);
  host::hash_ids(ids.data(), kIds, keys.data(), kHashes, kSlots, slots.data());
  report("hash_ids", slots);
  std::vector<double> table(kHashes * kSlots), estimates(kIds);
  const host::Sketch sketch{.table = table.data(), .keys = keys.data(), .depth = kHashes, .width = kSlots};
  host::sketch_update(sketch, ids.data(), nullptr, kIds, 0.0);
  host::sketch_estimate(sketch, ids.data(), kIds, estimates.data());
  report("sketch", table);
  report("sketch_estimate", estimates);
  std::vector<int64_t> offsets{0}, users(40);
  for (size_t user = 0; user < users.size(); ++user) offsets.push_back(offsets.back() + random.below(90));
  std::iota(users.begin(), users.end(), 0);
  const host::PackOptions options{
      .token_budget = 128, .window = 32, .stride = 20, .max_users = 9, .min_events = 2, .last_only = false};
  const host::Plan plan = host::plan_batches(offsets.data(), users.data(), 40, options);
  report("plan_offsets", plan.batch_offsets);
  report("plan_starts", plan.starts);
}

}  // namespace

int main() {
  Random random{7};
  products<float, float>("matmul_float32", random);
  products<float, BFloat16>("matmul_bfloat16", random);
  products<float, Float16>("matmul_float16", random);
  products<double, double>("matmul_float64", random);
  functions(random);
  dense_layer<float>("decode_linear_float32", random, Dtype::float32);
  dense_layer<BFloat16>("decode_linear_bfloat16", random, Dtype::bfloat16);
  dense_layer<Float16>("decode_linear_float16", random, Dtype::float16);
  pairs(random);
  adagrad(random);
  host_helpers(random);
  return 0;
}
