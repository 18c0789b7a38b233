// causal_attention on the GPU.
#pragma once

#include "attention/cuda/arguments.h"

namespace argus::causal_attention {

// Enqueues the passes on `stream`, a cudaStream_t.
void launch_forward(const attention::Forward& call, void* stream);
void launch_backward(const attention::Backward& call, void* stream);

}  // namespace argus::causal_attention
