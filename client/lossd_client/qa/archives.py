"""Archives whose members several threads read at once."""

import io
import os
import threading
import zipfile
from pathlib import Path
from typing import IO, Any, cast


def open_archive(path: Path) -> zipfile.ZipFile:
    """An archive that threads may share; it is closed with the last who holds it.

    Args:
        path: the file.

    Raises:
        OSError: it cannot be opened.
        zipfile.BadZipFile: it is no archive.
    """
    file = PlacedFile(os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0)))
    try:
        return zipfile.ZipFile(cast("IO[bytes]", file))
    except BaseException:
        file.close()
        raise


class PlacedFile(io.RawIOBase):
    """A file, opened once, in which every thread has a place of its own.

    `zipfile` locks what members of an archive read, but seeks from where the last of them left
    the file: in CPython 3.12.1 and 3.13.0 (not in 3.11.7), a member that one thread opens while
    another one reads is looked for at a wrong place.

    Args:
        descriptor: of the file, opened for reading; closed with this one.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        # A file that closed itself would warn where it is collected before this one.
        self._file = io.FileIO(descriptor, closefd=False)
        self._reading = threading.Lock()
        self._own = threading.local()

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """The calling thread's place, in bytes from the start."""
        place: int = getattr(self._own, "place", 0)
        return place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves the calling thread's place; the new one."""
        if whence == os.SEEK_CUR:
            offset += self.tell()
        elif whence == os.SEEK_END:
            offset += os.fstat(self._descriptor).st_size
        if offset < 0:
            raise ValueError(f"{offset} lies before the start of the file")
        self._own.place = offset
        return offset

    def readinto(self, buffer: Any) -> int:
        """Reads from the calling thread's place on; how many bytes."""
        with self._reading:
            self._file.seek(self.tell())
            count = self._file.readinto(buffer) or 0
        self._own.place = self.tell() + count
        return count

    def close(self) -> None:
        """Closes it, for all threads."""
        if not self.closed:
            super().close()
            os.close(self._descriptor)
