"""How well the numbers of wrong annotations are estimated, reviewing from the top."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.report import Row
from lossd_client.qa.estimates import Curve, Estimate, excess

_REVIEWED = (10, 20, 40, 60)


@dataclass(frozen=True)
class Ordered:
    """A ranking and the truth.

    Attributes:
        suspicions: the largest first.
        wrong: whether each of these images is wrong.
    """

    suspicions: Sequence[float]
    wrong: Sequence[bool]

    def guessed(self, first: int) -> int:
        """How many of the first images are wrong, before anything is decided."""
        return excess(self.suspicions)[first - 1]

    def were(self, first: int) -> int:
        """How many of them are."""
        return sum(self.wrong[:first])

    def left(self, first: int) -> Estimate:
        """How many of the others are, after the first ones were decided rightly."""
        decided = list(zip(self.suspicions[:first], self.wrong[:first], strict=True))
        return Curve(self.suspicions, decided).wrong_of(self.suspicions[first:])

    def were_left(self, first: int) -> int:
        """How many of the others are wrong."""
        return sum(self.wrong[first:])


def estimate_rows(found: Sequence[Ordered]) -> list[Row]:
    """Means over rankings, and how many of the ranges of 80 % hold the truth."""
    return [_row(found, first) for first in _REVIEWED]


def _row(found: Sequence[Ordered], first: int) -> Row:
    left = [own.left(first) for own in found]
    truth = [own.were_left(first) for own in found]
    held = [own.low <= wrong <= own.high for own, wrong in zip(left, truth, strict=True)]
    return {
        "first": first,
        "guessed_wrong": float(np.mean([own.guessed(first) for own in found])),
        "were_wrong": float(np.mean([own.were(first) for own in found])),
        "left_by_the_curve": float(np.mean([own.count for own in left])),
        "were_left": float(np.mean(truth)),
        "range_low": float(np.mean([own.low for own in left])),
        "range_high": float(np.mean([own.high for own in left])),
        "rankings": len(found),
        "ranges_that_held": sum(held),
    }
