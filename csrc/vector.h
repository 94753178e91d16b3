// Vectors of floats in the vector types of GCC and Clang. A translation unit that includes this file defines
// IBVIT_LANES, the floats per register.
//
// Everything here has internal linkage, and no template of the standard library is instantiated. Otherwise the linker
// could keep a copy of an inline function that was compiled for AVX-512, and machines without AVX-512 would run it.
#ifndef IBVIT_VECTOR_H
#define IBVIT_VECTOR_H

#include <stdint.h>
#include <string.h>

namespace {

constexpr int kLanes = IBVIT_LANES;

typedef float Floats __attribute__((vector_size(4 * IBVIT_LANES)));
typedef int32_t Integers __attribute__((vector_size(4 * IBVIT_LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * IBVIT_LANES)));

template <typename Vector = Floats>
inline Vector load(const void* from) {
  Vector value;
  memcpy(&value, from, sizeof(value));
  return value;
}

inline void store(float* to, Floats value) { memcpy(to, &value, sizeof(value)); }

// A vector with `value` in every lane. GCC broadcasts a scalar only as an operand, and x - 0 is x, also for x = -0.
inline Floats splat(float value) { return value - Floats{}; }

// Adding this rounds to an integer and leaves that integer in the low bits.
constexpr float kRound = 12582912.0f;  // 1.5 * 2^23

// 2^(n + f) for |f| <= 1/2, where `shifted` is n + kRound and |n| <= 126. The polynomial of degree 5 is minimax, with a
// relative error of 0.92e-7, and 1 at 0.
inline Floats power_of_two(Floats shifted, Floats f) {
  Floats p = splat(0x1.5bba14p-10f);
  p = p * f + 0x1.3cea88p-7f;
  p = p * f + 0x1.c6b752p-5f;
  p = p * f + 0x1.ebf9bcp-3f;
  p = p * f + 0x1.62e42ap-1f;
  p = p * f + 1.0f;
  return (Floats)((Words)p + ((Words)shifted << 23));
}

// 2^y for |y| <= 126, with a relative error below 2.5e-7.
inline Floats exp2(Floats y) {
  const Floats shifted = y + splat(kRound);
  return power_of_two(shifted, y - (shifted - kRound));
}

}  // namespace

#endif
