// The backward pass of attention over packed histories; three kernels: d_q, d_k and d_v, the bias tables.
#pragma once

#include "common/history_key_gradient.cuh"
#include "common/history_query_gradient.cuh"
#include "common/history_tables.cuh"
