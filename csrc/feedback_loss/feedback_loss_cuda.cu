// Launches the kernels of the feedback losses.
#include "common/cuda/stored_type.cuh"
#include "feedback_loss/feedback_loss_cuda.h"
#include "feedback_loss/feedback_loss_kernels.cuh"

namespace argus::feedback_loss {
namespace {

constexpr const char* kOp = "feedback_loss";

LaunchShape tiles_shape(const CudaParams& params) {
  const size_t floats = static_cast<size_t>(kFixedFloats + kRows * logit_stride(params.columns));
  return {dim3(static_cast<unsigned>(cuda_parts(params.rows))), dim3(kThreads), floats * sizeof(float)};
}

void scale(const CudaParams& params, bool backward, void* stream) {
  const LaunchShape shape{dim3(1), dim3(static_cast<unsigned>(params.tasks * kWarpSize))};
  launch(kOp, scale_kernel, shape, stream, params, cuda_parts(params.rows), backward);
}

template <class T>
void backward(const CudaParams& params, void* stream) {
  const LaunchShape without_tile{tiles_shape(params).grid, dim3(kThreads)};
  launch(kOp, weights_kernel, without_tile, stream, params);
  scale(params, true, stream);
  launch(kOp, backward_kernel<T>, tiles_shape(params), stream, params);
  const int64_t elements = params.columns * (params.width + 1);
  const LaunchShape shape{dim3(static_cast<unsigned>((elements + kThreads - 1) / kThreads)), dim3(kThreads)};
  launch(kOp, weight_kernel<T>, shape, stream, params, cuda_parts(params.rows));
}

}  // namespace

void launch_forward_cuda(const CudaParams& params, void* stream) {
  with_device_type(params.dtype,
                   [&]<class T>() { launch(kOp, forward_kernel<T>, tiles_shape(params), stream, params); });
  scale(params, false, stream);
}

void launch_backward_cuda(const CudaParams& params, void* stream) {
  with_device_type(params.dtype, [&]<class T>() { backward<T>(params, stream); });
}

}  // namespace argus::feedback_loss
