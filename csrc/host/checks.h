// Checks of the arguments of argus_kernels._host: its functions may be called directly, without
// argus_kernels.host. An error is one sentence, a std::invalid_argument, which Python sees as ValueError.
#pragma once

#include <pybind11/numpy.h>

#include <cstdint>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>

namespace argus::host {

namespace py = pybind11;

template <class T>
using Array = py::array_t<T, py::array::c_style>;

template <class... Parts>
[[noreturn]] void refuse(const char* function, const Parts&... parts) {
  std::ostringstream text;
  text << function << ": ";
  (text << ... << parts);
  throw std::invalid_argument(text.str());
}

inline void check_range(const char* function, const char* name, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high) refuse(function, name, " is ", value, ", expected ", low, " to ", high);
}

inline std::string shape_text(const py::array& array) {
  std::ostringstream text;
  text << '[';
  for (py::ssize_t dim = 0; dim < array.ndim(); ++dim) text << (dim > 0 ? ", " : "") << array.shape(dim);
  text << ']';
  return text.str();
}

// A size of -1 is free.
inline void check_vector(const char* function, const char* name, const py::array& array, int64_t size = -1) {
  if (array.ndim() == 1 && (size < 0 || array.shape(0) == size)) return;
  const std::string expected = size < 0 ? "any" : std::to_string(size);
  refuse(function, name, " has shape ", shape_text(array), ", expected [", expected, "]");
}

}  // namespace argus::host
