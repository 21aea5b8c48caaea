"""What is said of images: from their bytes and, where it is known, from their data set."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from lossd.qa.kinds import region_kinds
from lossd.qa.levels import Counts, Table, class_tails, worst_mean
from lossd.qa.points import Heat, heat_table, peaks
from lossd.qa.regions import Bytes, Disputed, Ints, Stack, choose, disputed_regions
from lossd.qa.runs import Indices
from lossd.qa.suspicion import Centres, suspicions
from lossd_client.qa_wire import (
    LEVELS,
    ErrorKind,
    ObservedScores,
    ScoreRequest,
    SubScores,
)

Document = dict[str, Any]

_STACK_PIXELS = 1 << 20
"""Images are looked at together up to so many pixels: more would only take more memory."""

_MEANINGS: dict[ErrorKind, str] = {
    "missing": "an object of its own that is not annotated",
    "extra": "an annotated object where there seems to be none",
    "swapped": "an object annotated as another class",
    "shifted": "an outline off to one side",
    "dilated": "an outline too far out",
    "eroded": "an outline too far in",
    "coarse": "an outline with too few corners",
}


@dataclass(frozen=True)
class Backdrop:
    """What is known of the data set that images are judged in."""

    tails: Table
    """`[C, 256]` class-tails in nats."""
    centres: Centres | None
    """None where the sub-scores of the images are not known yet."""

    @classmethod
    def of(cls, histogram: Counts, centres: Centres | None) -> Backdrop:
        """Of a data set's histogram, `[C, 256]`, and its centres."""
        return cls(class_tails(histogram), centres)


@dataclass(frozen=True)
class Evidence:
    """One image after the first look, `[H, W]` each."""

    labels: Ints
    """Given classes, -1 where a pixel does not count."""
    levels: Bytes
    predicted: Ints
    """A class everywhere, also where a pixel does not count."""
    margin: Bytes
    histogram: Counts
    """`[C, 256]`."""
    scores: ObservedScores


@dataclass(frozen=True)
class Judgement:
    """What is said of one image."""

    document: Document
    """The fields of `qa_wire.ImageScores` that were asked for. A model would take longer to make
    than what it says."""
    heat: Heat | None
    """`[H, W]` uint16 in 1/64 of a nat; None where nobody asked."""


