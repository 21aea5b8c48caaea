"""How suspicious an image is among the images of its data set.

The sub-scores of an image say how large its losses are; only the other images say whether that is
unusual. Each is compared by its median and its median absolute deviation, which a third of bad
annotations do not move much, and they are simply added: weights that were learned on one data set
did worse on another. How straight outlines are tells of one kind of error only, so that most of
what it says is noise: it counts from where it is unusual.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lossd_client.qa_wire import SUB_SCORES

Scores = npt.NDArray[np.float64]

LOWEST_Z, HIGHEST_Z = -4.0, 8.0
"""What a z-score is clipped to, so that one number alone does not decide."""

UNUSUAL_Z = 1.0
"""Up to such a z-score straightness says nothing."""

LEAST_SPREAD = 0.5
"""Of straightness: by so much the largest of some twenty standard scores varies by chance."""

_STRAIGHTNESS = SUB_SCORES.index("straightness")

_OF_NORMAL = 1.4826
"""Standard deviations of a normal distribution in one median absolute deviation."""


@dataclass(frozen=True)
class Centres:
    """Where each sub-score lies over the images of a data set."""

    medians: tuple[float, ...]
    spreads: tuple[float, ...]
    """1.4826 times the median absolute deviation."""
    known: tuple[int, ...]
    """How many images have each."""
    images: int
    """How many there were."""


def centres(sub_scores: Scores) -> Centres:
    """Median and spread of each column; rows in any order give the same.

    Args:
        sub_scores: `[N, K]`, finite, or NaN where an image has none.

    Returns:
        Of each of the K columns; 0 and 0 where no image has one.

    Example:
        >>> centres(np.array([[1.0], [2.0], [5.0]]))
        Centres(medians=(2.0,), spreads=(1.4826,), known=(3,), images=3)
    """
    medians, spreads, counts = [], [], []
    for column in sub_scores.T:
        known = column[~np.isnan(column)]
        median = float(np.median(known)) if known.size else 0.0
        deviation = float(np.median(np.abs(known - median))) if known.size else 0.0
        medians.append(median)
        spreads.append(_OF_NORMAL * deviation)
        counts.append(known.size)
    return Centres(tuple(medians), tuple(spreads), tuple(counts), len(sub_scores))


def suspicions(sub_scores: Scores, among: Centres) -> Scores:
    """Sum of the clipped z-scores of each image.

    `Σ_k clip((x_k - median_k) / spread_k, -4, 8)`, but for straightness, which is the last of four:
    of its clipped `z`, with a spread of at least 0.5, `max(z - 1, 0)` is added. A sub-score that an
    image does not have adds nothing, and neither does one that no image of the data set has, or one
    but straightness that is the same in most of them: a spread of 0 does not tell how far is far.

    Args:
        sub_scores: `[N, K]`, the first K of `SUB_SCORES`, finite, or NaN where an image has none.
        among: of the same K sub-scores.

    Returns:
        `[N]`, in [-12, 31] for all four.

    Example:
        >>> among = Centres(medians=(2.0,), spreads=(0.5,), known=(3,), images=3)
        >>> suspicions(np.array([[2.0], [2.5], [99.0]]), among).tolist()
        [0.0, 1.0, 8.0]
    """
    total = np.zeros(len(sub_scores))
    each = zip(sub_scores.T, among.medians, among.spreads, strict=True)
    for index, (column, median, spread) in enumerate(each):
        if index == _STRAIGHTNESS and among.known[index]:
            z = _clipped(column - median, max(spread, LEAST_SPREAD))
            total += np.maximum(z - UNUSUAL_Z, 0.0)
        elif spread > 0:
            total += _clipped(column - median, spread)
    return total


def _clipped(above: Scores, spread: float) -> Scores:
    return np.where(np.isnan(above), 0.0, np.clip(above / spread, LOWEST_Z, HIGHEST_Z))
