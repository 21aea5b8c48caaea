"""Single tensors in the formats people have lying about: PNG, TIFF, NumPy files, COCO RLE.

Every reader knows how much it may unfold to and refuses before it allocates.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tifffile
from PIL import Image, UnidentifiedImageError
from pycocotools import mask as coco_mask

from lossd_client.errors import InvalidInputError, MalformedBodyError, TooLargeError
from lossd_client.wire import Array, decode_safetensors

_INDEX_MODES = ("1", "L", "P", "I;16", "I;16B", "I")
_NPY_MAGIC = b"\x93NUMPY"


def read_png(data: bytes, name: str, limit_bytes: int) -> Array:
    """Index mask `[H, W]` of a PNG with one 1, 8 or 16-bit channel; palettes give the indices.

    Raises:
        MalformedBodyError: the bytes are not a picture.
        InvalidInputError: the picture has colours instead of indices.
        TooLargeError: it unfolds to more than `limit_bytes`.
    """
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            refuse_large(picture.width * picture.height * 2, name, limit_bytes)
            if picture.mode not in _INDEX_MODES:
                msg = (
                    f"{name}: a mask is a picture of class indices with one channel, this one is "
                    f"{picture.mode}"
                )
                raise InvalidInputError(msg)
            array = np.asarray(picture)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        msg = f"{name} is not a PNG: {error}"
        raise MalformedBodyError(msg) from error
    return array.astype(np.uint8) if array.dtype == np.bool_ else array


def read_tiff(data: bytes, name: str, limit_bytes: int) -> Array:
    """Array of a TIFF's first series.

    Raises:
        MalformedBodyError: the bytes are not a TIFF that can be read.
        TooLargeError: it unfolds to more than `limit_bytes`.
    """
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            series = file.series[0]
            refuse_large(math.prod(series.shape) * series.dtype.itemsize, name, limit_bytes)
            return np.asarray(series.asarray())
    except (tifffile.TiffFileError, ValueError, KeyError, IndexError, RuntimeError) as error:
        msg = f"{name} is not a TIFF that can be read: {error}"
        raise MalformedBodyError(msg) from error


def read_npy(data: bytes, name: str, limit_bytes: int) -> Array:
    """Array of a `.npy` file; pickled objects are refused.

    Raises:
        MalformedBodyError: the bytes are not such a file.
        TooLargeError: its header claims more than `limit_bytes`.
    """
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, _, dtype = read_header(stream)
        refuse_large(math.prod(shape) * dtype.itemsize, name, limit_bytes)
        stream.seek(0)
        return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))
    except (ValueError, KeyError, TypeError, SyntaxError, EOFError) as error:
        msg = f"{name} is not a .npy file: {error}"
        raise MalformedBodyError(msg) from error


def read_npz(data: bytes, name: str, limit_bytes: int) -> Array:
    """The one array of a `.npz` file.

    Raises:
        MalformedBodyError: the bytes are not such a file, or hold not exactly one array.
        TooLargeError: it unfolds to more than `limit_bytes`.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if len(entries) != 1:
                msg = f"{name}: a .npz file must hold one array, this one holds {len(entries)}"
                raise MalformedBodyError(msg)
            refuse_large(entries[0].file_size, name, limit_bytes)
            return read_npy(archive.read(entries[0]), name, limit_bytes)
    except (zipfile.BadZipFile, ValueError, RuntimeError, NotImplementedError) as error:
        msg = f"{name} is not a .npz file: {error}"
        raise MalformedBodyError(msg) from error


def read_safetensors(data: bytes, name: str, limit_bytes: int) -> Array:
    """The one tensor of a safetensors file.

    Raises:
        MalformedBodyError: the bytes are not such a file, or hold not exactly one tensor.
    """
    refuse_large(len(data), name, limit_bytes)
    tensors, _ = decode_safetensors(bytearray(data))
    if len(tensors) != 1:
        msg = f"{name}: a part's safetensors file must hold one tensor, got {sorted(tensors)}"
        raise MalformedBodyError(msg)
    return next(iter(tensors.values()))


