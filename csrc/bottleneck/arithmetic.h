// GELU and Gaussian noise in vectors: the arithmetic of kernels/ibvit_kernels/bottleneck/arithmetic.py. NaN stays NaN.
#ifndef IBVIT_BOTTLENECK_MATH_H
#define IBVIT_BOTTLENECK_MATH_H

#include "vector.h"

namespace {

inline Floats absolute(Floats x) { return (Floats)((Words)x & 0x7FFFFFFFu); }

// exp(x), or 2^-126 where exp(x) is less; x <= 87. f is x less n log 2, the nearest multiple. log 2 is split into two
// parts, so that n times the first part is exact.
inline Floats exponential(Floats x) {
  const float log2e = 1.4426950408889634f;
  const Floats lowest = splat(-87.336544f);
  x = x < lowest ? lowest : x;
  const Floats shifted = x * log2e + kRound;
  const Floats n = shifted - kRound;
  const Floats f = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  return power_of_two(shifted, f * log2e);
}

// Phi(-|x|) = 2^P(|x|): P is fitted to log2 Phi, minimax in the error of GELU, 9e-8 max(1, |x|).
inline Floats normal_tail(Floats x) {
  const Floats t = absolute(x);
  Floats p = -1.9918629732273985e-06f * t + 2.927153582277242e-05f;
  p = p * t - 0.00013808587391395122f;
  p = p * t - 0.0002534424711484462f;
  p = p * t + 0.007216397672891617f;
  p = p * t - 0.05260305479168892f;
  p = p * t - 0.45917221903800964f;
  p = p * t - 1.1511096954345703f;
  p = p * t - 0.9999998807907104f;
  const Floats lowest = splat(-126.0f);
  return exp2(p < lowest ? lowest : p);
}

// x Phi(x), the erf form.
inline Floats gelu(Floats x) {
  const Floats zero = {};
  return (x > zero ? x : zero) - absolute(x) * normal_tail(x);
}

// GELU and, into `slope`, its derivative Phi(x) + x phi(x).
inline Floats gelu(Floats x, Floats* slope) {
  const Floats zero = {}, tail = normal_tail(x);
  *slope = (x < zero ? tail : 1.0f - tail) + x * 0.3989422804014327f * exponential(x * x * -0.5f);
  return (x > zero ? x : zero) - absolute(x) * tail;
}

inline Floats square_root(Floats x) {
  Floats root;
  for (int lane = 0; lane < kLanes; ++lane) root[lane] = __builtin_sqrtf(x[lane]);
  return root;
}

// log(u) for u > 0 that is not subnormal: the polynomial of logf in Cephes, on a mantissa in [sqrt(1/2), sqrt(2)).
inline Floats logarithm(Floats u) {
  const Integers shifted = (Integers)u - 0x3F3504F3;
  const Floats exponent = __builtin_convertvector(shifted >> 23, Floats);
  const Floats x = (Floats)((shifted & 0x007FFFFF) + 0x3F3504F3) - 1.0f;
  Floats p = 7.0376836292e-2f * x - 1.1514610310e-1f;
  p = p * x + 1.1676998740e-1f;
  p = p * x - 1.2420140846e-1f;
  p = p * x + 1.4249322787e-1f;
  p = p * x - 1.6668057665e-1f;
  p = p * x + 2.0000714765e-1f;
  p = p * x - 2.4999993993e-1f;
  p = p * x + 3.3333331174e-1f;
  const Floats square = x * x;
  const Floats small = x * square * p + exponent * -2.12194440e-4f - 0.5f * square;
  return exponent * 0.693359375f + (x + small);
}

// The nearest float32 of each word.
inline Floats to_floats(Words w) {
  const Floats high = __builtin_convertvector((Integers)(w >> 16), Floats);
  return high * 65536.0f + __builtin_convertvector((Integers)(w & 0xFFFFu), Floats);
}

// Box-Muller: R cos(theta), R sin(theta). theta = 2 pi angle 2^-32 is reduced to [-pi/4, pi/4] exactly, in integers.
inline void normal_pair(Words radius, Words angle, Floats normals[2]) {
  const Floats u = to_floats(radius) * 2.3283064365386963e-10f + 1.1641532182693481e-10f;
  const Floats r = square_root(logarithm(u) * -2.0f);
  const Words shifted = angle + 0x20000000u;
  const Words quadrant = shifted >> 30;
  const Integers centred = (Integers)(shifted & 0x3FFFFFFFu) - 0x20000000;
  const Floats t = __builtin_convertvector(centred, Floats) * (9.313225746154785e-10f * 1.5707963267948966f);
  const Floats s = t * t;
  const Floats sine = t + t * s * ((-1.9515295891e-4f * s + 8.3321608736e-3f) * s - 1.6666654611e-1f);
  const Floats cosine =
      1.0f - 0.5f * s + s * s * ((2.443315711809948e-5f * s - 1.388731625493765e-3f) * s + 4.166664568298827e-2f);
  const Words odd = quadrant & 1u, upper = quadrant >> 1;
  const Floats x = (Integers)odd != 0 ? sine : cosine;
  const Floats y = (Integers)odd != 0 ? cosine : sine;
  // The sign bit: cos is negative in quadrants 1 and 2, sin in 2 and 3.
  normals[0] = r * (Floats)((Words)x ^ ((odd ^ upper) << 31));
  normals[1] = r * (Floats)((Words)y ^ (upper << 31));
}

// Philox4x32-10 (Salmon et al. 2011) of `Count` counters, in place.
template <int Count>
void philox(uint32_t c[4][Count], uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round, key0 += 0x9E3779B9u, key1 += 0xBB67AE85u) {
    for (int i = 0; i < Count; ++i) {
      const uint64_t product0 = uint64_t(c[0][i]) * 0xD2511F53u;
      const uint64_t product1 = uint64_t(c[2][i]) * 0xCD9E8D57u;
      c[0][i] = uint32_t(product1 >> 32) ^ c[1][i] ^ key0;
      c[2][i] = uint32_t(product0 >> 32) ^ c[3][i] ^ key1;
      c[1][i] = uint32_t(product1);
      c[3][i] = uint32_t(product0);
    }
  }
}

}  // namespace

#endif
