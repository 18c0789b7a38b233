// Host twins of what CUDA computes with a stated error, exactly or at the edge of that error.
#pragma once

namespace argus::simt {

// exact: what float32 holds best. pessimistic: as far off as the manual allows, and for sums on tensor cores,
// of which it says nothing, as far as was measured; up or down as the bits of the value have it, so that
// errors do not cancel each other.
enum class Arithmetic { exact, pessimistic };
Arithmetic arithmetic();
void set_arithmetic(Arithmetic wanted);

float exp2_approx(float x);           // ex2.approx.ftz.f32: 2 units in the last place, 0 below 2^-126
float tanh_approx(float x);           // tanh.approx.f32: relative error 2^-11
float exp_fast(float x);              // __expf: 2 + |1.173 x| units in the last place
float log_fast(float x);              // __logf: 2^-21.41 on [0.5, 2], else 3 units in the last place
float divide_fast(float x, float y);  // __fdividef: 2 units in the last place
float reciprocal_root(float x);       // rsqrtf: 2 units in the last place

}  // namespace argus::simt
