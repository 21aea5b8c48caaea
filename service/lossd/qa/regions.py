"""Disputed regions of an image: what the model is sure of and the annotator saw otherwise.

A pixel is disputed where the predicted class is not the given one and its probability leads by more
than a margin. A region is disputed pixels that touch, also by corners, and share both classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lossd.qa.levels import level_losses
from lossd.qa.points import HEAT_PER_NAT, Heat
from lossd.qa.runs import Components, Indices, components
from lossd_client.coco_rle import compress_several
from lossd_client.qa_wire import MARGIN_STEPS

Ints = npt.NDArray[np.integer]
Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

_TWO_BYTE_CODES = 65535


@dataclass(frozen=True)
class Stack:
    """N images of one size as the judge sees them, one below the other, all `[N, H + 1, W]`.

    Below every image lies a row that does not count, so that nothing reaches from one into the next
    and all can be looked at in one go.
    """

    labels: Ints
    """Given classes, -1 where a pixel does not count."""
    levels: Bytes
    predicted: Ints
    margin: Bytes
    heat: Heat
    """In 1/64 of a nat, 0 where a pixel does not count."""

    @property
    def pitch(self) -> int:
        """Rows from an image to the next."""
        return int(self.labels.shape[1])

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of each image."""
        return self.labels.shape[1] - 1, self.labels.shape[2]

    @property
    def tall(self) -> Ints:
        """The labels of all, `[N · (H + 1), W]`."""
        return self.labels.reshape(-1, self.labels.shape[2])


@dataclass(frozen=True)
class Disputed:
    """The disputed regions of a stack, K of them in reading order, N pixels together."""

    found: Components
    places: Indices
    """`[N]` disputed pixels in reading order: row · width + column."""
    region: Indices
    """`[N]` region of each."""
    given: Indices
    """`[K]` class of the annotation."""
    predicted: Indices
    """`[K]` class of the prediction."""
    probability: Floats
    """`[K]` mean probability of the predicted class."""
    score: Floats
    """`[K]` sum of the heat over the square root of the area, in nats."""

    def largest(self, most: int, pitch: int) -> Indices:
        """Regions of the largest scores of each image, by image, largest first.

        Of equal ones the first in the image goes first.

        Args:
            most: of each image.
            pitch: rows from an image to the next.
        """
        image = self.found.top // pitch
        order = np.lexsort((-self.score, image))
        image = image[order]
        place = np.arange(len(order)) - np.searchsorted(image, image)
        return order[place < most]


@dataclass(frozen=True)
class Chosen:
    """Some regions of a stack, M of them with N pixels together, by region, column, row."""

    numbers: Indices
    """`[M]` regions of the stack."""
    image: Indices
    """`[M]` which image each lies in."""
    first: Indices
    """`[M]` where the pixels of each begin."""
    row: Indices
    """`[N]` row in the image."""
    column: Indices
    """`[N]` column in the image."""

    @property
    def area(self) -> Indices:
        """`[M]` pixels of each."""
        return np.diff(self.first, append=len(self.row))

    @property
    def index(self) -> Indices:
        """`[N]` which of the chosen each pixel belongs to."""
        return np.repeat(np.arange(len(self.numbers)), self.area)

    def boxes(self) -> list[tuple[int, int, int, int]]:
        """First column and row, width, height of each."""
        last = self.first + self.area - 1
        left, right = self.column[self.first], self.column[last]
        top = np.minimum.reduceat(self.row, self.first)
        bottom = np.maximum.reduceat(self.row, self.first)
        sides = (left, top, right - left + 1, bottom - top + 1)
        return list(zip(*(side.tolist() for side in sides), strict=True))

    def centres(self) -> Floats:
        """Mean row and column of each, `[M, 2]`."""
        sums = [np.add.reduceat(axis, self.first) for axis in (self.row, self.column)]
        return np.stack(sums, axis=1) / self.area[:, None]

    def rles(self, size: tuple[int, int]) -> list[str]:
        """COCO's compressed code of each as a mask of the whole image."""
        height, pixels = size[0], math.prod(size)
        places = self.column * height + self.row
        ends_run = np.flatnonzero(np.diff(places) != 1) + 1
        starts = np.unique(np.concatenate((ends_run, self.first)))
        ends = np.append(starts[1:], len(places)) - 1
        # Where a mask begins, counting begins anew: from 0, after the rest of the one before.
        mask = np.searchsorted(self.first, starts, side="right") - 1
        begins = np.flatnonzero(np.diff(mask, prepend=-1))
        edges = np.stack((places[starts], places[ends] + 1), axis=1).reshape(-1)
        edges = np.insert(edges, 2 * begins, 0)
        bounds = 2 * begins + np.arange(len(begins))
        edges = np.insert(edges, np.append(bounds[1:], len(edges)), pixels)
        bounds += np.arange(len(begins))
        counts = np.delete(np.diff(edges), bounds[1:] - 1)
        first = bounds - np.arange(len(begins))
        last = np.append(first[1:], len(counts)) - 1
        empty = last[counts[last] == 0]  # a mask that ends inside has no count behind
        first = first - np.searchsorted(empty, first)
        return compress_several(np.delete(counts, empty), first)


