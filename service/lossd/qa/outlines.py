"""How straight the outlines of given objects are: what tells a polygon of few corners.

A hand or a model that follows an object leaves an outline that is nowhere straight for long. One
that clicked a few corners leaves chords. At a place of the outline, the border pixels of the six
rows above and below it (or of the columns beside it, where it lies rather flat) are compared with
the straight line that fits them best. Those of a drawn line lie within half a pixel of it, with a
root mean square of 0.29 px, so what deviates less than 0.35 px is a chord.

How straight is straight depends on the class: houses are, people are not. It depends on the size,
too: over thirteen pixels a large circle is straight, a small one is not, and so are objects of
pictures of higher resolution. So an object is compared with those of its class and size in the data
set, of which sums are known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from lossd.qa.levels import Counts
from lossd.qa.runs import Codes, Components, Indices, components
from lossd_client.qa_wire import OUTLINE_SIZES, OUTLINE_SQUARES, OUTLINE_SUMS

Floats = npt.NDArray[np.float64]

_REACH: Final = 6
"""Rows above and below a place that are looked at."""
_CHORD_PIXELS: Final = 0.35
"""Root mean square of the deviation from a line up to which it is a chord."""
_PLACES: Final = 2 * _REACH + 1
_SQUARES: Final = _REACH * (_REACH + 1) * (2 * _REACH + 1) // 3
_CHORD: Final = int(_CHORD_PIXELS**2 * _PLACES**2 * _SQUARES)


LEAST_PLACES: Final = 20
"""An outline of fewer places is too short to be judged."""

_SMALL_PIXELS: Final = 64
"""Objects of fewer are of size 0."""

_PRIOR_OBJECTS: Final = 4
"""As many objects of a whole stand beside those of its part, which may be few."""

Lines = Indices
"""`[K, 4]` class, size, places and chords of each given object whose outline can be judged."""


@dataclass(frozen=True)
class Outlines:
    """How straight the outline of each of K objects is."""

    places: Indices
    """`[K]` places that can be judged: those whose outline goes on to both sides."""
    chords: Indices
    """`[K]` those of them that lie on a chord."""


def outlines(labels: npt.NDArray[np.integer], objects: Components) -> Outlines:
    """How straight outlines are.

    Args:
        labels: `[H, W]`, -1 where a pixel does not count.
        objects: the connected pixels of equal label, `components(labels + 1)`.

    Example:
        >>> labels = np.zeros((40, 40), np.int8)
        >>> labels[10:30, 10:30] = 1
        >>> found = outlines(labels, components(labels + 1))
        >>> found.places.tolist(), found.chords.tolist()
        ([32, 32], [32, 32])
    """
    count = len(objects.code)
    places, chords = np.zeros(count, np.intp), np.zeros(count, np.intp)
    turned = components(np.ascontiguousarray(labels.T) + labels.dtype.type(1))
    owner = objects.of(turned.start * labels.shape[1] + turned.row)
    for runs, own in ((objects, objects.component), (turned, owner)):
        for position, is_border in (
            (runs.start, runs.start == 0),
            (runs.end, runs.end == runs.width),
        ):
            known, straight = _judged(runs, position, is_border, own)
            places += np.bincount(own[known], minlength=count)
            chords += np.bincount(own[known[straight]], minlength=count)
    return Outlines(places, chords)


def _judged(
    runs: Components, position: Indices, is_border: npt.NDArray[np.bool_], own: Indices
) -> tuple[Indices, npt.NDArray[np.bool_]]:
    """Runs beside which the outline can be followed both ways, and whether it is straight."""
    wide = runs.width + 3
    key = runs.row * wide + position + 1
    below = np.full(len(key) + 1, len(key))
    above = below.copy()
    for step in (-1, 1, 0):  # what goes straight on is written last
        wanted = key + wide + step
        found = np.minimum(np.searchsorted(key, wanted), len(key) - 1)
        goes_on = (key[found] == wanted) & (own[found] == own) & ~is_border & ~is_border[found]
        here = np.flatnonzero(goes_on)
        below[here] = found[here]
        above[found[here]] = here
    at = np.arange(len(key))
    columns = [position]
    known = np.ones(len(key), np.bool_)
    for follow in (above, below):
        place = at
        for _ in range(_REACH):
            place = follow[place]
            columns.append(np.append(position, 0)[place])
        known &= place < len(key)
    which = np.flatnonzero(known)
    steps = np.concatenate((np.arange(0, -_REACH - 1, -1), np.arange(1, _REACH + 1)))
    offset = np.stack([(column - position)[which] for column in columns])
    # The residual's square sum, times what keeps it a whole number.
    squares, across, slope = (offset**2).sum(0), offset.sum(0), steps @ offset
    residual = _SQUARES * (_PLACES * squares - across**2) - _PLACES * slope**2
    return which, residual <= _CHORD


def lines(labels: Codes) -> Lines:
    """The outlines of an image that can be judged, in reading order of their objects.

    Args:
        labels: `[H, W]`, -1 where a pixel does not count.

    Example:
        >>> labels = np.zeros((40, 40), np.int8)
        >>> labels[10:30, 10:30] = 1
        >>> lines(labels).tolist()
        [[0, 3, 32, 32], [1, 2, 32, 32]]
    """
    objects = components(labels + labels.dtype.type(1))
    return judged_lines(objects, outlines(labels, objects))


def judged_lines(objects: Components, found: Outlines) -> Lines:
    """Those of some objects' outlines that can be judged."""
    judged = found.places >= LEAST_PLACES
    counted = (found.places[judged], found.chords[judged])
    return np.stack((objects.code[judged] - 1, sizes(objects.area[judged]), *counted), 1)


