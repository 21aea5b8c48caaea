"""Loss levels: cross entropy in sixteenths of a nat, what is counted and compared in QA.

A level is a byte, `min(255, round(16 · loss))`. Of a data set only `n_cl` is kept, the number of
its pixels of given class `c` at level `l`, and everything that compares a pixel with the data set
is a table over `(c, l)`.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from lossd_client.qa_wire import LEVELS, LEVELS_PER_NAT

Table = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


def worst_count(pixels: int) -> int:
    """How many of an image's pixels are its worst ones.

    Args:
        pixels: those that count, at least 1.

    Returns:
        `max(1, ceil(0.003 · pixels))`: of shares from 0.1 to 5 % this one found most.

    Example:
        >>> worst_count(1), worst_count(1000), worst_count(1001)
        (1, 3, 4)
    """
    return max(1, math.ceil(pixels * 3 / 1000))


def level_losses() -> Table:
    """Loss of each level, `[256]` float64 in nats."""
    return np.arange(LEVELS) / LEVELS_PER_NAT


def given_probabilities() -> Table:
    """Probability of the given class at each level, `[256]` float64: `exp(-loss)`."""
    return np.asarray(np.exp(-level_losses()))


def class_tails(histogram: Counts) -> Table:
    """How rare so large a loss is among all pixels of the same given class.

    `tail_cl = -ln((1 + Σ_{k ≥ l} n_ck) / (1 + Σ_k n_ck))`

    Args:
        histogram: `[C, 256]`, at least 0, of the data set.

    Returns:
        `[C, 256]` float64 in nats, at least 0, growing with the level; 0 where a class has no
        pixels.

    Example:
        >>> counts = np.zeros((1, 256), np.int64)
        >>> counts[0, [0, 16]] = 3, 1
        >>> class_tails(counts)[0, [0, 1, 16, 17]].round(3).tolist()
        [0.0, 0.916, 0.916, 1.609]
    """
    at_least = np.cumsum(histogram[:, ::-1], axis=1)[:, ::-1]
    tails: Table = -np.log((1.0 + at_least) / (1.0 + at_least[:, :1]))
    return tails + 0.0  # the logarithm of 1 comes out as -0


def worst_mean(values: Table, counts: Counts) -> float:
    """Mean of the worst pixels of an image whose values are those of a table.

    Args:
        values: of each cell, any shape.
        counts: the image's pixels in each cell, the same shape.

    Returns:
        Mean of the largest `worst_count` values; 0 where no pixel counts.
    """
    pixels = int(counts.sum())
    if pixels == 0:
        return 0.0
    occupied = np.flatnonzero(counts)
    own = values.reshape(-1)[occupied]
    order = np.argsort(-own, kind="stable")
    number = counts.reshape(-1)[occupied][order].astype(np.int64)
    wanted = worst_count(pixels)
    before = np.cumsum(number) - number
    taken = np.clip(wanted - before, 0, number)
    return float(np.sum(own[order] * taken) / wanted)
