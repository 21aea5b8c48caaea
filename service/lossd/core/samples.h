// What a call of the passes is told, and the order that a tile is worked on in.

#pragma once

#include <cstdint>

#include "dtypes.h"
#include "vectors.h"

namespace {

constexpr int64_t TILE = 4096;
constexpr int BLOCK = 128;  // pixels that stay in the first cache; a whole number of vectors

// The order of vocabulary.py.
enum RegionSum { TARGET, FALSE_NEGATIVE, FALSE_POSITIVE, ERROR_INSIDE, ERROR_OUTSIDE,
                 TARGET_SQUARED, REGION_SUMS };
enum PixelSum { WEIGHT, CROSS_ENTROPY, FOCAL, SURPRISE, PIXEL_SUMS };

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
  int32_t logits_dtype;
  int32_t target_dtype;
  int32_t gradient_dtype;
  float gamma;
  float scale;          // what the gradient is multiplied with; set by the call
  int32_t reserved;
};

}  // extern "C"

namespace {

// Coefficients of the sums of one group.
struct Slopes {
  const float* region;  // [REGION_SUMS, D]
  const float* pixel;   // [PIXEL_SUMS, L]
};

// Memory of one thread.
struct Scratch {
  float* powers;    // [D, BLOCK]
  float* rows;      // [D, BLOCK]: logits, and the gradient afterwards
  double* region;   // [REGION_SUMS, D, LANES]
  double* pixel;    // [PIXEL_SUMS, L, LANES]
  int32_t* present; // [D]
};

// Sums of a block are float32, at most BLOCK / LANES terms to a lane, so that equal terms, which
// all round one way, stay exact enough; everything above is added in float64.
inline void add_sum(double* sums, int64_t place, Floats sum) {
  add_lanes(sums + place * LANES, sum);
}

}  // namespace
