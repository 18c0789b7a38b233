// The passes of attention on the loops of sm_90, for ctypes: causal_attention and hstu_attention have a
// library each, since compiling takes minutes.
#pragma once

#include "attention/cuda/sm90/launch.cuh"
#include "attention_on_host.h"

namespace attention_on_host {

template <class Weights>
void launch_loop(const Forward& call, void* stream) {
  if (!argus::attention::fits_loops<Weights>(call.given))
    throw std::invalid_argument("the forward loop does not take these arguments");
  argus::attention::launch_forward_loop<Weights>("forward_loop", call, stream);
}

template <class Weights>
void launch_backward(const Backward& call, void* stream) {
  argus::attention::launch_backward_loop<Weights>("backward_loop", call, stream);
}

template <class Weights>
void backward_loop(const Backward& call) {
  if (!argus::attention::fits_loops<Weights>(call.given))
    throw std::invalid_argument("the backward loop does not take these arguments");
  backward(call, launch_backward<Weights>, argus::attention::loop_scratch<Weights>(call));
}

}  // namespace attention_on_host
