"""Where to look first in an image: peaks of the heat.

The heat of a pixel is `sqrt(loss · class-tail)`: large where the loss is large and, among the
pixels of its given class, rare. Its peaks hit more wrong pixels than those of either alone.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from lossd.qa.levels import Table, level_losses
from lossd.qa.runs import Components, Indices
from lossd_client.qa_wire import LEVELS, LEVELS_PER_NAT, LOSS_CAP_NATS

Heat = npt.NDArray[np.uint16]

HEAT_PER_NAT: Final = 64
"""Steps of a nat: fine enough to order peaks, and 25 pixels' sum is still 16 bits."""
_RADIUS = 2  # of the box: 5 by 5
BOX_PIXELS: Final = (2 * _RADIUS + 1) ** 2
APART_PIXELS: Final = 10
"""Within so much of a peak there is no other."""
_AROUND = np.arange(-APART_PIXELS, APART_PIXELS + 1)
_NEAR = _AROUND[:, None] ** 2 + _AROUND**2 <= APART_PIXELS**2


def heat_table(tails: Table | None) -> Heat:
    """Heat of every class and level, in 1/64 of a nat.

    Args:
        tails: `[C, 256]` class-tails in nats; None where the data set is not known, and the heat is
            the loss alone.

    Returns:
        `[C, 256]` uint16, or `[1, 256]`: `round(64 · sqrt(loss · min(tail, 16)))`.
    """
    losses = level_losses()
    known = losses if tails is None else np.minimum(tails, LOSS_CAP_NATS)
    heat = np.sqrt(losses * np.atleast_2d(known))
    table: Heat = np.rint(heat * HEAT_PER_NAT).astype(np.uint16)
    return table


def heat_levels(heat: Heat) -> npt.NDArray[np.uint8]:
    """The heat in sixteenths of a nat, at most 255: a picture of it.

    Args:
        heat: of any shape, in 1/64 of a nat.
    """
    step = HEAT_PER_NAT // LEVELS_PER_NAT
    levels = (heat + np.uint16(step // 2)) >> np.uint16(step.bit_length() - 1)  # a power of two
    found: npt.NDArray[np.uint8] = np.minimum(levels, np.uint16(LEVELS - 1)).astype(np.uint8)
    return found


def peaks(heat: Heat, regions: Components, most: int) -> Indices:
    """Where to look first, largest heat first; of equal places the first in reading order.

    A region that has a point needs no second one. After each point, places within 10 px of it are
    closed, and so is every place whose box of 5 by 5 pixels reaches into the point's region: that
    which it lies in, or else that of the hottest pixel of its box that lies in one.

    Args:
        heat: `[H, W]` uint16, in 1/64 of a nat.
        regions: the disputed regions.
        most: how many.

    Returns:
        `[P, 4]` column, row, sum of the heat of the 5 by 5 pixels around (beyond the border the
        image is mirrored), above 0, and region that the point lies in, or -1.
    """
    boxes = _box_sums(heat)
    height, width = boxes.shape
    found: list[tuple[int, int, int, int]] = []
    for _ in range(most):
        y, x = divmod(int(boxes.argmax()), width)
        total = int(boxes[y, x])
        if total == 0:
            break
        region = int(regions.of(np.array([y * width + x]))[0])
        found.append((x, y, total, region))
        top, left = max(0, y - APART_PIXELS), max(0, x - APART_PIXELS)
        bottom, right = min(height, y + APART_PIXELS + 1), min(width, x + APART_PIXELS + 1)
        dy, dx = y - APART_PIXELS, x - APART_PIXELS
        boxes[top:bottom, left:right][_NEAR[top - dy : bottom - dy, left - dx : right - dx]] = 0
        closed = region if region >= 0 else _region_near(heat, regions, x, y)
        for run in np.flatnonzero(regions.component == closed):
            row, start, end = (int(axis[run]) for axis in (regions.row, regions.start, regions.end))
            rows = slice(max(0, row - _RADIUS), row + _RADIUS + 1)
            boxes[rows, max(0, start - _RADIUS) : end + _RADIUS] = 0
    return np.array(found, np.intp).reshape(-1, 4)


def _region_near(heat: Heat, regions: Components, x: int, y: int) -> int:
    """Region of the hottest pixel around, the first of equal ones; -1 where none lies in one."""
    rows = np.arange(max(0, y - _RADIUS), min(heat.shape[0], y + _RADIUS + 1))
    columns = np.arange(max(0, x - _RADIUS), min(heat.shape[1], x + _RADIUS + 1))
    places = (rows[:, None] * heat.shape[1] + columns).reshape(-1)
    region = regions.of(places)
    hottest = int(np.where(region >= 0, heat.reshape(-1)[places].astype(np.int32), -1).argmax())
    return int(region[hottest])


def _box_sums(heat: Heat) -> Heat:
    """Sum of the 5 by 5 pixels around each, `[H, W]`; whole numbers, nothing is rounded."""
    height, width = heat.shape
    padded = np.pad(heat, _RADIUS, mode="symmetric")
    rows = padded[:-1] + padded[1:]  # two rows, then four, then five
    rows = rows[:-2] + rows[2:]
    rows = rows[:height] + padded[2 * _RADIUS :]
    pairs = rows[:, :-1] + rows[:, 1:]
    sums = pairs[:, :-2] + pairs[:, 2:]
    boxes: Heat = sums[:, :width] + rows[:, 2 * _RADIUS :]
    return boxes
