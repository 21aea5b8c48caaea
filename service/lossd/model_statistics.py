"""What models of the Open Inference Protocol have done since the process began."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

_NS: Final = 1_000_000_000
_BATCHES_REMEMBERED: Final = 256
"""More than end between the first and the last answer of one batch."""


@dataclass
class _Duration:
    """How often something was done, and how long it took in all."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.ns += round(seconds * _NS)

    def document(self) -> dict[str, int]:
        return {"count": self.count, "ns": self.ns}


@dataclass(frozen=True)
class Inferred:
    """Where the time of an answered request went, in seconds, and with whom it was computed."""

    samples: int
    batch: float
    """Equal for requests that were computed together: when that began."""
    batch_samples: int
    total_s: float
    queue_s: float
    read_s: float
    compute_s: float
    write_s: float


@dataclass
class _Figures:
    samples: int = 0
    executions: int = 0
    last_ms: int = 0
    success: _Duration = field(default_factory=_Duration)
    fail: _Duration = field(default_factory=_Duration)
    queue: _Duration = field(default_factory=_Duration)
    read: _Duration = field(default_factory=_Duration)
    compute: _Duration = field(default_factory=_Duration)
    write: _Duration = field(default_factory=_Duration)
    batches: dict[int, _Batches] = field(default_factory=dict)
    """By samples of a batch, with those of other models."""
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=_BATCHES_REMEMBERED))


@dataclass
class _Batches:
    """Batches of one size."""

    read: _Duration = field(default_factory=_Duration)
    compute: _Duration = field(default_factory=_Duration)
    write: _Duration = field(default_factory=_Duration)


class ModelStatistics:
    """Figures of every model that was asked; used by one thread.

    Args:
        clock: seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._figures: dict[str, _Figures] = {}

    def succeeded(self, model: str, inferred: Inferred) -> None:
        """A request was answered."""
        figures = self._figures.setdefault(model, _Figures())
        figures.samples += inferred.samples
        figures.last_ms = round(self._clock() * 1000)
        figures.success.add(inferred.total_s)
        figures.queue.add(inferred.queue_s)
        figures.read.add(inferred.read_s)
        figures.compute.add(inferred.compute_s)
        figures.write.add(inferred.write_s)
        if inferred.batch not in figures.recent:
            figures.recent.append(inferred.batch)
            figures.executions += 1
            batches = figures.batches.setdefault(inferred.batch_samples, _Batches())
            batches.read.add(inferred.read_s)
            batches.compute.add(inferred.compute_s)
            batches.write.add(inferred.write_s)

    def failed(self, model: str, total_s: float) -> None:
        """A request was refused, or could not be answered."""
        self._figures.setdefault(model, _Figures()).fail.add(total_s)

    def document(self, model: str, version: str) -> dict[str, Any]:
        """The figures of one model as the protocol has them."""
        found = self._figures.get(model, _Figures())
        nothing = _Duration().document()
        return {
            "name": model,
            "version": version,
            "last_inference": found.last_ms,
            "inference_count": found.samples,
            "execution_count": found.executions,
            "inference_stats": {
                "success": found.success.document(),
                "fail": found.fail.document(),
                "queue": found.queue.document(),
                "compute_input": found.read.document(),
                "compute_infer": found.compute.document(),
                "compute_output": found.write.document(),
                "cache_hit": nothing,
                "cache_miss": nothing,
            },
            "response_stats": {},
            "batch_stats": [
                {
                    "batch_size": samples,
                    "compute_input": batches.read.document(),
                    "compute_infer": batches.compute.document(),
                    "compute_output": batches.write.document(),
                }
                for samples, batches in sorted(found.batches.items())
            ],
            "memory_usage": [],
        }
