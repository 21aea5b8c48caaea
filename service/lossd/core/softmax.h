// A block of the softmax of labels: what softmax.py says, in vectors of pixels.
//
// Every step goes over the block by itself. Its vectors do not wait for each other, so that the
// processor works on several at a time, which it does not where one long step is made of all.

#pragma once

#include "labels.h"

namespace {

class Softmax {
 public:
  static int labels(int depth) { return depth; }

  // Exponentials relative to the top into `powers`, logits into `rows`, and what follows.
  void prepare(const Sample& s, int64_t, int classes, int64_t begin, int count, Scratch& m) {
    block_.load(s, classes, begin, count, m.present);
    block_.load_logits(s, classes, begin, count, m.rows);
    raise(classes, m.rows, m.powers);
    weigh(s.gamma);
  }

  void add(int classes, const Scratch& m) const {
    for (int c = 0; c < classes; c++) {
      if (block_.may_have(c))
        add_present(c, classes, m);
      else
        add_absent(c, classes, m);
    }
  }

  // Derivatives into `rows`; returns the largest magnitude of each lane. The formulas are those of
  // softmax.py.
  Floats differentiate(float gamma, int classes, const Slopes& k, Scratch& m) {
    incline(gamma, classes, k, m.present);
    const float* spread = k.pixel + SURPRISE * classes;
    bool is_spread = false;
    for (int c = 0; c < classes; c++) is_spread |= spread[c] != 0.0f;
    return is_spread ? descend<Over::EVERY_CLASS>(classes, k, m)
                     : descend<Over::OWN_CLASS>(classes, k, m);
  }

 private:
  enum class Over { OWN_CLASS, EVERY_CLASS };

  void raise(int classes, const float* rows, float* powers) {
    for (int n = 0; n < block_.end; n += LANES) {
      const Ints given = ints_at(block_.label + n);
      Floats top = floats_at(rows + n);
      for (int c = 1; c < classes; c++) {
        const Floats logit = floats_at(rows + (int64_t)c * BLOCK + n);
        top = logit > top ? logit : top;
      }
      Floats own = {}, others = {}, own_logit = {};
      for (int c = 0; c < classes; c++) {
        const Floats logit = floats_at(rows + (int64_t)c * BLOCK + n);
        const Floats value = exponential(logit - top);
        put(powers + (int64_t)c * BLOCK + n, value);
        const Ints mine = given == c;
        own = mine ? value : own;
        own_logit = mine ? logit : own_logit;
        others = mine ? others : others + value;
      }
      put(top_ + n, top);
      put(own_ + n, own);
      put(others_ + n, others);
      put(gap_ + n, top - own_logit);
    }
  }

  // One logarithm serves ln(total) where the others outweigh the class and ln(1 + others/own)
  // where they do not: both are ln(1 + x).
  void weigh(float gamma) {
    for (int n = 0; n < block_.end; n += LANES) {
      const Floats own = floats_at(own_ + n), others = floats_at(others_ + n);
      const Floats gap = floats_at(gap_ + n);
      const Ints counts = ints_at(block_.label + n) >= 0, far = others > own;
      const Floats total = own + others, reciprocal = 1.0f / total;
      const Floats x = far ? total - 1.0f : others / own;
      const Floats u = 1.0f + x;
      const Floats lost = (x - (u - 1.0f)) * (far ? reciprocal : own * reciprocal);
      const Floats y = logarithm(u) + lost;
      put(inverse_ + n, counts ? reciprocal : Floats{});
      put(miss_ + n, others * reciprocal);
      put(log_total_ + n, far ? y : y - gap);
      put(surprise_ + n, counts ? (far ? gap + y : y) : Floats{});
    }
    for (int n = 0; n < block_.end; n += LANES) {
      const Floats miss = floats_at(miss_ + n);
      put(focus_ + n, gamma == 2.0f ? miss * miss : power(miss, gamma));
    }
  }

  Floats spread_surprise(int n, const float* logits) const {
    return ((floats_at(top_ + n) - floats_at(logits + n)) + floats_at(log_total_ + n)) *
           floats_at(block_.weight + n);
  }

  // What does not count has an inverse and a weight of 0.
  void add_absent(int c, int classes, const Scratch& m) const {
    const float *powers = m.powers + (int64_t)c * BLOCK, *logits = m.rows + (int64_t)c * BLOCK;
    Floats fp = {}, out = {}, every = {};
    for (int n = 0; n < block_.end; n += LANES) {
      const Floats p = floats_at(powers + n) * floats_at(inverse_ + n);
      fp += p;
      out += p * p;
      every += spread_surprise(n, logits);
    }
    add_outside(c, classes, m, fp, out, every);
  }

