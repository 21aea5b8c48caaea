// What is found in the bytes of one image, for processors: what findings.py says with numpy, to the
// bit. One sweep over the pixels makes heat and runs; everything else is made from runs.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

namespace {

constexpr int LEVELS = 256;
constexpr double MARGIN_STEPS = 255.0, HEAT_PER_NAT = 64.0;
constexpr int BOX = 2, APART = 10;       // as in points.py
constexpr int REACH = 6, PLACES = 13;    // as in outlines.py
constexpr int64_t SQUARES = 182, CHORD = 3767;
constexpr int64_t SIZES = 8, SMALL = 64;  // of objects, as in outlines.py
constexpr int LINE = 4;                  // numbers of one

// Mirrored by IMAGE in compiled_findings.py.
struct Image {
  const void* labels;     // [H, W], -1 where a pixel does not count
  const uint8_t* levels;  // [H, W]
  const void* predicted;  // [H, W]
  const uint8_t* margin;  // [H, W]
  int64_t height, width;
  int64_t label_bytes;      // 1, 2 or 4, signed
  int64_t predicted_bytes;  // 1 unsigned, or 2 signed
  int64_t* histogram;       // [C, 256], 0 before, or null where it is known
};

// Mirrored by QUESTION.
struct Question {
  const uint16_t* heat;             // [C + 1, 256], what does not count comes last
  const double* given_probability;  // [256] by level
  int64_t classes, margin_steps, max_points, max_regions, least_places;
};

struct Run {
  int32_t row, start, end, code;
};

struct Components {
  std::vector<Run> runs;       // in reading order
  std::vector<int32_t> first;  // [H + 1] first run of each row
  std::vector<int32_t> component;  // of each run
  std::vector<int32_t> code;       // of each component
  std::vector<int64_t> area;       // of each component

  void add(int32_t row, int32_t start, int32_t end, int32_t code) {
    runs.push_back({row, start, end, code});
  }

  int32_t root(int32_t run) {
    while (component[run] != run) run = component[run] = component[component[run]];
    return run;
  }

  // Joins the runs of the last row to those above; pixels touch by edges and corners.
  void end_row() {
    const int32_t rows = (int32_t)first.size() - 1;  // finished before this one
    const int32_t begin = first[rows], end = (int32_t)runs.size();
    for (int32_t run = begin; run < end; run++) component.push_back(run);
    int32_t above = rows ? first[rows - 1] : begin;
    for (int32_t run = begin; run < end; run++) {
      while (above < begin && runs[above].end < runs[run].start) above++;
      for (int32_t other = above; other < begin && runs[other].start <= runs[run].end; other++) {
        if (runs[other].code != runs[run].code) continue;
        const int32_t a = root(other), b = root(run);
        component[std::max(a, b)] = std::min(a, b);
      }
    }
    first.push_back(end);
  }

  // Numbers the components in reading order of their first pixels.
  void finish() {
    for (int32_t run = 0; run < (int32_t)runs.size(); run++) {
      if (component[run] == run) {
        component[run] = (int32_t)code.size();
        code.push_back(runs[run].code);
        area.push_back(0);
      } else {
        component[run] = component[component[run]];  // a run before it, which has its number
      }
      area[component[run]] += runs[run].end - runs[run].start;
    }
  }

