"""What a load test must reach, and whether it did. Pure functions of what was measured."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from loadtests.arrivals import OPEN_MODELS, Model
from loadtests.recording import Recording, percentile
from loadtests.scenarios import SCENARIOS

Comparison = Literal["at most", "at least"]

LEAST_KEPT_RATE = 0.95
"""Of the arrivals of an open model that must have begun; below, the generator was too slow."""
TAIL = "p99 / reference"
_MEETS: dict[Comparison, Callable[[float, float], bool]] = {
    "at most": operator.le,
    "at least": operator.ge,
}


@dataclass(frozen=True)
class Verdict:
    """One threshold, what was measured, and whether that will do."""

    threshold: str
    subject: str
    """Phase or scenario that it is about."""
    comparison: Comparison
    limit: float
    measured: float

    @property
    def met(self) -> bool:
        """False also where nothing was measured: NaN is neither at most nor at least anything."""
        return _MEETS[self.comparison](self.measured, self.limit)


def references_ms(
    unloaded: Recording, shares: Mapping[str, float], model: Model, users: int
) -> dict[str, float]:
    """How long each scenario takes behind the others, from unloaded medians.

    Its own median, and before it, where requests are served one at a time,

    - in an open model the one request that is being served when it comes. A long one is met more
      often than a short one, so that is `Σ share·u² / Σ share·u`;
    - in a closed loop one request of each other user, `(users - 1) · Σ share·u`.

    Args:
        unloaded: one user, one request at a time.
        shares: of the scenarios in the load, adding up to 1.
        model: of the load.
        users: of a closed loop.

    Returns:
        Milliseconds by scenario; NaN everywhere if the unloaded run lacks one of them.
    """
    own = {name: percentile(unloaded.latencies_ms(name), 50) for name in shares}
    mean = sum(share * own[name] for name, share in shares.items())
    if model in OPEN_MODELS:
        before = sum(share * own[name] ** 2 for name, share in shares.items()) / mean
    else:
        before = (users - 1) * mean
    return {name: own_ms + before for name, own_ms in own.items()}


def judge(
    phases: Mapping[str, Recording],
    references: Mapping[str, float],
    *,
    ratio: float,
    rate_per_s: float | None,
) -> list[Verdict]:
    """Every threshold of a load test.

    Args:
        phases: what was measured; `load` among it.
        references: of each scenario of the mix, see `references_ms`.
        ratio: most that a 99th percentile may be, in references.
        rate_per_s: of an open model; None for a closed loop, which has none to keep.
    """
    load = phases["load"]
    verdicts = [*_none_unexpected(phases), *_all_sent(load, references)]
    if rate_per_s is not None:
        kept = load.begun_per_s / rate_per_s
        verdicts.append(Verdict("share of the rate", "load", "at least", LEAST_KEPT_RATE, kept))
    return [*verdicts, *_tails_bounded(load, references, ratio)]


def _none_unexpected(phases: Mapping[str, Recording]) -> Iterable[Verdict]:
    for phase, recording in phases.items():
        yield Verdict("unexpected answers", phase, "at most", 0, recording.failed)


def _all_sent(load: Recording, names: Iterable[str]) -> Iterable[Verdict]:
    for name in names:
        yield Verdict("requests sent", name, "at least", 1, len(load.latencies_ms(name)))


def _tails_bounded(
    load: Recording, references: Mapping[str, float], ratio: float
) -> Iterable[Verdict]:
    answered = {one.name for one in SCENARIOS if one.kind != "hung_up"}
    for name, reference_ms in references.items():
        if name in answered:
            measured = percentile(load.latencies_ms(name), 99) / reference_ms
            yield Verdict(TAIL, name, "at most", ratio, measured)
