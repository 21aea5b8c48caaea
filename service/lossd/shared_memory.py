"""POSIX shared memory of callers on this machine: read into memory of our own, written to, no more.

Nothing of a caller's is ever mapped, kept open or unlinked. What is mapped can be cut off by its
owner, and whoever then touches it dies of SIGBUS; reads and writes by the system fail instead. What
was read is a copy that nobody else can change between the check of a label and its use. What is not
kept open is gone when its owner removes it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lossd.body_memory import BodyMemory
from lossd.callers import Caller
from lossd_client.errors import MalformedBodyError, NotFoundError, TooLargeError

SHARED_MEMORY_FOLDER: Final = Path("/dev/shm")  # noqa: S108 - where the system has it, for all
"""Where Linux has POSIX shared memory."""

_MAX_NAME_BYTES: Final = 255
_MAX_REGIONS: Final = 256
_VIEWS_AT_A_TIME: Final = 64


def is_shared_memory_possible() -> bool:
    """Whether this system has it where it is looked for."""
    return SHARED_MEMORY_FOLDER.is_dir()


def name_prefix(caller: Caller) -> str:
    """How the names of a caller's shared memory begin; no name of a key has a dot.

    Example:
        >>> name_prefix(Caller(name="anonymous"))
        'lossd.anonymous.'
    """
    return f"lossd.{caller.name}."


@dataclass(frozen=True)
class SharedObject:
    """A piece of shared memory as it was when it was first looked at."""

    key: str
    """Its name, as its owner writes it."""
    device: int
    inode: int
    nbytes: int


def find_object(caller: Caller, key: str) -> SharedObject:
    """A caller's shared memory of a name.

    Raises:
        MalformedBodyError: the name is not one of the caller's, or there is none.
    """
    with _opened(_path(caller, key), key, os.O_RDONLY) as (_, status):
        return SharedObject(key, status.st_dev, status.st_ino, status.st_size)


def read_object(
    caller: Caller, known: SharedObject, offset: int, nbytes: int, memory: BodyMemory
) -> memoryview:
    """A private copy of bytes of it.

    Raises:
        MalformedBodyError: it is not there any more, or has become too small.
    """
    if not nbytes:
        return memoryview(b"")
    body = memory.take(nbytes)
    with _opened(_path(caller, known.key), known.key, os.O_RDONLY) as (descriptor, status):
        _check_same(known, status, offset + nbytes)
        view = body
        while view:
            count = os.preadv(descriptor, [view], offset)
            if not count:
                raise _too_small(known.key)
            view, offset = view[count:], offset + count
    return body


def write_object(
    caller: Caller, known: SharedObject, offset: int, parts: Sequence[bytes | memoryview]
) -> None:
    """Writes bytes into it, one part after the other.

    Raises:
        MalformedBodyError: it is not there any more, has become too small, or the system has no
            room for it.
    """
    views = [memoryview(part).cast("B") for part in parts if memoryview(part).nbytes]
    end = offset + sum(view.nbytes for view in views)
    with _opened(_path(caller, known.key), known.key, os.O_RDWR) as (descriptor, status):
        _check_same(known, status, end)
        try:
            while views:
                count = os.pwritev(descriptor, views[:_VIEWS_AT_A_TIME], offset)
                offset += count
                _drop(views, count)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EFBIG):
                raise
            raise _too_small(known.key) from error


@dataclass(frozen=True)
class Region:
    """A part of a caller's shared memory under a name of its own."""

    name: str
    shared: SharedObject
    offset: int
    nbytes: int


class RegionTable:
    """Regions that callers have registered, those of each apart.

    One thread registers; any may look regions up.
    """

    def __init__(self) -> None:
        self._regions: dict[str, dict[str, Region]] = {}

    def register(self, caller: Caller, name: str, key: str, offset: int, nbytes: int) -> None:
        """Gives a part of a caller's shared memory a name.

        Raises:
            MalformedBodyError: the name is in use, the shared memory is not the caller's, not there
                or smaller.
            TooLargeError: the caller has as many regions as there may be.
        """
        own = self._regions.get(caller.name, {})
        if name in own:
            raise MalformedBodyError(f"shared memory region '{name}' already in manager")
        if len(own) >= _MAX_REGIONS:
            raise TooLargeError(f"{_MAX_REGIONS} regions are registered; unregister some")
        shared = find_object(caller, key)
        if offset + nbytes > shared.nbytes:
            raise _too_small(key)
        self._regions.setdefault(caller.name, {})[name] = Region(name, shared, offset, nbytes)

    def unregister(self, caller: Caller, name: str | None = None) -> None:
        """Forgets a region of a caller's, or all; nothing happens where there is none."""
        if name is None:
            self._regions.pop(caller.name, None)
        else:
            self._regions.get(caller.name, {}).pop(name, None)

    def of(self, caller: Caller) -> list[Region]:
        """A caller's regions in the order in which they were registered."""
        return list(self._regions.get(caller.name, {}).values())

    def find(self, caller: Caller, name: str, offset: int, nbytes: int) -> Region:
        """The part of a caller's region that begins at an offset.

        Raises:
            NotFoundError: there is no such region.
            MalformedBodyError: it ends before.
        """
        region = self._regions.get(caller.name, {}).get(name)
        if region is None:
            raise NotFoundError(f"Unable to find shared memory region: '{name[:80]}'")
        if offset + nbytes > region.nbytes:
            raise MalformedBodyError(
                f"Invalid offset + byte size for shared memory region: '{name[:80]}'"
            )
        return Region(name, region.shared, region.offset + offset, nbytes)


def _path(caller: Caller, key: str) -> Path:
    """Where shared memory of that name lies.

    Raises:
        MalformedBodyError: it is no name of the caller's.
    """
    name = key.removeprefix("/")
    prefix = name_prefix(caller)
    plain = name.isascii() and name.isprintable() and "/" not in name
    if not plain or not name.startswith(prefix) or len(name) > _MAX_NAME_BYTES:
        shown = key[:80].encode("ascii", "replace").decode()
        raise MalformedBodyError(
            f"your shared memory has names that begin with '/{prefix}', without another '/', "
            f"got '{shown}'"
        )
    return SHARED_MEMORY_FOLDER / name


@contextlib.contextmanager
def _opened(path: Path, key: str, access: int) -> Iterator[tuple[int, os.stat_result]]:
    """The shared memory and what the system says of it, while the context is open."""
    # Neither a link to elsewhere, nor a queue that makes whoever opens it wait.
    flags = access | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        msg = f"Unable to open shared memory region: '{key[:80]}'"
        raise MalformedBodyError(msg) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise MalformedBodyError(f"Unable to open shared memory region: '{key[:80]}'")
        yield descriptor, status
    finally:
        os.close(descriptor)


def _check_same(known: SharedObject, status: os.stat_result, end: int) -> None:
    if (status.st_dev, status.st_ino) != (known.device, known.inode):
        msg = f"shared memory region '{known.key[:80]}' is another one now; register it again"
        raise MalformedBodyError(msg)
    if end > status.st_size:
        raise _too_small(known.key)


def _too_small(key: str) -> MalformedBodyError:
    return MalformedBodyError(f"Invalid shared memory region: '{key[:80]}'")


def _drop(views: list[memoryview], count: int) -> None:
    """Takes so many bytes off the views."""
    while count:
        first = views.pop(0)
        if count < first.nbytes:
            views.insert(0, first[count:])
            return
        count -= first.nbytes
