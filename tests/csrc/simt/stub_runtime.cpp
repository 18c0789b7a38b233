// The functions of the CUDA runtime that a launch calls, without a GPU: an error stays until it is taken, as
// in the real one (cudaGetLastError in the runtime's manual), shared memory ends at 227 KB, and clusters are
// whole.
#include <driver_types.h>

#include <cstddef>

namespace {
int last_error = 0;
int fail(int error) {
  last_error = error;
  return error;
}
}  // namespace

extern "C" {

int cudaFuncSetAttribute(const void*, int, int value) {
  return value > 227 << 10 ? fail(1) : 0;
}
int cudaGetLastError() {
  const int error = last_error;
  last_error = 0;
  return error;
}
const char* cudaGetErrorString(int error) {
  return error == 1 ? "invalid argument" : "no error";
}
int cudaLaunchKernel(const void*, ...) {
  return 0;
}
int cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void*, void**) {
  const cudaLaunchAttribute& cluster = config->attrs[0];
  const bool whole = config->numAttrs == 1 && cluster.id == cudaLaunchAttributeClusterDimension &&
                     config->gridDim.x % cluster.val.clusterDim.x == 0;
  return whole ? 0 : fail(1);
}
unsigned __cudaPushCallConfiguration(...) {
  return 0;
}
int __cudaPopCallConfiguration(...) {
  return 0;
}
int __cudaGetKernel(void**, const void*) {
  return 0;
}
int __cudaLaunchKernel(...) {
  return 0;
}
int __cudaLaunchKernel_ptsz(...) {
  return 0;
}
void** __cudaRegisterFatBinary(void*) {
  return nullptr;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(...) {}
char __cudaInitModule(void**) {
  return 0;
}
}
