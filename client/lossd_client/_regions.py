"""Pieces of POSIX shared memory that a client lends to a service on its machine.

Each is a file below `/dev/shm` that only its user can open, locked as long as its process lives.
What a killed process leaves behind has no lock any more, and the next one that needs regions with
the same prefix removes it. They are mapped here, which the service never does: nobody but their
user could cut them off.
"""

import mmap
import os
import secrets
import sys
import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from lossd_client._memory import fresh

if sys.platform != "win32":
    import fcntl

FOLDER = Path("/dev/shm")  # noqa: S108 - where Linux has it, for all
_MARK = "client-"
_GRAIN_BYTES = 1 << 20
_MOST_TO_SPARE = 4
"""How many times as large as what is wanted a region may be that is used again."""
_MOST_IDLE = 4
_TRIES = 3


def are_possible() -> bool:
    """Whether this system has POSIX shared memory where it is looked for."""
    return sys.platform == "linux" and FOLDER.is_dir()


class Region:
    """One piece, locked by this process.

    Raises:
        OSError: the system has no room for it, or does not allow it.
    """

    def __init__(self, prefix: str, nbytes: int) -> None:
        self.name = f"{prefix}{_MARK}{secrets.token_hex(16)}"
        self.nbytes = -(-nbytes // _GRAIN_BYTES) * _GRAIN_BYTES
        self.pid = os.getpid()
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        self._descriptor = os.open(FOLDER / self.name, flags, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # All of it now: a hole that cannot be filled later would end this process.
            os.posix_fallocate(self._descriptor, 0, self.nbytes)
            self._memory = mmap.mmap(self._descriptor, self.nbytes)
        except BaseException:
            self._let_go()
            raise
        if not os.fstat(self._descriptor).st_nlink:
            self.remove()
            raise BlockingIOError("it was taken for one that somebody left behind")

    def write(self, parts: Sequence[bytes | memoryview]) -> None:
        """Put the parts into it, one after the other, from its beginning."""
        place = 0
        for part in parts:
            view = memoryview(part).cast("B")
            self._memory[place : place + view.nbytes] = view
            place += view.nbytes

    def read(self, nbytes: int) -> memoryview:
        """A copy of what it begins with."""
        body = fresh(nbytes)
        with memoryview(self._memory) as view, view[:nbytes] as begin:
            body[:] = begin
        return body

    def remove(self) -> None:
        """Take it out of the system; a process that was forked off only lets go of it."""
        self._memory.close()
        self._let_go()

    def _let_go(self) -> None:
        if self.pid == os.getpid():
            with suppress(FileNotFoundError):
                (FOLDER / self.name).unlink()
        os.close(self._descriptor)


class Regions:
    """Regions of one client, used again. Safe to share between threads.

    Args:
        prefix: how their names begin.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._idle: list[Region] = []
        self._lock = threading.Lock()
        self._closed = False
        weakref.finalize(self, _remove_all, self._idle)  # for clients that nobody closes
        sweep(prefix)

    def take(self, nbytes: int) -> Region:
        """A region of at least that size for one exchange.

        Raises:
            OSError: there is no room for one.
        """
        with self._lock:
            for index, region in enumerate(self._idle):
                fits = nbytes <= region.nbytes <= max(_MOST_TO_SPARE * nbytes, _GRAIN_BYTES)
                if fits and region.pid == os.getpid():
                    return self._idle.pop(index)
        return _made(self._prefix, nbytes)

    def give_back(self, region: Region) -> None:
        """Keep a region for the next exchange; nobody else may use it any more."""
        surplus = [region]
        with self._lock:
            if not self._closed:
                self._idle.append(region)
                surplus = self._idle[:-_MOST_IDLE]
                del self._idle[:-_MOST_IDLE]
        _remove_all(surplus)

    def close(self) -> None:
        """Remove those that are idle; those in use are removed when they are given back."""
        with self._lock:
            self._closed = True
            _remove_all(self._idle)


def sweep(prefix: str) -> None:
    """Remove what clients with that prefix have left behind that ended without removing it."""
    for path in FOLDER.glob(f"{prefix}{_MARK}*"):
        with suppress(OSError):  # it is in use, another user's, or gone
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(descriptor)


def _made(prefix: str, nbytes: int) -> Region:
    for _ in range(_TRIES - 1):
        with suppress(BlockingIOError):  # somebody swept between its making and its lock
            return Region(prefix, nbytes)
    return Region(prefix, nbytes)


def _remove_all(regions: list[Region]) -> None:
    while regions:
        regions.pop().remove()
