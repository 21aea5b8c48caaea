// Vectors as wide as the processor's registers, and the functions of them that losses take.
//
// They are the compiler's own (`vector_size`), which it keeps in registers; of arrays of which a
// loop is made over, it would write every step to memory. Every lane is computed by itself, so that
// a number does not depend on its neighbours.

#pragma once

#include <cfloat>
#include <cstdint>
#include <cstring>

namespace {

// Wider ones than there are registers for are taken apart into single numbers.
#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
typedef float Floats __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t Ints __attribute__((vector_size(LANES * sizeof(int32_t))));

template <class Vector, class Value>
inline Vector vector_at(const Value* from) {
  Vector found;
  std::memcpy(&found, from, sizeof found);
  return found;
}

inline Floats floats_at(const float* from) { return vector_at<Floats>(from); }
inline Ints ints_at(const int32_t* from) { return vector_at<Ints>(from); }

template <class Vector, class Value>
inline void put(Value* to, const Vector& vector) {
  std::memcpy(to, &vector, sizeof vector);
}

// The same value in every lane.
inline Floats splat(float value) { return Floats{} + value; }

inline Floats magnitude(Floats x) { return x < 0.0f ? -x : x; }

inline float largest_of(Floats x) {
  float largest = x[0];
  for (int n = 1; n < LANES; n++) largest = x[n] > largest ? x[n] : largest;
  return largest;
}

// Adds a sum of float32 to one of float64, lane by lane: by halves, which are as wide in float64.
inline void add_lanes(double* to, Floats sum) {
  typedef float Half __attribute__((vector_size(sizeof(Floats) / 2)));
  typedef double Doubles __attribute__((vector_size(sizeof(Floats))));
  struct {
    Half low, high;
  } halves;
  std::memcpy(&halves, &sum, sizeof halves);
  put(to, vector_at<Doubles>(to) + __builtin_convertvector(halves.low, Doubles));
  to += LANES / 2;
  put(to, vector_at<Doubles>(to) + __builtin_convertvector(halves.high, Doubles));
}

// e^r for r within half of ln 2 of 0, by Cephes' polynomial.
inline Floats near_one(Floats r) {
  Floats p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  return p * (r * r) + r + 1.0f;
}

// e^x * 2^raised for x from -104 to 0, where that is a normal number.
template <int raised>
inline Floats raised_exponential(Floats x) {
  // Adding 1.5 * 2^23 rounds to an integer; the exponent's bias of 127 is in it. No product lies
  // halfway between two integers, so that being odd rounds nothing the other way.
  const Floats shift = splat(12582912.0f + 127.0f + raised);
  const Floats shifted = x * 1.44269504088896341f + shift;
  const Floats whole = shifted - shift;
  Floats r = x - whole * 0.693145751953125f;
  r = r - whole * 1.42860682030941723212e-6f;
  return near_one(r) * (Floats)((Ints)shifted << 23);
}

// e^x for x up to 0, denormal results included, which are rounded once: by the factor.
inline Floats exponential(Floats x) {
  x = x < -104.0f ? splat(-104.0f) : x;  // NaN stays
  return raised_exponential<64>(x) * 5.42101086242752217e-20f;  // 2^-64
}

// The same; what is less than a normal number is one of the smallest.
inline Floats normal_exponential(Floats x) {
  return raised_exponential<0>(x < -87.0f ? splat(-87.0f) : x);
}

// ln x for a normal x > 0. Cephes' polynomial.
inline Floats logarithm(Floats x) {
  const Ints bits = (Ints)x, exponent = (bits - 0x3f3504f3) >> 23;
  const Floats m = (Floats)(bits - (exponent << 23)) - 1.0f;
  const Floats e = __builtin_convertvector(exponent, Floats);
  const Floats z = m * m;
  Floats p = splat(7.0376836292e-2f);
  p = p * m - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  Floats y = m * z * p;
  y += e * -2.12194440e-4f;
  y -= 0.5f * z;
  return m + y + e * 0.693359375f;
}

// base ^ exponent for a base in [0, 1].
inline Floats power(Floats base, float exponent) {
  return exponential(exponent * logarithm(base > FLT_MIN ? base : splat(FLT_MIN)));
}

}  // namespace
