// Launches the kernels of the pairwise loss.
#include "common/cuda/stored_type.cuh"
#include "pairwise_loss/pairwise_loss_cuda.h"
#include "pairwise_loss/pairwise_loss_kernels.cuh"

namespace argus::pairwise_loss {
namespace {

constexpr const char* kOp = "pairwise_loss";
constexpr int64_t kOrderThreads = 256;

LaunchShape shape_of(int64_t blocks, int threads) {
  return {dim3(static_cast<unsigned>(blocks)), dim3(static_cast<unsigned>(threads))};
}

template <class T>
void order_events(const CudaParams& params, void* stream) {
  const int64_t blocks = (params.count + kOrderThreads - 1) / kOrderThreads;
  launch(kOp, order_kernel<T>, shape_of(blocks, kOrderThreads), stream, params);
}

}  // namespace

void launch_forward_cuda(const CudaParams& params, void* stream) {
  with_device_type(params.dtype, [&]<class T>() { order_events<T>(params, stream); });
  launch(kOp, forward_kernel, shape_of(cuda_parts(params.count), kPairThreads), stream, params);
  launch(kOp, total_kernel, shape_of(1, kTotalThreads), stream, params);
}

void launch_backward_cuda(const CudaParams& params, void* stream) {
  with_device_type(params.dtype, [&]<class T>() {
    order_events<T>(params, stream);
    launch(kOp, backward_kernel<T>, shape_of(cuda_parts(params.count), kPairThreads), stream, params);
  });
}

}  // namespace argus::pairwise_loss
