// The two passes of the lean families in float32, for processors: what softmax.py and sigmoid.py
// say, read from and written to the tensors of the requests in place. Nothing is packed.
//
// A tile is TILE pixels of one group of a sample, as in tiles.py. It is worked on in blocks that
// stay in the first cache. Sums of a run are float32, everything above is added in float64 in a
// fixed order, so that a tile's numbers depend on nothing but the tile.

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <omp.h>
#include <vector>
#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace {

constexpr int64_t TILE = 4096;
constexpr int64_t ALONE = 16;  // tiles times depth that one thread does before others are awake
constexpr int BLOCK = 128;
constexpr int RUN = 64;  // pixels whose float32 sum is exact enough: equal terms round one way

// The order of vocabulary.py.
enum RegionSum { TARGET, FALSE_NEGATIVE, FALSE_POSITIVE, ERROR_INSIDE, ERROR_OUTSIDE,
                 TARGET_SQUARED, REGION_SUMS };
enum PixelSum { WEIGHT, CROSS_ENTROPY, FOCAL, SURPRISE, PIXEL_SUMS };

// The order of DTYPES in in_place.py.
enum Dtype : int32_t { FLOAT32, FLOAT16, BFLOAT16, INT8, INT16, INT32 };

}  // namespace

extern "C" {

// One sample: G groups of depth D, see tiles.py. Mirrored by SAMPLE in in_place.py.
struct Sample {
  const void* logits;   // [G, D, P]
  const void* target;   // labels [P], or [G, P] of values, -1 where a pixel does not count
  const float* weight;  // [P], or null for ones
  void* gradient;       // [G, D, P], or null
  int64_t pixels;
  int64_t groups;
  int64_t first_tile;   // among the tiles of the call
  int64_t first_group;  // among the groups of the call
  int64_t first_logit;  // among the logits of the call
  int32_t logits_dtype;
  int32_t target_dtype;
  int32_t gradient_dtype;
  float gamma;
  float scale;          // what the gradient is multiplied with; set by the call
  int32_t reserved;
};

}  // extern "C"

