// Launches the kernels of causal_attention.
#include "causal_attention/causal_attention_cuda.h"

#include "causal_attention/causal_attention_kernels.cuh"
#include "common/history_launch.cuh"

namespace argus::causal_attention {

void launch_forward(const history::Forward& call, void* stream) {
  history::launch_forward<Softmax>("causal_attention", call, stream);
}

void launch_backward(const history::Backward& call, void* stream) {
  history::launch_backward<Softmax>("causal_attention", call, stream);
}

}  // namespace argus::causal_attention
