// Launches the kernels of hstu_attention.
#include "hstu_attention/hstu_attention.h"

#include "attention/cuda/launch.cuh"
#include "hstu_attention/hstu_attention_kernels.cuh"

namespace argus::hstu_attention {

void launch_forward(const attention::Forward& call, void* stream) {
  attention::launch_forward<Silu>("hstu_attention", call, stream);
}

void launch_backward(const attention::Backward& call, void* stream) {
  attention::launch_backward<Silu>("hstu_attention", call, stream);
}

attention::LoopScratch loop_scratch(const attention::Backward& call) {
  return attention::backward_scratch<Silu>(call);
}

}  // namespace argus::hstu_attention
