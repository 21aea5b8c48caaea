"""Timings on a machine that does other things too.

What is to be compared is run in turns, one of each per round, so that a neighbour's burst hits all
of them alike. A ratio is the median over rounds of the ratio within the round; a time is reported
as median and minimum.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


class Elapsed(float):
    """Seconds that a piece of work took by its own clock, as one in another process knows them."""


Work = Callable[[], object]
"""What is timed; if it returns `Elapsed`, that is its time."""

_MIN_ROUNDS = 3


@dataclass(frozen=True)
class Timings:
    """Seconds of each round of each piece of work."""

    seconds: Mapping[str, list[float]]

    @property
    def rounds(self) -> int:
        """How often each piece of work was run."""
        return len(next(iter(self.seconds.values())))

    def median_s(self, name: str) -> float:
        """Median time of one run."""
        return statistics.median(self.seconds[name])

    def minimum_s(self, name: str) -> float:
        """Shortest time of one run."""
        return min(self.seconds[name])

    def ratio(self, name: str, to: str) -> float:
        """Median over rounds of how many times longer `name` took than `to`."""
        pairs = zip(self.seconds[name], self.seconds[to], strict=True)
        return statistics.median(one / other for one, other in pairs)


def in_turns(
    work: Mapping[str, Work],
    *,
    budget_s: float,
    max_rounds: int = 60,
    wait: Callable[[], None] = lambda: None,
) -> Timings:
    """Times of pieces of work run in turns until the budget is spent.

    Args:
        work: what to run, by name.
        budget_s: stop starting rounds after this long; at least three are run.
        max_rounds: stop after so many rounds.
        wait: called after each run, inside its time; waits for a device that works on its own.
    """
    for run in work.values():
        run()
    wait()
    seconds: dict[str, list[float]] = {name: [] for name in work}
    until = time.perf_counter() + budget_s
    for done in range(max_rounds):
        if done >= _MIN_ROUNDS and time.perf_counter() > until:
            break
        for name, run in work.items():
            started = time.perf_counter()
            result = run()
            wait()
            spent_s = time.perf_counter() - started
            seconds[name].append(float(result) if isinstance(result, Elapsed) else spent_s)
    return Timings(seconds)