  void add_present(int c, int classes, const Scratch& m) const {
    const float *powers = m.powers + (int64_t)c * BLOCK, *logits = m.rows + (int64_t)c * BLOCK;
    const Floats zero = {}, one = splat(1.0f);
    Floats fp = {}, out = {}, every = {}, count = {}, fn = {}, in = {}, w = {}, ce = {}, focal = {};
    for (int n = 0; n < block_.end; n += LANES) {
      const Ints mine = ints_at(block_.label + n) == c;
      const Floats probability = floats_at(powers + n) * floats_at(inverse_ + n);
      const Floats p = mine ? zero : probability, miss = mine ? floats_at(miss_ + n) : zero;
      const Floats weight = floats_at(block_.weight + n), own = weight * floats_at(surprise_ + n);
      fp += p;
      out += p * p;
      count += mine ? one : zero;
      fn += miss;
      in += miss * miss;
      w += mine ? weight : zero;
      ce += mine ? own : zero;
      focal += mine ? own * floats_at(focus_ + n) : zero;
      every += mine ? own : spread_surprise(n, logits);
    }
    add_outside(c, classes, m, fp, out, every);
    add_sum(m.region, TARGET * classes + c, count);
    add_sum(m.region, FALSE_NEGATIVE * classes + c, fn);
    add_sum(m.region, ERROR_INSIDE * classes + c, in);
    add_sum(m.region, TARGET_SQUARED * classes + c, count);
    add_sum(m.pixel, WEIGHT * classes + c, w);
    add_sum(m.pixel, CROSS_ENTROPY * classes + c, ce);
    add_sum(m.pixel, FOCAL * classes + c, focal);
  }

  static void add_outside(int c, int classes, const Scratch& m, Floats fp, Floats out,
                          Floats every) {
    add_sum(m.region, FALSE_POSITIVE * classes + c, fp);
    add_sum(m.region, ERROR_OUTSIDE * classes + c, out);
    add_sum(m.pixel, SURPRISE * classes + c, every);
  }

  // What the sums of the own class pull at its logit, and what is left of that for the others.
  void incline(float gamma, int classes, const Slopes& k, const int32_t* present) {
    const float *fn = k.region + FALSE_NEGATIVE * classes, *in = k.region + ERROR_INSIDE * classes;
    const float *ce = k.pixel + CROSS_ENTROPY * classes, *fo = k.pixel + FOCAL * classes;
    for (int n = 0; n < block_.end; n += LANES) {
      const Ints given = ints_at(block_.label + n);
      Floats missed = {}, squared = {}, crossed = {}, focused = {};
      for (int i = 0; i < block_.present_count; i++) {
        const int c = present[i];
        const Ints mine = given == c;
        missed = mine ? splat(fn[c]) : missed;
        squared = mine ? splat(in[c]) : squared;
        crossed = mine ? splat(ce[c]) : crossed;
        focused = mine ? splat(fo[c]) : focused;
      }
      const Floats miss = floats_at(miss_ + n), weight = floats_at(block_.weight + n);
      const Floats others = floats_at(others_ + n);
      const Floats hit = floats_at(own_ + n) * floats_at(inverse_ + n);
      const Floats focal = focused * weight * floats_at(focus_ + n);
      const Floats through = hit * (missed + 2.0f * squared * miss);
      const Floats value = focal * gamma * hit * floats_at(surprise_ + n) +
                           miss * (through + weight * crossed + focal);
      const Floats along = given >= 0 ? value : Floats{};
      put(along_ + n, along);
      put(rest_ + n, along / (others > FLT_MIN ? others : splat(FLT_MIN)));
    }
  }

  template <Over over>
  Floats descend(int classes, const Slopes& k, Scratch& m) const {
    const float *fp = k.region + FALSE_POSITIVE * classes, *sq = k.region + ERROR_OUTSIDE * classes;
    const float* su = k.pixel + SURPRISE * classes;
    const Floats zero = {};
    Floats largest = {};
    float spread = 0.0f;
    for (int c = 0; c < classes; c++) spread += su[c];
    for (int n = 0; n < block_.end; n += LANES) {
      const Ints given = ints_at(block_.label + n);
      const Floats inverse = floats_at(inverse_ + n), weight = floats_at(block_.weight + n);
      const Floats along = floats_at(along_ + n), rest = floats_at(rest_ + n);
      const Floats miss = floats_at(miss_ + n);
      Floats mean = {};
      for (int c = 0; c < classes; c++) {
        const Floats p = floats_at(m.powers + (int64_t)c * BLOCK + n) * inverse;
        const Floats pull = fp[c] + 2.0f * sq[c] * p;
        mean += (given == c ? zero : pull) * p;
      }
      for (int c = 0; c < classes; c++) {
        const Floats value = floats_at(m.powers + (int64_t)c * BLOCK + n), p = value * inverse;
        const Ints mine = given == c;
        const Floats pull = fp[c] + 2.0f * sq[c] * p;
        Floats slope = (mine ? -along : value * rest) + p * ((mine ? zero : pull) - mean);
        if (over == Over::EVERY_CLASS)
          slope += weight * (mine ? (spread - su[c]) - spread * miss : spread * p - su[c]);
        put(m.rows + (int64_t)c * BLOCK + n, slope);
        const Floats size = magnitude(slope);
        largest = size > largest ? size : largest;
      }
    }
    return largest;
  }

  Labels block_;
  alignas(64) float top_[BLOCK], gap_[BLOCK], own_[BLOCK], others_[BLOCK];
  alignas(64) float inverse_[BLOCK], miss_[BLOCK], surprise_[BLOCK], log_total_[BLOCK];
  alignas(64) float focus_[BLOCK], along_[BLOCK], rest_[BLOCK];
};

}  // namespace
