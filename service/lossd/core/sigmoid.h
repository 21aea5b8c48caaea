// A block of one channel's sigmoid: what sigmoid.py says, in vectors of pixels.

#pragma once

#include "samples.h"

namespace {

class Sigmoid {
 public:
  static int labels(int) { return 2; }  // off and on

  void prepare(const Sample& s, int64_t group, int, int64_t begin, int count, Scratch& m) {
    load_block(s, group, begin, count, m.rows);
    raise(m.rows);
    focus(s.gamma);
  }

  void add(int, const Scratch& m) const {
    add_regions(m.region);
    add_pixels(m.pixel);
  }

  // Derivatives into `rows`; returns the largest magnitude of each lane. The formulas are those of
  // sigmoid.py.
  Floats differentiate(float gamma, int, const Slopes& k, Scratch& m) const {
    const float fn = k.region[FALSE_NEGATIVE], fp = k.region[FALSE_POSITIVE];
    const float in = 2.0f * k.region[ERROR_INSIDE], sq = 2.0f * k.region[ERROR_OUTSIDE];
    const float *ce = k.pixel + CROSS_ENTROPY * 2, *fo = k.pixel + FOCAL * 2;
    const float* su = k.pixel + SURPRISE * 2;
    Floats largest = {};
    for (int n = 0; n < end_; n += LANES) {
      const Floats p = floats_at(probability_ + n), q = floats_at(miss_ + n);
      const Floats on = floats_at(on_ + n), off = floats_at(off_ + n);
      const Floats error = floats_at(error_ + n);
      const Floats focus_on = floats_at(focus_on_ + n), focus_off = floats_at(focus_off_ + n);
      const Floats slope = off * (fp + sq * error) + on * (in * error - fn);
      const Floats pull_on = on * (ce[1] + fo[1] * focus_on) + su[1];
      const Floats pull_off = off * (ce[0] + fo[0] * focus_off) + su[0];
      const Floats focusing = gamma * (off * fo[0] * focus_off * q * floats_at(surprise_off_ + n) -
                                       on * fo[1] * focus_on * p * floats_at(surprise_on_ + n));
      const Floats value =
          p * q * slope + floats_at(weight_ + n) * (pull_off * p - pull_on * q + focusing);
      const Floats counted = floats_at(counts_ + n) > 0.0f ? value : Floats{};
      put(m.rows + n, counted);
      const Floats size = magnitude(counted);
      largest = size > largest ? size : largest;
    }
    return largest;
  }

 private:
  void load_block(const Sample& s, int64_t group, int64_t begin, int count, float* row) {
    end_ = (count + LANES - 1) / LANES * LANES;
    const int64_t at = group * s.pixels + begin;
    load(s.logits, s.logits_dtype, at, count, row);
    load(s.target, s.target_dtype, at, count, on_);
    if (s.weight)
      std::memcpy(weight_, s.weight + begin, count * sizeof(float));
    else
      for (int n = 0; n < count; n++) weight_[n] = 1.0f;
    for (int n = count; n < end_; n++) {
      row[n] = weight_[n] = 0.0f;
      on_[n] = -1.0f;
    }
  }

  void raise(const float* row) {
    const Floats zero = {}, one = splat(1.0f);
    for (int n = 0; n < end_; n += LANES) {
      const Floats target = floats_at(on_ + n);
      const Ints valid = target >= 0.0f;
      const Floats logit = valid ? floats_at(row + n) : zero, y = valid ? target : zero;
      const Floats decay = exponential(-magnitude(logit)), u = 1.0f + decay;
      const Floats near = 1.0f / u, far = decay * near;
      const Floats log_sum = logarithm(u) + (decay - (u - 1.0f)) * near;
      const Ints positive = logit >= 0.0f;
      const Floats off = valid ? 1.0f - y : zero;
      const Floats p = positive ? near : far, q = positive ? far : near;
      const Floats surprise_on = log_sum + (logit < 0.0f ? -logit : zero);
      put(counts_ + n, valid ? one : zero);
      put(weight_ + n, valid ? floats_at(weight_ + n) : zero);
      put(on_ + n, y);
      put(off_ + n, off);
      put(probability_ + n, p);
      put(miss_ + n, q);
      // NaN compares with nothing: it would pass for 0 and be counted.
      put(surprise_on_ + n, logit == logit ? surprise_on : logit);
      put(surprise_off_ + n, log_sum + (logit > 0.0f ? logit : zero));
      // 1 - y is exact where y is at least a half, and the miss has the digits that p has lost.
      put(error_ + n, (positive & (y >= 0.5f)) ? off - q : p - y);
    }
  }

  void focus(float gamma) {
    for (int n = 0; n < end_; n += LANES) {
      if (gamma == 2.0f) {
        const Floats p = floats_at(probability_ + n), q = floats_at(miss_ + n);
        put(focus_on_ + n, q * q);
        put(focus_off_ + n, p * p);
      } else {
        put(focus_on_ + n, exponential(-gamma * floats_at(surprise_off_ + n)));
        put(focus_off_ + n, exponential(-gamma * floats_at(surprise_on_ + n)));
      }
    }
  }

  void add_regions(double* sums) const {
    Floats target = {}, fn = {}, fp = {}, in = {}, out = {}, squared = {};
    for (int n = 0; n < end_; n += LANES) {
      const Floats on = floats_at(on_ + n), off = floats_at(off_ + n);
      const Floats error = floats_at(error_ + n);
      const Floats square = error * error;
      target += on;
      fn += on * floats_at(miss_ + n);
      fp += off * floats_at(probability_ + n);
      in += on * square;
      out += off * square;
      squared += on * on;
    }
    add_sum(sums, TARGET, target);
    add_sum(sums, FALSE_NEGATIVE, fn);
    add_sum(sums, FALSE_POSITIVE, fp);
    add_sum(sums, ERROR_INSIDE, in);
    add_sum(sums, ERROR_OUTSIDE, out);
    add_sum(sums, TARGET_SQUARED, squared);
  }

  void add_pixels(double* sums) const {
    Floats w[2] = {}, ce[2] = {}, focal[2] = {}, every[2] = {};
    for (int n = 0; n < end_; n += LANES) {
      const Floats weight = floats_at(weight_ + n);
      const Floats surprise[2] = {floats_at(surprise_off_ + n), floats_at(surprise_on_ + n)};
      const Floats weights[2] = {weight * floats_at(off_ + n), weight * floats_at(on_ + n)};
      const Floats focus[2] = {floats_at(focus_off_ + n), floats_at(focus_on_ + n)};
      for (int label = 0; label < 2; label++) {
        const Floats cross = weights[label] * surprise[label];
        w[label] += weights[label];
        ce[label] += cross;
        focal[label] += cross * focus[label];
        every[label] += weight * surprise[label];  // the weight is 0 where a pixel does not count
      }
    }
    for (int label = 0; label < 2; label++) {
      add_sum(sums, WEIGHT * 2 + label, w[label]);
      add_sum(sums, CROSS_ENTROPY * 2 + label, ce[label]);
      add_sum(sums, FOCAL * 2 + label, focal[label]);
      add_sum(sums, SURPRISE * 2 + label, every[label]);
    }
  }

  alignas(64) float counts_[BLOCK], on_[BLOCK], off_[BLOCK], weight_[BLOCK], probability_[BLOCK];
  alignas(64) float miss_[BLOCK], surprise_on_[BLOCK], surprise_off_[BLOCK], error_[BLOCK];
  alignas(64) float focus_on_[BLOCK], focus_off_[BLOCK];
  int end_;  // pixels, up to whole vectors
};

}  // namespace
