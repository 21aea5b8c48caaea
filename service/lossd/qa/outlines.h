// How straight outlines are, as outlines.py says it.

#pragma once

#include "runs.h"

namespace {

constexpr int REACH = 6, PLACES = 13;  // as in outlines.py
constexpr int64_t SQUARES = 182, CHORD = 3767;
constexpr int64_t SIZES = 8, SMALL = 64;  // of objects, as in outlines.py
constexpr int LINE = 4;                   // numbers of one

struct Straight {
  int64_t places = 0, chords = 0;

  void operator+=(const Straight& other) {
    places += other.places;
    chords += other.chords;
  }
};

// Places of a line that go on for REACH rows to both sides. The sums of a window follow from those of
// the one before; positions that are all shifted have the same residual.
Straight judge(const std::vector<int64_t>& line, size_t begin, size_t end) {
  Straight found;
  begin = std::max(begin, (size_t)REACH);
  if (end + REACH > line.size()) end = line.size() - std::min(line.size(), (size_t)REACH);
  if (begin >= end) return found;
  int64_t sum = 0, square = 0, slope = 0;
  for (int64_t n = -REACH; n <= REACH; n++) {
    const int64_t at = line[begin + n];
    sum += at;
    square += at * at;
    slope += n * at;
  }
  for (size_t middle = begin;; middle++) {
    found.places++;
    found.chords += SQUARES * (PLACES * square - sum * sum) - PLACES * slope * slope <= CHORD;
    if (middle + 1 == end) return found;
    const int64_t left = line[middle - REACH], entered = line[middle + REACH + 1];
    slope += (REACH + 1) * left - sum + REACH * entered;
    sum += entered - left;
    square += entered * entered - left * left;
  }
}

// One side of all runs: where they begin, or where they end. It goes on in the next row where a run
// of the same code begins in the same column or beside it, and ends at the image's border.
class Side {
 public:
  enum class Which { begin, end };

  Side(const Runs& all, Which which, int32_t width)
      : runs_(all.runs), which_(which), width_(width) {
    above_.assign(runs_.size(), NONE);
    below_.assign(runs_.size(), NONE);
    for (size_t row = 0; row + 2 < all.first.size(); row++)
      join(all.first[row], all.first[row + 1], all.first[row + 2]);
  }

  // Tells of each line a run of it, and its places.
  template <class Tell>
  void lines(Tell tell) const {
    std::vector<int64_t> line;
    for (int32_t run = 0; run < (int32_t)runs_.size(); run++) {
      const int32_t up = above_[run];
      if (up == NONE && below_[run] == NONE) continue;
      if (up != NONE && below_[up] == run) continue;  // in a line that began before
      line.clear();
      for (int32_t at = up; at != NONE && line.size() < REACH; at = above_[at])
        line.push_back(place(at));
      std::reverse(line.begin(), line.end());
      const size_t begin = line.size();
      int32_t last = run, next = below_[run];
      line.push_back(place(run));
      for (; next != NONE && above_[next] == last; last = next, next = below_[next])
        line.push_back(place(next));
      const size_t end = line.size();
      // Lines join and part: what goes on here is of a line of its own.
      for (; next != NONE && line.size() < end + REACH; next = below_[next])
        line.push_back(place(next));
      const Straight found = judge(line, begin, end);
      if (found.places) tell(run, found);
    }
  }

 private:
  static constexpr int32_t NONE = -1;

  int32_t place(int32_t run) const {
    return which_ == Which::begin ? runs_[run].start : runs_[run].end;
  }

  bool is_inside(int32_t place) const { return place > 0 && place < width_; }

  // Joins the runs of a row to those of the next. What goes straight on comes first, then what goes
  // to the right.
  void join(int32_t begin, int32_t middle, int32_t end) {
    int32_t from = middle;
    for (int32_t run = begin; run < middle; run++) {
      const int32_t at = place(run);
      if (!is_inside(at)) continue;
      while (from < end && place(from) < at - 1) from++;
      for (int32_t next = from; next < end && place(next) <= at + 1; next++) {
        if (runs_[next].code != runs_[run].code || !is_inside(place(next))) continue;
        if (below_[run] == NONE || place(below_[run]) < at) below_[run] = next;
        if (above_[next] == NONE || place(next) == at) above_[next] = run;
      }
    }
  }

  const std::vector<Run>& runs_;
  const Which which_;
  const int32_t width_;
  std::vector<int32_t> above_, below_;  // of each run
};

constexpr Side::Which SIDES[] = {Side::Which::begin, Side::Which::end};

// How straight the outline of each object is: at the sides of its rows' runs, and of its columns'.
std::vector<Straight> outlines(const Components& objects, const Runs& turned, int32_t height,
                               int32_t width) {
  std::vector<Straight> found(objects.code.size());
  for (const auto side : SIDES) {
    Side(objects, side, width).lines([&](int32_t run, const Straight& line) {
      found[objects.component[run]] += line;
    });
    Side(turned, side, height).lines([&](int32_t run, const Straight& line) {
      found[objects.at(turned.runs[run].start, turned.runs[run].row)] += line;
    });
  }
  return found;
}

// How straight the outline of one region is, whose runs are told. What goes on for so many rows is
// that high: most regions are smaller.
Straight outline(const Components& regions, const std::vector<int32_t>& members, int32_t left,
                 int32_t right, int32_t height, int32_t width) {
  const int32_t top = regions.runs[members.front()].row;
  const int32_t rows = regions.runs[members.back()].row + 1 - top, columns = right - left;
  Straight found;
  const auto add = [&](int32_t, const Straight& line) { found += line; };
  if (rows >= PLACES) {
    Runs own;
    for (int32_t n : members) {
      own.first.resize(regions.runs[n].row - top + 1, (int32_t)own.runs.size());
      own.runs.push_back(regions.runs[n]);
    }
    own.first.push_back((int32_t)own.runs.size());
    for (const auto side : SIDES) Side(own, side, width).lines(add);
  }
  if (columns >= PLACES) {
    Columns seen(columns);
    std::vector<int32_t> row(columns, -1);
    for (size_t n = 0; n < members.size(); n++) {
      const Run& run = regions.runs[members[n]];
      std::fill(row.begin() + run.start - left, row.begin() + run.end - left, 0);
      if (n + 1 < members.size() && regions.runs[members[n + 1]].row == run.row) continue;
      seen.add_row(row.data());
      std::fill(row.begin(), row.end(), -1);
    }
    Runs turned = seen.turned();
    for (Run& run : turned.runs) run.start += top, run.end += top;
    for (const auto side : SIDES) Side(turned, side, height).lines(add);
  }
  return found;
}

int64_t size_of(int64_t area) {
  int64_t size = 0;
  while (size < SIZES - 1 && area >= SMALL << 2 * size) size++;
  return size;
}

// Class, size, places and chords of the outlines that can be judged.
std::vector<int64_t> judged_lines(const Components& objects, const std::vector<Straight>& found,
                                  int64_t least) {
  std::vector<int64_t> lines;
  for (size_t n = 0; n < found.size(); n++) {
    const auto [places, chords] = found[n];
    if (places < least) continue;
    lines.insert(lines.end(), {objects.code[n] - 1, size_of(objects.area[n]), places, chords});
  }
  return lines;
}

}  // namespace
