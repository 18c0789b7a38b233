// Whether kernels of sm_90a may be launched.
#pragma once

#include <cstdlib>

#include "common/cuda/device.cuh"

// Device code of sm_90a alone: other architectures compile the kernels around it without it.
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define ARGUS_SM90A_CODE 1
#endif

namespace argus::sm90 {

// The library was built for sm_90a (ARGUS_SM90A, of the build).
#if defined(__CUDACC__) && defined(ARGUS_SM90A)
constexpr bool kInLibrary = true;
#else
constexpr bool kInLibrary = false;
#endif

// The same, and the current GPU has compute capability 9.0. ARGUS_WGMMA=0 in the environment says no, so that
// the kernels of mma.sync can be timed beside.
inline bool is_current_device() {
#if defined(__CUDACC__) && defined(ARGUS_SM90A)
  const char* setting = std::getenv("ARGUS_WGMMA");
  if (setting != nullptr && std::string(setting) == "0") return false;
  int device = 0, major = 0, minor = 0;
  const bool known =
      cudaGetDevice(&device) == cudaSuccess &&
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess;
  if (!known) static_cast<void>(cudaGetLastError());
  return known && major == 9 && minor == 0;
#else
  return false;
#endif
}

// Whether product loops may run in clusters; ARGUS_CLUSTERS=0 in the environment says no, with the same
// results, so that both can be timed.
inline bool may_use_clusters() {
  const char* setting = std::getenv("ARGUS_CLUSTERS");
  return setting == nullptr || std::string(setting) != "0";
}

// Of the current GPU; only where is_current_device().
inline int multiprocessors() {
  int count = 0;
#if defined(__CUDACC__)
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess ||
      cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    throw std::runtime_error("the CUDA driver does not tell the current GPU's multiprocessors");
  }
#endif
  return count;
}

}  // namespace argus::sm90
