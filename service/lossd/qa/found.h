// One image, what is looked for in it and what is found, as findings.py has it.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runs.h"

namespace {

constexpr int LEVELS = 256;

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
  Runs turned;          // of their columns
  std::vector<double> score, probability;
  std::vector<int32_t> order;  // regions, the largest score first
  std::vector<Chosen> chosen;
  std::string masks;                   // COCO's strings of the chosen regions
  std::vector<int64_t> ends;           // of each of them in `masks`
  std::vector<int64_t> points;         // x, y, sum of the heat, region
  std::vector<int64_t> lines;          // class, size, places, chords
};

}  // namespace
