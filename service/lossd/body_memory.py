"""Memory for request bodies that is used again."""

from __future__ import annotations

import threading
import weakref
from typing import Any, Final

import numpy as np

_GRAIN_BYTES: Final = 1 << 18
_MOST_TO_SPARE: Final = 2
"""How many times as large as a body the memory may be that it is given."""

_ALIGNMENT_BYTES: Final = 4096
"""Of what is handed out: the system copies up to two and a half times slower into memory that
begins in the middle of a cache line."""

_Memory = np.ndarray[Any, np.dtype[np.uint8]]


class BodyMemory:
    """Hands out memory and takes it back when the last view of it is gone.

    The system gives memory page by page when it is first written to, which costs as much as
    receiving the bytes themselves. What comes back is kept for the next body, up to a limit, and
    makes room for larger memory: of bodies that grow, not one of each size stays.

    Args:
        idle_limit_bytes: most that is kept while nobody uses it.
    """

    def __init__(self, idle_limit_bytes: int) -> None:
        self._idle_limit_bytes = idle_limit_bytes
        self._idle: list[_Memory] = []
        # Views may end in any thread, also by a collection that begins inside of `take`.
        self._lock = threading.RLock()

    def take(self, nbytes: int) -> memoryview:
        """Memory of that size with whatever was in it; it is not used again while a view exists."""
        memory = self._find(nbytes)
        if memory is None:
            needed_bytes = -(-nbytes // _GRAIN_BYTES) * _GRAIN_BYTES
            self._make_room(needed_bytes)
            memory = _aligned(needed_bytes)
        # What is handed out keeps this array, and so does every view of it.
        body = memory[:nbytes]
        weakref.finalize(body, self._take_back, memory).atexit = False
        return body.data

    def _find(self, nbytes: int) -> _Memory | None:
        with self._lock:
            fitting = [
                index
                for index, memory in enumerate(self._idle)
                if nbytes <= memory.nbytes <= _MOST_TO_SPARE * nbytes
            ]
            return self._idle.pop(fitting[-1]) if fitting else None

    def _make_room(self, nbytes: int) -> None:
        """Gives up as much of what is too small, the oldest first."""
        with self._lock:
            given_up_bytes = 0
            kept: list[_Memory] = []
            for memory in self._idle:
                if memory.nbytes < nbytes and given_up_bytes < nbytes:
                    given_up_bytes += memory.nbytes
                else:
                    kept.append(memory)
            self._idle = kept

    def _take_back(self, memory: _Memory) -> None:
        with self._lock:
            self._idle.append(memory)
            while sum(one.nbytes for one in self._idle) > self._idle_limit_bytes:
                del self._idle[0]


def _aligned(nbytes: int) -> _Memory:
    memory = np.empty(nbytes + _ALIGNMENT_BYTES, np.uint8)
    begin = -memory.ctypes.data % _ALIGNMENT_BYTES
    return memory[begin : begin + nbytes]
