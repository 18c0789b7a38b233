// A launch that asks for more shared memory than there is, and one after it, on a runtime of stubs.
#include <cstdio>

#include "common/cuda/device.cuh"

__global__ void nothing() {}

int main() {
  for (const size_t shared : {size_t{1} << 20, size_t{0}}) {
    try {
      argus::launch("nothing", nothing, argus::LaunchShape{dim3(1), dim3(32), shared}, nullptr);
      std::puts("launched");
    } catch (const std::exception& error) {
      std::puts(error.what());
    }
  }
}
