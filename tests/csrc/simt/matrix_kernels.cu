// What nvcc must accept, and turn into the instructions that the compile gates look for.
#include "matrix_kernels.cuh"

namespace matrix_kernels {

template __global__ void load<1, false>(const uint16_t*, uint32_t*);
template __global__ void load<2, false>(const uint16_t*, uint32_t*);
template __global__ void load<4, false>(const uint16_t*, uint32_t*);
template __global__ void load<1, true>(const uint16_t*, uint32_t*);
template __global__ void load<2, true>(const uint16_t*, uint32_t*);
template __global__ void load<4, true>(const uint16_t*, uint32_t*);
template __global__ void multiply_16<__half>(const __half*, const __half*, float*);
template __global__ void tiled<__half, true>(const __half*, const __half*, float*);
template __global__ void tiled<__nv_bfloat16, true>(const __nv_bfloat16*, const __nv_bfloat16*, float*);

}  // namespace matrix_kernels
