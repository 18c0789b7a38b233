// argus_native::decode_linear: checks, allocation, registration. On the CPU only.
#include "decode_linear/decode_linear.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>

#include "common/cpu/scratch.h"
#include "common/torch/check.h"
#include "common/torch/memory.h"

namespace argus::decode_linear {
namespace {

constexpr const char* kOp = "decode_linear";

using Optional = std::optional<Tensor>;

// The arguments in the schema's order, contiguous where the kernel needs it.
struct Arguments {
  Tensor x, weight;
  Optional bias, norm_weight, norm_bias, residual;
};

void check_vector(const char* name, const Optional& vector, const Arguments& given, const char* pattern,
                  int64_t size) {
  if (!vector) return;
  check_shape(kOp, name, *vector, pattern, {size});
  check_dtype(kOp, name, *vector, {given.x.scalar_type()});
  check_same_device(kOp, name, *vector, "x", given.x);
}

void check(const Arguments& given) {
  const Tensor &x = given.x, &weight = given.weight;
  check_shape(kOp, "x", x, "[n, I]", {-1, -1});
  check_dtype(kOp, "x", x, {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half, ScalarType::Double});
  if (x.size(0) > kMaxRows) fail(kOp, "x has ", x.size(0), " rows, expected at most ", kMaxRows);
  check_shape(kOp, "weight", weight, "[O, I]", {-1, x.size(1)});
  if (weight.size(0) == 0 || weight.size(1) == 0)
    fail(kOp, "weight has shape ", shape_text(weight), ", expected no size of 0");
  check_dtype(kOp, "weight", weight, {x.scalar_type()});
  check_same_device(kOp, "weight", weight, "x", x);
  if (given.norm_weight.has_value() != given.norm_bias.has_value())
    fail(kOp, "one of norm_weight and norm_bias is given, expected both or neither");
  check_vector("bias", given.bias, given, "[O]", weight.size(0));
  check_vector("norm_weight", given.norm_weight, given, "[I]", x.size(1));
  check_vector("norm_bias", given.norm_bias, given, "[I]", x.size(1));
  if (!given.residual) return;
  check_shape(kOp, "residual", *given.residual, "[n, O]", {x.size(0), weight.size(0)});
  check_dtype(kOp, "residual", *given.residual, {x.scalar_type()});
  check_same_device(kOp, "residual", *given.residual, "x", x);
}

const void* data(const Optional& tensor) {
  return tensor ? tensor->const_data_ptr() : nullptr;
}

int64_t element_bytes(Dtype dtype) {
  return dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : 2;
}

// The least weight memory per thread: about ten microseconds of reading, enough to pay for waking it.
constexpr int64_t kBytesWorthAThread = 1 << 18;

void run(Params& params) {
  const int64_t columns = prepared_columns(params.inputs);
  const Scratch<double> prepared(params.rows * columns);
  params.prepared = prepared.get();
  prepare_cpu(params);
  const int64_t tiles = (params.outputs + kTileOutputs - 1) / kTileOutputs;
  const int64_t tile_bytes = kTileOutputs * params.inputs * element_bytes(params.dtype);
  // The products of four rows take about as long as reading the weights.
  const int64_t cost = tile_bytes * std::max<int64_t>(1, params.rows / 4);
  const int64_t grain = std::max<int64_t>(1, kBytesWorthAThread / cost);
  torch::stable::parallel_for(0, tiles, grain,
                              [&](int64_t first, int64_t last) { multiply_cpu(params, first, last); });
}

Tensor decode_linear(Tensor x, Tensor weight, Optional bias, Optional norm_weight, Optional norm_bias,
                     Optional residual, double eps, bool gelu) {
  const Arguments given{x, weight, bias, norm_weight, norm_bias, residual};
  check(given);
  const Arguments ready{dense(kOp, "x", x),
                        dense(kOp, "weight", weight),
                        dense(kOp, "bias", bias),
                        dense(kOp, "norm_weight", norm_weight),
                        dense(kOp, "norm_bias", norm_bias),
                        dense(kOp, "residual", residual)};
  Tensor out = empty(x, {x.size(0), weight.size(0)});
  Params params{
      .x = ready.x.const_data_ptr(),
      .weight = ready.weight.const_data_ptr(),
      .bias = data(ready.bias),
      .norm_weight = data(ready.norm_weight),
      .norm_bias = data(ready.norm_bias),
      .residual = data(ready.residual),
      .out = out.mutable_data_ptr(),
      .prepared = nullptr,
      .rows = x.size(0),
      .inputs = x.size(1),
      .outputs = weight.size(0),
      .eps = eps,
      .gelu = gelu,
      .dtype = dtype_of(x),
  };
  if (params.rows > 0) run(params);
  return out;
}

}  // namespace
}  // namespace argus::decode_linear

STABLE_TORCH_LIBRARY_FRAGMENT(argus_native, m) {
  m.def(
      "decode_linear(Tensor x, Tensor weight, Tensor? bias, Tensor? norm_weight, Tensor? norm_bias, "
      "Tensor? residual, float eps, bool gelu) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(argus_native, CPU, m) {
  m.impl("decode_linear", TORCH_BOX(&argus::decode_linear::decode_linear));
}