  // The first run of a row that ends behind a column.
  int32_t seek(int32_t row, int32_t column) const {
    int32_t low = first[row], high = first[row + 1];
    while (low < high) {
      const int32_t middle = (low + high) / 2;
      if (runs[middle].end <= column) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  int32_t at(int32_t row, int32_t column) const {
    const int32_t run = seek(row, column);
    return run < first[row + 1] && runs[run].start <= column ? component[run] : -1;
  }

  // The runs of each component in `wanted`, in reading order.
  std::vector<std::vector<int32_t>> members(const std::vector<int32_t>& wanted) const {
    std::vector<int32_t> place(code.size(), -1);
    for (size_t n = 0; n < wanted.size(); n++) place[wanted[n]] = (int32_t)n;
    std::vector<std::vector<int32_t>> found(wanted.size());
    for (int32_t run = 0; run < (int32_t)runs.size(); run++)
      if (place[component[run]] >= 0) found[place[component[run]]].push_back(run);
    return found;
  }
};

// Mirrored by CHOSEN in findings.py.
struct Chosen {
  int64_t region, left, top, width, height;
  int64_t row_sum, column_sum;
  int64_t edges, edges_at_predicted, edges_at_others;
  int64_t own, own_area, touched, touched_area;
  int64_t along_row_sum, along_column_sum, along_area;  // column sums are doubled
  int64_t places, chords;                // of the outline of the smaller object
  int64_t region_places, region_chords;  // of the region's own
};

struct Found {
  Components disputed;  // codes are given * classes + predicted + 1
  Components objects;   // codes are given + 1
  std::vector<double> score, probability;
  std::vector<int32_t> order;  // regions, the largest score first
  std::vector<Chosen> chosen;
  std::string masks;                   // COCO's strings of the chosen regions
  std::vector<int64_t> ends;           // of each of them in `masks`
  std::vector<int64_t> points;         // x, y, sum of the heat, region
  std::vector<int64_t> lines;          // class, size, places, chords
};

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

// The first change from a column on; one is behind the last column.
inline int32_t next_change(const uint8_t* change, int32_t at, int32_t width) {
  for (uint64_t eight; at + 8 <= width; at += 8) {
    std::memcpy(&eight, change + at, 8);
    if (eight) break;
  }
  while (!change[at]) at++;
  return at;
}

// The objects alone, with codes given + 1.
Components given_objects(const Image& image) {
  Components objects;
  objects.first.push_back(0);
  const int32_t width = (int32_t)image.width, height = (int32_t)image.height;
  std::vector<int32_t> label(width + 1);
  std::vector<uint8_t> changes(width + 8);
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
  }
  objects.finish();
  return objects;
}

// One sweep: heat, runs of given objects and of disputed pixels, and `right` and `predicted` pixels
// that count, by class.
void sweep(const Question& q, const Image& image, uint16_t* heat, int64_t* right,
           int64_t* predicted, Found& found) {
  const int32_t width = (int32_t)image.width, height = (int32_t)image.height;
  const int32_t classes = (int32_t)q.classes, least = (int32_t)q.margin_steps;
  std::vector<int32_t> label(width + 1), other(width + 1), code(width + 1);
  std::vector<uint8_t> changes(width + 8);
  found.disputed.first.push_back(0);
  found.objects.first.push_back(0);
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
      if (image.histogram && mine >= 0) {
        int64_t* const counts = image.histogram + (int64_t)mine * LEVELS;
        for (int32_t n = x; n < end; n++) counts[level[n]]++;
      }
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
  }
  found.objects.finish();
  found.disputed.finish();
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

// -- one region -----------------------------------------------------------------------------------

// Sides of a region's run that lie in a neighbouring row at somebody else's pixels.
struct Beside {
  const Found& found;
  const int32_t region, own, predicted;
  Chosen& chosen;
  std::vector<int32_t> touched;  // an object for each side at the predicted class

  void count(int32_t object, int64_t sides) {
    if (sides <= 0) return;
    chosen.edges += sides;
    if (object != own) chosen.edges_at_others += sides;
    if (found.objects.code[object] - 1 != predicted) return;
    chosen.edges_at_predicted += sides;
    touched.insert(touched.end(), sides, object);
  }

  void row(int32_t y, int32_t start, int32_t end) {
    const Components &objects = found.objects, &regions = found.disputed;
    for (int32_t n = objects.seek(y, start); n < objects.first[y + 1]; n++) {
      const Run& run = objects.runs[n];
      if (run.start >= end) break;
      int64_t sides = std::min(run.end, end) - std::max(run.start, start);
      if (objects.component[n] == own) {
        for (int32_t m = regions.seek(y, start); m < regions.first[y + 1]; m++) {
          const Run& same = regions.runs[m];
          if (same.start >= end) break;
          if (regions.component[m] != region) continue;
          // A run of the region lies in one run of the object.
          if (same.start >= run.start && same.end <= run.end)
            sides -= std::min(same.end, end) - std::max(same.start, start);
        }
      }
      count(objects.component[n], sides);
    }
  }

  void pixel(int32_t y, int32_t x) {
    const int32_t object = found.objects.at(y, x);
    if (object >= 0 && found.disputed.at(y, x) != region) count(object, 1);
  }

