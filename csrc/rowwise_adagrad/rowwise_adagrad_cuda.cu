// Launches the row-wise Adagrad kernels.
#include <algorithm>

#include "common/cuda/stored_type.cuh"
#include "rowwise_adagrad/rowwise_adagrad.h"
#include "rowwise_adagrad/rowwise_adagrad_kernels.cuh"

namespace argus::rowwise_adagrad {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 16;

LaunchShape shape_for_warps(int64_t warps) {
  constexpr int64_t kWarps = kThreads / kWarpSize;
  const int64_t blocks = std::min((warps + kWarps - 1) / kWarps, kMaxBlocks);
  return {dim3(static_cast<unsigned>(blocks)), dim3(kThreads)};
}

template <class T, class G>
void launch_typed(const Params& params, void* stream) {
  constexpr const char* kOp = "rowwise_adagrad_";
  if (params.count >= 2 * kPiece)
    launch(kOp, sum_pieces_kernel<G>, shape_for_warps(params.count / kPiece), stream, params);
  launch(kOp, update_kernel<T, G>, shape_for_warps(params.count), stream, params);
}

template <class T>
void launch_for_gradient(const Params& params, void* stream) {
  if (params.gradient_dtype == Dtype::float32) return launch_typed<T, float>(params, stream);
  launch_typed<T, T>(params, stream);
}

}  // namespace

void launch_cuda(const Params& params, void* stream) {
  with_device_type(params.table_dtype, [&]<class T>() { launch_for_gradient<T>(params, stream); });
}

}  // namespace argus::rowwise_adagrad
