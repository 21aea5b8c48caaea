// What annotation QA sees of a prediction, see qa/observation.py: evidence, and sums over an image.

#pragma once

#include <cmath>
#include <omp.h>
#include <vector>

#include "labels.h"

namespace {

// As in qa_wire.py.
constexpr float LOSS_CAP_NATS = 16.0f, LEVELS_PER_NAT = 16.0f, MARGIN_STEPS = 255.0f;
constexpr int LEVELS = 256;

// What is seen in one image. Mirrored by SEEN in in_place.py.
struct Seen {
  float* loss;         // [P]
  uint8_t* levels;     // [P]
  void* predicted;     // [P], bytes, or two bytes each where there are more than 256 classes
  uint8_t* margin;     // [P]
  int32_t* histogram;  // [C, 256], 0 before
  double* sums;        // [4], 0 before; see add_rows
  int64_t height, width;
  int64_t is_finite;  // whether all losses that count are; if not, nothing else means anything
};

// One block of pixels. QA needs a loss to a sixteenth of a nat, and none of the digits that Softmax
// goes to some length for.
class Look {
 public:
  // Whether all losses that count are finite.
  bool prepare(const Sample& s, int classes, int64_t begin, int count, float* rows) {
    block_.load_labels(s, begin, count);
    block_.load_logits(s, classes, begin, count, rows);
    for (int n = 0; n < block_.end; n += LANES) add_up(n, classes, rows);
    Ints bad = {};
    for (int n = 0; n < block_.end; n += LANES) bad |= judge(n);
    int32_t any = 0;
    for (int n = 0; n < LANES; n++) any |= bad[n];
    return !any;
  }

  void write(int classes, int64_t begin, int count, const Seen& seen, int32_t* histogram) const {
    std::memcpy(seen.loss + begin, loss_, count * sizeof(float));
    // What a byte is written to might be a pointer, unless it is a variable of its own.
    uint8_t *const levels = seen.levels + begin, *const margin = seen.margin + begin;
    for (int n = 0; n < count; n++) levels[n] = (uint8_t)level_[n];
    for (int n = 0; n < count; n++) margin[n] = (uint8_t)step_[n];
    if (classes > 256) {
      for (int n = 0; n < count; n++) ((int16_t*)seen.predicted)[begin + n] = (int16_t)best_[n];
    } else {
      uint8_t* const predicted = (uint8_t*)seen.predicted + begin;
      for (int n = 0; n < count; n++) predicted[n] = (uint8_t)best_[n];
    }
    // In two tables: neighbours mostly are in one cell, and would wait for each other.
    const int tables[2] = {0, (classes + 1) * LEVELS};
    for (int n = 0; n < count; n++)
      histogram[tables[n & 1] + (block_.label[n] + 1) * LEVELS + level_[n]]++;
  }

 private:
  void add_up(int n, int classes, const float* rows) {
    const Ints given = ints_at(block_.label + n);
    Ints best = {}, place = {};
    Floats top = splat(-INFINITY), own = {};
    for (int c = 0; c < classes; c++) {
      const Floats logit = floats_at(rows + (int64_t)c * BLOCK + n);
      const Ints larger = logit > top;
      best = larger ? place : best;
      top = larger ? logit : top;
      own = given == place ? logit : own;
      place += 1;
    }
    Floats total = {};
    for (int c = 0; c < classes; c++)
      total += normal_exponential(floats_at(rows + (int64_t)c * BLOCK + n) - top);
    put(best_ + n, best);
    put(gap_ + n, top - own);
    put(total_ + n, total);
  }

