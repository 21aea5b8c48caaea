"""Arrays in `.npy` files and in the members of an `.npz`: what they are, then what they hold.

Nothing is unpickled. The header is read first, and a file that is shorter than its header says is
refused before anything is allocated.
"""

import math
import re
import threading
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from lossd_client._files import MappedFile
from lossd_client.qa.archives import open_archive
from lossd_client.qa.problems import DataError

_UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    RuntimeError,  # a member that is encrypted, or nesting that is too deep
    # A header is a Python literal, and what numpy's parser says of a broken one is not one class.
    SyntaxError,
    tokenize.TokenError,
    TypeError,
    KeyError,
    zipfile.BadZipFile,
    zlib.error,
)
# numpy reads a header with `ast`, which in some versions of CPython, 3.11.7 among them, fails now
# and then while two threads are in it (python/cpython#106905).
_HEADERS = threading.Lock()
_DEFLATE_RATIO = 1032  # what deflate packs a byte of zeros into, at best
_VERSION_1 = (1, 0)
_VERSION_2 = (2, 0)
_SIDE = r"(?:0|[1-9]\d{0,17})"
_USUAL_HEADER = re.compile(
    r"\{'descr': '([<|][fiub]\d)', 'fortran_order': (False|True), "
    rf"'shape': \(({_SIDE},|{_SIDE}(?:, {_SIDE})+)\), \}} *\n"
)
"""What numpy writes for numbers, whose own reader takes ten times as long: it parses Python."""
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class ArrayFile:
    """A `.npy` file, or a member of an `.npz`.

    Attributes:
        path: the file on disk.
        member: the member's name in an `.npz`; None for a `.npy`.
        archive: the open `.npz`, shared by its members: its directory is read once, not once a
            member. It closes with the last of them.
    """

    path: Path
    member: str | None = None
    archive: zipfile.ZipFile | None = None

    def __str__(self) -> str:
        return str(self.path) if self.member is None else f"{self.path}:{self.member}"

    def header(self) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
        """Shape and dtype; the values are not read.

        Returns:
            What the header says.

        Raises:
            DataError: no such file, no array in it, objects in it, or too short for its header.
        """
        with self._opened() as (file, size_bytes):
            shape, _, dtype = _header(file)
            if dtype.hasobject:
                raise ValueError("it holds Python objects, which are not read")
            expected = int(np.prod(shape, dtype=object)) * dtype.itemsize
            if size_bytes - file.tell() != expected:
                raise ValueError(
                    f"its header asks for {expected} bytes, {size_bytes - file.tell()} follow"
                )
            return shape, dtype

    def read(self) -> npt.NDArray[np.generic]:
        """The array.

        Returns:
            Its values, in main memory.

        Raises:
            DataError: as `header`.
        """
        self.header()
        with self._opened() as (file, _):
            values: npt.NDArray[np.generic] = npy.read_array(file, allow_pickle=False)
            return values

    def blocks(self) -> Iterator[npt.NDArray[np.generic]]:
        """The values of the array in pieces, in no order that means anything.

        Yields:
            Some values on one axis, so that a large array need not be in memory at once.

        Raises:
            DataError: as `header`.
        """
        shape, dtype = self.header()
        if self.member is not None:
            yield self.read().reshape(-1)
            return
        with self._opened() as (file, _):
            _header(file)
            most = _BLOCK_BYTES // dtype.itemsize
            for left in range(math.prod(shape), 0, -most):
                content = file.read(min(left, most) * dtype.itemsize)
                # Of a file that became shorter numpy says so where it reads fewer bytes than that.
                yield np.frombuffer(content, dtype, min(left, most))

    def mapped(self) -> npt.NDArray[np.generic]:
        """The array, to be sent and not to be looked at: its values stay in the file.

        A file that is cut off meanwhile would end a process that looks at the values; a system
        call that sends them fails.

        Returns:
            The values, read-only; in main memory where they do not lie in the file as they travel.

        Raises:
            DataError: as `header`.
        """
        if self.member is not None:
            return self.read()
        with self._opened() as (file, size_bytes):
            shape, is_turned, dtype = _header(file)
            begin, count = file.tell(), math.prod(shape)
            plain = not (is_turned or dtype.hasobject) and dtype.isnative
            if plain and count and size_bytes - begin == count * dtype.itemsize:
                return np.frombuffer(MappedFile.of(file), dtype, count, begin).reshape(shape)
        return self.read()

    def version(self) -> str:
        """What changes when the values do; they are not read.

        Returns:
            The member's checksum and size, or the file's size and time of change.

        Raises:
            DataError: there is no such file or member.
        """
        if self.archive is None or self.member is None:
            return file_version(self.path)
        try:
            info = self.archive.getinfo(self.member)
        except KeyError as error:
            raise DataError(str(self), f"is not there: {error}") from error
        return f"{info.CRC:08x}-{info.file_size}"

    @contextmanager
    def _opened(self) -> Iterator[tuple[IO[bytes], int]]:
        try:
            if self.archive is None or self.member is None:
                with self.path.open("rb") as file:
                    yield file, self.path.stat().st_size
            else:
                size_bytes = self._member_bytes(self.archive.getinfo(self.member))
                with self.archive.open(self.member) as file:
                    yield file, size_bytes
        except _UNREADABLE as error:
            raise DataError(str(self), f"cannot be read as an array: {error}") from error

    def _member_bytes(self, info: zipfile.ZipInfo) -> int:
        """Size of the member, held against what the archive can have packed."""
        if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise ValueError("it is packed in a way that numpy does not write")
        if info.file_size > _DEFLATE_RATIO * self.path.stat().st_size:
            raise ValueError(f"{info.file_size} bytes cannot come out of an archive of this size")
        return info.file_size


def file_version(path: Path) -> str:
    """What changes when a file does; it is not read.

    Args:
        path: the file.

    Returns:
        Its size and its time of change.

    Raises:
        DataError: there is no such file.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(str(path), f"cannot be read: {error}") from error
    return f"{status.st_size}-{status.st_mtime_ns}"


def members(path: Path) -> list[ArrayFile]:
    """Arrays of an `.npz`.

    Args:
        path: the file.

    Returns:
        Its members with the extension `.npy`, in the order of the file.

    Raises:
        DataError: the file is no archive, or has a member twice.
    """
    try:
        archive = open_archive(path)
        names = [name for name in archive.namelist() if name.endswith(".npy")]
    except _UNREADABLE as error:
        raise DataError(str(path), f"cannot be read as an archive of arrays: {error}") from error
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(str(path), f"has the member {twice!r} twice", kind="duplicate")
    return [ArrayFile(path, name, archive) for name in names]


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    version = npy.read_magic(file)
    if version == _VERSION_1:
        begin = file.tell()
        if found := _usual_header(file):
            return found
        file.seek(begin)
    with _HEADERS:
        if version == _VERSION_1:
            return npy.read_array_header_1_0(file)
        if version == _VERSION_2:
            return npy.read_array_header_2_0(file)
    raise ValueError(f"it has version {version} of the format; read are 1.0 and 2.0")


def _usual_header(
    file: IO[bytes],
) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]] | None:
    """What a header says that is written as numpy writes those of numbers; None if it is not."""
    length = int.from_bytes(file.read(2), "little")
    text = file.read(length).decode("latin-1")
    found = _USUAL_HEADER.fullmatch(text)
    if found is None or len(text) < length:
        return None
    descr, is_turned, shape = found.groups()
    sides = shape.removesuffix(",").split(", ")
    return tuple(map(int, sides)), is_turned == "True", np.dtype(descr)
