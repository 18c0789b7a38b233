// Launches the row-wise Adagrad kernel on a CUDA stream.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "rowwise_adagrad/rowwise_adagrad.h"
#include "rowwise_adagrad/rowwise_adagrad_kernels.cuh"

namespace argus::rowwise_adagrad {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 16;

template <class T, class G>
void launch(const Params& params, cudaStream_t stream) {
  constexpr int64_t warps = kThreads / kWarpSize;
  const int64_t blocks = std::min((params.count + warps - 1) / warps, kMaxBlocks);
  update_kernel<T, G><<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(params);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("rowwise_adagrad_: kernel launch failed: ") +
                             cudaGetErrorString(error));
  }
}

template <class T>
void launch_for_gradient(const Params& params, cudaStream_t stream) {
  if (params.gradient_dtype == Dtype::float32) return launch<T, float>(params, stream);
  launch<T, T>(params, stream);
}

}  // namespace

void launch_cuda(const Params& params, void* stream_pointer) {
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_pointer);
  switch (params.table_dtype) {
    case Dtype::bfloat16:
      return launch_for_gradient<__nv_bfloat16>(params, stream);
    case Dtype::float16:
      return launch_for_gradient<__half>(params, stream);
    default:
      return launch_for_gradient<float>(params, stream);
  }
}

}  // namespace argus::rowwise_adagrad