  // Losses, levels and margins of the lanes; which of them are no numbers.
  Ints judge(int n) {
    const Ints given = ints_at(block_.label + n);
    const Floats gap = floats_at(gap_ + n), total = floats_at(total_ + n), zero = {};
    // The logarithm of what is no number may be one.
    const Floats sum = gap + logarithm(total) + (total - total);
    const Floats exact = given >= 0 ? sum : zero;
    const Floats least = exact < 0.0f ? zero : exact;
    const Floats loss = least > LOSS_CAP_NATS ? splat(LOSS_CAP_NATS) : least;
    const Floats shift = splat(12582912.0f);  // adding 1.5 * 2^23 rounds, halves to even
    const Ints rounded =
        __builtin_convertvector((loss * LEVELS_PER_NAT + shift) - shift, Ints);
    const Ints last = Ints{} + (LEVELS - 1), steps = Ints{} + (int32_t)MARGIN_STEPS, none = {};
    put(loss_ + n, loss);
    put(level_ + n, rounded > last ? last : rounded);
    const Floats margin = (1.0f - normal_exponential(-gap)) / total * MARGIN_STEPS - 0.5f;
    const Ints floor = __builtin_convertvector(margin, Ints);
    const Ints up = floor + (margin > __builtin_convertvector(floor, Floats) ? none + 1 : none);
    const Ints step = up < 0 ? none : up > steps ? steps : up;
    put(step_ + n, ((given >= 0) & (ints_at(best_ + n) != given)) ? step : none);
    return ~(exact - exact == 0.0f);
  }

  Labels block_;
  alignas(64) int32_t best_[BLOCK], level_[BLOCK], step_[BLOCK];
  alignas(64) float gap_[BLOCK], total_[BLOCK], loss_[BLOCK];
};

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

// Marks the pixels that count and lie within WIDER of a marked one; how many there are.
template <class Label>
int64_t mark_boundary(const uint8_t* const* rows, const Label* label, int64_t width, uint8_t* near,
                      uint8_t* at) {
  for (int64_t x = 0; x < width; x++)
    near[x] = rows[0][x] | rows[1][x] | rows[2][x] | rows[3][x] | rows[4][x];
  for (int64_t x = 0; x < width; x++)
    at[x] = (near[x - 2] | near[x - 1] | near[x] | near[x + 1] | near[x + 2]) & (label[x] >= 0);
  int64_t count = 0;
  for (int64_t x = 0; x < width; x++) count += at[x];
  return count;
}

// Sums of losses, of their fourth powers and of those that are marked: of a block in float32, as
// few terms to a lane as in Scratch, above it in float64.
class LossSums {
 public:
  void add(const float* loss, const uint8_t* at, int64_t pixels) {
    alignas(64) float block[BLOCK] = {}, marked[BLOCK] = {};
    for (int64_t begin = 0; begin < pixels; begin += BLOCK) {
      const int count = (int)(pixels - begin < BLOCK ? pixels - begin : BLOCK);
      std::memcpy(block, loss + begin, count * sizeof(float));
      for (int n = 0; n < count; n++) marked[n] = at[begin + n] ? block[n] : 0.0f;
      for (int n = count; n < BLOCK; n++) block[n] = marked[n] = 0.0f;
      add_block(block, marked);
    }
  }

  // Each of them, its lanes in order.
  void collapse(double* to) const {
    for (int n = 0; n < 3 * LANES; n++) to[n / LANES] += lanes_[n];
  }

 private:
  void add_block(const float* block, const float* marked) {
    Floats sum = {}, fourth = {}, beside = {};
    for (int n = 0; n < BLOCK; n += LANES) {
      const Floats value = floats_at(block + n), square = value * value;
      sum += value;
      fourth += square * square;
      beside += floats_at(marked + n);
    }
    add_lanes(lanes_, sum);
    add_lanes(lanes_ + LANES, fourth);
    add_lanes(lanes_ + 2 * LANES, beside);
  }

