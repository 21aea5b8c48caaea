"""How busy the process keeps its processors: what delays mean depends on it.

Python runs one thread at a time, so that one processor's worth of work is as much as the service
has for everything that is not arithmetic.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

PERIOD_S: Final = 0.05
"""What is looked back on; several batches, and not much of a burst."""
_HIGH_PROCESSORS: Final = 0.5


class Busyness:
    """Whether at least half a processor was busy with this process lately.

    Used by one thread.

    Args:
        clock: seconds that went by.
        processor_clock: seconds of processors that the process used, of all its threads.

    Example:
        >>> now, used = iter([0.0, 0.1]), iter([0.0, 0.08])
        >>> Busyness(lambda: next(now), lambda: next(used)).is_high()
        True
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        processor_clock: Callable[[], float] = time.process_time,
    ) -> None:
        self._clock = clock
        self._processor_clock = processor_clock
        self._looked_s, self._used_s = clock(), processor_clock()
        self._is_high = False

    def is_high(self) -> bool:
        """What the last full period says, or the longer time since this was asked before."""
        now_s = self._clock()
        seconds = now_s - self._looked_s
        if seconds >= PERIOD_S:
            used_s = self._processor_clock()
            self._is_high = used_s - self._used_s >= _HIGH_PROCESSORS * seconds
            self._looked_s, self._used_s = now_s, used_s
        return self._is_high
