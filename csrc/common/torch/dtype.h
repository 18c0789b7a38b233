// The dtypes that the kernels store, by name, for parameter structs that do not include torch.
#pragma once

namespace argus {

enum class Dtype { float32, float64, bfloat16, float16 };

}  // namespace argus