  // The object that most sides lie at, the first of equal ones; 0 where there is none.
  int32_t most() {
    std::sort(touched.begin(), touched.end());
    int32_t best = 0;
    size_t longest = 0;
    for (size_t n = 0; n < touched.size();) {
      size_t end = n;
      while (end < touched.size() && touched[end] == touched[n]) end++;
      if (end - n > longest) longest = end - n, best = touched[n];
      n = end;
    }
    return best;
  }
};

void surround(const Image& image, const Found& found, const std::vector<int32_t>& members,
              int32_t predicted, Chosen& chosen) {
  const Components &regions = found.disputed, &objects = found.objects;
  const Run& top = regions.runs[members[0]];
  const int32_t region = (int32_t)chosen.region, own = objects.at(top.row, top.start);
  Beside beside = {found, region, own, predicted, chosen, {}};
  int32_t left = top.start, right = top.end, bottom = top.row;
  for (int32_t n : members) {
    const Run& run = regions.runs[n];
    const int64_t length = run.end - run.start;
    chosen.row_sum += length * run.row;
    chosen.column_sum += length * (run.start + run.end - 1) / 2;
    left = std::min(left, run.start);
    right = std::max(right, run.end);
    bottom = run.row;
    if (run.row > 0) beside.row(run.row - 1, run.start, run.end);
    if (run.row + 1 < image.height) beside.row(run.row + 1, run.start, run.end);
    if (run.start > 0) beside.pixel(run.row, run.start - 1);
    if (run.end < image.width) beside.pixel(run.row, run.end);
  }
  chosen.left = left;
  chosen.top = top.row;
  chosen.width = right - left;
  chosen.height = bottom + 1 - top.row;
  chosen.own = own;
  chosen.own_area = objects.area[own];
  chosen.touched = beside.most();
  chosen.touched_area = objects.area[chosen.touched];
}

// COCO's string of run lengths, see coco_rle.py in the client.
class MaskText {
  std::string& text;
  int64_t before[2] = {};  // the counts one and two before
  int count = 0;

 public:
  explicit MaskText(std::string& to) : text(to) {}

  void add(int64_t run) {
    int64_t rest = count++ < 3 ? run : run - before[1];
    before[1] = before[0];
    before[0] = run;
    for (bool more = true; more;) {
      const int64_t group = rest & 0x1f;
      rest >>= 5;
      more = rest != (group & 0x10 ? -1 : 0);
      text.push_back((char)(48 + group + (more ? 0x20 : 0)));
    }
  }
};

// A region as a mask of the whole image, column by column, outside first.
void encode(const Image& image, const Components& regions, const std::vector<int32_t>& members,
            const Chosen& chosen, std::string& masks) {
  MaskText text(masks);
  std::vector<int32_t> begin(chosen.width + 1, 0);
  for (int32_t n : members)
    for (int32_t x = regions.runs[n].start; x < regions.runs[n].end; x++)
      begin[x - chosen.left + 1]++;
  std::partial_sum(begin.begin(), begin.end(), begin.begin());
  std::vector<int32_t> rows(begin.back());
  std::vector<int32_t> next(begin.begin(), begin.end() - 1);
  for (int32_t n : members)
    for (int32_t x = regions.runs[n].start; x < regions.runs[n].end; x++)
      rows[next[x - chosen.left]++] = regions.runs[n].row;
  int64_t told = 0, from = -1, to = -1;  // a run of the mask, in places of columns
  const auto tell = [&] {
    if (from < 0) return;
    text.add(from - told);
    text.add(to - from);
    told = to;
  };
  for (int64_t x = 0; x < chosen.width; x++)
    for (int32_t n = begin[x]; n < begin[x + 1]; n++) {
      const int64_t place = (chosen.left + x) * image.height + rows[n];
      if (place == to) {
        to++;
      } else {
        tell();
        from = place, to = place + 1;
      }
    }
  tell();
  if (told < image.height * image.width) text.add(image.height * image.width - told);
}

// -- how straight an object's outline is ----------------------------------------------------------

// Pixels with a margin wide enough that no look beside them leaves it. `pitch` leads to the next
// place of an outline, `across` over it.
template <class Pixel>
struct Canvas {
  std::vector<Pixel> pixels;
  int64_t left, top, pitch;

  Canvas(int64_t x, int64_t y, int64_t width, int64_t height)
      : left(x - EDGE), top(y - EDGE), pitch(width + 2 * EDGE) {
    pixels.assign(pitch * (height + 2 * EDGE), 0);
  }

  const Pixel* at(int64_t y, int64_t x) const { return &pixels[(y - top) * pitch + x - left]; }

  void fill(const Run& run, Pixel value) {
    Pixel* const row = &pixels[(run.row - top) * pitch - left];
    std::fill(row + run.start, row + run.end, value);
  }