def disputed_regions(
    stack: Stack, wrong: Indices, disputed_margin: float, classes: int
) -> Disputed:
    """The disputed regions of a stack.

    Args:
        stack: its bytes.
        wrong: where given and predicted class differ, in reading order; pixels that do not count
            may be among them.
        disputed_margin: by how much the predicted class leads at least, in [0, 1]; margins are
            known in steps of 1/255.
        classes: how many there are.
    """
    given = stack.labels.reshape(-1)[wrong]
    is_sure = (stack.margin.reshape(-1)[wrong] > disputed_margin * MARGIN_STEPS) & (given >= 0)
    places = wrong[is_sure]
    given = given[is_sure].astype(np.intp)
    codes = np.zeros(stack.tall.shape, np.uint16 if classes**2 <= _TWO_BYTE_CODES else np.int32)
    codes.reshape(-1)[places] = given * classes + stack.predicted.reshape(-1)[places] + 1
    found = components(codes)
    region = np.repeat(found.component, found.length)
    count = len(found.code)

    def sums(values: Floats) -> Floats:
        # Pixels come in reading order, and so the sums are made.
        return np.bincount(region, weights=values, minlength=count).astype(np.float64)

    of_given = np.exp(-level_losses())[stack.levels.reshape(-1)[places]]
    probability = np.minimum(stack.margin.reshape(-1)[places] / MARGIN_STEPS + of_given, 1.0)
    heat = sums(stack.heat.reshape(-1)[places] / HEAT_PER_NAT)
    return Disputed(
        found=found,
        places=places,
        region=region,
        given=(found.code - 1) // classes,
        predicted=(found.code - 1) % classes,
        probability=sums(probability) / found.area,
        score=heat / np.sqrt(found.area),
    )


def choose(disputed: Disputed, numbers: Indices, stack: Stack) -> Chosen:
    """Some regions of a stack with their pixels.

    Args:
        disputed: all of them.
        numbers: which; at least one.
        stack: where they lie.
    """
    height, width = stack.tall.shape
    rank = np.full(len(disputed.score), -1)
    rank[numbers] = np.arange(len(numbers))
    index = rank[disputed.region]
    is_chosen = index >= 0
    row, column = np.divmod(disputed.places[is_chosen], width)
    # One number for region, column and row: sorting it sorts by them in turn.
    keys = np.sort((index[is_chosen] * width + column) * height + row)
    rest, row = np.divmod(keys, height)
    index, column = np.divmod(rest, width)
    first = np.searchsorted(index, np.arange(len(numbers)))
    return Chosen(numbers, row[first] // stack.pitch, first, row % stack.pitch, column)
