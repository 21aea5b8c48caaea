"""Files as memory that knows whose bytes it holds, so that the system can send them itself."""

import errno
import mmap
import os
from dataclasses import dataclass
from socket import socket
from typing import IO, Self

import numpy as np

_NOT_POSSIBLE = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
"""What a system says where it cannot send this file, or to this socket."""


class MappedFile(mmap.mmap):
    """A whole file as read-only memory."""

    _path: str
    _identity: tuple[int, int]

    @classmethod
    def of(cls, file: IO[bytes]) -> Self:
        """Map a file.

        Args:
            file: opened by its path; it may be closed afterwards.

        Raises:
            OSError: it cannot be mapped.
            ValueError: it is empty.
        """
        mapped = cls(file.fileno(), 0, access=mmap.ACCESS_READ)
        mapped._path, mapped._identity = os.fspath(file.name), _identity(file.fileno())
        return mapped

    def opened(self) -> int | None:
        """A descriptor of the file, for the caller to close; None where its path leads elsewhere.

        It is not kept: there may be more mappings than a process may have open files.
        """
        try:
            descriptor = os.open(self._path, os.O_RDONLY)
        except OSError:
            return None
        if _identity(descriptor) == self._identity:
            return descriptor
        os.close(descriptor)
        return None


@dataclass(frozen=True)
class FilePart:
    """Bytes of a body that lie in a file.

    Attributes:
        view: the bytes as memory.
        file: the file.
        begin_bytes: where in it they begin.
    """

    view: memoryview
    file: MappedFile
    begin_bytes: int

    def send(self, sock: socket, descriptor: int) -> int | None:
        """Send what can be sent at once, out of the system's memory.

        Args:
            sock: a socket without TLS that never waits.
            descriptor: the file's.

        Returns:
            How many bytes were sent; None where the system cannot send them in this way.

        Raises:
            OSError: it would have to wait, the connection failed, or the file has become shorter.
        """
        try:
            count = os.sendfile(sock.fileno(), descriptor, self.begin_bytes, len(self.view))
        except OSError as error:
            if error.errno in _NOT_POSSIBLE:
                return None
            raise
        if not count:
            raise OSError(errno.EIO, "a file became shorter while it was sent")
        return count

    def behind(self, count: int) -> "FilePart":
        """The part without its first bytes."""
        return FilePart(self.view[count:], self.file, self.begin_bytes + count)


def file_part(view: memoryview) -> FilePart | None:
    """The bytes of a view as those of a file; None where they lie in no `MappedFile`."""
    owner: object = view
    while isinstance(owner, memoryview | np.ndarray):
        owner = owner.obj if isinstance(owner, memoryview) else owner.base
    if not isinstance(owner, MappedFile):
        return None
    first = np.frombuffer(owner, np.uint8, 1).ctypes.data
    return FilePart(view, owner, np.frombuffer(view, np.uint8, 1).ctypes.data - first)


def _identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino
