// Host twins of the PTX instructions in common/cuda/ptx.cuh.
#pragma once

#include <cstdint>

#include "simt/executor.h"

namespace argus::simt {

void load_matrices(const char* name, uint32_t* result, int matrices, const void* row, bool transposed,
                   Site site);

// D = A B + D on the whole warp. Exact: the products are exact, their sum is rounded to float32 once.
// Pessimistic: every product, D and the sum are truncated at the last float32 bit of the largest of them.
void multiply_f16(float* d, const uint32_t* a, const uint32_t* b, Site site);
void multiply_bf16(float* d, const uint32_t* a, const uint32_t* b, Site site);
void multiply_tf32(float* d, const uint32_t* a, const uint32_t* b, Site site);

}  // namespace argus::simt
