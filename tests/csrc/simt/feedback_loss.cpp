// The launchers of feedback_loss on host memory, for ctypes.
#include <cstring>
#include <string>

#include "common/cuda/device.cuh"
#include "feedback_loss/feedback_loss_cuda.h"

namespace {

using argus::Dtype;
using argus::feedback_loss::CudaParams;
using argus::simt::DeviceBuffer;

void run(CudaParams params, bool backward, uint64_t seed) {
  const size_t rows = static_cast<size_t>(params.rows), width = static_cast<size_t>(params.width);
  const size_t columns = static_cast<size_t>(params.columns), tasks = static_cast<size_t>(params.tasks);
  const size_t parts = static_cast<size_t>(argus::feedback_loss::cuda_parts(params.rows));
  const size_t stored = params.dtype == Dtype::float32 ? 4 : 2;
  const DeviceBuffer hidden("hidden", params.hidden, rows * width * stored);
  const DeviceBuffer weight("weight", params.weight, width * columns * stored);
  const DeviceBuffer bias("bias", params.bias, columns * stored);
  const DeviceBuffer targets("targets", static_cast<const void*>(params.targets), rows * tasks * 8);
  const bool by_task = params.task_weight != nullptr, by_row = params.row_weight != nullptr;
  const DeviceBuffer task_weight("task_weight", static_cast<const void*>(params.task_weight),
                                 by_task ? tasks * 4 : 0);
  const DeviceBuffer row_weight("row_weight", static_cast<const void*>(params.row_weight),
                                by_row ? rows * 4 : 0);
  const DeviceBuffer part_loss("part_loss", params.part_loss, parts * tasks * 8);
  const DeviceBuffer part_weight("part_weight", params.part_weight, parts * tasks * 8);
  const DeviceBuffer scale("scale", params.scale, tasks * 4);
  const DeviceBuffer loss("loss", params.loss, tasks * 4);
  const DeviceBuffer d_loss("d_loss", static_cast<const void*>(params.d_loss), tasks * 4);
  const DeviceBuffer d_weight_part("d_weight_part", params.d_weight_part, parts * columns * width * 4);
  const DeviceBuffer d_bias_part("d_bias_part", params.d_bias_part, parts * columns * 4);
  const DeviceBuffer d_hidden("d_hidden", params.d_hidden, rows * width * stored);
  const DeviceBuffer d_weight("d_weight", params.d_weight, width * columns * stored);
  const DeviceBuffer d_bias("d_bias", params.d_bias, columns * stored);
  params.hidden = hidden.as<void>();
  params.weight = weight.as<void>();
  params.bias = bias.as<void>();
  params.targets = targets.as<int64_t>();
  params.task_weight = by_task ? task_weight.as<float>() : nullptr;
  params.row_weight = by_row ? row_weight.as<float>() : nullptr;
  params.part_loss = part_loss.as<double>();
  params.part_weight = part_weight.as<double>();
  params.scale = scale.as<float>();
  params.loss = loss.as<float>();
  params.d_loss = d_loss.as<float>();
  params.d_weight_part = d_weight_part.as<float>();
  params.d_bias_part = d_bias_part.as<float>();
  params.d_hidden = d_hidden.as<void>();
  params.d_weight = d_weight.as<void>();
  params.d_bias = d_bias.as<void>();
  argus::simt::set_seed(seed);
  if (backward) {
    argus::feedback_loss::launch_backward_cuda(params, nullptr);
    d_hidden.copy_back();
    d_weight.copy_back();
    d_bias.copy_back();
  } else {
    argus::feedback_loss::launch_forward_cuda(params, nullptr);
    loss.copy_back();
  }
}

}  // namespace

// Leaves the executor's report, or the empty string, in `report`.
extern "C" __attribute__((visibility("default"))) void feedback_loss_on_host(const CudaParams* params,
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
