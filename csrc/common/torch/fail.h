// How a native op refuses: one sentence, "argus_native::op: argument is X, expected Y", thrown as
// std::invalid_argument, which arrives in Python as ValueError.
#pragma once

#include <sstream>
#include <stdexcept>

namespace argus {

template <class... Parts>
[[noreturn]] void fail(const char* op, const Parts&... parts) {
  std::ostringstream text;
  text << "argus_native::" << op << ": ";
  (text << ... << parts);
  throw std::invalid_argument(text.str());
}

}  // namespace argus
