"""What is said of images: from their bytes and, where it is known, from their data set."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import orjson

from lossd.qa.findings import (
    Evidence,
    Find,
    Findings,
    PlainFind,
    Question,
    counted,
    heat_rows,
)
from lossd.qa.kinds import region_kinds
from lossd.qa.levels import Counts, Table, class_tails, worst_mean
from lossd.qa.outlines import Lines, Straightest, Straightness, line_sums
from lossd.qa.points import BOX_PIXELS, HEAT_PER_NAT, Heat, heat_table
from lossd.qa.runs import Indices
from lossd.qa.suspicion import Centres, suspicions
from lossd.qa.wording import Words
from lossd_client.qa_wire import MARGIN_STEPS, SUB_SCORES, ScoreRequest, SubScores

Document = dict[str, Any]

_LOT_PIXELS = 1 << 20


@dataclass(frozen=True)
class Backdrop:
    """What is known of the data set that images are judged in."""

    tails: Table
    """`[C, 256]` class-tails in nats."""
    straightness: Straightness | None
    """None where nobody has said how straight outlines are."""
    centres: Centres | None
    """None where the sub-scores of the images are not known yet."""

    @classmethod
    def of(cls, histogram: Counts, outlines: Counts | None, centres: Centres | None) -> Backdrop:
        """Of a data set's histogram, `[C, 256]`, its outlines, `[C, 8, 4]`, and its centres."""
        straightness = None if outlines is None else Straightness(outlines)
        return cls(class_tails(histogram), straightness, centres)


@dataclass(frozen=True)
class Judgement:
    """What is said of one image."""

    document: Document
    """The fields of `qa_wire.ImageScores` that were asked for, the regions as an
    `orjson.Fragment`. A model would take longer to make than what it says."""
    histogram: Counts
    """`[C, 256]`."""
    outlines: Counts | None
    """`[C, 8, 4]`; None where nobody asked."""
    heat: Heat | None
    """`[H, W]` uint16 in 1/64 of a nat; None where nobody asked."""