  alignas(64) double lanes_[3 * LANES] = {};
};

// Sums of some rows, in float64: losses, their fourth powers, those at the boundary and how many
// pixels lie there.
template <class Label>
void add_rows(const float* loss, const Label* labels, int64_t height, int64_t width, int64_t begin,
              int64_t end, double* sums) {
  constexpr int ROWS = 2 * WIDER + 1;
  std::vector<uint8_t> memory((ROWS + 1) * width + 2 * WIDER, 0), at((end - begin) * width);
  uint8_t *rows[ROWS], *const near = memory.data() + ROWS * width + WIDER;
  for (int n = 0; n < ROWS; n++) {
    rows[n] = memory.data() + n * width;
    mark_changes(labels, height, width, begin + n - WIDER, rows[n]);
  }
  int64_t count = 0;
  for (int64_t y = begin; y < end; y++) {
    count += mark_boundary(rows, labels + y * width, width, near, &at[(y - begin) * width]);
    uint8_t* first = rows[0];
    for (int n = 1; n < ROWS; n++) rows[n - 1] = rows[n];
    rows[ROWS - 1] = first;
    mark_changes(labels, height, width, y + 1 + WIDER, first);
  }
  LossSums added;
  added.add(loss + begin * width, at.data(), (end - begin) * width);
  added.collapse(sums);
  sums[3] += (double)count;
}

// Adds what two tables of C + 1 rows have counted to one of C; what does not count comes first.
void add_counts(const std::vector<int32_t>& tables, int classes, int32_t* histogram) {
  const int32_t *const even = tables.data() + LEVELS, *const odd = even + (classes + 1) * LEVELS;
  for (int n = 0; n < classes * LEVELS; n++) histogram[n] += even[n] + odd[n];
}

// Evidence of the image's pixels.
void look_at(const Sample& sample, int classes, Seen& seen, int threads) {
  const int64_t pixels = sample.pixels, tiles = (pixels + TILE - 1) / TILE;
  bool is_finite = true;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Look block;
    std::vector<float> rows((int64_t)classes * BLOCK);
    std::vector<int32_t> tables(2 * (classes + 1) * LEVELS);
    bool is_good = true;
#pragma omp for schedule(dynamic, 4) nowait
    for (int64_t tile = 0; tile < tiles; tile++) {
      const int64_t end = tile * TILE + TILE < pixels ? tile * TILE + TILE : pixels;
      for (int64_t begin = tile * TILE; is_good && begin < end; begin += BLOCK) {
        const int size = (int)(end - begin < BLOCK ? end - begin : BLOCK);
        is_good = block.prepare(sample, classes, begin, size, rows.data());
        if (is_good) block.write(classes, begin, size, seen, tables.data());
      }
    }
#pragma omp critical
    {
      add_counts(tables, classes, seen.histogram);
      is_finite = is_finite && is_good;
    }
  }
  seen.is_finite = is_finite;
}

// Its sums, in an order that threads do not change.
template <class Label>
void add_up(const Label* labels, Seen& seen, int threads) {
  const int64_t height = seen.height, chunks = (height + CHUNK_ROWS - 1) / CHUNK_ROWS;
  std::vector<double> sums(4 * chunks);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (threads > 1)
  for (int64_t chunk = 0; chunk < chunks; chunk++) {
    const int64_t begin = chunk * CHUNK_ROWS;
    const int64_t end = begin + CHUNK_ROWS < height ? begin + CHUNK_ROWS : height;
    add_rows(seen.loss, labels, height, seen.width, begin, end, &sums[4 * chunk]);
  }
  for (int64_t n = 0; n < 4 * chunks; n++) seen.sums[n % 4] += sums[n];
}

void observe(const Sample& sample, int classes, Seen& seen, int threads) {
  look_at(sample, classes, seen, threads);
  if (!seen.is_finite) return;
  if (sample.target_dtype == INT8)
    add_up((const int8_t*)sample.target, seen, threads);
  else if (sample.target_dtype == INT16)
    add_up((const int16_t*)sample.target, seen, threads);
  else
    add_up((const int32_t*)sample.target, seen, threads);
}

}  // namespace

extern "C" {

int64_t lossd_seen_bytes() { return sizeof(Seen); }

// What is seen in each of some images, see qa/observation.py. Of several a thread has one at a time,
// so that none of them waits for another; a single one is shared.
void lossd_softmax_observe(const Sample* samples, int64_t count, int classes, Seen* seen,
                           int threads) {
  if (count == 1) {
    observe(samples[0], classes, seen[0], threads);
    return;
  }
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (int64_t n = 0; n < count; n++) observe(samples[n], classes, seen[n], 1);
}

}  // extern "C"
