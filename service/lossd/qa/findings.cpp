// What is found in the bytes of one image, for processors: what findings.py says with numpy, to the
// bit. One sweep over the pixels makes heat and runs; everything else is made from runs.

#include <cmath>
#include <memory>
#include <new>

#include "found.h"
#include "outlines.h"
#include "points.h"
#include "regions.h"

namespace {

constexpr double MARGIN_STEPS = 255.0, HEAT_PER_NAT = 64.0;

template <class From>
void widen(const void* from, int64_t at, int32_t count, int32_t* to) {
  const From* source = (const From*)from + at;
  for (int32_t n = 0; n < count; n++) to[n] = source[n];
}

void widen(const void* from, int64_t bytes, bool is_signed, int64_t at, int32_t count,
           int32_t* to) {
  if (bytes == 1 && is_signed) widen<int8_t>(from, at, count, to);
  else if (bytes == 1) widen<uint8_t>(from, at, count, to);
  else if (bytes == 2) widen<int16_t>(from, at, count, to);
  else widen<int32_t>(from, at, count, to);
}


// The objects alone, with codes given + 1, and the runs of their columns.
void given_objects(const Image& image, Components& objects, Runs& turned) {
  const int32_t width = (int32_t)image.width, height = (int32_t)image.height;
  std::vector<int32_t> label(width + 1);
  std::vector<uint8_t> changes(width + 8);
  Columns columns(width);
  for (int32_t y = 0; y < height; y++) {
    int32_t* const l = label.data();
    uint8_t* const change = changes.data();
    widen(image.labels, image.label_bytes, true, (int64_t)y * width, width, l);
    for (int32_t x = 1; x < width; x++) change[x] = l[x] != l[x - 1];
    change[width] = 1;
    for (int32_t x = 0; x < width;) {
      const int32_t end = next_change(change, x + 1, width);
      if (l[x] >= 0) objects.add(y, x, end, l[x] + 1);
      x = end;
    }
    objects.end_row();
    columns.add_row(l);
  }
  objects.finish();
  turned = columns.turned();
}

// Pixels by class and level. In two tables: neighbours mostly are of one level, and would wait for
// each other.
class Histogram {
 public:
  explicit Histogram(int32_t classes) : size_(classes * LEVELS), counts_(2 * size_) {}

  void add(int32_t of, const uint8_t* level, int32_t count) {
    int32_t *const even = counts_.data() + of * LEVELS, *const odd = even + size_;
    for (int32_t n = 0; n + 1 < count; n += 2) even[level[n]]++, odd[level[n + 1]]++;
    if (count & 1) even[level[count - 1]]++;
  }

  void write(int64_t* to) const {
    for (int32_t n = 0; n < size_; n++) to[n] += counts_[n] + counts_[size_ + n];
  }

 private:
  const int32_t size_;
  std::vector<int32_t> counts_;
};

// One sweep: heat, runs of given objects and of disputed pixels, and `right` and `predicted` pixels
// that count, by class.
void sweep(const Question& q, const Image& image, uint16_t* heat, int64_t* right,
           int64_t* predicted, Found& found) {
  const int32_t width = (int32_t)image.width, height = (int32_t)image.height;
  const int32_t classes = (int32_t)q.classes, least = (int32_t)q.margin_steps;
  std::vector<int32_t> label(width + 1), other(width + 1), code(width + 1);
  std::vector<uint8_t> changes(width + 8);
  Columns columns(width);
  Histogram counted(image.histogram ? classes : 0);
  for (int32_t y = 0; y < height; y++) {
    const int64_t at = (int64_t)y * width;
    widen(image.labels, image.label_bytes, true, at, width, label.data());
    widen(image.predicted, image.predicted_bytes, image.predicted_bytes > 1, at, width,
          other.data());
    const uint8_t *level = image.levels + at, *margin = image.margin + at;
    int32_t *const l = label.data(), *const o = other.data(), *const c = code.data();
    for (int32_t x = 0; x < width; x++) {
      // No &&, which would be branches where there can be vectors.
      const bool is_disputed = (l[x] >= 0) & (l[x] != o[x]) & (margin[x] > least);
      c[x] = is_disputed ? l[x] * classes + o[x] + 1 : 0;
    }
    uint8_t* const change = changes.data();
    change[0] = 1;
    for (int32_t x = 1; x < width; x++)
      change[x] = (l[x] != l[x - 1]) | (o[x] != o[x - 1]) | (c[x] != c[x - 1]);
    change[width] = 1;
    int32_t object_from = 0, region_from = 0;
    for (int32_t x = 0; x < width;) {
      const int32_t end = next_change(change, x + 1, width);
      const int32_t mine = l[x];
      const uint16_t* const row = q.heat + (int64_t)(mine >= 0 ? mine : classes) * LEVELS;
      for (int32_t n = x; n < end; n++) heat[at + n] = row[level[n]];
      if (image.histogram && mine >= 0) counted.add(mine, level + x, end - x);
      if (mine >= 0) {
        predicted[o[x]] += end - x;
        if (mine == o[x]) right[mine] += end - x;
      }
      const bool at_end = end == width;
      if (at_end || l[end] != mine) {
        if (mine >= 0) found.objects.add(y, object_from, end, mine + 1);
        object_from = end;
      }
      if (at_end || c[end] != c[x]) {
        if (c[x]) found.disputed.add(y, region_from, end, c[x]);
        region_from = end;
      }
      x = end;
    }
    found.objects.end_row();
    found.disputed.end_row();
    columns.add_row(l);
  }
  if (image.histogram) counted.write(image.histogram);
  found.objects.finish();
  found.disputed.finish();
  found.turned = columns.turned();
}

// Score and probability of every region; sums are made in reading order, as numpy makes them.
void weigh(const Question& q, const Image& image, const uint16_t* heat, Found& found) {
  const Components& regions = found.disputed;
  const size_t count = regions.code.size();
  found.score.assign(count, 0.0);
  found.probability.assign(count, 0.0);
  for (size_t n = 0; n < regions.runs.size(); n++) {
    const Run& run = regions.runs[n];
    const int64_t at = (int64_t)run.row * image.width;
    double& score = found.score[regions.component[n]];
    double& probability = found.probability[regions.component[n]];
    for (int64_t place = at + run.start; place < at + run.end; place++) {
      score += heat[place] / HEAT_PER_NAT;
      const double leads = image.margin[place] / MARGIN_STEPS;
      probability += std::min(leads + q.given_probability[image.levels[place]], 1.0);
    }
  }
  for (size_t n = 0; n < count; n++) {
    found.score[n] /= std::sqrt((double)regions.area[n]);
    found.probability[n] /= (double)regions.area[n];
  }
  found.order.resize(count);
  std::iota(found.order.begin(), found.order.end(), 0);
  const auto first = [&](int32_t a, int32_t b) {
    return found.score[a] != found.score[b] ? found.score[a] > found.score[b] : a < b;
  };
  const size_t most = std::min(count, (size_t)q.max_regions);
  std::partial_sort(found.order.begin(), found.order.begin() + most, found.order.end(), first);
  found.order.resize(most);
}

}  // namespace

