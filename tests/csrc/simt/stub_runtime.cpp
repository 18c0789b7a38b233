// The functions of the CUDA runtime that a launch calls, without a GPU: an error stays until it is taken, as in the
// real one (cudaGetLastError in the runtime's manual), and shared memory ends at 227 KB.
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
