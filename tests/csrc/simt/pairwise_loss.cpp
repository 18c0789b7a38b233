// The launchers of pairwise_loss on host memory, for ctypes.
#include <cstring>
#include <string>

#include "common/cuda/device.cuh"
#include "pairwise_loss/pairwise_loss_cuda.h"

namespace {

using argus::Dtype;
using argus::pairwise_loss::CudaParams;
using argus::simt::DeviceBuffer;

void run(CudaParams params, bool backward, uint64_t seed) {
  const size_t count = static_cast<size_t>(params.count);
  const size_t parts = static_cast<size_t>(argus::pairwise_loss::cuda_parts(params.count));
  const size_t stored = params.dtype == Dtype::float32 ? 4 : 2;
  const DeviceBuffer scores("scores", params.scores, count * stored);
  const DeviceBuffer grades("grades", static_cast<const void*>(params.grades), count * 8);
  const DeviceBuffer order("order", static_cast<const void*>(params.order), count * 8);
  const DeviceBuffer times("sorted_times", static_cast<const void*>(params.sorted_times), count * 8);
  const DeviceBuffer users("sorted_users", static_cast<const void*>(params.sorted_users), count * 4);
  const DeviceBuffer sorted_scores("sorted_scores", params.sorted_scores, count * 4);
  const DeviceBuffer sorted_grades("sorted_grades", params.sorted_grades, count * 8);
  const DeviceBuffer begin("begin", params.begin, count * 4);
  const DeviceBuffer end("end", params.end, count * 4);
  const DeviceBuffer part_loss("part_loss", params.part_loss, parts * 8);
  const DeviceBuffer part_pairs("part_pairs", params.part_pairs, parts * 8);
  const DeviceBuffer part_concordant("part_concordant", params.part_concordant, parts * 8);
  const DeviceBuffer loss("loss", params.loss, 4);
  const DeviceBuffer pairs("pairs", params.pairs, 8);
  const DeviceBuffer concordant("concordant", params.concordant, 8);
  const DeviceBuffer d_loss("d_loss", static_cast<const void*>(params.d_loss), 4);
  const DeviceBuffer d_scores("d_scores", params.d_scores, count * stored);
  params.scores = scores.as<void>();
  params.grades = grades.as<int64_t>();
  params.order = order.as<int64_t>();
  params.sorted_times = times.as<int64_t>();
  params.sorted_users = users.as<int32_t>();
  params.sorted_scores = sorted_scores.as<float>();
  params.sorted_grades = sorted_grades.as<int64_t>();
  params.begin = begin.as<int32_t>();
  params.end = end.as<int32_t>();
  params.part_loss = part_loss.as<double>();
  params.part_pairs = part_pairs.as<int64_t>();
  params.part_concordant = part_concordant.as<int64_t>();
  params.loss = loss.as<float>();
  params.pairs = pairs.as<int64_t>();
  params.concordant = concordant.as<int64_t>();
  params.d_loss = d_loss.as<float>();
  params.d_scores = d_scores.as<void>();
  argus::simt::set_seed(seed);
  if (backward) {
    argus::pairwise_loss::launch_backward_cuda(params, nullptr);
    d_scores.copy_back();
  } else {
    argus::pairwise_loss::launch_forward_cuda(params, nullptr);
    loss.copy_back();
    pairs.copy_back();
    concordant.copy_back();
  }
}

}  // namespace

// Leaves the executor's report, or the empty string, in `report`.
extern "C" __attribute__((visibility("default"))) void pairwise_loss_on_host(const CudaParams* params,
                                                                             int backward, uint64_t seed,
                                                                             char* report, size_t bytes) {
  std::string text;
  try {
    run(*params, backward != 0, seed);
  } catch (const std::exception& error) {
    text = error.what();
  }
  std::strncpy(report, text.c_str(), bytes - 1);
  report[bytes - 1] = '\0';
}
