// hstu_attention on the GPU.
#pragma once

#include "common/history.h"

namespace argus::hstu_attention {

// Enqueues the passes on `stream`, a cudaStream_t.
void launch_forward(const history::Forward& call, void* stream);
void launch_backward(const history::Backward& call, void* stream);

}  // namespace argus::hstu_attention
