"""Single tensors in the formats people have lying about: PNG, TIFF, NumPy files, COCO RLE.

Every reader says how much it is going to unfold to and is refused before it allocates.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import re
import reprlib
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from lossd_client.errors import InvalidInputError, LossdError, MalformedBodyError, TooLargeError
from lossd_client.wire import Array, decode_safetensors

Buffer = bytes | bytearray | memoryview

_INDEX_MODES = ("1", "L", "P", "I;16", "I;16B", "I")
_NPY_MAGIC = b"\x93NUMPY"
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_MAX_NPY_HEADER_BYTES = 16 << 10
# numpy reads a header with `ast`, which in some versions of CPython, 3.11.7 among them, fails now
# and then while two threads are in it (python/cpython#106905).
_HEADERS = threading.Lock()
_MAX_AXES = 8
_ZIP_DIRECTORY_ENTRY = re.compile(rb"PK\x01\x02")
_MAX_DIRECTORY_ENTRIES = 64  # an array's own bytes may look like some
_MAX_TIFF_PAGES = 4096
_NO_COMPRESSION, _PACKBITS, _DEFLATES = 1, 32773, (8, 32946)
_COLUMNS = 32
_PACKBITS_RATIO = 64  # 2 bytes are at most 128

# Memory that a JSON text takes at most while it is read, by the bytes that announce it: an element,
# a list, an object, a key with its place, a text by both of its quotes. Measured from outside.
_JSON_BYTES = {b",": 80, b"[": 136, b"{": 160, b":": 80, b'"': 24}
_SHORT_JSON_CHARACTERS = 1024
_JSON_PIECE_BYTES = 1 << 20  # looked through at a time, so that other threads have their turn

# Pillow's own guess at what is a bomb; here a budget in bytes decides, before anything is decoded.
Image.MAX_IMAGE_PIXELS = None


class Budget:
    """How many bytes the tensors of one request may still unfold to, and its JSON texts."""

    def __init__(self, limit_bytes: int, json_limit_bytes: int | None = None) -> None:
        """Opens the accounts.

        Args:
            limit_bytes: of tensors.
            json_limit_bytes: of what JSON becomes while it is read; as much again if None.
        """
        self._limit_bytes = limit_bytes
        self._left_bytes = limit_bytes
        self._json_limit_bytes = limit_bytes if json_limit_bytes is None else json_limit_bytes
        self._json_left_bytes = self._json_limit_bytes

    def take(self, nbytes: int, name: str) -> None:
        """Reserves bytes for the tensor `name`.

        Raises:
            TooLargeError: fewer are left.
        """
        if nbytes > self._left_bytes:
            msg = (
                f"{name} unfolds to {nbytes} bytes; {self._left_bytes} are left of the "
                f"{self._limit_bytes} that one request may unfold to"
            )
            raise TooLargeError(msg)
        self._left_bytes -= nbytes

    def take_json(self, text: str | Buffer, name: str) -> None:
        """Reserves what the lists and objects of a JSON text could take while it is read.

        Raises:
            TooLargeError: less is left.
        """
        if len(text) <= _SHORT_JSON_CHARACTERS:  # not worth looking through
            self._json_left_bytes -= len(text) * max(_JSON_BYTES.values())
            self._check_json(name)
            return
        encoded = memoryview(text.encode() if isinstance(text, str) else text)
        for begin in range(0, len(encoded), _JSON_PIECE_BYTES):
            piece = bytes(encoded[begin : begin + _JSON_PIECE_BYTES])
            self._json_left_bytes -= sum(
                piece.count(mark) * nbytes for mark, nbytes in _JSON_BYTES.items()
            )
            self._check_json(name)

    def _check_json(self, name: str) -> None:
        if self._json_left_bytes < 0:
            msg = (
                f"{name}: the lists and objects of a request's JSON may take "
                f"{self._json_limit_bytes} bytes while they are read, about "
                f"{self._json_limit_bytes // _JSON_BYTES[b',']} numbers; send tensors as "
                "base64 or as safetensors"
            )
            raise TooLargeError(msg)


def read_png(data: Buffer, name: str, budget: Budget) -> Array:
    """Index mask `[H, W]` of a PNG with one 1, 8 or 16-bit channel; palettes give the indices.

    Raises:
        MalformedBodyError: the bytes are not a picture.
        InvalidInputError: the picture has colours instead of indices.
        TooLargeError: it unfolds to more than the budget.
    """
    with _blaming(name, "PNG"):
        if bytes(data[: len(_PNG_MAGIC)]) != _PNG_MAGIC:
            msg = "it does not begin as one"
            raise ValueError(msg)
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            budget.take(picture.width * picture.height * 2, name)
            if picture.mode not in _INDEX_MODES:
                msg = (
                    f"{name}: a mask is a picture of class indices with one channel, this one is "
                    f"{picture.mode}"
                )
                raise InvalidInputError(msg)
            array = np.asarray(picture)
    return array.astype(np.uint8) if array.dtype == np.bool_ else array


def read_tiff(data: Buffer, name: str, budget: Budget) -> Array:
    """Array of a TIFF's first series.

    Raises:
        MalformedBodyError: the bytes are not a TIFF that can be read.
        TooLargeError: it unfolds to more than the budget.
    """
    with _blaming(name, "TIFF that can be read"), tifffile.TiffFile(io.BytesIO(data)) as file:
        _check_pages(file)
        series = file.series[0]
        _check_axes(series.shape)
        budget.take(math.prod(series.shape) * series.dtype.itemsize, name)
        for page in series.pages:
            if page is not None:
                _check_segments(data, page, name, budget)
        return np.asarray(series.asarray())


def read_npy(data: Buffer, name: str, budget: Budget) -> Array:
    """Array of a `.npy` file, a view of its bytes; pickled objects are refused.

    Raises:
        MalformedBodyError: the bytes are not such a file.
        TooLargeError: its header claims more than the budget.
    """
    with _blaming(name, ".npy file"):
        head = io.BytesIO(data[:_MAX_NPY_HEADER_BYTES])
        version = np.lib.format.read_magic(head)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        with _HEADERS:
            shape, fortran_order, dtype = read_header(head)
        if dtype.hasobject:
            msg = "it holds pickled objects"
            raise ValueError(msg)
        if dtype.kind not in "biuf":
            msg = f"{name}: dtype {dtype.name} is not a number"
            raise InvalidInputError(msg)
        _check_axes(shape)
        count = math.prod(shape)
        budget.take(count * dtype.itemsize, name)
        flat = np.frombuffer(data, dtype, count, offset=head.tell())
        return flat.reshape(shape, order="F" if fortran_order else "C")


def read_npz(data: Buffer, name: str, budget: Budget) -> Array:
    """The one array of a `.npz` file.

    Raises:
        MalformedBodyError: the bytes are not such a file, or hold not exactly one array.
        TooLargeError: it unfolds to more than the budget.
    """
    _check_directory(data, name)
    with _blaming(name, ".npz file"), zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        if len(entries) != 1:
            msg = f"it must hold one array, this one holds {len(entries)}"
            raise ValueError(msg)
        entry = entries[0]
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            msg = f"NumPy does not compress with method {entry.compress_type}"
            raise ValueError(msg)
        budget.take(entry.file_size, name)
        with archive.open(entry) as file:
            # Without a length it would unfold whatever there is, then cut to the claimed size.
            unfolded = file.read(entry.file_size)
        # Its bytes are paid for; the array is a view of them.
        return read_npy(unfolded, name, Budget(len(unfolded)))


def read_safetensors(data: Buffer, name: str, budget: Budget) -> Array:
    """The one tensor of a safetensors file.

    Raises:
        MalformedBodyError: the bytes are not such a file, or hold not exactly one tensor.
    """
    budget.take(len(data), name)
    tensors, _ = decode_safetensors(data)
    if len(tensors) != 1:
        msg = f"{name}: a part's safetensors file must hold one tensor, got {sorted(tensors)[:6]}"
        raise MalformedBodyError(msg)
    return next(iter(tensors.values()))


def read_rle(document: Any, name: str, budget: Budget) -> Array:
    """Binary mask `[H, W]` of a COCO run-length encoding, compressed or a list of runs.

    Raises:
        MalformedBodyError: size or counts are missing or do not belong together.
        TooLargeError: the mask takes more than the budget.
    """
    height, width = _rle_size(document, name)
    budget.take(height * width, name)
    mask = _unrolled(document["counts"], height * width, name, budget)
    return _by_rows(mask, height, width)


def read_class_rles(
    masks: Sequence[Any], labels: Sequence[Any], background: int, name: str, budget: Budget
) -> Array:
    """Index mask `[H, W]` painted from several RLEs; later ones overwrite earlier ones.

    It is uint8 where labels and background fit, int32 otherwise.

    Raises:
        MalformedBodyError: there is not one integer label per mask, or a mask is none.
        InvalidInputError: the masks differ in size, or a label is no 32-bit integer.
        TooLargeError: canvas and masks take more than the budget.
    """
    if len(masks) != len(labels) or not masks:
        msg = f"{name}: needs as many labels as masks and at least one, got {len(labels)} and "
        msg += f"{len(masks)}"
        raise MalformedBodyError(msg)
    _check_labels([*labels, background], name)
    height, width = _rle_size(masks[0], name)
    small = all(0 <= label <= np.iinfo(np.uint8).max for label in (*labels, background))
    dtype = np.dtype(np.uint8 if small else np.int32)
    budget.take(height * width * np.dtype(np.int32).itemsize, name)  # for what it is made from, too
    canvas = np.full(height * width, background, dtype)  # column by column, as the runs go
    for mask, label in zip(masks, labels, strict=True):
        size = _rle_size(mask, name)
        if size != (height, width):
            msg = f"{name}: masks of one sample have sizes {[height, width]} and {list(size)}"
            raise InvalidInputError(msg)
        # Only one mask is held at a time: a bit per pixel pays for the work, not for memory.
        budget.take(height * width // 8, name)
        inside = _unrolled(mask["counts"], height * width, name, budget)
        np.copyto(canvas, label, where=inside.view(np.bool_))
    return _by_rows(canvas, height, width)


READERS: dict[str, Callable[[Buffer, str, Budget], Array]] = {
    ".png": read_png,
    ".tif": read_tiff,
    ".tiff": read_tiff,
    ".npy": read_npy,
    ".npz": read_npz,
    ".safetensors": read_safetensors,
}
"""Reader by file name ending."""


def reader_of(filename: str, data: Buffer) -> Callable[[Buffer, str, Budget], Array] | None:
    """Reader for a file by its name, or by its first bytes where the name says nothing."""
    ending = "." + filename.rpartition(".")[2].lower()
    if ending in READERS:
        return READERS[ending]
    first = bytes(data[:8])
    for magic, known in ((_NPY_MAGIC, ".npy"), (_PNG_MAGIC, ".png"), (b"PK\x03\x04", ".npz")):
        if first.startswith(magic):
            return READERS[known]
    return None


@contextlib.contextmanager
def _blaming(name: str, what: str) -> Iterator[None]:
    """Blames the bytes for whatever a decoder raises: each has its own idea of what that may be."""
    try:
        yield
    except LossdError:
        raise
    except Exception as error:
        msg = f"{name} is not a {what}: {error}"
        raise MalformedBodyError(msg) from error


def _check_directory(data: Buffer, name: str) -> None:
    """Refuses a long directory, of which zipfile would make an object per entry."""
    found = _ZIP_DIRECTORY_ENTRY.finditer(data)
    if next(itertools.islice(found, _MAX_DIRECTORY_ENTRIES, None), None) is not None:
        msg = f"{name} is not a .npz file: it must hold one array, this one holds many files"
        raise MalformedBodyError(msg)


def _check_pages(file: tifffile.TiffFile) -> None:
    """Walks the chain of pages so far as is allowed; tifffile follows a circle for ever."""
    with contextlib.suppress(IndexError):
        file.pages.get(_MAX_TIFF_PAGES)
        msg = f"it has more than {_MAX_TIFF_PAGES} pages, or they form a circle"
        raise ValueError(msg)


def _check_segments(data: Buffer, page: Any, name: str, budget: Budget) -> None:
    """Refuses strips and tiles that unfold to more than they have pixels: tifffile unfolds all."""
    keyframe = page.keyframe
    if keyframe.compression == _NO_COMPRESSION:
        return
    nbytes = math.prod(keyframe.chunks) * keyframe.dtype.itemsize
    budget.take(nbytes * len(page.databytecounts), name)
    if keyframe.compression == _PACKBITS:
        budget.take(sum(page.databytecounts) * _PACKBITS_RATIO, name)
        return
    if keyframe.compression not in _DEFLATES:
        msg = f"compression {keyframe.compression} is not read; save it without or with deflate"
        raise ValueError(msg)
    for begin, length in zip(page.dataoffsets, page.databytecounts, strict=True):
        segment = memoryview(data)[begin : begin + length]
        if len(zlib.decompressobj().decompress(segment, nbytes + 1)) > nbytes:
            msg = f"a strip or tile unfolds to more than the {nbytes} bytes it has pixels for"
            raise ValueError(msg)


def _check_axes(shape: Sequence[int]) -> None:
    if len(shape) > _MAX_AXES or min(shape, default=0) < 0:
        msg = f"its shape is {list(shape)}, at most {_MAX_AXES} axes are read"
        raise ValueError(msg)


def _check_labels(labels: Sequence[Any], name: str) -> None:
    for label in labels:
        if type(label) is not int:
            msg = f"{name}: label {reprlib.repr(label)} is not an integer"
            raise MalformedBodyError(msg)
        if not -(1 << 31) <= label < 1 << 31:
            msg = f"{name}: label {label} is not a 32-bit integer"
            raise InvalidInputError(msg)


def _rle_size(document: Any, name: str) -> tuple[int, int]:
    if not isinstance(document, Mapping) or not {"size", "counts"} <= set(document):
        msg = f"{name}: an RLE is an object with size [H, W] and counts"
        raise MalformedBodyError(msg)
    size = document["size"]
    sizes_ok = isinstance(size, list) and all(type(length) is int and length > 0 for length in size)
    if not sizes_ok or len(size) != 2:  # noqa: PLR2004 - height and width
        msg = (
            f"{name}: size of an RLE is [height, width], at least [1, 1], got {reprlib.repr(size)}"
        )
        raise MalformedBodyError(msg)
    return size[0], size[1]


def _unrolled(counts: Any, pixels: int, name: str, budget: Budget) -> Array:
    """Mask of so many pixels, uint8, of runs of 0 and 1 in turn."""
    try:
        budget.take(len(counts) * np.dtype(np.int64).itemsize, name)
        runs = _decompressed(counts) if isinstance(counts, str) else _listed_runs(counts)
    except (TypeError, ValueError, OverflowError) as error:
        msg = f"{name}: counts is neither a compressed RLE nor a list of runs: {error}"
        raise MalformedBodyError(msg) from error
    # No run may be longer than the whole, or the sum could overflow to something that fits.
    if runs.size and (runs.min() < 0 or runs.max() > pixels):
        msg = f"{name}: a run of the RLE is negative or longer than the {pixels} pixels"
        raise MalformedBodyError(msg)
    if int(runs.sum()) != pixels:
        msg = f"{name}: runs add up to {int(runs.sum())}, its size has {pixels}"
        raise MalformedBodyError(msg)
    values = (np.arange(len(runs)) & 1).astype(np.uint8)
    return np.repeat(values, runs)


def _by_rows(pixels: Array, height: int, width: int) -> Array:
    """Picture `[H, W]` of pixels that stand column by column.

    Some columns at a time: their rows stay in the processor's cache, which is three times as fast.
    """
    columns = pixels.reshape(width, height)
    rows = np.empty((height, width), pixels.dtype)
    for begin in range(0, width, _COLUMNS):
        rows[:, begin : begin + _COLUMNS] = columns[begin : begin + _COLUMNS].T
    return rows


def _listed_runs(counts: Any) -> Array:
    if not isinstance(counts, list) or not all(type(run) is int for run in counts):
        msg = "a list of runs holds integers"
        raise ValueError(msg)
    return np.array(counts, dtype=np.int64)


_CONTINUES, _NEGATIVE, _FIRST_CHARACTER, _BITS = 0x20, 0x10, 48, 5
_MAX_CHARACTERS = 7  # of one number: 35 bits, more than any picture has pixels


def _decompressed(text: str) -> Array:
    """Runs of COCO's compressed text: 5 bits a character, every run from the fourth a difference.

    The difference is to the run before the last, which has the same value. COCO's own decoder
    reads beyond the end of a text that stops in the middle of a number.
    """
    bits = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - _FIRST_CHARACTER
    if bits.size and (bits.min() < 0 or bits.max() >= 2 * _CONTINUES):
        msg = "a character does not occur in a compressed RLE"
        raise ValueError(msg)
    ends = np.flatnonzero((bits & _CONTINUES) == 0)
    if bits.size and (not ends.size or ends[-1] != bits.size - 1):
        msg = "the text ends inside a number"
        raise ValueError(msg)
    begins = np.concatenate([[0], ends[:-1] + 1]) if ends.size else ends
    characters = ends - begins + 1
    if characters.size and characters.max() > _MAX_CHARACTERS:
        msg = f"a number has more than {_MAX_CHARACTERS} characters"
        raise ValueError(msg)
    place = np.arange(bits.size) - np.repeat(begins, characters)
    digits = (bits & (_CONTINUES - 1)) << (_BITS * place)
    numbers = np.add.reduceat(digits, begins) if begins.size else digits
    numbers -= np.where(bits[ends] & _NEGATIVE, 1 << (_BITS * characters), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers
