// Launches and shared memory for common/cuda/device.cuh under the host compiler.
#pragma once

#include <cstddef>
#include <tuple>
#include <type_traits>

#include "simt/executor.h"
#include "simt/language.h"
#include "simt/memory.h"

// Each declaration has its own tag, and so does each instance of a template.
#define ARGUS_SHARED(type, name, extent)                            \
  static const char argus_tag_of_##name = 0;                        \
  using argus_type_of_##name = type extent;                         \
  argus_type_of_##name& name = *static_cast<argus_type_of_##name*>( \
      ::argus::simt::shared_array(&argus_tag_of_##name, #name, sizeof(argus_type_of_##name)))
#define ARGUS_DYNAMIC_SHARED(type, name) type* name = static_cast<type*>(::argus::simt::dynamic_shared())

namespace argus::simt {

template <class... Parameters>
struct Call {
  void (*kernel)(Parameters...);
  std::tuple<Parameters...> arguments;
};

template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t dynamic_shared,
            bool in_order, const Arguments&... arguments) {
  const Call<Parameters...> call{kernel, {arguments...}};
  const auto body = [](const void* given) {
    const auto& made = *static_cast<const Call<Parameters...>*>(given);
    std::apply(made.kernel, made.arguments);
  };
  run({name, {grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, dynamic_shared, in_order}, body, &call,
      sizeof(call));
}

}  // namespace argus::simt
