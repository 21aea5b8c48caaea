"""How good a ranking is, and whether points lie on what is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Points = Sequence[tuple[int, int]]

_NEAR_PX = 2
"""How far beside a changed pixel a point may lie and still hit it."""
_POINTS = 5


@dataclass(frozen=True)
class Ranking:
    """Figures of one ranking.

    Attributes:
        auroc: chance that a wrong image is more suspicious than a right one, ties half.
        average_precision: mean of the precision at each wrong image.
        precision_at_k: share of wrong ones among the first k, k the number of wrong images.
    """

    auroc: float
    average_precision: float
    precision_at_k: float


def ranking(wrong: Bools, suspicion: npt.NDArray[np.float64]) -> Ranking:
    """Figures of a ranking, the highest suspicion first, ties in the order given.

    Args:
        wrong: `[N]` which images are wrong; some, but not all.
        suspicion: `[N]`.
    """
    order = np.argsort(-suspicion, kind="stable")
    hits = wrong[order]
    positive, negative = int(wrong.sum()), int((~wrong).sum())
    _, places, counts = np.unique(suspicion, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    auroc = (ranks[wrong].sum() - positive * (positive + 1) / 2) / (positive * negative)
    precision = hits.cumsum() / np.arange(1, hits.size + 1)
    return Ranking(float(auroc), float(precision[hits].mean()), float(hits[:positive].mean()))


def hits(points: Points, changed: Bools) -> list[bool]:
    """Whether each of up to five points lies on a changed pixel, or at most 2 px beside one.

    Args:
        points: columns and rows, the first to be looked at first.
        changed: `[H, W]` pixels that are wrong.
    """
    return [bool(_around(changed, x, y).any()) for x, y in points[:_POINTS]]


def _around(changed: Bools, x: int, y: int) -> Bools:
    rows = slice(max(y - _NEAR_PX, 0), y + _NEAR_PX + 1)
    return changed[rows, max(x - _NEAR_PX, 0) : x + _NEAR_PX + 1]


def shares(found: Iterable[list[bool]]) -> dict[str, float]:
    """Shares of images that the first, the first three and the first five points hit."""
    listed = list(found)
    return {
        f"hit_by_{count}": float(np.mean([any(each[:count]) for each in listed]))
        for count in (1, 3, _POINTS)
    }


def mean_of(figures: Sequence[Any], name: str) -> float:
    """Mean of one attribute."""
    return float(np.mean([getattr(each, name) for each in figures]))
