// Maps a dtype by name to the element type that kernels are compiled for.
#pragma once

#include "common/cpu/element.h"
#include "common/torch/dtype.h"

namespace argus {

// Calls function.operator()<T>() with the stored type.
template <class Function>
void with_stored_type(Dtype dtype, const Function& function) {
  switch (dtype) {
    case Dtype::float32:
      return function.template operator()<float>();
    case Dtype::float64:
      return function.template operator()<double>();
    case Dtype::bfloat16:
      return function.template operator()<BFloat16>();
    case Dtype::float16:
      return function.template operator()<Float16>();
  }
}

}  // namespace argus
