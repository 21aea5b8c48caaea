"""Run-length codes of masks as three tools write them; no two are alike.

COCO
    Column after column over the whole image: `lossd_client.coco_rle`, whose functions are here,
    too.

CVAT
    Row after row inside the object's box, counts as in COCO, written as text with commas.

Label Studio
    Bits, highest first: 32 of the number of values, 5 of the bits of a value less one, four times 4
    of the bits of a length less one. Then blocks: one bit that is 1 for a run and 0 for a list, two
    that choose one of the four lengths, that many bits of the block's length less one, and one
    value or as many as the length says. The values are the channels of an RGBA image row after row;
    a pixel is inside where its alpha is above 0.

Decoders check before they allocate, and raise `ValueError` that says what does not add up.

Example:
    >>> import numpy as np
    >>> mask = np.array([[False, True], [True, True]])
    >>> encode_coco(mask)
    [1, 3]
    >>> compress_coco([1, 3]), encode_cvat(mask)
    ('13', '1,3')
    >>> bool((decode_label_studio(encode_label_studio(mask), 2, 2) == mask).all())
    True
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from lossd_client.coco_rle import (
    MAX_PIXELS,
    Counts,
    Inside,
    check_pixels,
    compress_coco,
    count_array,
    decode_coco,
    encode_coco,
    expand_coco,
    fill,
    run_lengths,
)

__all__ = [
    "MAX_PIXELS",
    "Counts",
    "Inside",
    "compress_coco",
    "decode_coco",
    "decode_cvat",
    "decode_label_studio",
    "encode_coco",
    "encode_cvat",
    "encode_label_studio",
    "expand_coco",
]

_RGBA = 4
_LENGTH_BITS = (3, 4, 8, 16)  # what Label Studio's own encoder chooses from
_VALUE_BITS = 8
_LONGEST_RUN = 1 << _LENGTH_BITS[-1]


def decode_cvat(counts: str, height: int, width: int) -> Inside:
    """Mask of CVAT's counts, inside the object's box.

    Args:
        counts: numbers with commas between them.
        height: rows of the box.
        width: columns of the box.

    Returns:
        `[height, width]` bool, True inside.

    Raises:
        ValueError: something that is no number, or counts that do not add up to the box.
    """
    lengths = count_array([int(piece) for piece in counts.split(",")] if counts.strip() else [])
    return fill(lengths, height * width).reshape(height, width)


def encode_cvat(mask: Inside) -> str:
    """CVAT's counts of a mask inside its box.

    Args:
        mask: `[height, width]` bool, the part of an image inside the object's box.

    Returns:
        Numbers with commas between them.
    """
    return ",".join(map(str, run_lengths(mask.reshape(-1))))


def decode_label_studio(rle: bytes | Sequence[int], height: int, width: int) -> Inside:
    """Mask of Label Studio's brush.

    Args:
        rle: bytes, as bytes or as the numbers of the JSON list.
        height: rows of the image.
        width: columns of the image.

    Returns:
        `[H, W]` bool, True where the alpha is above 0.

    Raises:
        ValueError: no bytes, another number of values than the image has channels, a block that
            overruns, or bytes that break off.
    """
    values = _unpack(_Bits(rle if isinstance(rle, bytes) else _bytes_of(rle)), height * width)
    return values.reshape(height, width, _RGBA)[:, :, 3] > 0


def encode_label_studio(mask: Inside) -> list[int]:
    """Brush of Label Studio with a mask in it.

    Args:
        mask: `[H, W]` bool.

    Returns:
        Numbers 0 to 255, the JSON list of `value.rle`.
    """
    bits = [f"{mask.size * _RGBA:032b}{_VALUE_BITS - 1:05b}"]
    bits.extend(f"{length - 1:04b}" for length in _LENGTH_BITS)
    for place, length in enumerate(run_lengths(mask.reshape(-1))):
        bits.extend(_blocks(length * _RGBA, 255 * (place % 2)))
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


class _Bits:
    """Numbers of some bits each, one after the other out of bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._bits = np.unpackbits(np.frombuffer(data, np.uint8))
        self._at = 0

    def number(self, bits: int) -> int:
        """The next `bits` bits as a number."""
        end = self._end(bits)
        window = self._data[self._at // 8 : -(-end // 8)]
        self._at = end
        return (int.from_bytes(window, "big") >> (-end % 8)) & ((1 << bits) - 1)

    def numbers(self, bits: int, count: int) -> npt.NDArray[np.uint8]:
        """The next `count` numbers of `bits` bits, each at most a byte."""
        end = self._end(bits * count)
        table = self._bits[self._at : end].reshape(count, bits)
        self._at = end
        return np.packbits(np.pad(table, ((0, 0), (8 - bits, 0))), axis=1)[:, 0]

    def _end(self, bits: int) -> int:
        if self._at + bits > self._bits.size:
            raise ValueError("the brush's bytes break off before the image is full")
        return self._at + bits


def _unpack(bits: _Bits, pixels: int) -> npt.NDArray[np.uint8]:
    check_pixels(pixels)
    count, value_bits = bits.number(32), bits.number(5) + 1
    if count != pixels * _RGBA:
        raise ValueError(f"the brush has {count} values, the image 4 x {pixels} pixels")
    if value_bits > _VALUE_BITS:
        raise ValueError(f"the brush has values of {value_bits} bits, a channel has 8")
    lengths = [bits.number(4) + 1 for _ in range(4)]
    values = np.zeros(count, np.uint8)
    at = 0
    while at < count:
        is_run, length = bits.number(1), 1 + bits.number(lengths[bits.number(2)])
        if at + length > count:
            raise ValueError(f"a block of the brush ends at value {at + length} of {count}")
        values[at : at + length] = (
            bits.number(value_bits) if is_run else bits.numbers(value_bits, length)
        )
        at += length
    return values


def _bytes_of(numbers: Sequence[int]) -> bytes:
    try:
        return bytes(numbers)
    except TypeError as error:
        raise ValueError(f"the brush is no list of numbers: {error}") from error


def _blocks(length: int, value: int) -> Iterator[str]:
    while length:
        part = min(length, _LONGEST_RUN)
        choice = next(at for at, bits in enumerate(_LENGTH_BITS) if part <= 1 << bits)
        yield f"1{choice:02b}{part - 1:0{_LENGTH_BITS[choice]}b}{value:0{_VALUE_BITS}b}"
        length -= part
