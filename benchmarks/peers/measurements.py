"""From what the load generator saw to requests per second and percentiles."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.peers.processes import Turn


@dataclass(frozen=True)
class Steady:
    """The part of a turn in which every connection was busy."""

    latencies_ms: Sequence[float]
    requests_per_s: float


def steady(turn: Turn, *, connections: int, seconds: float) -> Steady:
    """A turn without its warm-up, the first answer of each connection, and without its end.

    Rates count from the last answer of the warm-up: between two moments at which an answer arrives
    as many others were computed as were counted, however they are batched.
    """
    spans = sorted(turn.spans_s, key=lambda span: span[1])
    if len(spans) <= connections:
        return Steady([], 0.0)
    until_s = min(start for start, _ in spans) + seconds
    counted = [span for span in spans[connections:] if span[1] <= until_s]
    if not counted:
        return Steady([], 0.0)
    took_s = counted[-1][1] - spans[connections - 1][1]
    return Steady(
        [(end - start) * 1e3 for start, end in counted],
        len(counted) / took_s if took_s > 0 else 0.0,
    )


@dataclass(frozen=True)
class Measurement:
    """One system with one case, all rounds."""

    rounds: Sequence[Steady]
    errors: Counter[str]
    generator_ms: float
    """Processor time of the generator for each answer."""

    @property
    def requests_per_s(self) -> float:
        """Median over the rounds."""
        return statistics.median(one.requests_per_s for one in self.rounds)

    @property
    def answers(self) -> int:
        """Latencies that were counted."""
        return sum(len(one.latencies_ms) for one in self.rounds)

    def percentile_ms(self, percent: float) -> float | None:
        """Of the latencies of all rounds together; None without any."""
        together = [latency for one in self.rounds for latency in one.latencies_ms]
        return float(np.percentile(together, percent)) if together else None

    def ratio_to(self, other: Measurement) -> float | None:
        """Median over rounds of the ratio of requests per second within the round."""
        pairs = zip(self.rounds, other.rounds, strict=True)
        ratios = [
            one.requests_per_s / its.requests_per_s for one, its in pairs if its.requests_per_s
        ]
        return statistics.median(ratios) if ratios else None


def measured(turns: Sequence[Turn], *, connections: int, seconds: float) -> Measurement:
    """Measurement of a system's turns with one case."""
    answers = sum(len(turn.spans_s) for turn in turns)
    errors: Counter[str] = Counter()
    for turn in turns:
        errors.update(turn.errors)
    return Measurement(
        rounds=[steady(turn, connections=connections, seconds=seconds) for turn in turns],
        errors=errors,
        generator_ms=1e3 * sum(turn.processor_s for turn in turns) / max(answers, 1),
    )