 private:
  static constexpr int64_t EDGE = REACH + 2;
};

// One object on a canvas, where what touches it is of another value.
template <class Pixel>
struct Shape {
  const Canvas<Pixel>& canvas;
  const Pixel own;

  bool has(int64_t y, int64_t x) const { return *canvas.at(y, x) == own; }
};

struct Straight {
  int64_t places, chords;
};

template <class Pixel>
struct Line {
  const Shape<Pixel>& shape;
  const bool turned, behind;  // columns for rows; the far side of the object for the near one
  const int64_t limit;        // where the image ends across

  // Whether the outline passes before this position of a row.
  bool passes(int64_t row, int64_t position) const {
    if (position <= 0 || position >= limit) return false;
    const bool before = turned ? shape.has(position - 1, row) : shape.has(row, position - 1);
    const bool after = turned ? shape.has(position, row) : shape.has(row, position);
    return behind ? before && !after : after && !before;
  }

  // Follows it for REACH rows; whether it goes on so far.
  bool follow(int64_t row, int64_t position, int down, int64_t* offset) const {
    int64_t at = position;
    for (int n = 1; n <= REACH; n++) {
      const int64_t next = row + n * down;
      if (passes(next, at)) {
      } else if (passes(next, at + down)) {
        at += down;
      } else if (passes(next, at - down)) {
        at -= down;
      } else {
        return false;
      }
      offset[n * down] = at - position;
    }
    return true;
  }

  void judge(int64_t row, int64_t position, Straight& found) const {
    int64_t offsets[PLACES] = {}, *const middle = offsets + REACH;
    if (!passes(row, position)) return;
    if (!follow(row, position, -1, middle) || !follow(row, position, 1, middle)) return;
    int64_t sum = 0, square = 0, slope = 0;
    for (int64_t n = -REACH; n <= REACH; n++) {
      sum += middle[n];
      square += middle[n] * middle[n];
      slope += n * middle[n];
    }
    found.places++;
    found.chords += SQUARES * (PLACES * square - sum * sum) - PLACES * slope * slope <= CHORD;
  }
};

// Whether eight bytes of pixels are all of the shape.
template <class Pixel>
bool all_own(const Pixel* pixels, Pixel own) {
  constexpr int COUNT = 8 / sizeof(Pixel);
  uint64_t eight, wanted = 0;
  std::memcpy(&eight, pixels, sizeof eight);
  for (int n = 0; n < COUNT; n++) wanted = wanted << 8 * sizeof(Pixel) | own;
  return eight == wanted;
}

template <class Pixel>
Straight straight(const Image& image, const Components& all, const std::vector<int32_t>& members,
                  const Shape<Pixel>& shape) {
  constexpr int64_t COUNT = 8 / sizeof(Pixel);
  const Line<Pixel> near = {shape, false, false, image.width};
  const Line<Pixel> far = {shape, false, true, image.width};
  const Line<Pixel> upper = {shape, true, false, image.height};
  const Line<Pixel> lower = {shape, true, true, image.height};
  const int64_t pitch = shape.canvas.pitch;
  Straight found = {};
  for (int32_t n : members) {
    const Run& run = all.runs[n];
    near.judge(run.row, run.start, found);
    far.judge(run.row, run.end, found);
    const Pixel* pixel = shape.canvas.at(run.row, run.start);
    for (int64_t x = run.start; x < run.end; x++, pixel++) {
      while (x + COUNT <= run.end && all_own(pixel - pitch, shape.own) &&
             all_own(pixel + pitch, shape.own))
        x += COUNT, pixel += COUNT;
      if (x == run.end) break;
      if (pixel[-pitch] != shape.own) upper.judge(x, run.row, found);
      if (pixel[pitch] != shape.own) lower.judge(x, run.row + 1, found);
    }
  }
  return found;
}

// How straight a region's own outline is.
Straight straight(const Image& image, const Components& all, const std::vector<int32_t>& members) {
  int64_t left = image.width, right = 0;
  const int64_t top = all.runs[members.front()].row, bottom = all.runs[members.back()].row;
  for (int32_t n : members) {
    left = std::min(left, (int64_t)all.runs[n].start);
    right = std::max(right, (int64_t)all.runs[n].end);
  }
  Canvas<uint8_t> canvas(left, top, right - left, bottom + 1 - top);
  for (int32_t n : members) canvas.fill(all.runs[n], 1);
  return straight(image, all, members, Shape<uint8_t>{canvas, 1});
}

// The outlines of an image's objects, of which small ones have no place: what goes on for 13 rows is
// that high. All are on one canvas, by their classes, since objects of a class that touched would be
// one: a canvas for each would take as long as there are objects times pixels.
struct Outlines {
  std::vector<int32_t> object;  // that are large enough
  std::vector<Straight> found;  // of each

