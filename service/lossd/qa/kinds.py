"""What probably went wrong in a disputed region, told from outlines alone.

No class is the background. Of the two sides of a disputed region the smaller given object is the
one that something happened to.

- Most of a given object is disputed: it is `extra` if what is predicted there is what lies around
  it, and `swapped` if not.
- Little of the region's outline lies at the predicted class in the annotation: an object is
  `missing` there.
- It lies along the outline of an object: that is `dilated` where the object's own pixels are
  disputed and `eroded` where its neighbour's are predicted as it.
- Both of one object, on opposite sides: it is `shifted`; in several bits all around: `coarse`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from lossd.qa.regions import Chosen, Disputed, Floats, Stack
from lossd.qa.runs import Components, Indices, components
from lossd_client.qa_wire import ErrorKind

Flags = npt.NDArray[np.bool_]

_WHOLE: Final = 0.5
"""From such a share of a given object on, it is disputed as a whole."""
_AROUND: Final = 0.5
"""From such a share of the edge around an object on, a class is what lies around it."""
_TOUCHING: Final = 0.2
"""From such a share of its edge on, a region lies along the outline of the predicted class."""
_BOTH_SIDES: Final = 0.25
"""From such a ratio of areas on, two sides are about equally wrong."""
_COARSE_BITS: Final = 4
"""From so many bits on, inside and outside together, an outline is coarse."""
_STEPS: Final = ((-1, 0), (0, -1), (0, 1), (1, 0))


@dataclass(frozen=True)
class _Edges:
    """Pixels beside the edges of regions, E of them, one for each side of a region's pixel."""

    index: Indices
    """`[E]` which of the chosen regions."""
    given: Indices
    """`[E]` class of the pixel beside."""
    given_object: Indices
    """`[E]` given object that the pixel beside belongs to."""


def region_kinds(stack: Stack, disputed: Disputed, chosen: Chosen) -> list[ErrorKind]:
    """Kind of each chosen region.

    Args:
        stack: the images.
        disputed: all regions of the stack.
        chosen: some of them.
    """
    labels = stack.tall
    objects = components(labels + labels.dtype.type(1))
    row = chosen.row[chosen.first] + chosen.image * stack.pitch
    own = objects.of(row * labels.shape[1] + chosen.column[chosen.first])
    edges = _edges(stack, objects, disputed, chosen)
    predicted = disputed.predicted[chosen.numbers]
    count = len(chosen.numbers)

    def number(is_counted: Flags) -> Indices:
        return np.bincount(edges.index[is_counted], minlength=count)

    is_predicted = edges.given == predicted[edges.index]
    is_other = edges.given_object != own[edges.index]
    is_whole = chosen.area >= _WHOLE * objects.area[own]
    is_around = number(is_predicted & is_other) >= _AROUND * np.maximum(1, number(is_other))
    every = np.ones(len(edges.index), np.bool_)
    is_touching = number(is_predicted) >= np.maximum(1.0, _TOUCHING * number(every))
    touched = _most_frequent(edges.index[is_predicted], edges.given_object[is_predicted], count)
    is_inside = objects.area[own] < objects.area[touched]
    kinds = np.select(
        [is_whole & is_around, is_whole, ~is_touching, is_inside],
        ["extra", "swapped", "missing", "dilated"],
        "eroded",
    )
    is_outline = ~(is_whole | ~is_touching)
    sides = _Sides(np.where(is_inside, own, touched), is_inside, is_outline)
    return _outlines(kinds, sides, _centres(objects, stack.pitch), chosen)


@dataclass(frozen=True)
class _Sides:
    """Which outline each of the chosen regions lies along, and on which side."""

    given_object: Indices
    is_inside: Flags
    is_outline: Flags
    """Whether it lies along one at all."""


def _edges(stack: Stack, objects: Components, disputed: Disputed, chosen: Chosen) -> _Edges:
    height, width = stack.size
    labels = stack.tall.reshape(-1)
    regions = np.full(labels.shape, -1, np.int32)
    regions[disputed.places] = disputed.region
    index = chosen.index
    above = chosen.image[index] * stack.pitch
    own = chosen.numbers[index]
    found: list[tuple[Indices, Indices]] = []
    for down, right in _STEPS:
        row, column = chosen.row + down, chosen.column + right
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        places = ((above + row) * width + column)[inside]
        beyond = regions[places] != own[inside]
        found.append((index[inside][beyond], places[beyond]))
    which = np.concatenate([index for index, _ in found])
    places = np.concatenate([places for _, places in found])
    given = labels[places]
    counts = given >= 0
    return _Edges(which[counts], given[counts].astype(np.intp), objects.of(places[counts]))


def _most_frequent(index: Indices, values: Indices, count: int) -> Indices:
    """Most frequent value of each index, the smallest of equal ones; 0 where there is none."""
    most = np.zeros(count, np.intp)
    if not len(index):
        return most
    base = int(values.max()) + 1
    pairs, number = np.unique(index * base + values, return_counts=True)
    order = np.lexsort((-pairs, number))  # the one that counts comes last and is written last
    which, value = np.divmod(pairs[order], base)
    most[which] = value
    return most


def _outlines(
    kinds: npt.NDArray[np.str_], sides: _Sides, centre: Floats, chosen: Chosen
) -> list[ErrorKind]:
    """The kinds, with those along one object's outline taken together."""
    count = centre.shape[1]
    along = np.where(sides.is_outline, sides.given_object, 0)
    centres = chosen.centres()

    def middle(side: Flags) -> tuple[Floats, Floats, Indices]:
        """Area, mean row and column, and number of the regions on a side of each object."""
        weight = np.where(side, chosen.area, 0)
        area = np.bincount(along, weights=weight, minlength=count).astype(np.float64)
        sums = [np.bincount(along, weights=weight * axis, minlength=count) for axis in centres.T]
        bits = np.bincount(along[side], minlength=count)
        return area, np.stack(sums) / np.maximum(area, 1), bits

    inner_area, inner, inner_bits = middle(sides.is_outline & sides.is_inside)
    outer_area, outer, outer_bits = middle(sides.is_outline & ~sides.is_inside)
    is_both = np.minimum(inner_area, outer_area) >= _BOTH_SIDES * np.maximum(inner_area, outer_area)
    is_both &= (inner_bits > 0) & (outer_bits > 0)
    is_opposite = ((inner - centre) * (outer - centre)).sum(0) < 0
    is_shifted = is_both & is_opposite
    is_coarse = is_both & ~is_opposite & (inner_bits + outer_bits >= _COARSE_BITS)
    kinds = np.where(sides.is_outline & is_shifted[along], "shifted", kinds)
    kinds = np.where(sides.is_outline & is_coarse[along], "coarse", kinds)
    found: list[ErrorKind] = kinds.tolist()
    return found


def _centres(objects: Components, pitch: int) -> Floats:
    """Mean row and column in its image of every object, `[2, K]`."""
    length = objects.length
    row, column = objects.row % pitch, (objects.start + objects.end - 1) / 2
    sums = [np.bincount(objects.component, weights=axis * length) for axis in (row, column)]
    return np.stack(sums) / objects.area