namespace {

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

// e^r for r within half of ln 2 of 0, by Cephes' polynomial: of a float, or a vector of them.
template <class Number>
inline Number near_one(Number r) {
  Number p = Number{} + 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  return p * (r * r) + r + 1.0f;
}

// e^x = p * 2^k with p next to 1.
struct Power {
  float p;
  int32_t k;
};

inline Power power(float x) {
  const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float shifted = x * 1.44269504088896341f + shift;
  const float whole = shifted - shift;
  const int32_t k = (int32_t)as_bits(shifted) - (int32_t)as_bits(shift);
  float r = x - whole * 0.693145751953125f;
  r = r - whole * 1.42860682030941723212e-6f;
  return {near_one(r), k};
}

// e^x for x up to 0, denormal results included: two factors of 2^k/2, since one could not be a
// denormal.
inline float exponential(float x) {
  const auto [p, k] = power(x < -104.0f ? -104.0f : x);  // NaN stays
  const int32_t half = k >> 1;
  return p * as_float((uint32_t)(half + 127) << 23) * as_float((uint32_t)(k - half + 127) << 23);
}

// ln x for a normal x > 0. Cephes' polynomial.
inline float logarithm(float x) {
  const uint32_t bits = as_bits(x);
  const int32_t exponent = (int32_t)(bits - 0x3f3504f3u) >> 23;
  const float m = as_float(bits - ((uint32_t)exponent << 23)) - 1.0f;
  const float e = (float)exponent;
  const float z = m * m;
  float p = 7.0376836292e-2f;
  p = p * m - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  float y = m * z * p;
  y += e * -2.12194440e-4f;
  y -= 0.5f * z;
  return m + y + e * 0.693359375f;
}

// base ^ exponent for a base in [0, 1].
inline float power(float base, float exponent) {
  return exponential(exponent * logarithm(base > FLT_MIN ? base : FLT_MIN));
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

// Coefficients of the sums of one group.
struct Slopes {
  const float* region;  // [REGION_SUMS, D]
  const float* pixel;   // [PIXEL_SUMS, L]
};

// -- softmax of labels ----------------------------------------------------------------------------

struct Softmax {
  static int labels(int depth) { return depth; }

  int32_t label[BLOCK];
  float weight[BLOCK], top[BLOCK], own_logit[BLOCK], own[BLOCK], others[BLOCK];
  float inverse[BLOCK], miss[BLOCK], surprise[BLOCK], log_total[BLOCK], focus[BLOCK];

  void load_labels(const Sample& s, int64_t begin, int count) {
    if (s.target_dtype == INT8) {
      for (int n = 0; n < count; n++) label[n] = ((const int8_t*)s.target)[begin + n];
    } else if (s.target_dtype == INT16) {
      for (int n = 0; n < count; n++) label[n] = ((const int16_t*)s.target)[begin + n];
    } else {
      for (int n = 0; n < count; n++) label[n] = ((const int32_t*)s.target)[begin + n];
    }
    for (int n = count; n < BLOCK; n++) label[n] = -1;
    for (int n = 0; n < BLOCK; n++) weight[n] = label[n] >= 0 ? 1.0f : 0.0f;
    if (s.weight)
      for (int n = 0; n < count; n++) weight[n] = label[n] >= 0 ? s.weight[begin + n] : 0.0f;
  }

  // Exponentials relative to the top into `e` [C, BLOCK], logits into `x`, and what follows.
  void prepare(const Sample& s, int64_t, int classes, int64_t begin, int count, float* e,
               float* x) {
    load_labels(s, begin, count);
    for (int n = 0; n < BLOCK; n++) {
      top[n] = -INFINITY;
      own_logit[n] = own[n] = others[n] = 0.0f;
    }
    for (int c = 0; c < classes; c++) {
      float* row = x + (int64_t)c * BLOCK;
      load(s.logits, s.logits_dtype, c * s.pixels + begin, count, row);
      for (int n = count; n < BLOCK; n++) row[n] = 0.0f;
#pragma omp simd
      for (int n = 0; n < BLOCK; n++) {
        row[n] = label[n] >= 0 ? row[n] : 0.0f;  // what is removed may hold NaN
        top[n] = row[n] > top[n] ? row[n] : top[n];
      }
    }
    for (int c = 0; c < classes; c++) {
      const float* row = x + (int64_t)c * BLOCK;
      float* out = e + (int64_t)c * BLOCK;
#pragma omp simd
      for (int n = 0; n < BLOCK; n++) {
        const float value = exponential(row[n] - top[n]);
        const bool mine = label[n] == c;
        out[n] = value;
        own[n] += mine ? value : 0.0f;
        others[n] += mine ? 0.0f : value;
        own_logit[n] += mine ? row[n] : 0.0f;
      }
    }
    // One logarithm serves ln(total) where the others outweigh the class and ln(1 + others/own)
    // where they do not: both are ln(1 + x).
#pragma omp simd
    for (int n = 0; n < BLOCK; n++) {
      const float total = own[n] + others[n], reciprocal = 1.0f / total;
      const bool far = others[n] > own[n];
      const float x_ = far ? total - 1.0f : others[n] / own[n];
      const float u = 1.0f + x_;
      const float lost = (x_ - (u - 1.0f)) * (far ? reciprocal : own[n] * reciprocal);
      const float y = logarithm(u) + lost;
      const float gap = top[n] - own_logit[n];
      inverse[n] = reciprocal;
      miss[n] = others[n] * reciprocal;
      log_total[n] = far ? y : y - gap;
      const float value = far ? gap + y : y;
      surprise[n] = label[n] >= 0 ? value : 0.0f;
    }
    if (s.gamma == 2.0f) {
      for (int n = 0; n < BLOCK; n++) focus[n] = miss[n] * miss[n];
    } else {
      const float gamma = s.gamma;
#pragma omp simd
      for (int n = 0; n < BLOCK; n++) focus[n] = power(miss[n], gamma);
    }
  }

  // Adds the block's sums to `region` [6, C] and `pixel` [4, C].
  void add(int classes, const float* e, const float* x, double* region, double* pixel) {
    for (int c = 0; c < classes; c++)
      for (int run = 0; run < BLOCK; run += RUN) add_run(c, classes, run, e, x, region, pixel);
  }

  void add_run(int c, int classes, int run, const float* e, const float* x, double* region,
               double* pixel) {
    const float *exponentials = e + (int64_t)c * BLOCK, *logits = x + (int64_t)c * BLOCK;
    float count = 0, fn = 0, fp = 0, in = 0, out = 0, w = 0, ce = 0, focal = 0, all = 0;
#pragma omp simd reduction(+ : count, fn, fp, in, out, w, ce, focal, all)
    for (int n = run; n < run + RUN; n++) {
      const bool mine = label[n] == c, counts = label[n] >= 0;
      const float weighted = weight[n] * surprise[n];
      const float p = mine || !counts ? 0.0f : exponentials[n] * inverse[n];
      const float other = ((top[n] - logits[n]) + log_total[n]) * weight[n];
      count += mine ? 1.0f : 0.0f;
      fn += mine ? miss[n] : 0.0f;
      in += mine ? miss[n] * miss[n] : 0.0f;
      fp += p;
      out += p * p;
      w += mine ? weight[n] : 0.0f;
      ce += mine ? weighted : 0.0f;
      focal += mine ? weighted * focus[n] : 0.0f;
      all += mine ? weighted : (counts ? other : 0.0f);
    }
    region[TARGET * classes + c] += count;
    region[FALSE_NEGATIVE * classes + c] += fn;
    region[FALSE_POSITIVE * classes + c] += fp;
    region[ERROR_INSIDE * classes + c] += in;
    region[ERROR_OUTSIDE * classes + c] += out;
    region[TARGET_SQUARED * classes + c] += count;
    pixel[WEIGHT * classes + c] += w;
    pixel[CROSS_ENTROPY * classes + c] += ce;
    pixel[FOCAL * classes + c] += focal;
    pixel[SURPRISE * classes + c] += all;
  }

  // The block's derivatives into `out` [C, BLOCK]; the formulas are those of softmax.py.
  void differentiate(float gamma, int classes, const Slopes& k, const float* e, float* out) {
    const float *fn = k.region + FALSE_NEGATIVE * classes, *in = k.region + ERROR_INSIDE * classes;
    const float *fp = k.region + FALSE_POSITIVE * classes, *sq = k.region + ERROR_OUTSIDE * classes;
    const float *ce = k.pixel + CROSS_ENTROPY * classes, *fo = k.pixel + FOCAL * classes;
    const float* su = k.pixel + SURPRISE * classes;
    float along[BLOCK], rest[BLOCK], mean[BLOCK];
    float spread = 0.0f;
    for (int c = 0; c < classes; c++) spread += su[c];
#pragma omp simd
    for (int n = 0; n < BLOCK; n++) {
      const int c = label[n] >= 0 ? label[n] : 0;
      const float hit = own[n] * inverse[n], focal = fo[c] * weight[n] * focus[n];
      const float through = hit * (fn[c] + 2.0f * in[c] * miss[n]);
      const float value = focal * gamma * hit * surprise[n] +
                          miss[n] * (through + weight[n] * ce[c] + focal);
      along[n] = label[n] >= 0 ? value : 0.0f;
      rest[n] = along[n] / (others[n] > FLT_MIN ? others[n] : FLT_MIN);
      mean[n] = 0.0f;
    }
    for (int c = 0; c < classes; c++) {
      const float* exponentials = e + (int64_t)c * BLOCK;
      float* row = out + (int64_t)c * BLOCK;
      const float a = fp[c], b = 2.0f * sq[c];
#pragma omp simd
      for (int n = 0; n < BLOCK; n++) {
        const float p = exponentials[n] * inverse[n];
        row[n] = label[n] == c ? 0.0f : a + b * p;
        mean[n] += row[n] * p;
      }
    }
    for (int c = 0; c < classes; c++) {
      const float* exponentials = e + (int64_t)c * BLOCK;
      float* row = out + (int64_t)c * BLOCK;
      const float own_spread = su[c], rest_spread = spread - su[c];
#pragma omp simd
      for (int n = 0; n < BLOCK; n++) {
        const float p = exponentials[n] * inverse[n];
        const bool mine = label[n] == c;
        const float direct = mine ? -along[n] : exponentials[n] * rest[n];
        const float through = mine ? rest_spread - spread * miss[n] : spread * p - own_spread;
        const float value = direct + p * (row[n] - mean[n]) + weight[n] * through;
        row[n] = label[n] >= 0 ? value : 0.0f;
      }
    }
  }
};

// -- a sigmoid per channel ------------------------------------------------------------------------

struct Sigmoid {
  static int labels(int) { return 2; }  // off and on

  float counts[BLOCK], on[BLOCK], off[BLOCK], weight[BLOCK], probability[BLOCK], miss[BLOCK];
  float surprise_on[BLOCK], surprise_off[BLOCK], error[BLOCK], focus_on[BLOCK], focus_off[BLOCK];

  void prepare(const Sample& s, int64_t group, int, int64_t begin, int count, float*, float* x) {
    const int64_t at = group * s.pixels + begin;
    load(s.logits, s.logits_dtype, at, count, x);
    load(s.target, s.target_dtype, at, count, on);
    for (int n = count; n < BLOCK; n++) {
      x[n] = 0.0f;
      on[n] = -1.0f;
    }
    if (s.weight) {
      std::memcpy(weight, s.weight + begin, count * sizeof(float));
    } else {
      for (int n = 0; n < BLOCK; n++) weight[n] = 1.0f;
    }
    for (int n = count; n < BLOCK; n++) weight[n] = 0.0f;
#pragma omp simd
    for (int n = 0; n < BLOCK; n++) {
      const bool valid = on[n] >= 0.0f;
      const float logit = valid ? x[n] : 0.0f;
      const float y = valid ? on[n] : 0.0f;
      const float size = logit < 0.0f ? -logit : logit;
      const float decay = exponential(-size);
      const float near = 1.0f / (1.0f + decay), far = decay * near;
      const float u = 1.0f + decay;
      const float log_sum = logarithm(u) + (decay - (u - 1.0f)) * near;
      const bool positive = logit >= 0.0f;
      x[n] = logit;
      counts[n] = valid ? 1.0f : 0.0f;
      weight[n] = valid ? weight[n] : 0.0f;
      on[n] = y;
      off[n] = valid ? 1.0f - y : 0.0f;
      probability[n] = positive ? near : far;
      miss[n] = positive ? far : near;
      surprise_on[n] = log_sum + (logit < 0.0f ? -logit : 0.0f);
      surprise_off[n] = log_sum + (logit > 0.0f ? logit : 0.0f);
      // 1 - y is exact where y is at least a half, and the miss has the digits that p has lost.
      error[n] = positive && y >= 0.5f ? off[n] - miss[n] : probability[n] - y;
      // NaN compares with nothing: it would pass for 0 and be counted.
      surprise_on[n] = logit == logit ? surprise_on[n] : logit;
    }
    if (s.gamma == 2.0f) {
      for (int n = 0; n < BLOCK; n++) {
        focus_on[n] = miss[n] * miss[n];
        focus_off[n] = probability[n] * probability[n];
      }
    } else {
      const float gamma = s.gamma;
#pragma omp simd
      for (int n = 0; n < BLOCK; n++) {
        focus_on[n] = exponential(-gamma * surprise_off[n]);
        focus_off[n] = exponential(-gamma * surprise_on[n]);
      }
    }
  }

  // Adds the block's sums to `region` [6, 1] and `pixel` [4, 2].
  void add(int, const float*, const float*, double* region, double* pixel) {
    for (int run = 0; run < BLOCK; run += RUN) add_run(run, region, pixel);
  }

  void add_run(int run, double* region, double* pixel) {
    float target = 0, fn = 0, fp = 0, in = 0, out = 0, squared = 0;
    float w0 = 0, w1 = 0, ce0 = 0, ce1 = 0, focal0 = 0, focal1 = 0, all0 = 0, all1 = 0;
#pragma omp simd reduction(+ : target, fn, fp, in, out, squared)
    for (int n = run; n < run + RUN; n++) {
      const float square = error[n] * error[n];
      target += on[n];
      fn += on[n] * miss[n];
      fp += off[n] * probability[n];
      in += on[n] * square;
      out += off[n] * square;
      squared += on[n] * on[n];
    }
#pragma omp simd reduction(+ : w0, w1, ce0, ce1, focal0, focal1, all0, all1)
    for (int n = run; n < run + RUN; n++) {
      const float weight_off = weight[n] * off[n], weight_on = weight[n] * on[n];
      const float cross_off = weight_off * surprise_off[n], cross_on = weight_on * surprise_on[n];
      w0 += weight_off;
      w1 += weight_on;
      ce0 += cross_off;
      ce1 += cross_on;
      focal0 += cross_off * focus_off[n];
      focal1 += cross_on * focus_on[n];
      all0 += counts[n] > 0.0f ? weight[n] * surprise_off[n] : 0.0f;
      all1 += counts[n] > 0.0f ? weight[n] * surprise_on[n] : 0.0f;
    }
    const float regions[REGION_SUMS] = {target, fn, fp, in, out, squared};
    const float pixels[PIXEL_SUMS * 2] = {w0, w1, ce0, ce1, focal0, focal1, all0, all1};
    for (int i = 0; i < REGION_SUMS; i++) region[i] += regions[i];
    for (int i = 0; i < PIXEL_SUMS * 2; i++) pixel[i] += pixels[i];
  }

  // The block's derivatives into `out` [BLOCK]; the formulas are those of sigmoid.py.
  void differentiate(float gamma, int, const Slopes& k, const float*, float* out) {
    const float fn = k.region[FALSE_NEGATIVE], fp = k.region[FALSE_POSITIVE];
    const float in = 2.0f * k.region[ERROR_INSIDE], sq = 2.0f * k.region[ERROR_OUTSIDE];
    const float *ce = k.pixel + CROSS_ENTROPY * 2, *fo = k.pixel + FOCAL * 2;
    const float* su = k.pixel + SURPRISE * 2;
    const float ce0 = ce[0], ce1 = ce[1], fo0 = fo[0], fo1 = fo[1], su0 = su[0], su1 = su[1];
#pragma omp simd
    for (int n = 0; n < BLOCK; n++) {
      const float p = probability[n], q = miss[n];
      const float slope = off[n] * (fp + sq * error[n]) + on[n] * (in * error[n] - fn);
      const float pull_on = on[n] * (ce1 + fo1 * focus_on[n]) + su1;
      const float pull_off = off[n] * (ce0 + fo0 * focus_off[n]) + su0;
      const float focusing = gamma * (off[n] * fo0 * focus_off[n] * q * surprise_off[n] -
                                      on[n] * fo1 * focus_on[n] * p * surprise_on[n]);
      const float value = p * q * slope + weight[n] * (pull_off * p - pull_on * q + focusing);
      out[n] = counts[n] > 0.0f ? value : 0.0f;
    }
  }
};

// -- over tiles -----------------------------------------------------------------------------------

inline int64_t tiles_of(int64_t pixels) { return (pixels + TILE - 1) / TILE; }

// Which sample a tile of the call belongs to.
inline int64_t sample_of(const Sample* samples, int64_t count, int64_t tile) {
  int64_t low = 0, high = count - 1;
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (samples[middle].first_tile <= tile) low = middle; else high = middle - 1;
  }
  return low;
}

struct Place {
  int64_t group, begin, end;
};

inline Place place_of(const Sample& s, int64_t tile) {
  const int64_t inside = tile - s.first_tile, each = tiles_of(s.pixels);
  const int64_t begin = inside % each * TILE;
  return {inside / each, begin, begin + TILE < s.pixels ? begin + TILE : s.pixels};
}

inline int64_t tile_count(const Sample* samples, int64_t count) {
  const Sample& last = samples[count - 1];
  return last.first_tile + last.groups * tiles_of(last.pixels);
}

template <class Family>
void sums(const Sample* samples, int64_t count, int depth, float* region, float* pixel,
          float* floats, double* doubles, int threads) {
  const int64_t total = tile_count(samples, count);
  const int regions = REGION_SUMS * depth, pixels = PIXEL_SUMS * Family::labels(depth);
#pragma omp parallel num_threads(threads) if (total * depth > ALONE)
  {
    float* e = floats + (int64_t)omp_get_thread_num() * 2 * depth * BLOCK;
    float* x = e + (int64_t)depth * BLOCK;
    double* added = doubles + (int64_t)omp_get_thread_num() * (regions + pixels);
    Family block;
#pragma omp for schedule(dynamic, 1)
    for (int64_t tile = 0; tile < total; tile++) {
      const Sample& s = samples[sample_of(samples, count, tile)];
      const Place place = place_of(s, tile);
      for (int i = 0; i < regions + pixels; i++) added[i] = 0.0;
      for (int64_t begin = place.begin; begin < place.end; begin += BLOCK) {
        const int size = (int)(place.end - begin < BLOCK ? place.end - begin : BLOCK);
        block.prepare(s, place.group, depth, begin, size, e, x);
        block.add(depth, e, x, added, added + regions);
      }
      for (int i = 0; i < regions; i++) region[tile * regions + i] = (float)added[i];
      for (int i = 0; i < pixels; i++) pixel[tile * pixels + i] = (float)added[regions + i];
    }
  }
}

// How a gradient gets its power of two: float32 needs none and is written at once. Half precision
// is computed into `stage` and rounded from there when the largest entry is known, or, where that
// would not stay in the cache, computed a second time.
enum class Work { FIND_LARGEST, STAGE, ROUND, WRITE };

inline void grow(float& largest, const float* row) {
  float found = largest;
#pragma omp simd reduction(max : found)
  for (int n = 0; n < BLOCK; n++) {
    const float magnitude = row[n] < 0.0f ? -row[n] : row[n];
    found = magnitude > found ? magnitude : found;
  }
  largest = found;
}

// Returns the largest entry of the tile, where it is looked for.
template <class Family>
float differentiate_tile(const Sample& s, const Place& place, int depth, const Slopes& slopes,
                         Family& block, float* e, float* x, float* stage, Work work) {
  float largest = 0.0f;
  const bool whole = s.gradient_dtype == FLOAT32;
  float* staged = stage ? stage + s.first_logit : nullptr;
  for (int64_t begin = place.begin; begin < place.end; begin += BLOCK) {
    const int size = (int)(place.end - begin < BLOCK ? place.end - begin : BLOCK);
    block.prepare(s, place.group, depth, begin, size, e, x);
    block.differentiate(s.gamma, depth, slopes, e, x);
    for (int d = 0; d < depth; d++) {
      const float* row = x + (int64_t)d * BLOCK;
      const int64_t at = (place.group * depth + d) * s.pixels + begin;
      if (work == Work::WRITE || (work == Work::STAGE && whole)) {
        store(row, s.scale, s.gradient, s.gradient_dtype, at, size);
      } else {
        if (work == Work::STAGE) std::memcpy(staged + at, row, size * sizeof(float));
        grow(largest, row);
      }
    }
  }
  return largest;
}

inline void round_tile(const Sample& s, const Place& place, int depth, const float* stage) {
  const float* staged = stage + s.first_logit;
  for (int d = 0; d < depth; d++) {
    const int64_t at = (place.group * depth + d) * s.pixels + place.begin;
    store(staged + at, s.scale, s.gradient, s.gradient_dtype, at, (int)(place.end - place.begin));
  }
}

template <class Family>
void over_tiles(const Sample* samples, int64_t count, int depth, const float* region,
                const float* pixel, float* largest, float* floats, float* stage, int threads,
                Work work) {
  const int64_t total = tile_count(samples, count);
  const int regions = REGION_SUMS * depth, pixels = PIXEL_SUMS * Family::labels(depth);
#pragma omp parallel num_threads(threads) if (total * depth > ALONE)
  {
    float* e = floats + (int64_t)omp_get_thread_num() * 2 * depth * BLOCK;
    float* x = e + (int64_t)depth * BLOCK;
    Family block;
#pragma omp for schedule(dynamic, 1)
    for (int64_t tile = 0; tile < total; tile++) {
      const Sample& s = samples[sample_of(samples, count, tile)];
      const bool whole = s.gradient_dtype == FLOAT32;
      if (whole && (work == Work::FIND_LARGEST || work == Work::ROUND)) continue;
      const Place place = place_of(s, tile);
      if (work == Work::ROUND) {
        round_tile(s, place, depth, stage);
        continue;
      }
      const int64_t group = s.first_group + place.group;
      const Slopes slopes = {region + group * regions, pixel + group * pixels};
      largest[tile] =
          differentiate_tile(s, place, depth, slopes, block, e, x, stage, work);
    }
  }
}

// The power of two that brings the largest entry just below the top of the range, as
// HALF_TOP_EXPONENT in job.py says.
void choose_scales(Sample* samples, int64_t count, const float* largest) {
  for (int64_t i = 0; i < count; i++) {
    Sample& s = samples[i];
    if (s.gradient_dtype == FLOAT32) continue;
    float top = 0.0f;
    const int64_t end = s.first_tile + s.groups * tiles_of(s.pixels);
    for (int64_t t = s.first_tile; t < end; t++) top = largest[t] > top ? largest[t] : top;
    if (!(top > 0.0f && top < INFINITY)) continue;
    int exponent;
    std::frexp(top, &exponent);
    s.scale = std::ldexp(1.0f, (s.gradient_dtype == FLOAT16 ? 15 : 0) - exponent);
  }
}

template <class Family>
void gradients(Sample* samples, int64_t count, int depth, const float* region, const float* pixel,
               float* largest, float* floats, float* stage, int threads) {
  bool half = false;
  for (int64_t i = 0; i < count; i++) {
    samples[i].scale = 1.0f;
    half |= samples[i].gradient_dtype != FLOAT32;
  }
  const auto go = [&](Work work) {
    over_tiles<Family>(samples, count, depth, region, pixel, largest, floats, stage, threads, work);
  };
  if (half) {
    go(stage ? Work::STAGE : Work::FIND_LARGEST);
    choose_scales(samples, count, largest);
  }
  go(half && stage ? Work::ROUND : Work::WRITE);
}

}  // namespace

