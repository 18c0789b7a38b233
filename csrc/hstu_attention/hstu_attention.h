// The passes of hstu_attention on each processor.
#pragma once

#include "attention/arguments.h"

namespace argus::hstu_attention {

void forward_cpu(const attention::Forward& call);
void backward_cpu(const attention::Backward& call);

// Enqueue the passes on `stream`, a cudaStream_t.
void launch_forward(const attention::Forward& call, void* stream);
void launch_backward(const attention::Backward& call, void* stream);
// Of the backward pass on the current GPU.
attention::LoopScratch loop_scratch(const attention::Backward& call);

}  // namespace argus::hstu_attention
