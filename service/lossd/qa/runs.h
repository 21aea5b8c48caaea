// Connected pixels of equal code, by way of runs, as runs.py has them.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

namespace {

struct Run {
  int32_t row, start, end, code;
};

// In reading order.
struct Runs {
  std::vector<Run> runs;
  std::vector<int32_t> first = {0};  // [rows + 1] first run of each row
};

struct Components : Runs {
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

// The first change from a column on; one is behind the last column.
inline int32_t next_change(const uint8_t* change, int32_t at, int32_t width) {
  for (uint64_t eight; at + 8 <= width; at += 8) {
    std::memcpy(&eight, change + at, 8);
    if (eight) break;
  }
  while (!change[at]) at++;
  return at;
}

// Where labels differ from those of the row above: what the runs of columns begin and end with.
class Columns {
 public:
  explicit Columns(int32_t width) : above_(width, -1), changes_(width + 8) {
    changes_[width] = 1;
  }

  // The next row of labels, -1 where there is none.
  void add_row(const int32_t* labels) {
    const int32_t width = (int32_t)above_.size();
    uint8_t* const change = changes_.data();
    for (int32_t x = 0; x < width; x++) change[x] = labels[x] != above_[x];
    for (int32_t x = next_change(change, 0, width); x < width;
         x = next_change(change, x + 1, width))
      found_.push_back({height_, x, labels[x] + 1});
    std::copy(labels, labels + width, above_.begin());
    height_++;
  }

  // The runs of the columns, codes labels + 1; a run's row is its column, its start a row.
  Runs turned() const {
    const int32_t width = (int32_t)above_.size();
    std::vector<int32_t> next(width + 1, 0);
    for (const Change& change : found_) next[change.column + 1]++;
    std::partial_sum(next.begin(), next.end(), next.begin());
    std::vector<Change> ordered(found_.size());
    for (const Change& change : found_) ordered[next[change.column]++] = change;
    Runs turned;
    for (size_t n = 0; n < ordered.size(); n++) {
      const auto [row, column, code] = ordered[n];
      const bool goes_on = n + 1 < ordered.size() && ordered[n + 1].column == column;
      turned.first.resize(column + 1, (int32_t)turned.runs.size());
      if (code) turned.runs.push_back({column, row, goes_on ? ordered[n + 1].row : height_, code});
    }
    turned.first.resize(width + 1, (int32_t)turned.runs.size());
    return turned;
  }

 private:
  struct Change {
    int32_t row, column, code;
  };

  std::vector<int32_t> above_;
  std::vector<uint8_t> changes_;
  std::vector<Change> found_;
  int32_t height_ = 0;
};

}  // namespace
