"""What one run of Locust measured: every latency and every failure, by scenario."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from loadtests.answers import UnexpectedAnswerError

_MAX_DETAIL_CHARACTERS = 300


@dataclass(frozen=True)
class Timing:
    """When one request was due, begun and over, in seconds of `time.perf_counter`."""

    due_s: float
    begun_s: float
    ended_s: float

    @property
    def latency_ms(self) -> float:
        """From when it was due: what waited for the generator waited, too."""
        return (self.ended_s - self.due_s) * 1e3

    @property
    def late_ms(self) -> float:
        """How much later than due it was begun."""
        return (self.begun_s - self.due_s) * 1e3


@dataclass
class Failures:
    """Failures of one kind."""

    count: int
    example: str
    """What was found the first time."""


@dataclass
class Track:
    """What happened to one scenario's requests."""

    latencies_ms: list[float] = field(default_factory=list)
    """Of failed requests too."""
    failures: dict[str, Failures] = field(default_factory=dict)
    """By kind."""

    @property
    def failed(self) -> int:
        """Requests that were not answered as they should be."""
        return sum(failures.count for failures in self.failures.values())


@dataclass
class Recording:
    """What happened to all requests of one run."""

    tracks: dict[str, Track] = field(default_factory=dict)
    """By scenario."""
    late_ms: list[float] = field(default_factory=list)
    """Of every request; next to 0 in a closed loop, where each is due when it can begin."""
    first_due_s: float = math.inf
    last_begun_s: float = -math.inf
    ended_s: float = -math.inf
    """When the last answer was there."""
    cpu_s: float = 0.0
    """Processor time of Locust and of all checks."""

    def add(self, scenario: str, timing: Timing, failure: UnexpectedAnswerError | None) -> None:
        """One request that is over."""
        track = self.tracks.setdefault(scenario, Track())
        track.latencies_ms.append(timing.latency_ms)
        if failure is not None:
            example = failure.detail[:_MAX_DETAIL_CHARACTERS]
            track.failures.setdefault(failure.kind, Failures(0, example)).count += 1
        self.late_ms.append(timing.late_ms)
        self.first_due_s = min(self.first_due_s, timing.due_s)
        self.last_begun_s = max(self.last_begun_s, timing.begun_s)
        self.ended_s = max(self.ended_s, timing.ended_s)

    def latencies_ms(self, scenario: str) -> list[float]:
        """Of one scenario; none where it was not sent."""
        return self.tracks[scenario].latencies_ms if scenario in self.tracks else []

    @property
    def requests(self) -> int:
        """How many there were."""
        return len(self.late_ms)

    @property
    def elapsed_s(self) -> float:
        """From when the first request was due to the last answer."""
        return self.ended_s - self.first_due_s if self.requests else 0.0

    @property
    def rate_per_s(self) -> float:
        """Answers a second."""
        return self.requests / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def begun_per_s(self) -> float:
        """Requests begun a second; 0 of fewer than two."""
        begun_s = self.last_begun_s - self.first_due_s
        return (self.requests - 1) / begun_s if begun_s > 0 else 0.0

    @property
    def failed(self) -> int:
        """Requests that were not answered as they should be."""
        return sum(track.failed for track in self.tracks.values())

    def write(self, path: Path) -> None:
        """All of it as JSON."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")


def read_recording(path: Path) -> Recording:
    """What `Recording.write` wrote."""
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    tracks = {
        name: Track(
            track["latencies_ms"],
            {kind: Failures(**failures) for kind, failures in track["failures"].items()},
        )
        for name, track in document.pop("tracks").items()
    }
    return Recording(tracks=tracks, **document)


def percentile(values: Sequence[float], percent: float) -> float:
    """Smallest of the values that so many percent do not exceed; NaN of nothing."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]
