// torch's own sort and running sum, used beside the CUDA kernels: asynchronous, on the current stream, of
// sizes known on the host, so that a CUDA graph can capture them.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <optional>
#include <utility>

namespace argus {

// The values in stable ascending order along the last dimension, and each one's original index.
inline std::pair<torch::stable::Tensor, torch::stable::Tensor> sort_stably(
    const torch::stable::Tensor& values) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  StableIValue stack[4] = {from(values), from(std::optional<bool>(true)), from(static_cast<int64_t>(-1)),
                           from(false)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack, TORCH_ABI_VERSION));
  return {to<torch::stable::Tensor>(stack[0]), to<torch::stable::Tensor>(stack[1])};
}

// Inclusive running sums along the first dimension.
inline torch::stable::Tensor running_sum(const torch::stable::Tensor& values) {
  using torch::stable::detail::from;
  StableIValue stack[3] = {from(values), from(static_cast<int64_t>(0)),
                           from(std::optional<torch::headeronly::ScalarType>())};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::cumsum", "", stack, TORCH_ABI_VERSION));
  return torch::stable::detail::to<torch::stable::Tensor>(stack[0]);
}

}  // namespace argus
