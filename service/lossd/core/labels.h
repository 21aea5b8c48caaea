// The labels of a block of pixels, and the logits that belong to them.

#pragma once

#include "samples.h"

namespace {

struct Labels {
  alignas(64) int32_t label[BLOCK];  // -1 where a pixel does not count
  alignas(64) float weight[BLOCK];   // 0 there
  int end;                           // pixels, up to whole vectors
  int present_count;                      // classes in `present`
  uint32_t set;                      // of the last five bits of the labels
  bool has_removed;

  // Classes that may be among the labels are written to `present` [C].
  void load(const Sample& s, int classes, int64_t begin, int count, int32_t* present) {
    load_labels(s, begin, count);
    present_count = 0;
    for (int c = 0; c < classes; c++)
      if (may_have(c)) present[present_count++] = c;
    if (s.weight)
      std::memcpy(weight, s.weight + begin, count * sizeof(float));
    else
      for (int n = 0; n < end; n += LANES) put(weight + n, splat(1.0f));
    if (has_removed) remove(weight);
  }

  void load_labels(const Sample& s, int64_t begin, int count) {
    end = (count + LANES - 1) / LANES * LANES;
    if (s.target_dtype == INT8)
      widen((const int8_t*)s.target + begin, count);
    else if (s.target_dtype == INT16)
      widen((const int16_t*)s.target + begin, count);
    else
      widen((const int32_t*)s.target + begin, count);
    for (int n = count; n < end; n++) label[n] = -1;
    Ints negative = {}, found = {};
    for (int n = 0; n < end; n += LANES) {
      const Ints given = ints_at(label + n);
      negative |= given;
      found |= (Ints{} + 1) << (given & 31);
    }
    int32_t sign = 0, bits = 0;
    for (int n = 0; n < LANES; n++) {
      sign |= negative[n];
      bits |= found[n];
    }
    has_removed = sign < 0;
    set = (uint32_t)bits;
  }

  // Rows of BLOCK floats, 0 where a pixel does not count.
  void load_logits(const Sample& s, int classes, int64_t begin, int count, float* rows) const {
    for (int c = 0; c < classes; c++) {
      float* row = rows + (int64_t)c * BLOCK;
      ::load(s.logits, s.logits_dtype, c * s.pixels + begin, count, row);
      if (has_removed) remove(row);
    }
  }

  // Whether the class may be among the labels; a wrong yes costs time only.
  bool may_have(int c) const { return set >> (c & 31) & 1; }

 private:
  template <class Label>
  void widen(const Label* from, int count) {
    for (int n = 0; n < count; n++) label[n] = from[n];
  }

  // What is removed may hold NaN, and what lies behind the last pixel anything.
  void remove(float* row) const {
    for (int n = 0; n < end; n += LANES)
      put(row + n, ints_at(label + n) >= 0 ? floats_at(row + n) : Floats{});
  }
};

}  // namespace