def read_rle(document: Any, name: str, limit_bytes: int) -> Array:
    """Binary mask `[H, W]` of a COCO run-length encoding, compressed or a list of runs.

    Raises:
        MalformedBodyError: size or counts are missing or do not belong together.
        TooLargeError: the mask takes more than `limit_bytes`.
    """
    if not isinstance(document, Mapping) or not {"size", "counts"} <= set(document):
        msg = f"{name}: an RLE is an object with size [H, W] and counts"
        raise MalformedBodyError(msg)
    height, width = _rle_size(document["size"], name)
    refuse_large(height * width, name, limit_bytes)
    counts = document["counts"]
    try:
        runs = _decompressed(counts) if isinstance(counts, str) else [int(run) for run in counts]
    except (TypeError, ValueError) as error:
        msg = f"{name}: counts is neither a compressed RLE nor a list of runs: {error}"
        raise MalformedBodyError(msg) from error
    if min(runs, default=0) < 0 or sum(runs) != height * width:
        msg = f"{name}: runs add up to {sum(runs)}, the size {[height, width]} has {height * width}"
        raise MalformedBodyError(msg)
    # Runs that add up are safe to hand to the library, which trusts them.
    encoded = coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)
    return np.asarray(coco_mask.decode(encoded), dtype=np.uint8)


def read_class_rles(
    masks: Sequence[Any], labels: Sequence[Any], background: int, name: str, limit_bytes: int
) -> Array:
    """Index mask `[H, W]` painted from several RLEs; later ones overwrite earlier ones."""
    if len(masks) != len(labels) or not masks:
        msg = f"{name}: needs as many labels as masks and at least one, got {len(labels)} and "
        msg += f"{len(masks)}"
        raise MalformedBodyError(msg)
    canvas: Array | None = None
    for mask, label in zip(masks, labels, strict=True):
        if type(label) is not int:
            msg = f"{name}: label {label!r} is not an integer"
            raise MalformedBodyError(msg)
        shape = read_rle(mask, name, limit_bytes // 8)
        if canvas is None:
            canvas = np.full(shape.shape, background, dtype=np.int32)
        if shape.shape != canvas.shape:
            msg = f"{name}: masks of one sample have sizes {list(canvas.shape)} and "
            msg += f"{list(shape.shape)}"
            raise InvalidInputError(msg)
        canvas[shape != 0] = label
    if canvas is None:
        msg = f"{name}: no mask"
        raise MalformedBodyError(msg)
    return canvas


READERS: dict[str, Callable[[bytes, str, int], Array]] = {
    ".png": read_png,
    ".tif": read_tiff,
    ".tiff": read_tiff,
    ".npy": read_npy,
    ".npz": read_npz,
    ".safetensors": read_safetensors,
}
"""Reader by file name ending."""


def reader_of(filename: str, data: bytes) -> Callable[[bytes, str, int], Array] | None:
    """Reader for a file by its name, or by its first bytes where the name says nothing."""
    ending = "." + filename.rpartition(".")[2].lower()
    if ending in READERS:
        return READERS[ending]
    for magic, known in ((_NPY_MAGIC, ".npy"), (b"\x89PNG", ".png"), (b"PK\x03\x04", ".npz")):
        if data.startswith(magic):
            return READERS[known]
    return None


def refuse_large(nbytes: int, name: str, limit_bytes: int) -> None:
    """Raises `TooLargeError` if something unfolds to more than is allowed."""
    if nbytes > limit_bytes:
        msg = f"{name} unfolds to {nbytes} bytes, the limit is {limit_bytes}"
        raise TooLargeError(msg)


def _rle_size(size: Any, name: str) -> tuple[int, int]:
    try:
        height, width = (int(length) for length in size)
    except (TypeError, ValueError) as error:
        msg = f"{name}: size of an RLE is [height, width], got {size!r}"
        raise MalformedBodyError(msg) from error
    if min(height, width) < 1:
        msg = f"{name}: size of an RLE is at least [1, 1], got {[height, width]}"
        raise MalformedBodyError(msg)
    return height, width


_CONTINUES, _NEGATIVE, _FIRST_CHARACTER, _BITS = 0x20, 0x10, 48, 5


def _decompressed(text: str) -> list[int]:
    """Runs of COCO's compressed text: 5 bits a character, every run from the third a difference.

    The library's own decoder reads beyond the end of a text that stops in the middle of a number.
    """
    runs: list[int] = []
    value = shift = 0
    open_number = False
    for character in text.encode("ascii"):
        bits = character - _FIRST_CHARACTER
        if not 0 <= bits < 2 * _CONTINUES:
            msg = f"character {chr(character)!r} does not occur in a compressed RLE"
            raise ValueError(msg)
        value |= (bits & (_CONTINUES - 1)) << shift
        shift += _BITS
        open_number = bool(bits & _CONTINUES)
        if open_number:
            continue
        if bits & _NEGATIVE:
            value -= 1 << shift
        if len(runs) > 2:  # noqa: PLR2004 - the format's rule
            value += runs[-2]
        runs.append(value)
        value = shift = 0
    if open_number:
        msg = "the text ends inside a number"
        raise ValueError(msg)
    return runs
