"""The three run-length codes, against codes written by hand from each tool's rules."""

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as pycocotools

from lossd_client.qa import rle

masks = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12))


def label_studio_bytes(*fields: tuple[int, int]) -> list[int]:
    """Numbers, each with its count of bits, as bytes; the last one is filled up with zeros."""
    text = "".join(f"{value:0{bits}b}" for value, bits in fields)
    text += "0" * (-len(text) % 8)
    return [int(text[at : at + 8], 2) for at in range(0, len(text), 8)]


# 32 bits of the number of values, value bits less one, the four length bits less one.
HEAD_OF_TWO_PIXELS = [(8, 32), (7, 5), (2, 4), (3, 4), (7, 4), (15, 4)]


def test_coco_counts_go_down_the_columns() -> None:
    # Columns of   . # #     are  ". .", "# .", "# #": two outside, one inside, one outside, two.
    #              . . #
    mask = np.array([[0, 1, 1], [0, 0, 1]], bool)
    assert rle.encode_coco(mask) == [2, 1, 1, 2]
    assert (rle.decode_coco([2, 1, 1, 2], 2, 3) == mask).all()


def test_coco_counts_begin_outside() -> None:
    assert rle.encode_coco(np.array([[True, False]])) == [0, 1, 1]


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        # 5, 3, 1 as they are; 100 less the count two before is 97 = 3 * 32 + 1: the low group 1
        # with the mark of more, 48 + 32 + 1 = 'Q', then 3.
        ([5, 3, 1, 100], "531Q3"),
        # 10 is ':'. 20 has bit 4 set and would be negative, so a group of zeros follows: 'd', '0'.
        # 4 - 20 = -16 fits one group whose bit 4 is the sign: 48 + 16 = '@'.
        ([10, 20, 3, 4], ":d03@"),
        ([], ""),
    ],
)
def test_coco_strings_hold_signed_groups_of_five_bits(counts: list[int], text: str) -> None:
    assert rle.compress_coco(counts) == text
    assert rle.expand_coco(text).tolist() == counts


@given(masks)
def test_coco_codes_are_those_of_pycocotools(mask: rle.Inside) -> None:
    counts = rle.encode_coco(mask)
    text = rle.compress_coco(counts)
    assert text == pycocotools.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    assert (rle.decode_coco(text, *mask.shape) == mask).all()
    assert (rle.decode_coco(counts, *mask.shape) == mask).all()


@given(st.lists(st.integers(0, 2**30), max_size=30))
def test_coco_strings_keep_counts_of_any_size(counts: list[int]) -> None:
    assert rle.expand_coco(rle.compress_coco(counts)).tolist() == counts


def test_cvat_counts_go_along_the_rows_of_the_box() -> None:
    # Rows of  . # #   are one outside, three inside across the line's end, two outside.
    #          # . .
    mask = np.array([[0, 1, 1], [1, 0, 0]], bool)
    assert rle.encode_cvat(mask) == "1,3,2"
    assert (rle.decode_cvat("1, 3, 2", 2, 3) == mask).all()


@given(masks)
def test_cvat_codes_come_back(mask: rle.Inside) -> None:
    assert (rle.decode_cvat(rle.encode_cvat(mask), *mask.shape) == mask).all()


def test_label_studio_takes_runs_and_lists_and_looks_at_the_alpha() -> None:
    # Two pixels: nothing, then red. Four zeros as a run (1, length choice 0, 3 = 4 - 1, value 0),
    # then 255, 0, 0, 255 as a list (0, choice 0, 3, four values).
    run = [(1, 1), (0, 2), (3, 3), (0, 8)]
    red = [(0, 1), (0, 2), (3, 3), (255, 8), (0, 8), (0, 8), (255, 8)]
    data = label_studio_bytes(*HEAD_OF_TWO_PIXELS, *run, *red)
    assert rle.decode_label_studio(data, 1, 2).tolist() == [[False, True]]
    # Red without alpha is what an eraser leaves: outside.
    erased = [(0, 1), (0, 2), (3, 3), (255, 8), (0, 8), (0, 8), (0, 8)]
    data = label_studio_bytes(*HEAD_OF_TWO_PIXELS, *run, *erased)
    assert rle.decode_label_studio(bytes(data), 1, 2).tolist() == [[False, False]]