  Outlines(const Image& image, const Components& objects) {
    for (int32_t n = 0; n < (int32_t)objects.code.size(); n++)
      if (objects.area[n] >= PLACES) object.push_back(n);
    const auto members = objects.members(object);
    Canvas<uint16_t> canvas(0, 0, image.width, image.height);
    for (const Run& run : objects.runs) canvas.fill(run, (uint16_t)run.code);
    for (size_t n = 0; n < object.size(); n++) {
      const Shape<uint16_t> shape = {canvas, (uint16_t)objects.code[object[n]]};
      found.push_back(straight(image, objects, members[n], shape));
    }
  }

  // Where an object is among them, or would be.
  size_t seek(int32_t wanted) const {
    return std::lower_bound(object.begin(), object.end(), wanted) - object.begin();
  }

  // Class, size, places and chords of those that can be judged.
  std::vector<int64_t> lines(const Components& objects, int64_t least) const {
    std::vector<int64_t> lines;
    for (size_t n = 0; n < object.size(); n++) {
      const auto [places, chords] = found[n];
      if (places < least) continue;
      const int64_t size = size_of(objects.area[object[n]]);
      lines.insert(lines.end(), {objects.code[object[n]] - 1, size, places, chords});
    }
    return lines;
  }

 private:
  static int64_t size_of(int64_t area) {
    int64_t size = 0;
    while (size < SIZES - 1 && area >= SMALL << 2 * size) size++;
    return size;
  }
};

void measure(const Components& objects, const std::vector<int32_t>& members, Chosen& chosen) {
  for (int32_t n : members) {
    const Run& run = objects.runs[n];
    const int64_t length = run.end - run.start;
    chosen.along_row_sum += length * run.row;
    chosen.along_column_sum += length * (run.start + run.end - 1);
    chosen.along_area += length;
  }
}

void describe(const Question& q, const Image& image, Found& found) {
  const auto members = found.disputed.members(found.order);
  std::vector<int32_t> along;
  for (size_t n = 0; n < found.order.size(); n++) {
    Chosen chosen = {};
    chosen.region = found.order[n];
    const int32_t predicted = (int32_t)((found.disputed.code[chosen.region] - 1) % q.classes);
    surround(image, found, members[n], predicted, chosen);
    const Straight own = straight(image, found.disputed, members[n]);
    chosen.region_places = own.places;
    chosen.region_chords = own.chords;
    encode(image, found.disputed, members[n], chosen, found.masks);
    found.ends.push_back((int64_t)found.masks.size());
    found.chosen.push_back(chosen);
    along.push_back((int32_t)(chosen.own_area < chosen.touched_area ? chosen.own : chosen.touched));
  }
  std::vector<int32_t> distinct(along);
  std::sort(distinct.begin(), distinct.end());
  distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
  const auto objects = found.objects.members(distinct);
  const Outlines outlines(image, found.objects);
  found.lines = outlines.lines(found.objects, q.least_places);
  std::vector<Chosen> told(distinct.size());
  for (size_t n = 0; n < distinct.size(); n++) {
    measure(found.objects, objects[n], told[n]);
    const size_t at = outlines.seek(distinct[n]);
    if (at == outlines.object.size() || outlines.object[at] != distinct[n]) continue;
    told[n].places = outlines.found[at].places;
    told[n].chords = outlines.found[at].chords;
  }
  for (size_t n = 0; n < along.size(); n++) {
    const size_t which =
        std::lower_bound(distinct.begin(), distinct.end(), along[n]) - distinct.begin();
    Chosen& chosen = found.chosen[n];
    chosen.along_row_sum = told[which].along_row_sum;
    chosen.along_column_sum = told[which].along_column_sum;
    chosen.along_area = told[which].along_area;
    chosen.places = told[which].places;
    chosen.chords = told[which].chords;
  }
}

// -- points ---------------------------------------------------------------------------------------

int64_t mirrored(int64_t at, int64_t size) {
  at %= 2 * size;
  if (at < 0) at += 2 * size;
  return at < size ? at : 2 * size - 1 - at;
}

struct Boxes {
  int64_t height, width;
  std::vector<uint16_t> sums;     // [H, W] of the 5 by 5 pixels around
  std::vector<uint16_t> largest;  // of each row