extern "C" {

// Floats of `floats` per thread are 2 * depth * BLOCK, doubles of `doubles` one per sum.
int64_t lossd_block_pixels() { return BLOCK; }
int64_t lossd_sample_bytes() { return sizeof(Sample); }

// region [tiles, 6, D] and pixel [tiles, 4, L]: sums of every tile.
void lossd_softmax_sums(const Sample* samples, int64_t count, int depth, float* region,
                        float* pixel, double* doubles, float* floats, int threads) {
  sums<Softmax>(samples, count, depth, region, pixel, floats, doubles, threads);
}

void lossd_sigmoid_sums(const Sample* samples, int64_t count, int depth, float* region,
                        float* pixel, double* doubles, float* floats, int threads) {
  sums<Sigmoid>(samples, count, depth, region, pixel, floats, doubles, threads);
}

// region [groups, 6, D] and pixel [groups, 4, L]: coefficients; largest [tiles]: memory; stage: as
// many floats as there are logits, or null.
void lossd_softmax_gradients(Sample* samples, int64_t count, int depth, const float* region,
                             const float* pixel, float* largest, float* floats, float* stage,
                             int threads) {
  gradients<Softmax>(samples, count, depth, region, pixel, largest, floats, stage, threads);
}

void lossd_sigmoid_gradients(Sample* samples, int64_t count, int depth, const float* region,
                             const float* pixel, float* largest, float* floats, float* stage,
                             int threads) {
  gradients<Sigmoid>(samples, count, depth, region, pixel, largest, floats, stage, threads);
}

}  // extern "C"

