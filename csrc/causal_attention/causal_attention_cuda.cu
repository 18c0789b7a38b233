// Launches the kernels of causal_attention.
#include "causal_attention/causal_attention.h"

#include "attention/cuda/launch.cuh"
#include "causal_attention/causal_attention_kernels.cuh"

namespace argus::causal_attention {

void launch_forward(const attention::Forward& call, void* stream) {
  attention::launch_forward<Softmax>("causal_attention", call, stream);
}

void launch_backward(const attention::Backward& call, void* stream) {
  attention::launch_backward<Softmax>("causal_attention", call, stream);
}

attention::LoopScratch loop_scratch(const attention::Backward& call) {
  return attention::backward_scratch<Softmax>(call);
}

}  // namespace argus::causal_attention
