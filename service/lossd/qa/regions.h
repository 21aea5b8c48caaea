// The disputed regions that are answered, and what lies around them, as regions.py has them.

#pragma once

#include "found.h"
#include "outlines.h"

namespace {

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
  const int32_t height = (int32_t)image.height, width = (int32_t)image.width;
  const auto members = found.disputed.members(found.order);
  std::vector<int32_t> along;
  for (size_t n = 0; n < found.order.size(); n++) {
    Chosen chosen = {};
    chosen.region = found.order[n];
    const int32_t predicted = (int32_t)((found.disputed.code[chosen.region] - 1) % q.classes);
    surround(image, found, members[n], predicted, chosen);
    const Straight own =
        outline(found.disputed, members[n], (int32_t)chosen.left,
                (int32_t)(chosen.left + chosen.width), height, width);
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
  const auto straight = outlines(found.objects, found.turned, height, width);
  found.lines = judged_lines(found.objects, straight, q.least_places);
  std::vector<Chosen> told(distinct.size());
  for (size_t n = 0; n < distinct.size(); n++) {
    measure(found.objects, objects[n], told[n]);
    told[n].places = straight[distinct[n]].places;
    told[n].chords = straight[distinct[n]].chords;
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

}  // namespace
