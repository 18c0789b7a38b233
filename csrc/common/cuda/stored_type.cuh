// Maps a dtype by name to the element type that device code is compiled for.
#pragma once

#include "common/cuda/device.cuh"
#include "common/torch/dtype.h"

namespace argus {

// Calls function.operator()<T>() with the stored type; the ops' checks have refused float64.
template <class Function>
void with_device_type(Dtype dtype, const Function& function) {
  switch (dtype) {
    case Dtype::bfloat16:
      return function.template operator()<__nv_bfloat16>();
    case Dtype::float16:
      return function.template operator()<__half>();
    case Dtype::float32:
    case Dtype::float64:
      return function.template operator()<float>();
  }
}

}  // namespace argus
