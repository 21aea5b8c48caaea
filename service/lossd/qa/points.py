"""Where to look first in an image: peaks of the heat.

The heat of a pixel is `sqrt(loss · class-tail)`: large where the loss is large and, among the
pixels of its given class, rare. Its peaks hit more wrong pixels than those of either alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from lossd.qa.levels import Table, level_losses
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


@dataclass(frozen=True)
class Peak:
    """A place to look at."""

    x: int
    y: int
    heat: float
    """Mean of the 5 by 5 pixels around, in nats; beyond the border the image is mirrored."""


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
    return np.minimum((heat + step // 2) // step, LEVELS - 1).astype(np.uint8)


def peaks(heat: Heat, most: int) -> list[list[Peak]]:
    """The largest peaks of each image, largest first; of equal ones the first in reading order.

    Args:
        heat: `[N, H, W]` uint16, in 1/64 of a nat.
        most: of each image.

    Returns:
        Peaks above 0 that are more than 10 px from each other.
    """
    return [_peaks_of(boxes, most) for boxes in _box_sums(heat)]


def _peaks_of(boxes: Heat, most: int) -> list[Peak]:
    height, width = boxes.shape
    found: list[Peak] = []
    for _ in range(most):
        y, x = divmod(int(boxes.argmax()), width)
        total = int(boxes[y, x])
        if total == 0:
            break
        found.append(Peak(x, y, total / (BOX_PIXELS * HEAT_PER_NAT)))
        top, left = max(0, y - APART_PIXELS), max(0, x - APART_PIXELS)
        bottom, right = min(height, y + APART_PIXELS + 1), min(width, x + APART_PIXELS + 1)
        dy, dx = y - APART_PIXELS, x - APART_PIXELS
        boxes[top:bottom, left:right][_NEAR[top - dy : bottom - dy, left - dx : right - dx]] = 0
    return found


def _box_sums(heat: Heat) -> Heat:
    """Sum of the 5 by 5 pixels around each, `[N, H, W]`; whole numbers, nothing is rounded."""
    height, width = heat.shape[1:]
    padded = np.pad(heat, ((0, 0), (_RADIUS, _RADIUS), (_RADIUS, _RADIUS)), mode="symmetric")
    rows = padded[:, :-1] + padded[:, 1:]  # two rows, then four, then five
    rows = rows[:, :-2] + rows[:, 2:]
    rows = rows[:, :height] + padded[:, 2 * _RADIUS :]
    pairs = rows[..., :-1] + rows[..., 1:]
    sums = pairs[..., :-2] + pairs[..., 2:]
    boxes: Heat = sums[..., :width] + rows[..., 2 * _RADIUS :]
    return boxes
