// The two passes of the lean families in float32, for processors: what softmax.py and sigmoid.py
// say, read from and written to the tensors of the requests in place. Nothing is packed.
//
// A tile is TILE pixels of one group of a sample, as in tiles.py. It is worked on in blocks that
// stay in the first cache, each in vectors of pixels. A tile's numbers depend on nothing but the
// tile.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <omp.h>

#include "observation.h"
#include "sigmoid.h"
#include "softmax.h"

namespace {

constexpr int64_t ALONE = 16;  // tiles times depth that one thread does before others are awake
constexpr int64_t LINE = 64;   // bytes, of a cache
constexpr int64_t TILE_BLOCKS = TILE / BLOCK;
constexpr int LARGEST_SCALE_EXPONENT = 126;  // as SMALLEST_SCALE_EXPONENT in job.py

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

// Bytes of a thread's memory, in whole lines: no two threads write to one.
inline int64_t scratch_bytes(int64_t depth, int64_t labels) {
  const int64_t sums = (REGION_SUMS * depth + PIXEL_SUMS * labels) * LANES;
  const int64_t bytes = 2 * depth * BLOCK * sizeof(float) + sums * sizeof(double) +
                        depth * sizeof(int32_t);
  return (bytes + LINE - 1) / LINE * LINE;
}

inline Scratch scratch_of(char* memory, int64_t depth, int64_t labels) {
  char* const mine = memory + omp_get_thread_num() * scratch_bytes(depth, labels);
  Scratch scratch;
  scratch.powers = (float*)mine;
  scratch.rows = scratch.powers + depth * BLOCK;
  scratch.region = (double*)(scratch.rows + depth * BLOCK);
  scratch.pixel = scratch.region + REGION_SUMS * depth * LANES;
  scratch.present = (int32_t*)(scratch.pixel + PIXEL_SUMS * labels * LANES);
  return scratch;
}

// Sums of the lanes, in a fixed order.
inline void collapse(const double* lanes, int sums, float* to) {
  for (int i = 0; i < sums; i++) {
    double sum = 0.0;
    for (int n = 0; n < LANES; n++) sum += lanes[i * LANES + n];
    to[i] = (float)sum;
  }
}

template <class Family>
void sums(const Sample* samples, int64_t count, int depth, float* region, float* pixel,
          char* memory, int threads) {
  const int64_t total = tile_count(samples, count);
  const int labels = Family::labels(depth);
  const int regions = REGION_SUMS * depth, pixels = PIXEL_SUMS * labels;
#pragma omp parallel num_threads(threads) if (total * depth > ALONE)
  {
    Scratch scratch = scratch_of(memory, depth, labels);
    Family block;
#pragma omp for schedule(dynamic, 1) nowait  // the region ends with a wait of its own
    for (int64_t tile = 0; tile < total; tile++) {
      const Sample& s = samples[sample_of(samples, count, tile)];
      const Place place = place_of(s, tile);
      for (int i = 0; i < regions * LANES; i++) scratch.region[i] = 0.0;
      for (int i = 0; i < pixels * LANES; i++) scratch.pixel[i] = 0.0;
      for (int64_t begin = place.begin; begin < place.end; begin += BLOCK) {
        const int size = (int)(place.end - begin < BLOCK ? place.end - begin : BLOCK);
        block.prepare(s, place.group, depth, begin, size, scratch);
        block.add(depth, scratch);
      }
      collapse(scratch.region, regions, region + tile * regions);
      collapse(scratch.pixel, pixels, pixel + tile * pixels);
    }
  }
}

// The power of two that brings the largest entry just below the top of the range, as
// HALF_TOP_EXPONENT in job.py says, as long as float32 has its inverse.
inline float scale_for(float largest, int32_t dtype) {
  if (dtype == FLOAT32 || !(largest > 0.0f && largest < INFINITY)) return 1.0f;
  int exponent;
  std::frexp(largest, &exponent);
  const int raised = (dtype == FLOAT16 ? 15 : 0) - exponent;
  return std::ldexp(1.0f, raised < LARGEST_SCALE_EXPONENT ? raised : LARGEST_SCALE_EXPONENT);
}

// Writes the gradient of a tile, every block of it scaled by its own largest entry, which is noted.
template <class Family>
void differentiate_tile(const Sample& s, const Place& place, int depth, const Slopes& slopes,
                        Family& block, Scratch& scratch, float* largest) {
  for (int64_t begin = place.begin; begin < place.end; begin += BLOCK, largest++) {
    const int size = (int)(place.end - begin < BLOCK ? place.end - begin : BLOCK);
    block.prepare(s, place.group, depth, begin, size, scratch);
    *largest = largest_of(block.differentiate(s.gamma, depth, slopes, scratch));
    const float scale = scale_for(*largest, s.gradient_dtype);
    for (int d = 0; d < depth; d++) {
      const int64_t at = (place.group * depth + d) * s.pixels + begin;
      store(scratch.rows + (int64_t)d * BLOCK, scale, s.gradient, s.gradient_dtype, at, size);
    }
  }
}

template <class Family>
void differentiate(const Sample* samples, int64_t count, int depth, const float* region,
                   const float* pixel, float* largest, char* memory, int threads) {
  const int64_t total = tile_count(samples, count);
  const int labels = Family::labels(depth);
  const int regions = REGION_SUMS * depth, pixels = PIXEL_SUMS * labels;
#pragma omp parallel num_threads(threads) if (total * depth > ALONE)
  {
    Scratch scratch = scratch_of(memory, depth, labels);
    Family block;
#pragma omp for schedule(dynamic, 1) nowait  // the region ends with a wait of its own
    for (int64_t tile = 0; tile < total; tile++) {
      const Sample& s = samples[sample_of(samples, count, tile)];
      const Place place = place_of(s, tile);
      const int64_t group = s.first_group + place.group;
      const Slopes slopes = {region + group * regions, pixel + group * pixels};
      differentiate_tile(s, place, depth, slopes, block, scratch, largest + tile * TILE_BLOCKS);
    }
  }
}

// Blocks that were scaled by themselves get the scale of their sample, which is no larger: exactly,
// but for what becomes a denormal.
inline void rescale_tile(const Sample& s, const Place& place, int depth, const float* largest) {
  float row[BLOCK];
  for (int64_t begin = place.begin; begin < place.end; begin += BLOCK, largest++) {
    const float factor = s.scale / scale_for(*largest, s.gradient_dtype);
    if (factor == 1.0f || *largest == 0.0f) continue;
    const int size = (int)(place.end - begin < BLOCK ? place.end - begin : BLOCK);
    for (int d = 0; d < depth; d++) {
      const int64_t at = (place.group * depth + d) * s.pixels + begin;
      load(s.gradient, s.gradient_dtype, at, size, row);
      store(row, factor, s.gradient, s.gradient_dtype, at, size);
    }
  }
}

void rescale(const Sample* samples, int64_t count, int depth, const float* largest, int threads) {
  const int64_t total = tile_count(samples, count);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (total * depth > ALONE)
  for (int64_t tile = 0; tile < total; tile++) {
    const Sample& s = samples[sample_of(samples, count, tile)];
    if (s.gradient_dtype != FLOAT32)
      rescale_tile(s, place_of(s, tile), depth, largest + tile * TILE_BLOCKS);
  }
}

// Whether any gradient has a scale.
bool choose_scales(Sample* samples, int64_t count, const float* largest) {
  bool is_half = false;
  for (int64_t i = 0; i < count; i++) {
    Sample& s = samples[i];
    is_half |= s.gradient_dtype != FLOAT32;
    float top = 0.0f;
    const int64_t end = s.first_tile + s.groups * tiles_of(s.pixels);
    for (int64_t tile = s.first_tile; tile < end; tile++) {
      const Place place = place_of(s, tile);
      const int64_t blocks = (place.end - place.begin + BLOCK - 1) / BLOCK;
      const float* found = largest + tile * TILE_BLOCKS;
      for (int64_t b = 0; b < blocks; b++) top = found[b] > top ? found[b] : top;
    }
    s.scale = scale_for(top, s.gradient_dtype);
  }
  return is_half;
}

template <class Family>
void gradients(Sample* samples, int64_t count, int depth, const float* region, const float* pixel,
               float* largest, char* memory, int threads) {
  differentiate<Family>(samples, count, depth, region, pixel, largest, memory, threads);
  if (choose_scales(samples, count, largest)) rescale(samples, count, depth, largest, threads);
}

}  // namespace

