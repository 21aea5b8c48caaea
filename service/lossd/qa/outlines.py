"""How straight the outlines of given objects are: what tells a polygon of few corners.

A hand or a model that follows an object leaves an outline that is nowhere straight for long. One
that clicked a few corners leaves chords. At a place of the outline, the border pixels of the six
rows above and below it (or of the columns beside it, where it lies rather flat) are compared with
the straight line that fits them best. Those of a drawn line lie within half a pixel of it, with a
root mean square of 0.29 px, so what deviates less than 0.35 px is a chord.

How straight is straight depends on the class: houses are, people are not. So an object is compared
with those of its class in the data set, of which sums are known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from lossd.qa.levels import Counts
from lossd.qa.runs import Codes, Components, Indices, components
from lossd_client.qa_wire import OUTLINE_SQUARES, OUTLINE_SUMS

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

_PRIOR_OBJECTS: Final = 4
"""As many objects of all classes stand beside those of a class, which may be few."""

Lines = Indices
"""`[K, 3]` class, places and chords of each given object whose outline can be judged."""


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
        [[0, 32, 32], [1, 32, 32]]
    """
    objects = components(labels + labels.dtype.type(1))
    return judged_lines(objects, outlines(labels, objects))


def judged_lines(objects: Components, found: Outlines) -> Lines:
    """Those of some objects' outlines that can be judged."""
    judged = found.places >= LEAST_PLACES
    columns = (objects.code[judged] - 1, found.places[judged], found.chords[judged])
    return np.stack(columns, 1)


def line_sums(found: Lines, classes: int) -> Counts:
    """What a data set's outlines are added up from, `[C, 4]` in the order of `OUTLINE_SUMS`.

    Example:
        >>> line_sums(np.array([[1, 30, 20], [1, 40, 40]]), 2).tolist()
        [[0, 0, 0, 0], [2, 70, 60, 13653]]
    """
    sums = np.zeros((classes, len(OUTLINE_SUMS)), np.int64)
    code, places, chords = found.T
    squares = chords * chords * OUTLINE_SQUARES // places
    np.add.at(sums, code, np.stack((np.ones_like(code), places, chords, squares), 1))
    return sums


@dataclass(frozen=True)
class Straightest:
    """The object of an image whose outline is straightest for its class."""

    deviations: float
    """How many standard deviations above the class's mean, at least 0."""
    code: int
    """Its class."""


class Straightness:
    """How straight an image's outlines are among those of a data set.

    Of an object with p places and c chords, `z = (c - m·p) / sqrt(v·p)`, where m is the share of
    chords in its class and v the variance of its objects' shares, each weighted by its places;
    four objects of the mean variance of all classes are added, since a class may have few.

    Args:
        sums: `[C, 4]`, `line_sums` of all images added up.

    Example:
        >>> of_set = Straightness(np.array([[0, 0, 0, 0], [10, 500, 250, 33000]]))
        >>> of_set.of(np.array([[1, 100, 50], [1, 64, 60]]))
        Straightest(deviations=5.6, code=1)
    """

    def __init__(self, sums: Counts) -> None:
        objects, places, chords, squares = sums.T.astype(np.float64)
        self._mean = chords / np.maximum(places, 1.0)
        spread = np.maximum(squares / OUTLINE_SQUARES - chords * self._mean, 0.0)
        common = spread.sum() / max(objects.sum(), 1.0)
        self._variance = (spread + _PRIOR_OBJECTS * common) / (objects + _PRIOR_OBJECTS)

    def of(self, found: Lines) -> Straightest | None:
        """The object of the largest z in an image; None where none can be judged.

        Args:
            found: the image's `lines`.
        """
        code, places, chords = found.T
        variance = self._variance[code]
        known = variance > 0
        if not known.any():
            return None
        above = (chords - self._mean[code] * places)[known]
        deviations = above / np.sqrt(variance * places)[known]
        first = int(deviations.argmax())
        return Straightest(max(0.0, float(deviations[first])), int(code[known][first]))
