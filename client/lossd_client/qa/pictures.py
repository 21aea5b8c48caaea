"""Sizes of photos, and masks in pictures.

A photo's size is that on the screen, after the turn that its EXIF data asks for, because that is
what an annotator saw.
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from lossd_client.qa.painting import Mask
from lossd_client.qa.problems import DataError
from lossd_client.qa.rle import MAX_PIXELS

_PHOTO_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF")
_MASK_FORMATS = ("PNG", "BMP", "TIFF", "GIF")
_BROKEN = (
    *(OSError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError),
    *(SyntaxError, EOFError, struct.error, Image.DecompressionBombError),
)
"""What Pillow's decoders raise for broken files."""
_EXIF_ORIENTATION = 0x0112
_FIRST_SIDEWAYS_ORIENTATION = 5
_INDEX_MODES = frozenset({"1", "L", "P", "I", "I;16", "I;16B"})

# Pillow stretches grey values of fewer than eight bits over 0 to 255.
_PNG_BIT_DEPTH_AT = 24
_STRETCH = {1: 255, 2: 85, 4: 17}
_PNG_START = b"\x89PNG\r\n\x1a\n"

_LABELMAP_FIELDS = 2
_CHANNELS = 3
_MASK_AXES = 2  # rows and columns

Colours = dict[tuple[int, int, int], int]
"""Labels of colours."""


def photo_size(path: Path) -> tuple[int, int]:
    """Height and width of a photo; its pixels are not read.

    Args:
        path: PNG, JPEG, BMP, TIFF, WebP or GIF.

    Returns:
        Rows and columns as shown on a screen.

    Raises:
        DataError: the file is no such picture.
    """
    with _opened(path, _PHOTO_FORMATS) as picture:
        width, height = picture.size
        return (width, height) if _is_sideways(picture) else (height, width)


def read_photo(path: Path) -> Image.Image:
    """A photo as shown on a screen.

    Args:
        path: PNG, JPEG, BMP, TIFF, WebP or GIF.

    Returns:
        RGB, turned as its EXIF data asks for.

    Raises:
        DataError: the file is no such picture.
    """
    with _opened(path, _PHOTO_FORMATS, _in_memory(path)) as picture:
        return _eight_bits(ImageOps.exif_transpose(picture)).convert("RGB")


def read_thumbnail(path: Path, longest_px: int) -> Image.Image:
    """A photo in small, as shown on a screen; of a JPEG no more is decoded than that needs.

    Args:
        path: as for `read_photo`.
        longest_px: the longer side, unless the photo is smaller.

    Returns:
        RGB.

    Raises:
        DataError: the file is no such picture.
    """
    with _opened(path, _PHOTO_FORMATS, _in_memory(path)) as picture:
        picture.draft("RGB", (longest_px, longest_px))
        upright = _eight_bits(ImageOps.exif_transpose(picture)).convert("RGB")
    upright.thumbnail((longest_px, longest_px), Image.Resampling.BOX)
    return upright


def mask_size(path: Path) -> tuple[int, int]:
    """Height and width of a mask; its pixels are not read.

    Args:
        path: PNG, BMP, TIFF or GIF.

    Returns:
        Rows and columns.

    Raises:
        DataError: the file is no such picture.
    """
    with _opened(path, _MASK_FORMATS) as picture:
        return picture.size[1], picture.size[0]


def read_index_mask(path: Path) -> Mask:
    """Labels of a picture whose values are labels.

    Args:
        path: PNG, BMP, TIFF or GIF: a palette picture, of which the indices count and not the
            colours; grey of 1 to 16 bits, of which the values as stored count; or colour with
            three equal channels, which some programs make of grey.

    Returns:
        `[H, W]` unsigned integers.

    Raises:
        DataError: no such picture, or one with colours, for which a `labelmap.txt` is needed.
    """
    content = _in_memory(path)
    with _opened(path, _MASK_FORMATS, content) as picture:
        if picture.mode in _INDEX_MODES:
            values = np.asarray(picture)
            stretch = _stretch_of(content) if picture.mode == "L" else 1
            if values.dtype == np.bool_:
                return values.astype(np.uint8)
            return values if stretch == 1 else values // stretch
        channels = np.asarray(picture.convert("RGB"))
    if (channels != channels[..., :1]).any():
        raise DataError(
            str(path),
            "holds colours, not labels; put the labelmap.txt of the export beside the masks",
            kind="labels",
        )
    return channels[..., 0]