extern "C" {

int64_t lossd_findings_layout() {
  return sizeof(Image) * 10000 + sizeof(Question) * 100 + sizeof(Chosen) / sizeof(int64_t);
}

// Looks at an image; what it returns is to be taken, null if there is no memory for it. `sizes`:
// regions, chosen regions, characters of masks, points, lines.
void* lossd_find(const Question* question, const Image* image, uint16_t* heat, int64_t* right,
                 int64_t* predicted, int64_t* sizes) try {
  auto found = std::make_unique<Found>();
  sweep(*question, *image, heat, right, predicted, *found);
  weigh(*question, *image, heat, *found);
  describe(*question, *image, *found);
  point(*question, heat, *image, *found);
  sizes[0] = (int64_t)found->score.size();
  sizes[1] = (int64_t)found->chosen.size();
  sizes[2] = (int64_t)found->masks.size();
  sizes[3] = (int64_t)found->points.size() / 4;
  sizes[4] = (int64_t)found->lines.size() / LINE;
  return found.release();
} catch (const std::bad_alloc&) {
  return nullptr;
}

// The outlines of labels; what it returns is to be taken, null if there is no memory for it.
void* lossd_lines(const Image* image, int64_t least, int64_t* count) try {
  Components objects;
  Runs turned;
  given_objects(*image, objects, turned);
  const auto straight = outlines(objects, turned, (int32_t)image->height, (int32_t)image->width);
  auto lines = std::make_unique<std::vector<int64_t>>(judged_lines(objects, straight, least));
  *count = (int64_t)lines->size() / LINE;
  return lines.release();
} catch (const std::bad_alloc&) {
  return nullptr;
}

void lossd_take_lines(void* handle, int64_t* lines) {
  auto* found = (std::vector<int64_t>*)handle;
  std::copy(found->begin(), found->end(), lines);
  delete found;
}

// Copies what was found and forgets it.
void lossd_take(void* handle, int64_t* code, int64_t* area, double* score, double* probability,
                int64_t* chosen, char* masks, int64_t* ends, int64_t* points, int64_t* lines) {
  Found* found = (Found*)handle;
  std::copy(found->disputed.code.begin(), found->disputed.code.end(), code);
  std::copy(found->disputed.area.begin(), found->disputed.area.end(), area);
  std::copy(found->score.begin(), found->score.end(), score);
  std::copy(found->probability.begin(), found->probability.end(), probability);
  if (!found->chosen.empty())
    std::memcpy(chosen, found->chosen.data(), found->chosen.size() * sizeof(Chosen));
  std::copy(found->masks.begin(), found->masks.end(), masks);
  std::copy(found->ends.begin(), found->ends.end(), ends);
  std::copy(found->points.begin(), found->points.end(), points);
  std::copy(found->lines.begin(), found->lines.end(), lines);
  delete found;
}

}  // extern "C"
