// Places to look at first: peaks of the heat, as points.py has them.

#pragma once

#include "found.h"

namespace {

constexpr int BOX = 2, APART = 10;  // as in points.py

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
