// Fresh tensors for the results and the scratch of a native op.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/HeaderOnlyArrayRef.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>

#include "common/torch/check.h"

namespace argus {

// Contiguous memory on the device of `like`, in its dtype unless another is given; not initialised. At most
// four dimensions. Not torch::stable::new_empty, which boxes its arguments for torch's dispatcher.
inline Tensor empty(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef sizes,
                    std::optional<ScalarType> dtype = std::nullopt) {
  constexpr size_t kMaxDims = 4;
  std::array<int64_t, kMaxDims> strides{};
  if (sizes.size() > kMaxDims)
    fail("empty", "a result has ", sizes.size(), " dimensions, expected at most 4");
  int64_t stride = 1;
  for (size_t dim = sizes.size(); dim-- > 0;) {
    strides[dim] = stride;
    stride = saturating_product(stride, std::max<int64_t>(sizes[dim], 1));
  }
  int32_t kind = 0, device_type = 0;
  if (dtype.has_value()) {
    kind = torch::stable::detail::to<int32_t>(torch::stable::detail::from(*dtype));
  } else {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &kind));
  }
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  AtenTensorHandle made = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(),
                                                  strides.data(), kind, device_type, like.get_device_index(),
                                                  &made));
  return Tensor(made);
}

// The same, of zeros.
inline Tensor zeros(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef sizes,
                    std::optional<ScalarType> dtype = std::nullopt) {
  Tensor made = empty(like, sizes, dtype);
  if (made.numel() == 0) return made;
  if (made.is_cpu()) {
    std::memset(made.mutable_data_ptr(), 0, static_cast<size_t>(made.numel()) * made.element_size());
  } else {
    TORCH_ERROR_CODE_CHECK(aoti_torch_zero_(made.get()));
  }
  return made;
}

}  // namespace argus
