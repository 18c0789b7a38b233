// Checks of the native ops' arguments. Each registered function checks all that its kernels rely on before
// the first of them runs: it may be called directly, without the public functions. An error is one sentence
// (fail.h).
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <array>
#include <exception>
#include <initializer_list>
#include <limits>
#include <optional>
#include <sstream>
#include <string>
#include <utility>

#include "common/torch/dtype.h"
#include "common/torch/fail.h"

namespace argus {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Dtype dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Double:
      return Dtype::float64;
    case ScalarType::BFloat16:
      return Dtype::bfloat16;
    case ScalarType::Half:
      return Dtype::float16;
    default:
      return Dtype::float32;
  }
}

inline std::string shape_text(const Tensor& tensor) {
  std::ostringstream text;
  text << '[';
  for (int64_t dim = 0; dim < tensor.dim(); ++dim) text << (dim > 0 ? ", " : "") << tensor.size(dim);
  text << ']';
  return text.str();
}

// A tensor whose storage was freed or shrunk after it was made, which torch permits.
inline void check_memory(const char* op, const char* name, const Tensor& tensor) {
  int64_t elements = tensor.numel() > 0 ? 1 : 0, bytes = 0;
  for (int64_t dim = 0; elements > 0 && dim < tensor.dim(); ++dim)
    elements += (tensor.size(dim) - 1) * tensor.stride(dim);
  if (elements == 0) return;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(tensor.get(), &bytes));
  int64_t offset = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_offset(tensor.get(), &offset));
  const int64_t needed = (offset + elements) * static_cast<int64_t>(tensor.element_size());
  if (bytes < needed) fail(op, name, " has a storage of ", bytes, " bytes, expected at least ", needed);
}

// `pattern` is what the message shows, "[R, d]"; a size of -1 is free.
inline void check_shape(const char* op, const char* name, const Tensor& tensor, const char* pattern,
                        std::initializer_list<int64_t> sizes) {
  // torch takes None for a tensor that is not optional.
  if (!tensor.defined()) fail(op, name, " is None, expected a tensor ", pattern);
  bool fits = tensor.dim() == static_cast<int64_t>(sizes.size());
  int64_t dim = 0;
  for (const int64_t size : sizes) {
    fits = fits && (size < 0 || tensor.size(dim) == size);
    ++dim;
  }
  if (fits) return check_memory(op, name, tensor);
  std::ostringstream expected;
  for (const int64_t size : sizes)
    expected << (expected.tellp() > 0 ? ", " : "") << (size < 0 ? "any" : std::to_string(size));
  fail(op, name, " has shape ", shape_text(tensor), ", expected ", pattern, " = [", expected.str(), "]");
}

inline void check_dtype(const char* op, const char* name, const Tensor& tensor,
                        std::initializer_list<ScalarType> allowed) {
  std::ostringstream expected;
  for (const ScalarType dtype : allowed) {
    if (tensor.scalar_type() == dtype) return;
    expected << (expected.tellp() > 0 ? " or " : "") << torch::headeronly::toString(dtype);
  }
  fail(op, name, " is ", torch::headeronly::toString(tensor.scalar_type()), ", expected ", expected.str());
}

inline void check_same_device(const char* op, const char* name, const Tensor& tensor, const char* other_name,
                              const Tensor& other) {
  const bool same = tensor.is_cuda() == other.is_cuda() && tensor.is_cpu() == other.is_cpu() &&
                    tensor.get_device_index() == other.get_device_index();
  if (!same) fail(op, name, " is on another device than ", other_name, ", expected the same");
}

inline void check_contiguous(const char* op, const char* name, const Tensor& tensor) {
  if (!tensor.is_contiguous()) fail(op, name, " is not contiguous, expected a contiguous tensor");
}

// A checked tensor, made contiguous, and of another dtype if one is given. A view that repeats its memory
// (stride 0) may need more memory than the machine has.
inline Tensor dense(const char* op, const char* name, const Tensor& tensor,
                    std::optional<ScalarType> dtype = std::nullopt) {
  const bool same = !dtype || tensor.scalar_type() == *dtype;
  if (same && tensor.is_contiguous()) return tensor;
  try {
    return torch::stable::contiguous(same ? tensor : torch::stable::to(tensor, *dtype));
  } catch (const std::exception&) {
    fail(op, name, " has shape ", shape_text(tensor),
         ", expected one that memory holds a contiguous copy of");
  }
}

inline std::optional<Tensor> dense(const char* op, const char* name, const std::optional<Tensor>& tensor) {
  return tensor ? std::optional<Tensor>(dense(op, name, *tensor)) : std::nullopt;
}

// A matrix whose rows are each contiguous, at any row stride.
inline void check_dense_rows(const char* op, const char* name, const Tensor& tensor) {
  if (tensor.size(1) > 1 && tensor.stride(1) != 1) {
    fail(op, name, " has stride ", tensor.stride(1), " within a row, expected 1");
  }
}

// A tensor that is written must not hold one piece of memory twice, as an expanded one does.
inline void check_no_overlap(const char* op, const char* name, const Tensor& tensor) {
  constexpr int64_t kMaxDims = 4;
  std::array<std::pair<int64_t, int64_t>, kMaxDims> extents{};  // stride, size
  int64_t count = 0;
  if (tensor.numel() == 0) return;
  for (int64_t dim = 0; dim < tensor.dim() && count < kMaxDims; ++dim) {
    if (tensor.size(dim) > 1) extents[static_cast<size_t>(count++)] = {tensor.stride(dim), tensor.size(dim)};
  }
  std::sort(extents.begin(), extents.begin() + count);
  int64_t reached = 1;
  for (int64_t i = 0; i < count; ++i) {
    const auto [stride, size] = extents[static_cast<size_t>(i)];
    if (stride < reached)
      fail(op, name, " has overlapping elements (stride ", stride,
           "), expected memory of its own for each, since it is written");
    reached += (size - 1) * stride;
  }
}

// a · b of sizes that are not negative; the largest int64 if the product exceeds it.
inline int64_t saturating_product(int64_t a, int64_t b) {
  int64_t product = 0;
  return __builtin_mul_overflow(a, b, &product) ? std::numeric_limits<int64_t>::max() : product;
}

// Adds sizes that are not negative; refuses a sum beyond int64; `name` names what is added.
inline int64_t checked_sum(const char* op, const char* name, int64_t a, int64_t b) {
  int64_t sum = 0;
  if (__builtin_add_overflow(a, b, &sum)) fail(op, name, " is ", a, " + ", b, ", expected below 2^63");
  return sum;
}

}  // namespace argus