class Judge:
    """Judges images by one request and one data set; for any thread.

    Args:
        asked: what the request says.
        classes: how many there are.
        backdrop: the data set; None without a context.
        find: what looks at the images; numpy if None.
    """

    def __init__(
        self,
        asked: ScoreRequest,
        classes: int,
        backdrop: Backdrop | None,
        find: Find | None = None,
    ) -> None:
        self._asked = asked
        self._classes = classes
        self._backdrop = backdrop
        self._find = PlainFind() if find is None else find
        self._words = Words(asked.class_names)
        is_full = asked.detail == "full"
        table = heat_table(None if backdrop is None else backdrop.tails)
        self._question = Question(
            heat=heat_rows(table, classes),
            classes=classes,
            margin_steps=math.floor(asked.disputed_margin * MARGIN_STEPS),
            max_points=asked.max_points if is_full else 0,
            max_regions=asked.max_regions if is_full else 0,
        )

    def judge(self, images: Sequence[Evidence]) -> Iterator[Judgement]:
        """What is said of each image, in order.

        Args:
            images: of any sizes; what is said of one does not depend on the others.
        """
        for lot in _lots(images):
            yield from self._judge_lot(lot)

    def _judge_lot(self, images: Sequence[Evidence]) -> Iterator[Judgement]:
        asks_heat = "heat" in self._asked.arrays
        if self._asked.detail == "scores" and not asks_heat:
            for image in images:
                lines = self._find.lines(image.labels) if self._needs_lines() else None
                yield self._judgement(image, counted(image, self._classes), lines, {}, None)
            return
        found = [self._find(self._question, image) for image in images]
        details: Iterable[Document] = [{}] * len(images)
        if self._asked.detail == "full":
            details = self._details(found)
        for image, own, more in zip(images, found, details, strict=True):
            heat = own.heat if asks_heat else None
            yield self._judgement(image, own.histogram, own.lines, more, heat)

    def _needs_lines(self) -> bool:
        is_compared = self._backdrop is not None and self._backdrop.straightness is not None
        return is_compared or "outlines" in self._asked.arrays

    def _judgement(
        self,
        image: Evidence,
        histogram: Counts,
        lines: Lines | None,
        details: Document,
        heat: Heat | None,
    ) -> Judgement:
        sums = None
        if lines is not None and "outlines" in self._asked.arrays:
            sums = line_sums(lines, self._classes)
        straightest = self._straightest(lines)
        document = {**self._scores(image, histogram, straightest), **details}
        if details and straightest is not None:
            document["reason"] = self._words.with_outline(document["reason"], straightest)
        return Judgement(document, histogram, sums, heat)

    def _straightest(self, lines: Lines | None) -> Straightest | None:
        if lines is None or self._backdrop is None or self._backdrop.straightness is None:
            return None
        return self._backdrop.straightness.of(lines)

    def _scores(
        self, image: Evidence, histogram: Counts, straightest: Straightest | None
    ) -> Document:
        sub_scores = self._sub_scores(image, histogram, straightest)
        return {
            "height": image.labels.shape[0],
            "width": image.labels.shape[1],
            "pixels": int(histogram.sum()),
            "scores": image.scores.model_dump(),
            "sub_scores": None if sub_scores is None else sub_scores.model_dump(),
            "suspicion": self._suspicion(sub_scores),
        }

    def _sub_scores(
        self, image: Evidence, histogram: Counts, straightest: Straightest | None
    ) -> SubScores | None:
        if self._backdrop is None:
            return None
        return SubScores(
            worst_loss=image.scores.worst_loss,
            class_tail=worst_mean(self._backdrop.tails, histogram),
            boundary_loss=image.scores.boundary_loss,
            straightness=None if straightest is None else straightest.deviations,
        )

    def _suspicion(self, sub_scores: SubScores | None) -> float | None:
        if sub_scores is None or self._backdrop is None or self._backdrop.centres is None:
            return None
        values = (getattr(sub_scores, name) for name in SUB_SCORES)
        row = [math.nan if value is None else value for value in values]
        return float(suspicions(np.array([row]), self._backdrop.centres)[0])

    def _details(self, found: Sequence[Findings]) -> Iterator[Document]:
        kinds = iter(region_kinds([(own.chosen, own.area) for own in found]))
        for own in found:
            given, predicted = np.divmod(own.code - 1, self._classes)
            mine = list(islice(kinds, len(own.chosen)))
            told = self._words.tell(own, given, predicted, mine)
            swaps = self._swaps(own, given, predicted)
            columns = zip(
                *(own.right.tolist(), own.predicted.tolist(), own.histogram.sum(1).tolist()),
                strict=True,
            )
            yield {
                "disputed_pixels": int(own.area.sum()),
                "kind": mine[0] if mine else None,
                "reason": told.reason,
                "points": _points(own),
                "regions": orjson.Fragment(told.regions),
                "regions_found": len(own.code),
                "per_class": [
                    self._class(index, ours, theirs, right, swaps[index])
                    for index, (right, theirs, ours) in enumerate(columns)
                    if ours + theirs
                ],
            }

    def _swaps(
        self, found: Findings, given: Indices, predicted: Indices
    ) -> dict[int, dict[int, int]]:
        """Disputed pixels by given and predicted class."""
        swaps: dict[int, dict[int, int]] = defaultdict(lambda: defaultdict(int))
        for ours, theirs, area in zip(
            given.tolist(), predicted.tolist(), found.area.tolist(), strict=True
        ):
            swaps[ours][theirs] += area
        return swaps

    def _class(
        self, index: int, given: int, predicted: int, both: int, taken_for: dict[int, int]
    ) -> Document:
        disputed = sum(taken_for.values())
        swap: Document | None = None
        if taken_for:
            most = max(taken_for, key=lambda other: (taken_for[other], -other))
            swap = {
                "predicted": most,
                "predicted_name": self._words.name(most),
                "pixels": taken_for[most],
            }
        return {
            "index": index,
            "name": self._words.name(index),
            "pixels": given,
            "predicted_pixels": predicted,
            "dice": 2 * both / (given + predicted),
            "disputed_pixels": disputed,
            "disputed_share": disputed / given if given else 0.0,
            "swap": swap,
        }


def _lots(images: Sequence[Evidence]) -> Iterator[Sequence[Evidence]]:
    """Neighbours that are looked at together: more would only take more memory."""
    first = pixels = 0
    for index, image in enumerate(images):
        if index > first and pixels + image.labels.size > _LOT_PIXELS:
            yield images[first:index]
            first, pixels = index, 0
        pixels += image.labels.size
    if first < len(images):
        yield images[first:]


def _points(found: Findings) -> list[Document]:
    answered = {region: index for index, region in enumerate(found.chosen["region"].tolist())}
    return [
        {
            "x": x,
            "y": y,
            "score": total / (BOX_PIXELS * HEAT_PER_NAT),
            "region": answered.get(region),
        }
        for x, y, total, region in found.points.tolist()
    ]