// -- what annotation QA sees of a prediction ------------------------------------------------------

namespace {

// As in qa_wire.py.
constexpr float LOSS_CAP_NATS = 16.0f, LEVELS_PER_NAT = 16.0f, MARGIN_STEPS = 255.0f;
constexpr int LEVELS = 256;

struct Seen {
  float* loss;          // [P]
  uint8_t* levels;      // [P]
  void* predicted;      // [P], bytes, or two bytes each where there are more than 256 classes
  uint8_t* margin;      // [P]
  int32_t* histogram;   // [threads, 2, C + 1, 256]; what does not count comes first
};

// Vectors of the compiler's own, which it keeps in registers where arrays would lie in memory.
constexpr int LANES = 8;
typedef float Floats __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t Ints __attribute__((vector_size(LANES * sizeof(int32_t))));

template <class Vector, class Value>
inline Vector vector_at(const Value* from) {
  Vector found;
  std::memcpy(&found, from, sizeof found);
  return found;
}

// e^x for x up to 0; what is less than a normal number is one of the smallest.
inline float normal_exponential(float x) {
  const auto [p, k] = power(x < -87.0f ? -87.0f : x);  // NaN stays
  return p * as_float((uint32_t)(k + 127) << 23);
}

// The same of several at once.
inline Floats normal_exponentials(Floats x) {
  // As in `power`, but with the exponent's bias of 127 in it. No product lies halfway between two
  // integers, so its being odd rounds nothing the other way.
  const Floats shift = Floats{} + (12582912.0f + 127.0f);
  x = x < -87.0f ? Floats{} - 87.0f : x;
  const Floats shifted = x * 1.44269504088896341f + shift;
  const Floats whole = shifted - shift;
  Floats r = x - whole * 0.693145751953125f;
  r = r - whole * 1.42860682030941723212e-6f;
  return near_one(r) * (Floats)((Ints)shifted << 23);
}

// One block of pixels; whether all losses that count are finite. QA needs a loss to a sixteenth of
// a nat, and none of the digits that Softmax::prepare goes to some length for.
bool look(const Sample& s, int classes, int64_t begin, int count, float* x, const Seen& seen,
          int32_t* histogram) {
  Softmax block;
  block.load_labels(s, begin, count);
  const int32_t* const label = block.label;
  int32_t best[BLOCK], level[BLOCK], step[BLOCK];
  float loss[BLOCK], top[BLOCK], own[BLOCK], total[BLOCK];
  int removed = 0;
#pragma omp simd reduction(+ : removed)
  for (int n = 0; n < BLOCK; n++) removed += label[n] < 0 ? 1 : 0;
  for (int c = 0; c < classes; c++) {
    float* row = x + (int64_t)c * BLOCK;
    load(s.logits, s.logits_dtype, c * s.pixels + begin, count, row);
    for (int n = count; n < BLOCK; n++) row[n] = 0.0f;
    if (removed) {  // which may hold NaN
#pragma omp simd
      for (int n = 0; n < BLOCK; n++) row[n] = label[n] >= 0 ? row[n] : 0.0f;
    }
  }
  for (int n = 0; n < BLOCK; n += LANES) {
    const Ints given = vector_at<Ints>(label + n);
    Ints first = {}, place = {};
    Floats largest = Floats{} - INFINITY, mine = {};
    for (int c = 0; c < classes; c++) {
      const Floats value = vector_at<Floats>(x + (int64_t)c * BLOCK + n);
      const Ints larger = value > largest;
      first = larger ? place : first;
      largest = larger ? value : largest;
      mine = given == place ? value : mine;
      place += 1;
    }
    Floats sum = {};
    for (int c = 0; c < classes; c++)
      sum += normal_exponentials(vector_at<Floats>(x + (int64_t)c * BLOCK + n) - largest);
    std::memcpy(best + n, &first, sizeof first);
    std::memcpy(top + n, &largest, sizeof largest);
    std::memcpy(own + n, &mine, sizeof mine);
    std::memcpy(total + n, &sum, sizeof sum);
  }
  // In steps, each of which the compiler makes vectors of: in one it would branch on the label.
#pragma omp simd
  for (int n = 0; n < BLOCK; n++) {
    // The logarithm of what is no number may be one.
    const float sum = top[n] - own[n] + logarithm(total[n]) + (total[n] - total[n]);
    loss[n] = label[n] >= 0 ? sum : 0.0f;
  }
  int bad = 0;
#pragma omp simd reduction(+ : bad)
  for (int n = 0; n < BLOCK; n++) {
    bad += loss[n] - loss[n] == 0.0f ? 0 : 1;
    const float least = loss[n] < 0.0f ? 0.0f : loss[n];
    loss[n] = least > LOSS_CAP_NATS ? LOSS_CAP_NATS : least;
    const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, halves to even
    const int32_t rounded = (int32_t)((loss[n] * LEVELS_PER_NAT + shift) - shift);
    level[n] = rounded > LEVELS - 1 ? LEVELS - 1 : rounded;
  }
#pragma omp simd
  for (int n = 0; n < BLOCK; n++) {
    const float gap = top[n] - own[n];
    const float exact = (1.0f - normal_exponential(-gap)) / total[n] * MARGIN_STEPS - 0.5f;
    const int32_t floor = (int32_t)exact;
    const int32_t up = floor + (exact > (float)floor ? 1 : 0);
    step[n] = up < 0 ? 0 : up > (int32_t)MARGIN_STEPS ? (int32_t)MARGIN_STEPS : up;
  }
#pragma omp simd
  for (int n = 0; n < BLOCK; n++)
    step[n] = (label[n] >= 0) & (best[n] != label[n]) ? step[n] : 0;
  if (bad) return false;
  std::memcpy(seen.loss + begin, loss, count * sizeof(float));
  // What a byte is written to might be a pointer, unless it is a variable of its own.
  uint8_t *const levels = seen.levels + begin, *const margin = seen.margin + begin;
  for (int n = 0; n < count; n++) levels[n] = (uint8_t)level[n];
  for (int n = 0; n < count; n++) margin[n] = (uint8_t)step[n];
  if (classes > 256) {
    for (int n = 0; n < count; n++) ((int16_t*)seen.predicted)[begin + n] = (int16_t)best[n];
  } else {
    uint8_t* const predicted = (uint8_t*)seen.predicted + begin;
    for (int n = 0; n < count; n++) predicted[n] = (uint8_t)best[n];
  }
  // In two tables: neighbours mostly are in one cell, and would wait for each other.
  const int tables[2] = {0, (classes + 1) * LEVELS};
  for (int n = 0; n < count; n++)
    histogram[tables[n & 1] + (label[n] + 1) * LEVELS + level[n]]++;
  return true;
}

// How far from a change of label its boundary reaches beyond the pixels beside it, as
// BOUNDARY_PIXELS in observation.py says.
constexpr int WIDER = 2;
constexpr int64_t CHUNK_ROWS = 32;

// Marks the pixels of a row that lie beside a change of label, of ignored ones too.
template <class Label>
void mark_changes(const Label* labels, int64_t height, int64_t width, int64_t y, uint8_t* row) {
  if (y < 0 || y >= height) {
    std::memset(row, 0, width);
    return;
  }
  const Label *own = labels + y * width, *above = y > 0 ? own - width : own;
  const Label* below = y + 1 < height ? own + width : own;
  for (int64_t x = 0; x < width; x++) row[x] = (own[x] != above[x]) | (own[x] != below[x]);
  for (int64_t x = 1; x < width; x++) row[x] |= own[x] != own[x - 1];
  for (int64_t x = 0; x + 1 < width; x++) row[x] |= own[x] != own[x + 1];
}

// Sums of some rows, in float64: losses, their fourth powers, those at the boundary and how many
// pixels lie there.
template <class Label>
void add_rows(const float* loss, const Label* labels, int64_t height, int64_t width, int64_t begin,
              int64_t end, double* sums) {
  constexpr int ROWS = 2 * WIDER + 1;
  std::vector<uint8_t> memory((ROWS + 1) * width + 2 * WIDER, 0);
  uint8_t *rows[ROWS], *const near = memory.data() + ROWS * width + WIDER;
  for (int n = 0; n < ROWS; n++) {
    rows[n] = memory.data() + n * width;
    mark_changes(labels, height, width, begin + n - WIDER, rows[n]);
  }
  double all = 0, fourth = 0, beside = 0, count = 0;
  for (int64_t y = begin; y < end; y++) {
    const Label* label = labels + y * width;
    const float* value = loss + y * width;
    for (int64_t x = 0; x < width; x++)
      near[x] = rows[0][x] | rows[1][x] | rows[2][x] | rows[3][x] | rows[4][x];
#pragma omp simd reduction(+ : all, fourth, beside, count)
    for (int64_t x = 0; x < width; x++) {
      const bool at = (near[x - 2] | near[x - 1] | near[x] | near[x + 1] | near[x + 2]) &&
                      label[x] >= 0;
      const float square = value[x] * value[x];
      all += value[x];
      fourth += square * square;
      beside += at ? value[x] : 0.0f;
      count += at ? 1.0f : 0.0f;
    }
    uint8_t* first = rows[0];
    for (int n = 1; n < ROWS; n++) rows[n - 1] = rows[n];
    rows[ROWS - 1] = first;
    mark_changes(labels, height, width, y + 1 + WIDER, first);
  }
  sums[0] += all;
  sums[1] += fourth;
  sums[2] += beside;
  sums[3] += count;
}

}  // namespace

