"""`lossd` whose jobs fail where the label of a loss says so: `python -m faults.sabotage serve …`.

Shipped code has no such hook: this puts something else in the place of the engine's `evaluate`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Final
from unittest.mock import patch

import torch

from lossd.__main__ import main
from lossd.core.evaluation import evaluate
from lossd.core.job import AnyJob, ObservationJob

FAILURES: Final[dict[str, tuple[type[Exception], str]]] = {
    "sabotage-raises": (ZeroDivisionError, "500 internal"),
    "sabotage-device": (RuntimeError, "500 internal"),
    "sabotage-memory": (MemoryError, "413 too_large"),
    "sabotage-device-memory": (torch.OutOfMemoryError, "413 too_large"),
}
"""What a job with a loss of that label raises, its whole batch with it; what it is answered."""
SLOW: Final = "sabotage-slow"
"""Label that holds the engine up for `SLOW_S`."""
SLOW_S: Final = 0.3
LOST: Final = "sabotage-lost"
"""Label that loses the device: every batch after it fails, too."""


class Sabotage:
    """`evaluate` as the engine calls it, failing where a label says so."""

    def __init__(self, inner: Callable[..., Any]) -> None:
        self._inner = inner
        self._lost = False

    def __call__(self, jobs: Sequence[AnyJob], *rest: Any) -> Any:
        """The outcomes of the jobs.

        Raises:
            Exception: one of `FAILURES`, or that the device is lost.
        """
        labels = {
            call.label for job in jobs if not isinstance(job, ObservationJob) for call in job.calls
        }
        self._lost = self._lost or LOST in labels
        if self._lost:
            msg = "CUDA error: an illegal memory access was encountered"
            raise RuntimeError(msg)
        for label in labels & FAILURES.keys():
            # A new one each time: an exception that is raised again keeps all it has passed.
            raise FAILURES[label][0](label)
        if SLOW in labels:
            time.sleep(SLOW_S)
        return self._inner(jobs, *rest)


if __name__ == "__main__":
    with patch("lossd.engine.evaluate", Sabotage(evaluate)):
        sys.exit(main())
