// csrc/common/cpu/matmul.h and vector_math.h for ctypes.
#include <cstdint>

#include "common/cpu/matmul.h"
#include "common/cpu/vector_math.h"

#define ARGUS_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using namespace argus;

ARGUS_INLINE void apply_body(int which, const float* from, float* to, int64_t count) {
  if (which == 0) {
    for (int64_t i = 0; i < count; ++i) to[i] = fast_exp(from[i]);
  } else if (which == 1) {
    for (int64_t i = 0; i < count; ++i) to[i] = log1p_of_fraction(from[i]);
  } else if (which == 2) {
    for (int64_t i = 0; i < count; ++i) to[i] = softplus(from[i]);
  } else if (which == 3) {
    for (int64_t i = 0; i < count; ++i) to[i] = sigmoid(from[i]);
  } else if (which == 4) {
    to[0] = lane_sum(from, count);
  } else if (which == 5) {
    to[0] = lane_max(from, count, -1.0f);
  } else if (which == 6) {
    for (int64_t i = 0; i < count; ++i) to[i] = fast_erf(from[i]);
  } else if (which == 7) {
    for (int64_t i = 0; i < count; ++i) to[i] = gelu(from[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = exp_up_to_one(from[i]);
  }
}

template <class Operand, class Stored>
void pack(int left, void* to, const void* from, const int64_t* sizes) {
  const auto function =
      left != 0 ? &matmul::pack_left<Operand, Stored> : &matmul::pack_right<Operand, Stored>;
  function(static_cast<Operand*>(to), static_cast<const Stored*>(from), sizes[0], sizes[1], sizes[2],
           sizes[3]);
}

template <class Operand>
void multiply(void* to, const void* left, const void* right, const int64_t* sizes) {
  matmul::multiply(static_cast<matmul::Sum<Operand>*>(to), sizes[0], static_cast<const Operand*>(left),
                   sizes[1], static_cast<const Operand*>(right), sizes[2], sizes[3], sizes[4], sizes[5] != 0);
}

}  // namespace

ARGUS_EXPORT const char* bfloat16_unit() {
  return matmul::bfloat16_unit_name();
}

ARGUS_EXPORT void apply(int which, const float* from, float* to, int64_t count) {
  ForEachIsa<&apply_body>::call(which, from, to, count);
}

// operand and stored: 'f' float, 'b' bfloat16, 'h' float16, 'd' double. sizes: rows or columns, depth, their
// strides.
ARGUS_EXPORT void pack_operand(int left, char operand, char stored, void* to, const void* from,
                               const int64_t* sizes) {
  if (operand == 'd') return pack<double, double>(left, to, from, sizes);
  if (operand == 'f' && stored == 'f') return pack<float, float>(left, to, from, sizes);
  if (operand == 'f' && stored == 'b') return pack<float, BFloat16>(left, to, from, sizes);
  if (operand == 'f' && stored == 'h') return pack<float, Float16>(left, to, from, sizes);
  if (stored == 'f') return pack<BFloat16, float>(left, to, from, sizes);
  if (stored == 'h') return pack<BFloat16, Float16>(left, to, from, sizes);
  pack<BFloat16, BFloat16>(left, to, from, sizes);
}

// sizes: to_stride, left_stride, rows, columns, depth, accumulate.
ARGUS_EXPORT void multiply_operands(char operand, void* to, const void* left, const void* right,
                                    const int64_t* sizes) {
  if (operand == 'd') return multiply<double>(to, left, right, sizes);
  if (operand == 'f') return multiply<float>(to, left, right, sizes);
  multiply<BFloat16>(to, left, right, sizes);
}
