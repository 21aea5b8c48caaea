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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, Protocol

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


class Shared(Protocol):
    """Memory that a caller shares, of whatever kind."""

    @property
    def nbytes(self) -> int:
        """How much there was when it was first looked at."""

    def place(self, offset: int) -> dict[str, str | int]:
        """What the protocol says of where a part is that begins there."""

    def read(self, caller: Caller, offset: int, nbytes: int, memory: BodyMemory) -> memoryview:
        """A private copy of bytes of it.

        Raises:
            MalformedBodyError: it is not there any more, or has become too small.
        """

    def write(self, caller: Caller, offset: int, parts: Sequence[bytes | memoryview]) -> None:
        """Writes bytes into it, one part after the other.

        Raises:
            MalformedBodyError: it is not there any more, has become too small, or the system has no
                room for it.
        """


@dataclass(frozen=True)
class SharedObject:
    """A piece of the system's shared memory as it was when it was first looked at."""

    key: str
    """Its name, as its owner writes it."""
    device: int
    inode: int
    nbytes: int

    def place(self, offset: int) -> dict[str, str | int]:
        """Its name, and where the part begins."""
        return {"key": self.key, "offset": offset}

    def read(self, caller: Caller, offset: int, nbytes: int, memory: BodyMemory) -> memoryview:
        """A private copy of bytes of it."""
        if not nbytes:
            return memoryview(b"")
        body = memory.take(nbytes)
        with _opened(_path(caller, self.key), self.key, os.O_RDONLY) as (descriptor, status):
            _check_same(self, status, offset + nbytes)
            view = body
            while view:
                count = os.preadv(descriptor, [view], offset)
                if not count:
                    raise _too_small(self.key)
                view, offset = view[count:], offset + count
        return body

    def write(self, caller: Caller, offset: int, parts: Sequence[bytes | memoryview]) -> None:
        """Writes bytes into it, one part after the other."""
        views = [memoryview(part).cast("B") for part in parts if memoryview(part).nbytes]
        end = offset + sum(view.nbytes for view in views)
        with _opened(_path(caller, self.key), self.key, os.O_RDWR) as (descriptor, status):
            _check_same(self, status, end)
            try:
                while views:
                    count = os.pwritev(descriptor, views[:_VIEWS_AT_A_TIME], offset)
                    offset += count
                    _drop(views, count)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EFBIG):
                    raise
                raise _too_small(self.key) from error


def find_object(caller: Caller, key: str) -> SharedObject:
    """A caller's shared memory of a name.

    Raises:
        MalformedBodyError: the name is not one of the caller's, or there is none.
    """
    with _opened(_path(caller, key), key, os.O_RDONLY) as (_, status):
        return SharedObject(key, status.st_dev, status.st_ino, status.st_size)


Kind = Literal["system", "cuda"]
"""Where shared memory is."""


@dataclass(frozen=True)
class Region:
    """A part of a caller's shared memory under a name of its own."""

    name: str
    kind: Kind
    shared: Shared
    offset: int
    nbytes: int


class RegionTable:
    """Regions that callers have registered, those of each apart.

    One thread registers; any may look regions up.
    """

    def __init__(self) -> None:
        self._regions: dict[str, dict[str, Region]] = {}

    def register(
        self,
        caller: Caller,
        name: str,
        kind: Kind,
        find: Callable[[], Shared],
        part: tuple[int, int],
    ) -> None:
        """Gives a part of a caller's shared memory a name.

        Args:
            caller: whose it is.
            name: that it gets.
            kind: where it is.
            find: looks for it, if the name is free.
            part: where the part begins, and its bytes.

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
        shared, (offset, nbytes) = find(), part
        if offset + nbytes > shared.nbytes:
            raise _too_small(str(shared.place(offset).get("key", name)))
        self._regions.setdefault(caller.name, {})[name] = Region(name, kind, shared, offset, nbytes)

    def unregister(self, caller: Caller, kind: Kind, name: str | None = None) -> None:
        """Forgets a caller's region of a kind, or all; nothing happens where there is none."""
        for region in self.of(caller, kind):
            if name in (None, region.name):
                del self._regions[caller.name][region.name]

    def of(self, caller: Caller, kind: Kind) -> list[Region]:
        """A caller's regions of a kind in the order in which they were registered."""
        own = self._regions.get(caller.name, {}).values()
        return [region for region in own if region.kind == kind]

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
        return replace(region, offset=region.offset + offset, nbytes=nbytes)


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
