// Where a native op's CUDA half enqueues its kernels.
#pragma once

#ifdef ARGUS_CUDA_LIBRARY

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

namespace argus {

// torch's current stream on a tensor's device. That device is the current one while this object lives, so
// make it before allocations and launches.
class CurrentStream {
 public:
  explicit CurrentStream(const torch::stable::Tensor& tensor) : guard_(tensor.get_device_index()) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream_));
  }

  // A cudaStream_t.
  void* get() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_ = nullptr;
};

}  // namespace argus

#endif
