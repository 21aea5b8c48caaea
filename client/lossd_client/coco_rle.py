"""COCO's run-length code of a mask, which both distributions read and write.

Column after column over the whole image (`[H, W]` in Fortran order). Counts alternate between
outside and inside and begin with outside, so a mask that begins inside begins with a 0. The
compressed string writes each count, from the fourth on less the count two before, in groups of
five bits, lowest group first, with bit 5 set where another group follows, the last group's bit 4
being the sign, and 48 added to make a printable character.

Decoders check before they allocate, and raise `ValueError` that says what does not add up.

Example:
    >>> mask = np.array([[False, True], [True, True]])
    >>> encode_coco(mask), compress_coco([1, 3])
    ([1, 3], '13')
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Inside = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]

MAX_PIXELS = 1 << 28
"""Pixels of the largest image that is decoded."""

_FIRST_CHARACTER = 48
_LAST_CHARACTER = 48 + 63
_BITS = 5
_MORE = 0x20
_SIGN = 0x10
_PLAIN = 3  # so many counts are not told as differences
_MAX_GROUPS = 8  # 40 bits, more than any count of MAX_PIXELS needs


def decode_coco(counts: str | Sequence[int], height: int, width: int) -> Inside:
    """Mask of COCO's counts.

    Args:
        counts: the compressed string, or the list of counts.
        height: rows of the image.
        width: columns of the image.

    Returns:
        `[H, W]` bool, True inside.

    Raises:
        ValueError: the string is malformed, or the counts do not add up to the image.
    """
    lengths = expand_coco(counts) if isinstance(counts, str) else count_array(counts)
    return fill(lengths, height * width).reshape(width, height).T


def encode_coco(mask: Inside) -> list[int]:
    """Uncompressed counts of a mask in COCO's order.

    Args:
        mask: `[H, W]` bool.

    Returns:
        Counts that alternate between outside and inside, outside first.
    """
    return run_lengths(mask.T.reshape(-1))


def expand_coco(text: str) -> Counts:
    """Counts of a compressed string.

    Args:
        text: characters 48 to 111, as `compress_coco` writes them.

    Returns:
        `[n]` int64 counts.

    Raises:
        ValueError: a character that cannot occur, or a count that does not end.
    """
    if not text.isascii():
        raise ValueError("the RLE string holds characters that are not ASCII")
    codes = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64)
    if codes.size == 0:
        return codes
    if codes.min() < _FIRST_CHARACTER or codes.max() > _LAST_CHARACTER:
        raise ValueError("the RLE string holds characters outside '0' to 'o'")
    codes -= _FIRST_CHARACTER
    ends = np.flatnonzero(codes & _MORE == 0)
    if ends.size == 0 or ends[-1] != codes.size - 1:
        raise ValueError("the RLE string breaks off within a count")
    starts = np.concatenate(([0], ends[:-1] + 1))
    if (ends - starts).max() >= _MAX_GROUPS:
        raise ValueError("the RLE string holds a count larger than any image")
    place = np.arange(codes.size) - np.repeat(starts, ends - starts + 1)
    steps = np.add.reduceat((codes & (_MORE - 1)) << (_BITS * place), starts)
    steps -= np.where(codes[ends] & _SIGN, 1 << (_BITS * (ends - starts + 1)), 0)
    # From the fourth on, counts are told as differences to the one two before.
    steps[1::2] = np.cumsum(steps[1::2])
    steps[2::2] = np.cumsum(steps[2::2])
    return steps


def compress_coco(counts: Sequence[int] | Counts) -> str:
    """String of COCO's counts, as its tools write it.

    Args:
        counts: as `encode_coco` gives them, each at most 2^38.

    Returns:
        ASCII text.
    """
    return compress_several(np.asarray(counts, np.int64), np.array([0]))[0]


def compress_several(counts: Counts, first: Counts) -> list[str]:
    """Strings of the counts of several masks, one after the other.

    Args:
        counts: of all masks, each at most 2^38.
        first: where the counts of each mask begin, in order.

    Returns:
        ASCII text for each mask.

    Example:
        >>> compress_several(np.array([1, 3, 2, 2]), np.array([0, 2]))
        ['13', '22']
    """
    steps = counts.copy()
    place_in_mask = np.arange(len(counts)) - np.repeat(first, np.diff(first, append=len(counts)))
    told = np.flatnonzero(place_in_mask >= _PLAIN)
    steps[told] -= counts[told - 2]
    # A group more than the largest has, for the sign; few are as large as they may be.
    largest = int(np.abs(steps).max(initial=0))
    place = np.arange(min(_MAX_GROUPS, largest.bit_length() // _BITS + 1))
    rest = steps[:, None] >> (_BITS * place)
    groups = rest & (_MORE - 1)
    # A group is the last if the rest is nothing but copies of the sign that it already has.
    is_last = (rest >> _BITS) == np.where(groups & _SIGN, -1, 0)
    length = is_last.argmax(1)
    characters = groups + _FIRST_CHARACTER + np.where(place < length[:, None], _MORE, 0)
    text = characters[place <= length[:, None]].astype(np.uint8).tobytes().decode("ascii")
    ends = np.cumsum(length + 1)
    edges = [0, *ends[first[1:] - 1].tolist(), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


def run_lengths(values: Inside) -> list[int]:
    """Lengths of the runs of a flat mask, outside first; what CVAT and Label Studio count, too."""
    if values.size == 0:
        return []
    changes = np.flatnonzero(values[1:] != values[:-1]) + 1
    edges = np.concatenate(([0], changes, [values.size]))
    counts: list[int] = np.diff(edges).tolist()
    return [0, *counts] if values[0] else counts


def count_array(counts: Sequence[int]) -> Counts:
    """Counts of a list of unknown origin.

    Raises:
        ValueError: something is no whole number of pixels.
    """
    if any(type(count) is not int or abs(count) > MAX_PIXELS for count in counts):
        raise ValueError("the RLE's counts are not all whole numbers of pixels")
    return np.array(counts, np.int64)


def fill(counts: Counts, pixels: int) -> Inside:
    """Flat mask of counts.

    Raises:
        ValueError: the counts do not add up to so many pixels.
    """
    check_pixels(pixels)
    if counts.size and counts.min() < 0:
        raise ValueError(f"the RLE holds the negative count {int(counts.min())}")
    total = int(counts.sum())
    if total != pixels:
        raise ValueError(f"the RLE's counts add up to {total} pixels, its area has {pixels}")
    return np.repeat(np.arange(counts.size) % 2 == 1, counts)


def check_pixels(pixels: int) -> None:
    """Refuses an image that is too large to decode.

    Raises:
        ValueError: it is.
    """
    if not 0 <= pixels <= MAX_PIXELS:
        raise ValueError(f"{pixels} pixels; allowed are 0 to {MAX_PIXELS}")