  Boxes(const uint16_t* heat, int64_t h, int64_t w)
      : height(h), width(w), sums(h * w), largest(h) {
    std::vector<uint16_t> padded(w + 2 * BOX);
    for (int64_t y = 0; y < h; y++) {
      const uint16_t* rows[2 * BOX + 1];
      for (int n = -BOX; n <= BOX; n++) rows[n + BOX] = heat + mirrored(y + n, h) * w;
      uint16_t* const column = padded.data() + BOX;
      for (int64_t x = 0; x < w; x++)
        column[x] = rows[0][x] + rows[1][x] + rows[2][x] + rows[3][x] + rows[4][x];
      for (int n = 1; n <= BOX; n++) {
        column[-n] = column[mirrored(-n, w)];
        column[w - 1 + n] = column[mirrored(w - 1 + n, w)];
      }
      uint16_t* const sum = &sums[y * w];
      for (int64_t x = 0; x < w; x++)
        sum[x] = column[x - 2] + column[x - 1] + column[x] + column[x + 1] + column[x + 2];
      find_largest(y);
    }
  }

  void find_largest(int64_t y) {
    const uint16_t* const row = &sums[y * width];
    uint16_t top = 0;
    for (int64_t x = 0; x < width; x++) top = row[x] > top ? row[x] : top;
    largest[y] = top;
  }

  void close(int64_t y, int64_t start, int64_t end) {
    if (y < 0 || y >= height) return;
    start = std::max<int64_t>(start, 0), end = std::min(end, width);
    if (start < end) std::memset(&sums[y * width + start], 0, (end - start) * sizeof(uint16_t));
  }
};

// Region of the hottest pixel around, the first of equal ones; -1 where none lies in one.
int32_t region_near(const uint16_t* heat, const Image& image, const Components& regions, int64_t x,
                    int64_t y) {
  int32_t found = -1, hottest = -1;
  for (int64_t row = std::max<int64_t>(0, y - BOX); row < std::min(image.height, y + BOX + 1); row++)
    for (int64_t at = std::max<int64_t>(0, x - BOX); at < std::min(image.width, x + BOX + 1); at++) {
      const int32_t region = regions.at((int32_t)row, (int32_t)at);
      if (region < 0 || heat[row * image.width + at] <= hottest) continue;
      found = region, hottest = heat[row * image.width + at];
    }
  return found;
}

void point(const Question& q, const uint16_t* heat, const Image& image, Found& found) {
  if (!q.max_points) return;
  Boxes boxes(heat, image.height, image.width);
  const Components& regions = found.disputed;
  for (int64_t n = 0; n < q.max_points; n++) {
    const auto best = std::max_element(boxes.largest.begin(), boxes.largest.end());
    if (best == boxes.largest.end() || !*best) return;
    const int64_t y = best - boxes.largest.begin();
    const uint16_t* const row = &boxes.sums[y * image.width];
    const int64_t x = std::find(row, row + image.width, *best) - row;
    const int32_t region = regions.at((int32_t)y, (int32_t)x);
    found.points.insert(found.points.end(), {x, y, *best, region});
    int64_t low = y - APART, high = y + APART;
    for (int64_t down = -APART; down <= APART; down++) {
      int64_t across = 0;
      while ((across + 1) * (across + 1) + down * down <= APART * APART) across++;
      boxes.close(y + down, x - across, x + across + 1);
    }
    const int32_t closed = region >= 0 ? region : region_near(heat, image, regions, x, y);
    if (closed >= 0) {
      const auto members = regions.members({closed});
      for (int32_t run : members[0]) {
        const Run& own = regions.runs[run];
        for (int64_t down = -BOX; down <= BOX; down++)
          boxes.close(own.row + down, own.start - BOX, own.end + BOX);
        low = std::min(low, (int64_t)own.row - BOX), high = std::max(high, (int64_t)own.row + BOX);
      }
    }
    for (int64_t each = std::max<int64_t>(low, 0); each <= std::min(high, image.height - 1); each++)
      boxes.find_largest(each);
  }
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
  const Components objects = given_objects(*image);
  const Outlines outlines(*image, objects);
  auto lines = std::make_unique<std::vector<int64_t>>(outlines.lines(objects, least));
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
