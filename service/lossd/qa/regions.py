"""Disputed regions of an image: what the model is sure of and the annotator saw otherwise.

A pixel is disputed where the predicted class is not the given one and its probability leads by more
than a margin. A region is disputed pixels that touch, also by corners, and share both classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lossd.qa.levels import given_probabilities
from lossd.qa.points import HEAT_PER_NAT, Heat
from lossd.qa.runs import Components, Indices, components
from lossd_client.qa_wire import MARGIN_STEPS

Ints = npt.NDArray[np.integer]
Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Disputed:
    """The disputed regions of an image, K of them in reading order, N pixels together."""

    found: Components
    places: Indices
    """`[N]` disputed pixels in reading order: row · width + column."""
    region: Indices
    """`[N]` region of each."""
    probability: Floats
    """`[K]` mean probability of the predicted class."""
    score: Floats
    """`[K]` sum of the heat over the square root of the area, in nats."""

    def largest(self, most: int) -> Indices:
        """Regions of the largest scores, largest first; of equal ones the first in the image.

        Args:
            most: how many.
        """
        return np.argsort(-self.score, kind="stable")[:most]


@dataclass(frozen=True)
class Chosen:
    """Some regions of an image, M of them with N pixels together, by region, column, row."""

    numbers: Indices
    """`[M]` regions of the image."""
    first: Indices
    """`[M]` where the pixels of each begin."""
    row: Indices
    """`[N]`."""
    column: Indices
    """`[N]`."""

    @property
    def area(self) -> Indices:
        """`[M]` pixels of each."""
        return np.diff(self.first, append=len(self.row))

    @property
    def index(self) -> Indices:
        """`[N]` which of the chosen each pixel belongs to."""
        return np.repeat(np.arange(len(self.numbers)), self.area)

    def boxes(self) -> tuple[Indices, Indices, Indices, Indices]:
        """First column and row, width, height of each, `[M]`; there is at least one."""
        left, right = self.column[self.first], self.column[self.first + self.area - 1]
        top = np.minimum.reduceat(self.row, self.first)
        bottom = np.maximum.reduceat(self.row, self.first)
        return left, top, right - left + 1, bottom - top + 1

    def run_lengths(self, size: tuple[int, int]) -> tuple[Indices, Indices]:
        """COCO's counts of each as a mask of the whole image, and where those of each begin."""
        if not len(self.numbers):
            return np.zeros(0, np.intp), np.zeros(0, np.intp)
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
        return np.delete(counts, empty), first - np.searchsorted(empty, first)


def disputed_regions(
    labels: Ints,
    predicted: Ints,
    margin: Bytes,
    levels: Bytes,
    heat: Heat,
    *,
    margin_steps: int,
    classes: int,
) -> Disputed:
    """The disputed regions of an image.

    Args:
        labels: given classes, -1 where a pixel does not count, `[H, W]` as all of these.
        predicted: predicted classes.
        margin: by how much they lead, in steps of 1/255.
        levels: losses in sixteenths of a nat.
        heat: in 1/64 of a nat.
        margin_steps: a pixel is disputed where the margin is above.
        classes: how many there are.
    """
    is_disputed = (labels >= 0) & (labels != predicted) & (margin > margin_steps)
    places = np.flatnonzero(is_disputed)
    codes = np.zeros(labels.shape, np.int32)
    flat = codes.reshape(-1)
    flat[places] = labels.reshape(-1)[places]
    flat[places] = flat[places] * classes + predicted.reshape(-1)[places] + 1
    found = components(codes)
    region = np.repeat(found.component, found.length)

    def sums(values: Floats) -> Floats:
        # Pixels come in reading order, and so the sums are made.
        counted = np.bincount(region, weights=values, minlength=len(found.code))
        return counted.astype(np.float64)

    of_given = given_probabilities()[levels.reshape(-1)[places]]
    probability = np.minimum(margin.reshape(-1)[places] / MARGIN_STEPS + of_given, 1.0)
    return Disputed(
        found=found,
        places=places,
        region=region,
        probability=sums(probability) / found.area,
        score=sums(heat.reshape(-1)[places] / HEAT_PER_NAT) / np.sqrt(found.area),
    )


def choose(disputed: Disputed, numbers: Indices, size: tuple[int, int]) -> Chosen:
    """Some regions of an image with their pixels.

    Args:
        disputed: all of them.
        numbers: which.
        size: height and width of the image.
    """
    height, width = size
    rank = np.full(len(disputed.score), -1)
    rank[numbers] = np.arange(len(numbers))
    index = rank[disputed.region]
    is_chosen = index >= 0
    row, column = np.divmod(disputed.places[is_chosen], width)
    # One number for region, column and row: sorting it sorts by them in turn.
    keys = np.sort((index[is_chosen] * width + column) * height + row)
    rest, row = np.divmod(keys, height)
    index, column = np.divmod(rest, width)
    return Chosen(numbers, np.searchsorted(index, np.arange(len(numbers))), row, column)
