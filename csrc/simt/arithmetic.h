// Host twins of CUDA functions with a documented error, computed exactly or with the largest error allowed.
#pragma once

namespace argus::simt {

// exact: the nearest float32. pessimistic: off by the error that the manual allows; for sums on tensor cores,
// where the manual states none, by the error published from measurements. The bits of the value decide the
// sign, so that errors do not cancel systematically.
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
