"""How many annotations are wrong, as far as suspicions and decisions tell.

Two estimates, neither of which knows the truth.

Before enough is decided, the **excess**: were all annotations right, suspicions would lie about
their median as often far above it as far below. So many more images lie above `s` than below
`2 · median - s`, and that many at least should be wrong:

    excess(N) = max over n <= N of  n - #{x <= 2 · median - s_n},   s_n the n-th largest

Afterwards a **logistic** curve through the decisions, `p(x) = 1 / (1 + exp(-(a + b·z)))` with
`z = (x - median) / (1.4826 · MAD)`, at the largest posterior under `a ~ N(0, 2²)`, `b ~ N(1, 1)`.
An image that is not decided counts as `p`. The range is that of 80 %: the variance is that of the
sum of coins, and of `a` and `b` (Laplace).

How well they do on sets with known errors is in `docs/qa.md`; `python -m benchmarks.qa` measures
it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MIN_DECIDED = 10
"""Decided images, ambiguous ones aside, that a curve is drawn through."""

_INTERCEPT_SPREAD = 2.0
_SLOPE, _SLOPE_SPREAD = 1.0, 1.0
_STEPS = 50
_STEEP = 40.0
"""Beyond so many spreads, and so large a log-odds, nothing changes."""
_MAD_TO_SPREAD = 1.4826
_Z_80 = 1.2816
"""Half the width of a range of 80 %, in standard deviations."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A number of wrong annotations.

    Attributes:
        count: what is expected.
        low: lower end of the range of 80 %.
        high: its upper end.
    """

    count: float
    low: float
    high: float


def excess(suspicions: Sequence[float]) -> list[int]:
    """For each N, how many of the first N images at least should be wrong.

    Args:
        suspicions: of all images, the largest first.

    Returns:
        Element `N - 1` is that of the first N.

    Example:
        >>> excess([9.0, 1.0, 0.0, 0.0, -1.0])
        [1, 1, 1, 1, 1]
    """
    if not suspicions:
        return []
    values = np.asarray(suspicions, np.float64)
    mirrored = 2 * np.median(values) - values
    below = np.searchsorted(values[::-1], mirrored, side="right")
    found: list[int] = np.maximum.accumulate(
        np.maximum(np.arange(1, len(values) + 1) - below, 0)
    ).tolist()
    return found


class Curve:
    """The logistic curve through decided images.

    Args:
        suspicions: of all images, which set the scale.
        decided: suspicion of each decided image, and whether it was wrong.

    Example:
        >>> curve = Curve([4.0, 1.0, 0.0, -1.0], [(4.0, True), (0.0, False)] * 5)
        >>> curve.wrong_of([4.0]).count > 0.8 > 0.3 > curve.wrong_of([-1.0]).count
        True
    """

    def __init__(self, suspicions: Sequence[float], decided: Sequence[tuple[float, bool]]) -> None:
        values = np.asarray(suspicions, np.float64)
        self._median = float(np.median(values))
        spread = _MAD_TO_SPREAD * float(np.median(np.abs(values - self._median)))
        self._spread = spread or 1.0
        scaled = self._scaled([suspicion for suspicion, _ in decided])
        wrong = np.array([is_wrong for _, is_wrong in decided], np.float64)
        prior = np.diag([_INTERCEPT_SPREAD**-2, _SLOPE_SPREAD**-2])
        centre = np.array([0.0, _SLOPE])
        self._curve = centre.copy()
        for _ in range(_STEPS):
            probability = _logistic(scaled @ self._curve)
            slope = scaled.T @ (wrong - probability) - prior @ (self._curve - centre)
            weight = probability * (1 - probability)
            self._curvature = (scaled.T * weight) @ scaled + prior
            step = np.linalg.solve(self._curvature, slope)
            # Newton's step, at most 1 long: a longer one may overshoot.
            self._curve = self._curve + step / max(1.0, float(np.hypot(*step)))

    def wrong_of(self, suspicions: Sequence[float]) -> Estimate:
        """How many of the images of these suspicions should be wrong."""
        scaled = self._scaled(suspicions)
        probability = _logistic(scaled @ self._curve)
        coins = probability * (1 - probability)
        change = scaled.T @ coins
        variance = float(coins.sum() + change @ np.linalg.solve(self._curvature, change))
        count, half = float(probability.sum()), _Z_80 * math.sqrt(variance)
        return Estimate(count, max(0.0, count - half), min(float(len(scaled)), count + half))

    def _scaled(self, suspicions: Sequence[float]) -> Floats:
        limit = _STEEP * self._spread
        centred = np.asarray(suspicions, np.float64) - self._median
        values = np.clip(centred, -limit, limit) / self._spread
        return np.stack([np.ones_like(values), values], axis=1)


def _logistic(values: Floats) -> Floats:
    found: Floats = 1 / (1 + np.exp(-np.clip(values, -_STEEP, _STEEP)))
    return found
