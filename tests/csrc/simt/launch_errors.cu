// Launches that ask for more shared memory than there is, or for half a cluster, and one after each, on a
// runtime of stubs.
#include <cstdio>

#include "common/cuda/device.cuh"

__global__ void nothing() {}

int main() {
  const argus::LaunchShape shapes[] = {{dim3(1), dim3(32), size_t{1} << 20},
                                       {dim3(1), dim3(32), 0},
                                       {dim3(3), dim3(32), 0, 2},
                                       {dim3(4), dim3(32), 0, 2}};
  for (const argus::LaunchShape& shape : shapes) {
    try {
      argus::launch("nothing", nothing, shape, nullptr);
      std::puts("launched");
    } catch (const std::exception& error) {
      std::puts(error.what());
    }
  }
}