def test_label_studio_values_may_have_fewer_bits() -> None:
    # Values of one bit: the eight values 0 0 0 0 0 0 0 1 as a list.
    head = [(8, 32), (0, 5), (2, 4), (3, 4), (7, 4), (15, 4)]
    data = label_studio_bytes(*head, (0, 1), (0, 2), (7, 3), (1, 8))
    assert rle.decode_label_studio(data, 1, 2).tolist() == [[False, True]]


def test_label_studio_codes_are_runs_of_four_equal_channels() -> None:
    outside, inside = [(1, 1), (0, 2), (3, 3), (0, 8)], [(1, 1), (0, 2), (3, 3), (255, 8)]
    expected = label_studio_bytes(*HEAD_OF_TWO_PIXELS, *outside, *inside)
    assert rle.encode_label_studio(np.array([[False, True]])) == expected


@given(masks)
def test_label_studio_codes_come_back(mask: rle.Inside) -> None:
    assert (rle.decode_label_studio(rle.encode_label_studio(mask), *mask.shape) == mask).all()


def test_label_studio_runs_longer_than_a_block_come_back() -> None:
    mask = np.ones((200, 200), bool)  # 160 000 values, a block holds 65 536
    mask[150:] = False
    assert (rle.decode_label_studio(rle.encode_label_studio(mask), 200, 200) == mask).all()


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ([2, 5], "add up to 7 pixels, its area has 6"),
        ([2, 3], "add up to 5 pixels"),
        ([8, -2], "negative count -2"),
        ([2**62, 2**62], "not all whole numbers of pixels"),
        ([2.5, 3.5], "not all whole numbers of pixels"),
        ([True, 5], "not all whole numbers of pixels"),
        ("6\x7f", "outside '0' to 'o'"),
        ("6é", "not ASCII"),
        ("6Q", "breaks off within a count"),
        ("oooooooooooo0", "larger than any image"),
        ("", "add up to 0 pixels"),
    ],
)
def test_malformed_coco_codes_are_refused(counts: str | list[int], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        rle.decode_coco(counts, 2, 3)


@pytest.mark.parametrize(
    ("counts", "told"),
    [("1,3,3", "add up to 7"), ("1,x", "invalid literal"), ("", "add up to 0"), ("7,-1", "negati")],
)
def test_malformed_cvat_codes_are_refused(counts: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        rle.decode_cvat(counts, 2, 3)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (label_studio_bytes((2**32 - 1, 32), (7, 5)), "has 4294967295 values, the image 4 x 2"),
        (label_studio_bytes(*HEAD_OF_TWO_PIXELS), "break off"),
        # A run of nine values where eight are left.
        (
            label_studio_bytes(*HEAD_OF_TWO_PIXELS, (1, 1), (1, 2), (8, 4), (0, 8)),
            "ends at value 9",
        ),
        # A list of eight values of which one is there.
        (label_studio_bytes(*HEAD_OF_TWO_PIXELS, (0, 1), (0, 2), (7, 3), (9, 8)), "break off"),
        (label_studio_bytes((8, 32), (15, 5), (0, 16)), "values of 16 bits"),
        ([], "break off"),
        ([256], "range"),
        (["a"], "no list of numbers"),
    ],
)
def test_malformed_brushes_are_refused(data: list[int], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        rle.decode_label_studio(data, 1, 2)


def test_an_image_larger_than_any_is_refused_before_it_is_allocated() -> None:
    side = 1 << 20
    with pytest.raises(ValueError, match="allowed are 0 to"):
        rle.decode_coco([1 << 28] * 4096, side, side)


@settings(max_examples=300)
@given(st.binary(max_size=40))
def test_no_bytes_break_the_brush_decoder(data: bytes) -> None:
    with contextlib.suppress(ValueError):  # either answer is right, a crash is not
        assert rle.decode_label_studio(data, 2, 3).shape == (2, 3)


@settings(max_examples=300)
@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=20))
def test_no_string_breaks_the_coco_decoder(text: str) -> None:
    with contextlib.suppress(ValueError):  # either answer is right, a crash is not
        assert rle.decode_coco(text, 4, 5).shape == (4, 5)
