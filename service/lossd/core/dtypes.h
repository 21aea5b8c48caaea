// Numbers of the requests' dtypes as float32, and float32 as those.

#pragma once

#include <cstdint>
#include <cstring>
#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace {

// The order of DTYPES in in_place.py.
enum Dtype : int32_t { FLOAT32, FLOAT16, BFLOAT16, INT8, INT16, INT32 };

inline float as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t as_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float half_to_float(uint16_t bits) {
  const uint32_t magnitude = (uint32_t)(bits & 0x7fff) << 13;
  float value = as_float(magnitude) * 5.192296858534827628e33f;  // 2^112: the exponents' distance
  if (magnitude >= (0x7c00u << 13)) value = as_float(magnitude | 0x7f800000u);
  return as_float(as_bits(value) | (uint32_t)(bits & 0x8000) << 16);
}

void load(const void* from, int32_t dtype, int64_t at, int count, float* to) {
  if (dtype == FLOAT32) {
    std::memcpy(to, (const float*)from + at, count * sizeof(float));
  } else if (dtype == FLOAT16) {
    const uint16_t* source = (const uint16_t*)from + at;
    int n = 0;
#if defined(__F16C__)
    for (; n + 8 <= count; n += 8)
      _mm256_storeu_ps(to + n, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(source + n))));
#endif
    for (; n < count; n++) to[n] = half_to_float(source[n]);
  } else if (dtype == BFLOAT16) {
    const uint16_t* source = (const uint16_t*)from + at;
    for (int n = 0; n < count; n++) to[n] = as_float((uint32_t)source[n] << 16);
  } else {
    const int8_t* source = (const int8_t*)from + at;
    for (int n = 0; n < count; n++) to[n] = source[n];
  }
}

inline uint16_t float_to_bfloat(float value) {
  const uint32_t bits = as_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40u);
  return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

inline uint16_t float_to_half(float value) {
  const uint32_t bits = as_bits(value), sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u);
  if (magnitude < 0x38800000u)  // a denormal: the addition rounds it into place
    return (uint16_t)(sign | (as_bits(as_float(magnitude) + 0.5f) - 0x3f000000u));
  return (uint16_t)(sign | ((magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13));
}

void store(const float* from, float factor, void* to, int32_t dtype, int64_t at, int count) {
  if (dtype == FLOAT32) {
    std::memcpy((float*)to + at, from, count * sizeof(float));
  } else if (dtype == FLOAT16) {
    uint16_t* target = (uint16_t*)to + at;
    int n = 0;
#if defined(__F16C__)
    const __m256 factors = _mm256_set1_ps(factor);
    for (; n + 8 <= count; n += 8)
      _mm_storeu_si128((__m128i*)(target + n),
                       _mm256_cvtps_ph(_mm256_mul_ps(_mm256_loadu_ps(from + n), factors),
                                       _MM_FROUND_TO_NEAREST_INT));
#endif
    for (; n < count; n++) target[n] = float_to_half(from[n] * factor);
  } else {
    uint16_t* target = (uint16_t*)to + at;
    for (int n = 0; n < count; n++) target[n] = float_to_bfloat(from[n] * factor);
  }
}

}  // namespace
