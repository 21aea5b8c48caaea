"""What is found in the bytes of one image: heat, disputed regions, what lies around them, points.

Nothing here is judged. `find` says with numpy what it is; on a processor with a compiler the
service takes `compiled_findings`, which says the same to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np

from lossd.qa.levels import Counts
from lossd.qa.outlines import Lines, Outlines, judged_lines, lines, outlines
from lossd.qa.points import Heat, peaks
from lossd.qa.regions import Bytes, Chosen, Disputed, Floats, Ints, choose, disputed_regions
from lossd.qa.runs import Components, Indices, components
from lossd_client.coco_rle import compress_several
from lossd_client.qa_wire import LEVELS, ObservedScores

CHOSEN: Final = np.dtype(
    [
        (name, np.int64)
        for name in (
            *("region", "left", "top", "width", "height", "row_sum", "column_sum"),
            *("edges", "edges_at_predicted", "edges_at_others"),
            *("own", "own_area", "touched", "touched_area"),
            *("along_row_sum", "along_column_sum", "along_area", "places", "chords"),
            *("region_places", "region_chords"),
        )
    ]
)
"""A region that is answered, and what lies around it.

`edges` are the sides of its pixels that lie at pixels of others that count: at the class predicted
in the region, and at other given objects than its `own`. `touched` is the object of the predicted
class that most sides lie at. What follows is of the smaller of the two objects, which the region
lies along: the sum of its pixels' rows, twice that of their columns, its area, and how straight its
outline is; at last how straight the region's own is.
"""

Table = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Evidence:
    """One image after the first look, `[H, W]` each."""

    labels: Ints
    """Given classes, -1 where a pixel does not count."""
    levels: Bytes
    predicted: Ints
    """A class everywhere, also where a pixel does not count."""
    margin: Bytes
    histogram: Counts | None
    """`[C, 256]` pixels that count by given class and level; None where nobody has counted."""
    scores: ObservedScores


@dataclass(frozen=True)
class Question:
    """What is looked for."""

    heat: Heat
    """`[C + 1, 256]` heat of each class and level; the last row is of pixels that do not count."""
    classes: int
    margin_steps: int
    """A pixel is disputed where the margin is above this many steps."""
    max_points: int
    max_regions: int


@dataclass(frozen=True)
class Findings:
    """What one image has: K disputed regions in reading order, M of them described."""

    heat: Heat
    """`[H, W]` in 1/64 of a nat, 0 where a pixel does not count."""
    histogram: Counts
    """`[C, 256]` pixels that count by given class and level."""
    right: Indices
    """`[C]` pixels that are given and predicted this class."""
    predicted: Indices
    """`[C]` pixels that count and are predicted this class."""
    code: Indices
    """`[K]` given class times C, plus predicted class, plus 1."""
    area: Indices
    """`[K]` pixels."""
    score: Floats
    """`[K]` sum of the heat over the square root of the area, in nats."""
    probability: Floats
    """`[K]` mean probability of the predicted class."""
    chosen: Table
    """`[M]` rows of `CHOSEN`: regions of the largest scores, largest first, of equal ones the first
    in the image."""
    masks: list[str]
    """The M masks of the whole image as COCO's strings."""
    points: Indices
    """`[P, 4]` column, row, sum of the heat of the 5 by 5 pixels around, region or -1."""
    lines: Lines
    """Outlines of given objects, as `outlines.lines` says them."""


class Find(Protocol):
    """Whatever looks at an image; for any thread."""

    def __call__(self, question: Question, image: Evidence) -> Findings:
        """What the image has."""

    def lines(self, labels: Ints) -> Lines:
        """The outlines of labels `[H, W]` where nothing else is looked for."""


class PlainFind:
    """By numpy."""

    def __call__(self, question: Question, image: Evidence) -> Findings:
        """What the image has."""
        return find(question, image)

    def lines(self, labels: Ints) -> Lines:
        """The outlines of labels `[H, W]`."""
        return lines(labels)


def find(question: Question, image: Evidence) -> Findings:
    """What an image has, by numpy.

    Args:
        question: what is looked for.
        image: its bytes.
    """
    labels, classes = image.labels, question.classes
    size = (labels.shape[0], labels.shape[1])
    heat = question.heat[labels.astype(np.intp), image.levels]  # class -1 is the last row
    disputed = disputed_regions(
        *(labels, image.predicted, image.margin, image.levels, heat),
        margin_steps=question.margin_steps,
        classes=classes,
    )
    numbers = disputed.largest(question.max_regions)
    chosen = choose(disputed, numbers, size)
    objects = components(labels + labels.dtype.type(1))
    given = _Given(labels, objects, outlines(labels, objects))
    counts, first = chosen.run_lengths(size)
    valid = labels >= 0
    return Findings(
        heat=heat,
        histogram=counted(image, classes),
        right=np.bincount(labels[valid & (labels == image.predicted)], minlength=classes),
        predicted=np.bincount(image.predicted[valid], minlength=classes),
        code=disputed.found.code,
        area=disputed.found.area,
        score=disputed.score,
        probability=disputed.probability,
        chosen=_described(given, disputed, chosen, classes),
        masks=compress_several(counts, first) if len(first) else [],
        points=peaks(heat, disputed.found, question.max_points),
        lines=judged_lines(objects, given.outlines),
    )


