"""Many requests to one process, whose memory, threads and descriptors must not grow."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np

from faults.service import Footprint
from faults.table import quick
from faults.traffic import LARGEST_BYTES, Traffic, fault_makers, good_callers, traffic, working
from loadtests.recording import percentile
from lossd_client.wire import Array

FOLDER: Final = Path("build/soak")
GROWTH_MIB: Final = 16.0
"""Most that the resident memory may grow between the first third and the last."""
GROWTH_COUNT: Final = 2
"""Likewise the threads, and the descriptors."""
_WARM_UP_SHARE: Final = 0.1
_SAMPLES: Final = 200
_LOOK_EVERY_S: Final = 0.2
_PARTS: Final = 10
_FUZZ_BODIES: Final = 300
_FUZZ_WEIGHT: Final = 60
_FAULT_EVERY_S: Final = 0.1
_PATIENCE_S: Final = 300.0


@dataclass(frozen=True)
class Sample:
    """What the process held after so many requests."""

    requests: int
    footprint: Footprint


@dataclass(frozen=True)
class Growth:
    """How one figure moved after the first tenth of the requests."""

    first_third: float
    """Its median there."""
    last_third: float
    slope: float
    """For 1000 requests: the median of the slopes between any two samples."""
    limit: float
    flat: bool


@dataclass(frozen=True)
class Report:
    """What was found."""

    requests: int
    seconds: float
    kernels: str
    growth: dict[str, Growth]
    p50_ms: list[float]
    """Latency of good requests by tenth of the run; it is told, not judged."""
    p99_ms: list[float]
    samples: list[Sample]
    good: dict[str, int]
    retries: dict[str, int]
    faults: dict[str, dict[str, int]]
    violations: dict[str, int]
    examples: list[str]

    @property
    def passed(self) -> bool:
        """Whether nothing grew and every answer was right."""
        return not self.violations and all(one.flat for one in self.growth.values())


def run(*, requests: int, kernels: str, seed: int = 0, folder: Path = FOLDER) -> Report:
    """So many requests, a few of them bad."""
    with traffic(
        folder, kernels=kernels, seed=seed, fuzz_bodies=_FUZZ_BODIES, largest_bytes=LARGEST_BYTES
    ) as sent:
        good = good_callers(sent, fuzz_weight=_FUZZ_WEIGHT)
        works = [*good, *fault_makers(sent, quick(), 1, pause_s=_FAULT_EVERY_S)]
        began_s = time.monotonic()
        with working(sent, works):
            samples = _sampled(sent, requests)
        seconds = time.monotonic() - began_s
        if not sent.service.settle():
            sent.tally.violation("work is left", "requests wait although nobody asks")
    tally = sent.tally
    parts = np.array_split(np.array(tally.latencies_s) * 1e3, _PARTS)
    return Report(
        requests=tally.requests,
        seconds=round(seconds, 1),
        kernels=kernels,
        growth=growth(samples),
        p50_ms=[round(percentile(part.tolist(), 50), 2) for part in parts],
        p99_ms=[round(percentile(part.tolist(), 99), 2) for part in parts],
        samples=samples,
        good=dict(tally.good),
        retries=dict(tally.retries),
        faults={name: dict(tally.answers[name]) for name in sorted(tally.answers)},
        violations=dict(tally.violations),
        examples=tally.examples,
    )


def growth(samples: Sequence[Sample]) -> dict[str, Growth]:
    """How each figure of the footprint moved."""
    last = samples[-1].requests
    warm = [one for one in samples if one.requests >= _WARM_UP_SHARE * last]
    at = np.array([one.requests for one in warm], float)
    limits = {"resident_mib": GROWTH_MIB, "threads": GROWTH_COUNT, "descriptors": GROWTH_COUNT}
    return {
        name: _growth(at, np.array([getattr(one.footprint, name) for one in warm], float), limit)
        for name, limit in limits.items()
    }


def _growth(at: Array, values: Array, limit: float) -> Growth:
    third = max(1, math.ceil(len(values) / 3))
    first, last = median(values[:third].tolist()), median(values[-third:].tolist())
    apart = at[:, None] - at[None, :]
    slopes = (values[:, None] - values[None, :])[apart > 0] / apart[apart > 0]
    slope = float(np.median(slopes)) if slopes.size else 0.0
    # Both: the thirds see a step as well as a climb; the slope is not moved by single samples.
    flat = last - first <= limit and slope * float(at[-1] - at[0]) <= limit
    return Growth(first, last, round(slope * 1000, 5), limit, flat)


def _sampled(sent: Traffic, requests: int) -> list[Sample]:
    """The process's footprint, from now until there have been so many requests."""
    samples = [Sample(0, sent.service.footprint())]
    until_s = time.monotonic() + _PATIENCE_S
    while samples[-1].requests < requests:
        time.sleep(_LOOK_EVERY_S)
        done = sent.tally.requests
        if done >= min(requests, samples[-1].requests + requests / _SAMPLES):
            samples.append(Sample(done, sent.service.footprint()))
            until_s = time.monotonic() + _PATIENCE_S
        elif time.monotonic() > until_s:
            sent.tally.violation("it stands still", f"after {done} requests")
            break
    return samples
