// Host twins of the PTX instructions in common/cuda/ptx.cuh.
#pragma once

#include <cstdint>

#include "simt/executor.h"

namespace argus::simt {

void load_matrices(const char* name, uint32_t* result, int matrices, const void* row, bool transposed,
                   Site site);

// D = A B + D on the whole warp. Exact: the products are exact, their sum is rounded to float32 once.
// Pessimistic: every product, and D, is cut off at the last bit that a float32 of the largest of them has,
// and so is the sum.
void multiply_f16(float* d, const uint32_t* a, const uint32_t* b, Site site);
void multiply_bf16(float* d, const uint32_t* a, const uint32_t* b, Site site);
void multiply_tf32(float* d, const uint32_t* a, const uint32_t* b, Site site);

}  // namespace argus::simt
