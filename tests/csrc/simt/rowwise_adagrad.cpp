// The launcher of rowwise_adagrad_ on host memory, for ctypes.
#include "rowwise_adagrad/rowwise_adagrad.h"

#include <vector>

#include "on_host.h"

namespace {

using argus::Dtype;
using argus::rowwise_adagrad::Params;

size_t bytes_of(Dtype dtype) {
  return dtype == Dtype::float32 ? 4 : 2;
}

void update(Params params) {
  const size_t count = static_cast<size_t>(params.count), width = static_cast<size_t>(params.width);
  const size_t span = static_cast<size_t>((params.table_rows - 1) * params.table_stride) + width;
  on_host::Device device;
  device.changed("table", params.table, span * bytes_of(params.table_dtype));
  device.changed("state", params.state, static_cast<size_t>(params.table_rows) * 4);
  device.input("gradients", params.gradients, count * width * bytes_of(params.gradient_dtype));
  device.input("rows", params.rows, count * 8);
  device.input("order", params.order, count * 8);
  std::vector<float> piece_sums(count / argus::rowwise_adagrad::kPiece * width);
  params.piece_sums = piece_sums.data();
  device.output("piece_sums", params.piece_sums, piece_sums.size() * 4);
  argus::rowwise_adagrad::launch_cuda(params, nullptr);
  device.copy_back();
}

}  // namespace

ARGUS_EXPORT void rowwise_adagrad_on_host(const Params* params, uint64_t seed, char* report, size_t bytes) {
  on_host::run(seed, report, bytes, [&] { update(*params); });
}