def read_colour_mask(path: Path, colours: Colours) -> Mask:
    """Labels of a picture whose colours stand for classes.

    Args:
        path: PNG, BMP, TIFF or GIF, colour or palette.
        colours: label of each colour.

    Returns:
        `[H, W]` int32.

    Raises:
        DataError: no such picture, or a colour that stands for nothing.
    """
    with _opened(path, _MASK_FORMATS, _in_memory(path)) as picture:
        channels = np.asarray(picture.convert("RGB")).astype(np.int32)
    codes = (channels[..., 0] << 16) | (channels[..., 1] << 8) | channels[..., 2]
    found, places, counts = np.unique(codes, return_inverse=True, return_counts=True)
    table = np.zeros(found.size, np.int32)
    for place, code in enumerate(found.tolist()):
        colour = (code >> 16, code >> 8 & 255, code & 255)
        if colour not in colours:
            raise DataError(
                str(path),
                f"{counts[place]} pixels have the colour {colour}, which is not in labelmap.txt",
                kind="labels",
            )
        table[place] = colours[colour]
    return table[places].reshape(codes.shape)


def read_labelmap(path: Path) -> tuple[list[str], Colours]:
    """Classes and colours of the `labelmap.txt` that CVAT and Datumaro write beside masks.

    Args:
        path: lines `name:r,g,b:parts:actions`; `#` begins a comment.

    Returns:
        Names in the order of the lines, and the label of each colour, its line's place.

    Raises:
        DataError: a line that is not so; the message has its number.
    """
    names: list[str] = []
    colours: Colours = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(str(path), f"cannot be read as text: {error}", kind="classes") from error
    for at, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        fields = line.split(":")
        colour = _colour(fields[1]) if len(fields) >= _LABELMAP_FIELDS else None
        if colour is None or colour in colours:
            raise DataError(
                str(path),
                f"line {at}, {line!r}, gives no new colour as 'name:r,g,b'",
                kind="classes",
            )
        colours[colour] = len(names)
        names.append(fields[0].strip())
    return names, colours


def _colour(text: str) -> tuple[int, int, int] | None:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != _CHANNELS or not all(part.isascii() and part.isdigit() for part in parts):
        return None
    red, green, blue = (int(part[:4]) for part in parts)
    return (red, green, blue) if max(red, green, blue) < 1 << 8 else None


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Pillow cuts deeper greys off at 255; their range is what a person wants to see."""
    if not picture.mode.startswith(("I", "F")):
        return picture
    values = np.asarray(picture).astype(np.float32)
    low, high = float(values.min()), float(values.max())
    scaled = (values - low) / max(high - low, 1e-9) * 255
    return Image.fromarray(scaled.astype(np.uint8))


def _stretch_of(content: BytesIO) -> int:
    head = bytes(content.getbuffer()[: _PNG_BIT_DEPTH_AT + 1])
    return _STRETCH.get(head[_PNG_BIT_DEPTH_AT], 1) if head.startswith(_PNG_START) else 1


def _is_sideways(picture: Image.Image) -> bool:
    # Pillow gives a TIFF's size as turned, and decodes a PNG to look for EXIF data behind its
    # pixels, where hardly any has it.
    if picture.format == "TIFF" or (picture.format == "PNG" and "exif" not in picture.info):
        return False
    orientation: int = picture.getexif().get(_EXIF_ORIENTATION, 1)
    return orientation >= _FIRST_SIDEWAYS_ORIENTATION


def _check_pixels(picture: Image.Image) -> None:
    # Pillow has a limit too, which other code of the process may have lifted.
    if picture.width * picture.height > MAX_PIXELS:
        raise ValueError(f"{picture.width} x {picture.height} pixels are too many")


def _in_memory(path: Path) -> BytesIO:
    """The file's bytes: Pillow asks a file on disk for as many as it claims to have left."""
    try:
        return BytesIO(path.read_bytes())
    except OSError as error:
        raise DataError(str(path), f"cannot be read: {error}") from error


@contextmanager
def _opened(
    path: Path, formats: tuple[str, ...], content: BytesIO | None = None
) -> Iterator[Image.Image]:
    try:
        with Image.open(content or path, formats=formats) as picture:
            _check_pixels(picture)
            yield picture
    except _BROKEN as error:
        raise DataError(str(path), f"cannot be read as {', '.join(formats)}: {error}") from error


def as_integers(values: npt.NDArray[np.generic], file: str) -> Mask:
    """Labels of an array.

    Args:
        values: what a `.npy` file holds.
        file: the file, for messages.

    Returns:
        `[H, W]` integers.

    Raises:
        DataError: other axes, or values that are no integers.
    """
    if values.ndim != _MASK_AXES:
        raise DataError(file, f"has the shape {list(values.shape)}; a mask is [H, W]", kind="size")
    if values.dtype == np.bool_:
        return values.astype(np.uint8)
    if not np.issubdtype(values.dtype, np.integer):
        raise DataError(file, f"holds {values.dtype}; labels are integers", kind="labels")
    labels: Mask = values.astype(values.dtype, copy=False)
    return labels