extern "C" {

int64_t lossd_tile_blocks() { return TILE_BLOCKS; }
int64_t lossd_sample_bytes() { return sizeof(Sample); }
// Of `memory` below, for each thread.
int64_t lossd_softmax_bytes(int depth) { return scratch_bytes(depth, Softmax::labels(depth)); }
int64_t lossd_sigmoid_bytes(int depth) { return scratch_bytes(depth, Sigmoid::labels(depth)); }

// region [tiles, 6, D] and pixel [tiles, 4, L]: sums of every tile.
void lossd_softmax_sums(const Sample* samples, int64_t count, int depth, float* region,
                        float* pixel, char* memory, int threads) {
  sums<Softmax>(samples, count, depth, region, pixel, memory, threads);
}

void lossd_sigmoid_sums(const Sample* samples, int64_t count, int depth, float* region,
                        float* pixel, char* memory, int threads) {
  sums<Sigmoid>(samples, count, depth, region, pixel, memory, threads);
}

// region [groups, 6, D] and pixel [groups, 4, L]: coefficients; largest: memory of a float for
// every block of every tile.
void lossd_softmax_gradients(Sample* samples, int64_t count, int depth, const float* region,
                             const float* pixel, float* largest, char* memory, int threads) {
  gradients<Softmax>(samples, count, depth, region, pixel, largest, memory, threads);
}

void lossd_sigmoid_gradients(Sample* samples, int64_t count, int depth, const float* region,
                             const float* pixel, float* largest, char* memory, int threads) {
  gradients<Sigmoid>(samples, count, depth, region, pixel, largest, memory, threads);
}

}  // extern "C"