def sizes(area_px: Indices) -> Indices:
    """Size of objects, 0 to 7: each reaches to four times the pixels of the one before.

    Example:
        >>> sizes(np.array([13, 63, 64, 255, 256, 1 << 40])).tolist()
        [0, 0, 1, 1, 2, 7]
    """
    bounds_px = _SMALL_PIXELS << 2 * np.arange(OUTLINE_SIZES - 1)
    return np.searchsorted(bounds_px, area_px, side="right")


def line_sums(found: Lines, classes: int) -> Counts:
    """What a data set's outlines are added up from, `[C, 8, 4]` in the order of `OUTLINE_SUMS`.

    Example:
        >>> line_sums(np.array([[1, 3, 30, 20], [1, 3, 40, 40]]), 2)[1, 3].tolist()
        [2, 70, 60, 13653]
    """
    sums = np.zeros((classes, OUTLINE_SIZES, len(OUTLINE_SUMS)), np.int64)
    code, size, places, chords = found.T
    squares = chords * chords * OUTLINE_SQUARES // places
    np.add.at(sums, (code, size), np.stack((np.ones_like(code), places, chords, squares), 1))
    return sums


@dataclass(frozen=True)
class Straightest:
    """The object of an image whose outline is straightest for its class and size."""

    deviations: float
    """How many standard deviations above their mean, at least 0."""
    code: int
    """Its class."""


class Straightness:
    """How straight an image's outlines are among those of a data set.

    Of an object with p places and c chords, `z = (c - m·p) / sqrt(v·p)`, where m is the share of
    chords among objects of its class and size and v the variance of their shares, each weighted by
    its places. There may be few: four objects that are as those of its class stand beside them, and
    beside those of a class four that are as all are.

    Args:
        sums: `[C, 8, 4]`, `line_sums` of all images added up.

    Example:
        >>> sums = np.zeros((2, 8, 4), np.int64)
        >>> sums[1, 3] = 10, 500, 250, 33000
        >>> Straightness(sums).of(np.array([[1, 3, 100, 50], [1, 3, 64, 60]]))
        Straightest(deviations=5.6, code=1)
    """

    def __init__(self, sums: Counts) -> None:
        mean, variance = _shares(sums.sum((0, 1)), np.zeros(()), np.zeros(()), objects=0)
        mean, variance = _shares(sums.sum(1), mean, variance)
        self._mean, self._variance = _shares(sums, mean[:, None], variance[:, None])

    def of(self, found: Lines) -> Straightest | None:
        """The object of the largest z in an image; None where none can be judged.

        Args:
            found: the image's `lines`.
        """
        code, size, places, chords = found.T
        variance = self._variance[code, size]
        known = variance > 0
        if not known.any():
            return None
        above = (chords - self._mean[code, size] * places)[known]
        deviations = above / np.sqrt(variance * places)[known]
        first = int(deviations.argmax())
        return Straightest(max(0.0, float(deviations[first])), int(code[known][first]))


def _shares(
    sums: Counts, mean: Floats, variance: Floats, *, objects: int = _PRIOR_OBJECTS
) -> tuple[Floats, Floats]:
    """Mean and variance of the share of chords in groups of objects.

    Args:
        sums: `[..., 4]`, of each group.
        mean: of what the group is a part of.
        variance: likewise.
        objects: so many of the whole stand beside those of each group.
    """
    own, places, chords, squares = np.moveaxis(sums.astype(np.float64), -1, 0)
    together = np.maximum(own + objects, 1.0)
    mean = (own * chords / np.maximum(places, 1.0) + objects * mean) / together
    spread = squares / OUTLINE_SQUARES - 2.0 * mean * chords + mean**2 * places
    return mean, (np.maximum(spread, 0.0) + objects * variance) / together