extern "C" {

// Evidence of one image, see qa/observation.py; 1 if every loss that counts is finite, else 0, and
// nothing that was written means anything. `floats` is [threads, C, BLOCK].
int lossd_softmax_observe(const Sample* sample, int classes, const Seen* seen, float* floats,
                          int threads) {
  int finite = 1;
  const int64_t pixels = sample->pixels, tiles = (pixels + TILE - 1) / TILE;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 4)
  for (int64_t tile = 0; tile < tiles; tile++) {
    const int64_t thread = omp_get_thread_num(), end = tile * TILE + TILE;
    float* x = floats + thread * classes * BLOCK;
    int32_t* histogram = seen->histogram + thread * 2 * (classes + 1) * LEVELS;
    bool good = true;
    for (int64_t begin = tile * TILE; good && begin < (end < pixels ? end : pixels);
         begin += BLOCK) {
      const int64_t left = pixels - begin;
      good = look(*sample, classes, begin, left < BLOCK ? (int)left : BLOCK, x, *seen, histogram);
    }
    if (!good) {
#pragma omp atomic write
      finite = 0;
    }
  }
  return finite;
}

int64_t lossd_chunk_rows() { return CHUNK_ROWS; }

// Sums of every CHUNK_ROWS rows, [chunks, 4], 0 before.
void lossd_observed_sums(const float* loss, const void* labels, int32_t dtype, int64_t height,
                         int64_t width, double* sums, int threads) {
  const int64_t chunks = (height + CHUNK_ROWS - 1) / CHUNK_ROWS;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (int64_t chunk = 0; chunk < chunks; chunk++) {
    const int64_t begin = chunk * CHUNK_ROWS;
    const int64_t end = begin + CHUNK_ROWS < height ? begin + CHUNK_ROWS : height;
    double* own = sums + chunk * 4;
    if (dtype == INT8)
      add_rows(loss, (const int8_t*)labels, height, width, begin, end, own);
    else if (dtype == INT16)
      add_rows(loss, (const int16_t*)labels, height, width, begin, end, own);
    else
      add_rows(loss, (const int32_t*)labels, height, width, begin, end, own);
  }
}

}  // extern "C"