class Judge:
    """Judges images by one request and one data set; for any thread.

    Args:
        asked: what the request says.
        classes: how many there are.
        backdrop: the data set; None without a context.
    """

    def __init__(self, asked: ScoreRequest, classes: int, backdrop: Backdrop | None) -> None:
        self._asked = asked
        self._classes = classes
        self._backdrop = backdrop
        heat = heat_table(None if backdrop is None else backdrop.tails)
        heat = np.broadcast_to(heat, (classes, LEVELS))
        # Pixels that do not count are class -1, the last row, and cold.
        self._heat = np.concatenate((heat, np.zeros((1, LEVELS), heat.dtype))).reshape(-1)

    def judge(self, images: Sequence[Evidence]) -> Iterator[Judgement]:
        """What is said of each image, in order.

        Args:
            images: of any sizes; what is said of one does not depend on the others.
        """
        if self._asked.detail == "scores" and "heat" not in self._asked.arrays:
            for image in images:
                yield Judgement(self._scores(image), None)
            return
        for _, alike in groupby(images, key=lambda image: image.labels.shape):
            waiting = list(alike)
            together = max(1, _STACK_PIXELS // waiting[0].labels.size)
            for first in range(0, len(waiting), together):
                yield from self._judge_alike(waiting[first : first + together])

    def _judge_alike(self, images: Sequence[Evidence]) -> Iterator[Judgement]:
        stack = self._stacked(images)
        heats = stack.heat[:, :-1]
        details: Sequence[Document] = [{}] * len(images)
        if self._asked.detail == "full":
            details = self._details(stack, images)
        for image, heat, more in zip(images, heats, details, strict=True):
            yield Judgement(
                {**self._scores(image), **more}, heat if "heat" in self._asked.arrays else None
            )

    def _scores(self, image: Evidence) -> Document:
        sub_scores = self._sub_scores(image)
        return {
            "height": image.labels.shape[0],
            "width": image.labels.shape[1],
            "pixels": int(image.histogram.sum()),
            "scores": image.scores.model_dump(),
            "sub_scores": None if sub_scores is None else sub_scores.model_dump(),
            "suspicion": self._suspicion(sub_scores),
        }

    def _sub_scores(self, image: Evidence) -> SubScores | None:
        if self._backdrop is None:
            return None
        return SubScores(
            worst_loss=image.scores.worst_loss,
            class_tail=worst_mean(self._backdrop.tails, image.histogram),
            boundary_loss=image.scores.boundary_loss,
        )

    def _suspicion(self, sub_scores: SubScores | None) -> float | None:
        if sub_scores is None or self._backdrop is None or self._backdrop.centres is None:
            return None
        beside = sub_scores.boundary_loss
        row = [sub_scores.worst_loss, sub_scores.class_tail, math.nan if beside is None else beside]
        return float(suspicions(np.array([row]), self._backdrop.centres)[0])

    # -- images of one size, together ------------------------------------------------------------

    def _stacked(self, images: Sequence[Evidence]) -> Stack:
        first = images[0]
        height, width = first.labels.shape

        def stacked(name: str, filling: int) -> Any:
            array = getattr(first, name)
            rows = np.full((len(images), height + 1, width), filling, array.dtype)
            for row, image in zip(rows, images, strict=True):
                row[:-1] = getattr(image, name)
            return rows

        labels, levels = stacked("labels", -1), stacked("levels", 0)
        cells = labels.astype(np.intp)
        cells *= LEVELS
        cells += levels
        return Stack(
            labels=labels,
            levels=levels,
            predicted=stacked("predicted", 0),
            margin=stacked("margin", 0),
            heat=self._heat[cells],
        )

    def _details(self, stack: Stack, images: Sequence[Evidence]) -> list[Document]:
        asked, count = self._asked, len(images)
        wrong = np.flatnonzero(stack.labels != stack.predicted)
        disputed = disputed_regions(stack, wrong, asked.disputed_margin, self._classes)
        numbers = disputed.largest(asked.max_regions, stack.pitch)
        regions = self._regions(stack, disputed, numbers)
        points = self._points(stack, disputed, numbers)
        classes = self._per_class(stack, images, wrong, disputed)
        pixels = np.bincount(disputed.places // (stack.pitch * stack.size[1]), minlength=count)
        found = np.bincount(disputed.found.top // stack.pitch, minlength=count)
        details = []
        for index in range(count):
            kind, reason = _verdict(regions[index])
            details.append(
                {
                    "disputed_pixels": int(pixels[index]),
                    "kind": kind,
                    "reason": reason,
                    "points": points[index],
                    "regions": regions[index],
                    "regions_found": int(found[index]),
                    "per_class": classes[index],
                }
            )
        return details

    def _points(self, stack: Stack, disputed: Disputed, numbers: Indices) -> list[list[Document]]:
        count, width = len(stack.labels), stack.size[1]
        found = peaks(stack.heat[:, :-1], self._asked.max_points)
        places = [
            (image * stack.pitch + one.y) * width + one.x
            for image, own in enumerate(found)
            for one in own
        ]
        regions = iter(disputed.found.of(np.array(places, np.intp)).tolist())
        image_of = (disputed.found.top[numbers] // stack.pitch).tolist()
        answered: list[dict[int, int]] = [{} for _ in range(count)]
        for number, image in zip(numbers.tolist(), image_of, strict=True):
            answered[image][number] = len(answered[image])
        return [
            [
                {
                    "x": one.x,
                    "y": one.y,
                    "score": one.heat,
                    "region": answered[image].get(next(regions)),
                }
                for one in own
            ]
            for image, own in enumerate(found)
        ]

    def _regions(self, stack: Stack, disputed: Disputed, numbers: Indices) -> list[list[Document]]:
        regions: list[list[Document]] = [[] for _ in stack.labels]
        if not len(numbers):
            return regions
        chosen = choose(disputed, numbers, stack)
        columns = (
            chosen.image.tolist(),
            region_kinds(stack, disputed, chosen),
            chosen.boxes(),
            chosen.rles(stack.size),
            chosen.area.tolist(),
            disputed.given[numbers].tolist(),
            disputed.predicted[numbers].tolist(),
            disputed.probability[numbers].tolist(),
            disputed.score[numbers].tolist(),
        )
        for image, kind, bbox, counts, area, given, predicted, probability, score in zip(
            *columns, strict=True
        ):
            regions[image].append(
                {
                    "bbox": bbox,
                    "area": area,
                    "given": given,
                    "given_name": self._name(given),
                    "predicted": predicted,
                    "predicted_name": self._name(predicted),
                    "probability": probability,
                    "score": score,
                    "kind": kind,
                    "reason": f"labelled {self._called(given)}, predicted "
                    f"{self._called(predicted)}, p = {probability:.2f} over {area} px: "
                    f"{_MEANINGS[kind]}",
                    "rle": {"size": stack.size, "counts": counts},
                }
            )
        return regions

    def _per_class(
        self, stack: Stack, images: Sequence[Evidence], wrong: Indices, disputed: Disputed
    ) -> list[list[Document]]:
        every = np.stack([self._count(image.predicted.reshape(-1)) for image in images])
        # Few pixels are wrong or do not count: those that are right need not be looked at.
        rows = wrong // stack.size[1]
        is_image = rows % stack.pitch < stack.size[0]
        labels, predicted = (
            array.reshape(-1)[wrong[is_image]] for array in (stack.labels, stack.predicted)
        )
        cells = rows[is_image] // stack.pitch * self._classes + predicted
        both = every - self._count_cells(cells, len(images))
        predicted = every - self._count_cells(cells[labels < 0], len(images))
        swaps = self._swaps(stack, disputed)
        return [
            [
                self._class(index, given[index], mine[index], right[index], swaps[image])
                for index in np.flatnonzero(given + mine).tolist()
            ]
            for image, (given, mine, right) in enumerate(
                zip((one.histogram.sum(1) for one in images), predicted, both, strict=True)
            )
        ]

    def _count(self, labels: Ints) -> Indices:
        return np.bincount(labels, minlength=self._classes)

    def _count_cells(self, cells: Indices, images: int) -> Indices:
        counts = np.bincount(cells, minlength=images * self._classes)
        return counts.reshape(images, self._classes)

    def _swaps(self, stack: Stack, disputed: Disputed) -> list[dict[int, dict[int, int]]]:
        """Disputed pixels of each image by given and predicted class."""
        swaps: list[dict[int, dict[int, int]]] = [
            defaultdict(lambda: defaultdict(int)) for _ in stack.labels
        ]
        for image, ours, theirs, area in zip(
            (disputed.found.top // stack.pitch).tolist(),
            disputed.given.tolist(),
            disputed.predicted.tolist(),
            disputed.found.area.tolist(),
            strict=True,
        ):
            swaps[image][ours][theirs] += area
        return swaps

    def _class(
        self, index: int, given: int, predicted: int, both: int, swaps: dict[int, dict[int, int]]
    ) -> Document:
        given, predicted, both = int(given), int(predicted), int(both)
        taken_for = swaps.get(index, {})
        disputed = sum(taken_for.values())
        swap: Document | None = None
        if taken_for:
            most = max(taken_for, key=lambda other: (taken_for[other], -other))
            swap = {
                "predicted": most,
                "predicted_name": self._name(most),
                "pixels": taken_for[most],
            }
        return {
            "index": index,
            "name": self._name(index),
            "pixels": given,
            "predicted_pixels": predicted,
            "dice": 2 * both / (given + predicted),
            "disputed_pixels": disputed,
            "disputed_share": disputed / given if given else 0.0,
            "swap": swap,
        }

    def _name(self, index: int) -> str | None:
        names = self._asked.class_names
        return None if names is None else names[index]

    def _called(self, index: int) -> str:
        return self._name(index) or f"class {index}"


def _verdict(regions: Sequence[Document]) -> tuple[ErrorKind | None, str | None]:
    """Kind whose regions weigh most together, and the reason of the heaviest of them."""
    weight: dict[ErrorKind, float] = defaultdict(float)
    for region in regions:
        weight[region["kind"]] += region["score"]
    if not weight:
        return None, None
    kind = max(weight, key=lambda one: weight[one])
    return kind, next(region["reason"] for region in regions if region["kind"] == kind)
