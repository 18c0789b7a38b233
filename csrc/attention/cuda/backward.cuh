// The backward pass of attention over packed histories; three kernels: d_q, d_k and d_v, the bias tables.
#pragma once

#include "attention/cuda/key_gradient.cuh"
#include "attention/cuda/query_gradient.cuh"
#include "attention/cuda/tables.cuh"
