"""Records by key in files that only grow, so that whoever writes may be killed at any time.

A process adds to a file of its own, and reads those of the others that were there when it began. A
record is a head and its content:

    key        32 bytes
    length     8 bytes, little-endian, of the content
    checksum   4 bytes, CRC-32 of what stands before it in the head
    content

A file ends where no whole record follows: that is how a killed process leaves it. The content is
not summed; its reader finds out whether it is what it should be.
"""

import io
import os
import secrets
import struct
import sys
import threading
import weakref
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lossd_client._files import MappedFile

_HEAD = struct.Struct("<32sQ")
_CHECKSUM = struct.Struct("<I")
_HEAD_BYTES = _HEAD.size + _CHECKSUM.size
_SUFFIX = ".log"


class _File:
    """One file of a journal, opened when it is needed. Not safe for several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: io.FileIO | None = None

    def open(self, mode: str) -> io.FileIO:
        if self._opened is None:
            self._opened = io.FileIO(self.path, mode)
            weakref.finalize(self, self._opened.close)
        return self._opened

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def mapped(self, begin: int, length: int) -> memoryview | None:
        """As `read`, as memory that the system fills from the file."""
        if sys.platform == "win32":  # where a file that is mapped cannot be removed
            content = self.read(begin, length)
            return None if content is None else memoryview(content)
        try:
            # Anew for every record: what was looked at of a mapping that stays is memory of this
            # process, and would be all of the file in the end.
            mapped = MappedFile.of(self.open("rb"))
        except FileNotFoundError:
            return None
        view = memoryview(mapped)[begin : begin + length]
        return view if len(view) == length else None

    def read(self, begin: int, length: int) -> bytearray | None:
        """So many bytes from there; None where they are not there any more."""
        content = bytearray(length)
        try:
            file = self.open("rb")
        except FileNotFoundError:
            return None
        file.seek(begin)
        return content if file.readinto(content) == length else None

    def records(self) -> Iterator[tuple[bytes, int, int]]:
        """Key, begin and length of each content, up to the first that is not whole."""
        file = self.open("rb")
        size_bytes = os.fstat(file.fileno()).st_size
        begin = 0
        while begin + _HEAD_BYTES <= size_bytes:
            file.seek(begin)
            head = file.read(_HEAD_BYTES)
            key, length = _HEAD.unpack_from(head)
            begin += _HEAD_BYTES + length
            if _head(key, length) != head or begin > size_bytes:
                return
            yield key, begin - length, length


@dataclass(frozen=True, slots=True)
class _Place:
    file: _File
    begin: int
    length: int


class Journal:
    """Records in a folder. Safe to share between threads, and the folder between processes.

    Args:
        folder: where its files are; made when the first record is added.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     journal = Journal(Path(folder))
        ...     journal.add("ab" * 32, [b"one", b"two"])
        ...     bytes(journal.read("ab" * 32))
        ...     journal.close()
        b'onetwo'
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._known: dict[bytes, _Place] | None = None
        self._files: list[_File] = []
        self._own: _File | None = None

    def keys(self) -> list[str]:
        """Keys of all records."""
        with self._lock:
            return [key.hex() for key in self._places()]

    def read(self, key: str) -> bytearray | None:
        """Content of a record; None where there is none."""
        with self._lock:
            place = self._places().get(bytes.fromhex(key))
            return None if place is None else place.file.read(place.begin, place.length)

    def mapped(self, key: str) -> memoryview | None:
        """Content of a record to be sent and not to be looked at, as it lies in its file.

        What was given stays as long as somebody holds it, even when the record is removed.
        """
        with self._lock:
            place = self._places().get(bytes.fromhex(key))
            return None if place is None else place.file.mapped(place.begin, place.length)

    def add(self, key: str, parts: Sequence[bytes | bytearray | memoryview]) -> None:
        """Adds a record, in the place of one of the same key.

        Args:
            key: 64 hexadecimal digits.
            parts: its content, one after the other.

        Raises:
            OSError: there is no room for it.
        """
        with self._lock:
            self._add(bytes.fromhex(key), parts)

    def keep_only(self, keys: Iterable[str]) -> None:
        """Removes all other records; files are written anew where there are any."""
        kept = {bytes.fromhex(key) for key in keys}
        with self._lock:
            places = self._places()
            if kept.issuperset(places):
                return
            old, self._files, self._own, self._known = self._files, [], None, {}
            for key, place in places.items():
                content = place.file.read(place.begin, place.length) if key in kept else None
                if content is not None:
                    self._add(key, [content])
            _remove(old)

    def forget(self) -> None:
        """Removes every record."""
        with self._lock:
            self._places()
            _remove(self._files)
            self._files, self._own, self._known = [], None, {}

    def close(self) -> None:
        """Closes its files; whoever reads or adds afterwards opens them again."""
        with self._lock:
            for file in self._files:
                file.close()
            self._own = None

    def _places(self) -> dict[bytes, _Place]:
        if self._known is None:
            self._known = {}
            self._files = [_File(path) for path in sorted(self._folder.glob(f"*{_SUFFIX}"))]
            for file in self._files:
                for key, begin, length in file.records():
                    self._known[key] = _Place(file, begin, length)
        return self._known

    def _add(self, key: bytes, parts: Sequence[bytes | bytearray | memoryview]) -> None:
        places = self._places()
        own = self._own or self._begun()
        # What a failed write leaves behind ends its file.
        self._own = None
        file = own.open("xb+")
        begin = file.seek(0, io.SEEK_END) + _HEAD_BYTES
        length = sum(len(part) for part in parts)
        for part in (_head(key, length), *parts):
            _write(file, part)
        self._own = own
        places[key] = _Place(own, begin, length)

    def _begun(self) -> _File:
        self._folder.mkdir(parents=True, exist_ok=True)
        own = _File(self._folder / f"{secrets.token_hex(8)}{_SUFFIX}")
        self._files.append(own)
        return own


def _head(key: bytes, length: int) -> bytes:
    head = _HEAD.pack(key, length)
    return head + _CHECKSUM.pack(zlib.crc32(head))


def _write(file: io.FileIO, part: bytes | bytearray | memoryview) -> None:
    left = memoryview(part)
    while left:
        left = left[file.write(left) :]


def _remove(files: Iterable[_File]) -> None:
    for file in files:
        file.close()
        with suppress(FileNotFoundError):
            file.path.unlink()
