"""Values and slopes that a right answer has, in float64 and in numpy alone.

Written from the formulas of `docs/losses.md`, without a look at the service, and computed before
any load starts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from loadtests.bodies import Question, Sample
from lossd_client.wire import Array

_SMOOTH = 1e-5
_FOCUS = 2.0
_PLACES = 64


@dataclass(frozen=True)
class Gradient:
    """Derivative of one sample's total at a few pixels."""

    pixels: Array
    """Which, as flat indices, `[P]`."""
    slopes: Array
    """Of every channel there, `[C, P]`."""


@dataclass(frozen=True)
class _Seen:
    """A sample as the formulas see it: `p` and `y` `[C, N]`, and the pixels `at`."""

    p: Array
    y: Array
    at: Array

    @property
    def pixels(self) -> int:
        return int(self.p.shape[1])


_Loss = Callable[[_Seen], tuple[float, Array]]
"""Value of a sample, and its derivative by each probability at the pixels, `[C, P]`."""


def values(question: Question, asked: list[Sample]) -> dict[str, Array]:
    """Value of each sample by loss, `[B]`."""
    seen = [_see(one) for one in asked]
    return {name: np.array([_LOSSES[name](one)[0] for one in seen]) for name in question.losses}


def gradients(question: Question, asked: list[Sample]) -> list[Gradient]:
    """Of each sample's total by its logits; empty if the question asks for none."""
    if question.gradient == "none":
        return []
    return [_gradient(question, _see(one)) for one in asked]


def _gradient(question: Question, seen: _Seen) -> Gradient:
    by_p = np.sum([_LOSSES[name](seen)[1] for name in question.losses], axis=0)
    p = seen.p[:, seen.at]
    return Gradient(seen.at, p * (by_p - (by_p * p).sum(axis=0)))


def _see(sample: Sample) -> _Seen:
    channels = sample.logits.shape[1]
    logits = sample.logits[0].reshape(channels, -1).astype(np.float64)
    exponentials = np.exp(logits - logits.max(axis=0))
    y = (sample.target.reshape(-1) == np.arange(channels)[:, None]).astype(np.float64)
    pixels = logits.shape[1]
    at = np.linspace(0, pixels - 1, min(_PLACES, pixels)).astype(np.int64)
    return _Seen(exponentials / exponentials.sum(axis=0), y, at)


def _dice(seen: _Seen) -> tuple[float, Array]:
    upper = 2 * (seen.p * seen.y).sum(axis=1) + _SMOOTH
    lower = (seen.p + seen.y).sum(axis=1) + _SMOOTH
    upper_by_p = 2 * seen.y[:, seen.at]
    return _mean_of_ratios(seen, upper, lower, upper_by_p, np.ones_like(upper_by_p))


def _jaccard(seen: _Seen) -> tuple[float, Array]:
    overlap = (seen.p * seen.y).sum(axis=1)
    lower = (seen.p + seen.y).sum(axis=1) - overlap + _SMOOTH
    y = seen.y[:, seen.at]
    return _mean_of_ratios(seen, overlap + _SMOOTH, lower, y, 1 - y)


def _mean_of_ratios(
    seen: _Seen, upper: Array, lower: Array, upper_by_p: Array, lower_by_p: Array
) -> tuple[float, Array]:
    """One minus `upper / lower` of each class, over the classes that the mask has."""
    share = (seen.y.any(axis=1) / seen.y.any(axis=1).sum())[:, None]
    above, below = upper[:, None], lower[:, None]
    value = float((share * (1 - above / below)).sum())
    return value, -share * (upper_by_p * below - above * lower_by_p) / below**2


def _cross_entropy(seen: _Seen) -> tuple[float, Array]:
    value = -np.log((seen.p * seen.y).sum(axis=0)).mean()
    return float(value), -seen.y[:, seen.at] / seen.p[:, seen.at] / seen.pixels


def _focal(seen: _Seen) -> tuple[float, Array]:
    right = (seen.p * seen.y).sum(axis=0)
    value = -((1 - right) ** _FOCUS * np.log(right)).mean()
    p = right[seen.at]
    slope = _FOCUS * (1 - p) ** (_FOCUS - 1) * np.log(p) - (1 - p) ** _FOCUS / p
    return float(value), seen.y[:, seen.at] * slope / seen.pixels


_LOSSES: dict[str, _Loss] = {
    "dice": _dice,
    "jaccard": _jaccard,
    "cross_entropy": _cross_entropy,
    "focal": _focal,
}
