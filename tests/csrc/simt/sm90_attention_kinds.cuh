// ARGUS_EVERY_KIND(LOOP): LOOP(WEIGHTS, MASK, T, WIDTH, BIASES) for every kind of attention's loops on sm_90.
#pragma once

#include "attention/cuda/sm90/launch.cuh"
#include "causal_attention/causal_attention_kernels.cuh"
#include "hstu_attention/hstu_attention_kernels.cuh"

#define ARGUS_WIDTHS(LOOP, WEIGHTS, MASK, T, BIASES) \
  LOOP(WEIGHTS, MASK, T, 64, BIASES)                 \
  LOOP(WEIGHTS, MASK, T, 128, BIASES)
#define ARGUS_TYPES(LOOP, WEIGHTS, MASK, BIASES)           \
  ARGUS_WIDTHS(LOOP, WEIGHTS, MASK, __nv_bfloat16, BIASES) \
  ARGUS_WIDTHS(LOOP, WEIGHTS, MASK, __half, BIASES)
#define ARGUS_MASKS(LOOP, WEIGHTS)               \
  ARGUS_TYPES(LOOP, WEIGHTS, CausalMask, false)  \
  ARGUS_TYPES(LOOP, WEIGHTS, CausalMask, true)   \
  ARGUS_TYPES(LOOP, WEIGHTS, GeneralMask, false) \
  ARGUS_TYPES(LOOP, WEIGHTS, GeneralMask, true)
#define ARGUS_EVERY_KIND(LOOP)                 \
  ARGUS_MASKS(LOOP, causal_attention::Softmax) \
  ARGUS_MASKS(LOOP, hstu_attention::Silu)
