// Argument checks of the native ops: "op: argument has X, expected Y", thrown as std::invalid_argument, which
// arrives in Python as ValueError.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>

#include "common/dtype.h"

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

template <class... Parts>
[[noreturn]] void fail(const char* op, const Parts&... parts) {
  std::ostringstream text;
  text << op << ": ";
  (text << ... << parts);
  throw std::invalid_argument(text.str());
}

inline std::string shape_text(const Tensor& tensor) {
  std::ostringstream text;
  text << '[';
  for (int64_t dim = 0; dim < tensor.dim(); ++dim) text << (dim > 0 ? ", " : "") << tensor.size(dim);
  text << ']';
  return text.str();
}

// `pattern` is what the message shows, "[R, d]"; a size of -1 is free.
inline void check_shape(const char* op, const char* name, const Tensor& tensor, const char* pattern,
                        std::initializer_list<int64_t> sizes) {
  bool fits = tensor.dim() == static_cast<int64_t>(sizes.size());
  int64_t dim = 0;
  for (const int64_t size : sizes) {
    fits = fits && (size < 0 || tensor.size(dim) == size);
    ++dim;
  }
  if (fits) return;
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

// A matrix whose rows may lie apart but are dense in themselves.
inline void check_dense_rows(const char* op, const char* name, const Tensor& tensor) {
  if (tensor.size(1) > 1 && tensor.stride(1) != 1) {
    fail(op, name, " has stride ", tensor.stride(1), " within a row, expected 1");
  }
}

}  // namespace argus
