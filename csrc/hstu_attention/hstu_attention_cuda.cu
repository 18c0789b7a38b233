// Launches the kernels of hstu_attention.
#include "hstu_attention/hstu_attention_cuda.h"

#include "common/history_launch.cuh"
#include "hstu_attention/hstu_attention_kernels.cuh"

namespace argus::hstu_attention {

void launch_forward(const history::Forward& call, void* stream) {
  history::launch_forward<Silu>("hstu_attention", call, stream);
}

void launch_backward(const history::Backward& call, void* stream) {
  history::launch_backward<Silu>("hstu_attention", call, stream);
}

}  // namespace argus::hstu_attention
