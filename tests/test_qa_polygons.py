"""Which pixels are inside a polygon."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as pycocotools

from lossd_client.qa.polygons import (
    Patch,
    box_points,
    cropped,
    fill_polygon,
    polygon_points,
    rotate,
    union,
)
from lossd_client.qa.rle import Inside, decode_coco

HEIGHT, WIDTH = 9, 11

# Fifths of pixels and off the grid, inside the image and outside of it.
coordinate = st.one_of(
    st.integers(-4, 16).map(float),
    st.integers(-40, 90).map(lambda fifths: fifths / 10),
    st.floats(-20, 30, allow_nan=False),
)


def whole(patch: Patch, height: int = HEIGHT, width: int = WIDTH) -> Inside:
    mask = np.zeros((height, width), bool)
    rows, columns = patch.inside.shape
    mask[patch.top : patch.top + rows, patch.left : patch.left + columns] = patch.inside
    return mask


def filled(*numbers: float, height: int = HEIGHT, width: int = WIDTH) -> list[list[int]]:
    patch = fill_polygon(polygon_points(numbers), height, width)
    rows: list[list[int]] = whole(patch, height, width).astype(int).tolist()
    return rows


def test_a_box_of_two_pixels_has_four() -> None:
    # From 1 to 3 lie the middles 1.5 and 2.5. Pillow and OpenCV would draw three by three.
    assert filled(1, 1, 3, 1, 3, 3, 1, 3, height=4, width=4) == [
        [0, 0, 0, 0],
        [0, 1, 1, 0],
        [0, 1, 1, 0],
        [0, 0, 0, 0],
    ]


def test_a_middle_on_a_slanted_edge_is_outside_below_it() -> None:
    # The middle of the pixel (column 3, row 0) and its like lie on the line from (4, 0) to (0, 4).
    assert filled(0, 0, 4, 0, 0, 4, height=4, width=4) == [
        [1, 1, 1, 0],
        [1, 1, 0, 0],
        [1, 0, 0, 0],
        [0, 0, 0, 0],
    ]


def test_an_outline_that_crosses_itself_is_inside_an_odd_number_of_times() -> None:
    # Two turns around the same square: even, outside.
    square = (1, 1, 3, 1, 3, 3, 1, 3)
    assert np.sum(filled(*square, *square)) == 0


def test_what_leaves_the_image_is_cut_off() -> None:
    assert filled(-5, -5, 2, -5, 2, 50, -5, 50, height=2, width=3) == [[1, 1, 0], [1, 1, 0]]
    assert np.sum(filled(20, 20, 30, 20, 30, 30)) == 0


@settings(max_examples=400)
@given(st.lists(coordinate, min_size=6, max_size=16).filter(lambda numbers: len(numbers) % 2 == 0))
def test_pixels_are_those_of_pycocotools(numbers: list[float]) -> None:
    (code,) = pycocotools.frPyObjects([numbers], HEIGHT, WIDTH)
    patch = fill_polygon(polygon_points(numbers), HEIGHT, WIDTH)
    expected = decode_coco(code["counts"].decode(), HEIGHT, WIDTH)
    assert (whole(patch) == expected).all()


def test_polygons_of_one_object_are_joined() -> None:
    left, right = (box_points(x, 0, x + 4, 2) for x in (0, 2))
    joined = union([fill_polygon(box, HEIGHT, WIDTH) for box in (left, right)])
    assert joined.area_px == 6 * 2  # their overlap is inside once, not outside


def test_a_cut_out_part_is_as_small_as_its_object() -> None:
    mask = np.zeros((5, 6), bool)
    mask[1, 2] = mask[3, 4] = True
    patch = cropped(mask)
    assert (patch.top, patch.left, patch.inside.shape) == (1, 2, (3, 3))
    assert (whole(patch, 5, 6) == mask).all()
    assert cropped(np.zeros((5, 6), bool)).area_px == 0


def test_turns_are_clockwise_on_the_screen() -> None:
    # y points down, so a quarter turn brings what is right of the center below it.
    assert np.allclose(rotate(np.array([[3.0, 1.0]]), 90, (1, 1)), [[1, 3]])


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        ([0, 0, 1, 1], "4 numbers"),
        ([0, 0, 1, 1, 2], "5 numbers"),
        ([0, 0, 1, 1, float("nan"), 0], "coordinate nan"),
        ([0, 0, 1, 1, float("inf"), 0], "coordinate inf"),
        ([0, 0, 1, 1, -1e9, 0], "coordinate -1000000000.0; allowed are up to 65536"),
    ],
)
def test_a_polygon_that_cannot_be_drawn_is_refused(numbers: list[float], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        polygon_points(numbers)
