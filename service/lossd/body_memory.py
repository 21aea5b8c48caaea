"""Memory for request bodies that is used again."""

from __future__ import annotations

import mmap
import threading
import weakref
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

_GRAIN_BYTES: Final = 1 << 18
_MOST_TO_SPARE: Final = 2
"""How many times as large as a body the memory may be that it is given."""
_SPARE_BYTES: Final = 1 << 24
"""What of memory lies behind a body, from this much on, goes back to the system."""
_IN_LARGE_PAGES_BYTES: Final = 1 << 22
"""From which size on the system is asked for large pages: they are sooner there."""

_Bytes = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True)
class _Memory:
    """Pages of the system.

    It copies up to two and a half times slower to where a cache line is in the middle.
    """

    pages: mmap.mmap
    bytes: _Bytes
    """The same as an array."""

    @classmethod
    def of(cls, nbytes: int) -> _Memory:
        pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if nbytes >= _IN_LARGE_PAGES_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
            pages.madvise(mmap.MADV_HUGEPAGE)
        return cls(pages, np.frombuffer(pages, np.uint8))

    @property
    def nbytes(self) -> int:
        """How many bytes there are."""
        return self.bytes.nbytes

    def give_back_behind(self, nbytes: int) -> None:
        """Lets the system have what lies behind so many bytes, if that is much."""
        begin = _whole_grains(nbytes)
        if self.nbytes - begin >= _SPARE_BYTES and hasattr(mmap, "MADV_DONTNEED"):
            self.pages.madvise(mmap.MADV_DONTNEED, begin, self.nbytes - begin)


class BodyMemory:
    """Hands out memory and takes it back when the last view of it is gone.

    The system gives memory page by page when it is first written to, which costs as much as
    receiving the bytes themselves. What comes back is kept for the next body, up to a limit, and
    makes room for larger memory: of bodies that grow, not one of each size stays, and a smaller
    body leaves no more of it than itself.

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
            needed_bytes = _whole_grains(nbytes)
            self._make_room(needed_bytes)
            memory = _Memory.of(needed_bytes)
        else:
            memory.give_back_behind(nbytes)
        # What is handed out keeps this array, and so does every view of it.
        body = memory.bytes[:nbytes]
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


def _whole_grains(nbytes: int) -> int:
    return max(1, -(-nbytes // _GRAIN_BYTES)) * _GRAIN_BYTES
