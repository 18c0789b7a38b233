// Launches the sampled softmax kernels.
#include "common/cuda/stored_type.cuh"
#include "sampled_softmax_loss/backward_loop_sm90.cuh"
#include "sampled_softmax_loss/forward_loop_sm90.cuh"

namespace argus::sampled_softmax_loss {
namespace {

constexpr const char* kOp = "sampled_softmax_loss";
constexpr int kRowThreads = 256;

int64_t divided_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

LaunchShape simple_shape(int64_t blocks) {
  return {dim3(static_cast<unsigned>(blocks)), dim3(kRowThreads)};
}
// The launch shape of the kernels that multiply tiles.
LaunchShape product_shape(int64_t x, int64_t y, int64_t z = 1) {
  return {dim3(static_cast<unsigned>(x), static_cast<unsigned>(y), static_cast<unsigned>(z)),
          dim3(tile::kThreads), tile::kProductBytes};
}

template <class T>
Kernel<T> kernel_of(const Inputs& inputs, const CudaPlan& plan, const Workspace& workspace) {
  const int64_t row_bytes = inputs.width * static_cast<int64_t>(sizeof(T));
  const bool aligned =
      tile::lies_on_chunks(inputs.query, row_bytes) && tile::lies_on_chunks(inputs.candidates, row_bytes);
  return {inputs, {}, {}, plan, workspace, aligned, 0, inputs.rows};
}

template <class T>
void log_sum_exp(const Kernel<T>& k, void* stream) {
  if constexpr (sizeof(T) == 2) {
    if (k.plan.loop) {
      launch_score_loop(kOp, k, stream);
      return;
    }
  }
  const LaunchShape scores = product_shape(divided_up(k.in.rows, kTile), k.plan.forward_chunks);
  launch(kOp, log_sum_exp_kernel<T>, scores, stream, k);
}

template <class T>
void forward(const Inputs& inputs, const Outputs& outputs, const CudaPlan& plan, const Workspace& workspace,
             void* stream) {
  Kernel<T> k = kernel_of<T>(inputs, plan, workspace);
  k.out = outputs;
  constexpr int64_t warps = kRowThreads / kWarpSize;
  launch(kOp, rows_kernel<T>, simple_shape(divided_up(inputs.rows, warps)), stream, k);
  log_sum_exp(k, stream);
  launch(kOp, finish_loss_kernel<T>, simple_shape(divided_up(inputs.rows, kRowThreads)), stream, k);
}

// The products that use a strip's score gradients.
template <class T>
void strip_products(const Kernel<T>& k, bool first, bool last, void* stream) {
  if constexpr (sizeof(T) == 2) {
    if (k.plan.loop) {
      if (k.gradients.d_query != nullptr) launch_d_query_loop(kOp, k, stream);
      if (k.gradients.d_candidates != nullptr) launch_d_candidates_loop(kOp, k, first, last, stream);
      return;
    }
  }
  const int64_t row_tiles = divided_up(k.strip_rows, kTile), column_tiles = divided_up(k.in.width, kTile);
  const int64_t candidate_tiles = divided_up(k.in.drawn, kTile);
  if (k.gradients.d_query != nullptr && column_tiles > 0)
    launch(kOp, d_query_kernel<T>, product_shape(row_tiles, column_tiles, k.plan.splits), stream, k);
  if (k.gradients.d_candidates != nullptr && candidate_tiles > 0 && column_tiles > 0)
    launch(kOp, d_candidates_kernel<T>, product_shape(candidate_tiles, column_tiles), stream, k, first, last);
}

template <class T>
void d_scores(const Kernel<T>& k, void* stream) {
  if constexpr (sizeof(T) == 2) {
    if (k.plan.loop) {
      launch_d_scores_loop(kOp, k, stream);
      return;
    }
  }
  const int64_t row_tiles = divided_up(k.strip_rows, kTile);
  launch(kOp, d_scores_kernel<T>, product_shape(row_tiles, k.plan.chunks), stream, k);
}

// One strip: its score gradients, then the two products that use them.
template <class T>
void backward_strip(const Kernel<T>& k, bool first, bool last, void* stream) {
  d_scores(k, stream);
  strip_products(k, first, last, stream);
  launch(kOp, finish_rows_kernel<T>, simple_shape(divided_up(k.strip_rows, kRowThreads / kWarpSize)), stream,
         k);
}

template <class T>
void backward(const Inputs& inputs, const Gradients& gradients, const CudaPlan& plan,
              const Workspace& workspace, void* stream) {
  Kernel<T> k = kernel_of<T>(inputs, plan, workspace);
  k.gradients = gradients;
  const int64_t row_blocks = divided_up(inputs.rows, kRowThreads);
  launch(kOp, rows_kernel<T>, simple_shape(divided_up(inputs.rows, kRowThreads / kWarpSize)), stream, k);
  launch(kOp, row_gradients_kernel<T>, simple_shape(row_blocks), stream, k);
  launch(kOp, amplify_kernel<T>, simple_shape(1), stream, k);
  for (int64_t strip = 0; strip < plan.strips; ++strip) {
    k.first_row = strip * plan.strip_rows;
    k.strip_rows = std::min(plan.strip_rows, inputs.rows - k.first_row);
    backward_strip(k, strip == 0, strip + 1 == plan.strips, stream);
  }
  if (gradients.d_scale != nullptr) launch(kOp, sum_kernel<T>, simple_shape(1), stream, k);
}

}  // namespace

bool fits_product_loop(const Inputs& inputs) {
  constexpr int64_t kMost = 1 << 30;
  const int64_t row_bytes = 2 * inputs.width;
  const bool sized =
      inputs.width > 0 && inputs.drawn > 0 && std::max({inputs.rows, inputs.drawn, inputs.width}) <= kMost;
  return inputs.dtype != Dtype::float32 && sized && tile::lies_on_chunks(inputs.query, row_bytes) &&
         tile::lies_on_chunks(inputs.candidates, row_bytes);
}

bool uses_product_loop(const Inputs& inputs) {
  return fits_product_loop(inputs) && sm90::is_current_device();
}

void forward_cuda(const Inputs& inputs, const Outputs& outputs, const CudaPlan& plan,
                  const Workspace& workspace, void* stream) {
  if (inputs.rows == 0) return;
  with_device_type(inputs.dtype, [&]<class T>() { forward<T>(inputs, outputs, plan, workspace, stream); });
}

void backward_cuda(const Inputs& inputs, const Gradients& gradients, const CudaPlan& plan,
                   const Workspace& workspace, void* stream) {
  if (inputs.rows == 0) return;
  with_device_type(inputs.dtype, [&]<class T>() { backward<T>(inputs, gradients, plan, workspace, stream); });
}

}  // namespace argus::sampled_softmax_loss
