// The launcher of rowwise_adagrad_ on host memory, for ctypes.
#include "rowwise_adagrad/rowwise_adagrad.h"

#include <cstring>
#include <string>

#include "common/device.cuh"

namespace {

using argus::Dtype;
using argus::rowwise_adagrad::Params;
using argus::simt::DeviceBuffer;

size_t bytes_of(Dtype dtype) {
  return dtype == Dtype::float32 ? 4 : 2;
}

void update(Params params, uint64_t seed) {
  const size_t count = static_cast<size_t>(params.count), width = static_cast<size_t>(params.width);
  const size_t span = static_cast<size_t>((params.table_rows - 1) * params.table_stride) + width;
  const DeviceBuffer table("table", params.table, span * bytes_of(params.table_dtype));
  const DeviceBuffer state("state", params.state, static_cast<size_t>(params.table_rows) * 4);
  const DeviceBuffer gradients("gradients", params.gradients,
                               count * width * bytes_of(params.gradient_dtype));
  const DeviceBuffer rows("rows", static_cast<const void*>(params.rows), count * 8);
  const DeviceBuffer order("order", static_cast<const void*>(params.order), count * 8);
  params.table = table.as<void>();
  params.state = state.as<void>();
  params.gradients = gradients.as<void>();
  params.rows = rows.as<int64_t>();
  params.order = order.as<int64_t>();
  argus::simt::set_seed(seed);
  argus::rowwise_adagrad::launch_cuda(params, nullptr);
  table.copy_back();
  state.copy_back();
}

}  // namespace

// Leaves the executor's report, or the empty string, in `report`.
extern "C" __attribute__((visibility("default"))) void rowwise_adagrad_on_host(const Params* params,
                                                                               uint64_t seed, char* report,
                                                                               size_t bytes) {
  std::string text;
  try {
    update(*params, seed);
  } catch (const std::exception& error) {
    text = error.what();
  }
  std::strncpy(report, text.c_str(), bytes - 1);
  report[bytes - 1] = '\0';
}
