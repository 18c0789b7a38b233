#include "simt/arithmetic.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

namespace argus::simt {
namespace {

constexpr float kUnit = 0x1p-23f;  // in the last place, of a float32 from 1 on

Arithmetic current = Arithmetic::exact;

// x unchanged, or off by `error`.
float off_by(float x, float error) {
  if (current == Arithmetic::exact || !std::isfinite(x)) return x;
  return std::popcount(std::bit_cast<uint32_t>(x)) % 2 == 0 ? x + error : x - error;
}

}  // namespace

Arithmetic arithmetic() {
  return current;
}

void set_arithmetic(Arithmetic wanted) {
  current = wanted;
}

float exp2_approx(float x) {
  const float exact = exp2f(x), result = off_by(exact, exact * 2 * kUnit);
  return result < 0x1p-126f ? 0.0f : result;
}

float tanh_approx(float x) {
  const float exact = tanhf(x);
  return std::clamp(off_by(exact, exact * 0x1p-11f), -1.0f, 1.0f);
}

float exp_fast(float x) {
  const float exact = expf(x);
  return off_by(exact, exact * (2 + std::floor(std::abs(1.173f * x))) * kUnit);
}

float log_fast(float x) {
  const float exact = logf(x);
  return off_by(exact, x >= 0.5f && x <= 2.0f ? 3.6e-7f : exact * 3 * kUnit);
}

float divide_fast(float x, float y) {
  const float exact = x / y;
  return off_by(exact, exact * 2 * kUnit);
}

float reciprocal_root(float x) {
  const float exact = static_cast<float>(1.0 / std::sqrt(static_cast<double>(x)));
  return off_by(exact, exact * 2 * kUnit);
}

}  // namespace argus::simt

// Chosen by the tests for the launches that follow.
extern "C" __attribute__((visibility("default"))) void simt_set_pessimistic(int pessimistic) {
  using namespace argus::simt;
  set_arithmetic(pessimistic != 0 ? Arithmetic::pessimistic : Arithmetic::exact);
}