def counted(image: Evidence, classes: int) -> Counts:
    """The histogram of an image, counted where nobody has done so.

    Args:
        image: its bytes.
        classes: how many there are.
    """
    if image.histogram is not None:
        return image.histogram
    # What does not count is class -1 and lands in a row before the others.
    cells = (image.labels.astype(np.intp) + 1) * LEVELS + image.levels
    counts = np.bincount(cells.reshape(-1), minlength=(classes + 1) * LEVELS)
    return counts.reshape(classes + 1, LEVELS)[1:]


def heat_rows(heat: Heat, classes: int) -> Heat:
    """A question's table: a row of each class, and a cold one of pixels that do not count.

    Args:
        heat: `[C, 256]`, or `[1, 256]` for all classes alike.
        classes: how many there are.
    """
    rows = np.broadcast_to(heat, (classes, LEVELS))
    return np.concatenate((rows, np.zeros((1, LEVELS), heat.dtype)))


_STEPS: Final = ((-1, 0), (0, -1), (0, 1), (1, 0))


@dataclass(frozen=True)
class _Given:
    """What annotators drew."""

    labels: Ints
    objects: Components
    outlines: Outlines


def _described(given: _Given, disputed: Disputed, chosen: Chosen, classes: int) -> Table:
    labels, objects = given.labels, given.objects
    count = len(chosen.numbers)
    table = np.zeros(count, CHOSEN)
    if not count:
        return table
    first = chosen.first
    table["region"] = chosen.numbers
    for name, values in zip(("left", "top", "width", "height"), chosen.boxes(), strict=True):
        table[name] = values
    table["row_sum"] = np.add.reduceat(chosen.row, first)
    table["column_sum"] = np.add.reduceat(chosen.column, first)
    own = objects.of(chosen.row[first] * labels.shape[1] + chosen.column[first])
    index, places = _edges(labels, disputed, chosen)
    beside, other = labels.reshape(-1)[places], objects.of(places)
    predicted = (disputed.found.code[chosen.numbers] - 1) % classes
    at_predicted = beside == predicted[index]
    touched = _most_frequent(index[at_predicted], other[at_predicted], count)
    table["edges"] = np.bincount(index, minlength=count)
    table["edges_at_predicted"] = np.bincount(index[at_predicted], minlength=count)
    table["edges_at_others"] = np.bincount(index[other != own[index]], minlength=count)
    table["own"], table["own_area"] = own, objects.area[own]
    table["touched"], table["touched_area"] = touched, objects.area[touched]
    along = np.where(objects.area[own] < objects.area[touched], own, touched)
    rows, columns = _sums(objects)
    codes = np.zeros(labels.shape, np.int32)
    codes.reshape(-1)[disputed.places] = disputed.found.code[disputed.region]
    own_lines = outlines(codes - np.int32(1), disputed.found)
    table["region_places"] = own_lines.places[chosen.numbers]
    table["region_chords"] = own_lines.chords[chosen.numbers]
    for name, values in (
        ("along_row_sum", rows),
        ("along_column_sum", columns),
        ("along_area", objects.area),
        ("places", given.outlines.places),
        ("chords", given.outlines.chords),
    ):
        table[name] = values[along]
    return table


def _edges(labels: Ints, disputed: Disputed, chosen: Chosen) -> tuple[Indices, Indices]:
    """Which chosen region, and which pixel beside it, for each side of its pixels' edges."""
    height, width = labels.shape
    flat = labels.reshape(-1)
    regions = np.full(flat.shape, -1, np.int32)
    regions[disputed.places] = disputed.region
    index = chosen.index
    own = chosen.numbers[index]
    found: list[tuple[Indices, Indices]] = []
    for down, right in _STEPS:
        row, column = chosen.row + down, chosen.column + right
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        places = (row * width + column)[inside]
        beyond = (regions[places] != own[inside]) & (flat[places] >= 0)
        found.append((index[inside][beyond], places[beyond]))
    which, places = (np.concatenate(each) for each in zip(*found, strict=True))
    return which, places


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


def _sums(objects: Components) -> tuple[Indices, Indices]:
    """Sum of the rows of each object's pixels, and twice that of their columns."""
    length, count = objects.length, len(objects.code)
    rows, columns = objects.row * length, (objects.start + objects.end - 1) * length
    row_sum, column_sum = (
        np.bincount(objects.component, weights=axis, minlength=count).astype(np.intp)
        for axis in (rows, columns)
    )
    return row_sum, column_sum
