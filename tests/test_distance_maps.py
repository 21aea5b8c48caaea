"""Exact distance transforms, and that what was computed once is remembered."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from lossd.core import distance
from lossd.core.distance import DistanceMaps, separable
from oracles.distance import distance_to

SPACINGS = [(1.0, 1.0, 1.0), (2.0, 0.5, 1.25), (0.1, 30.0, 0.7)]
SHAPES = [(1,), (7,), (1, 1), (6, 1), (1, 5), (9, 13), (1, 1, 1), (4, 1, 6), (5, 6, 7)]


def random_masks(shape: tuple[int, ...]) -> list[Tensor]:
    """Masks from nearly empty to all true but one pixel."""
    random = torch.Generator().manual_seed(math.prod(shape))
    masks = [torch.rand(shape, generator=random) < share for share in (0.1, 0.5, 0.9)]
    lonely = torch.ones(shape, dtype=torch.bool)
    lonely.view(-1)[-1] = False
    for mask in masks:
        mask.view(-1)[0] = False
    return [*masks, lonely]


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_separable_transform_is_scipys(
    shape: tuple[int, ...], spacing: tuple[float, ...]
) -> None:
    sampling = spacing[: len(shape)]
    for mask in random_masks(shape):
        found = separable(mask, sampling)
        assert found.dtype == torch.float64
        want = ndimage.distance_transform_edt(mask.numpy(), sampling=sampling)
        np.testing.assert_allclose(found.numpy(), want, rtol=1e-13, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_distances_are_those_of_comparing_all_pixels(shape: tuple[int, ...]) -> None:
    sampling = SPACINGS[1][: len(shape)]
    for mask in random_masks(shape):
        want = distance_to(~mask.numpy(), sampling)
        for found in (DistanceMaps().to_background(mask, sampling), separable(mask, sampling)):
            np.testing.assert_allclose(found.numpy(), want, rtol=1e-13, atol=0)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.3, 0.3, 0.3), (2.0, 0.5, 1.25)])
@pytest.mark.parametrize("shape", [(7,), (9, 13), (5, 6, 7)])
def test_the_distance_to_the_edge_is_that_of_either_side(
    shape: tuple[int, ...], spacing: tuple[float, ...]
) -> None:
    sampling = spacing[: len(shape)]
    for mask in random_masks(shape):
        mask.view(-1)[1] = True
        want = distance_to(~mask.numpy(), sampling) + distance_to(mask.numpy(), sampling)
        found = DistanceMaps().to_edge(mask, sampling)
        np.testing.assert_allclose(found.numpy(), want, rtol=1e-13, atol=0)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (1.5, 0.5)])
def test_a_remembered_map_stays_as_it_is(spacing: tuple[float, float]) -> None:
    maps, mask = DistanceMaps(), random_masks((9, 13))[1]
    first = maps.to_edge(mask, spacing).clone()
    for _ in range(3):
        assert torch.equal(maps.to_edge(mask, spacing), first)
    assert maps.hits == 3


def test_objects_in_corners_and_lines_are_measured_to_all_sides() -> None:
    """Only what holds the object is looked at."""
    for rows, columns in (
        ((0, 3), (0, 2)),
        ((8, 9), (0, 13)),
        ((4, 7), (5, 9)),
        ((0, 9), (12, 13)),
    ):
        mask = torch.zeros(9, 13, dtype=torch.bool)
        mask[slice(*rows), slice(*columns)] = True
        want = distance_to(~mask.numpy(), (1.0, 1.0))
        np.testing.assert_allclose(DistanceMaps().to_background(mask, (1.0, 1.0)), want)


def test_small_steps_give_the_same_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = random_masks((11, 17))[2]
    whole = separable(mask, (1.5, 0.5))
    for bytes_at_a_time in (8, 8 * 17 * 5, 8 * 17 * 17 * 3):
        monkeypatch.setattr(distance, "_STEP_BYTES", bytes_at_a_time)
        assert torch.equal(separable(mask, (1.5, 0.5)), whole)


def test_one_dimension_by_hand() -> None:
    mask = torch.tensor([True, True, False, True, True, True])
    want = torch.tensor([4.0, 2.0, 0.0, 2.0, 4.0, 6.0], dtype=torch.float64)
    assert torch.equal(DistanceMaps().to_background(mask, (2.0,)), want)
    assert torch.equal(separable(mask, (2.0,)), want)


def test_a_mask_without_background_is_refused() -> None:
    """The library would answer with a ramp of meaningless numbers."""
    with pytest.raises(ValueError, match="no distance"):
        DistanceMaps().to_background(torch.ones(4, dtype=torch.bool), (1.0,))


def test_an_empty_mask_has_distance_zero() -> None:
    nothing = torch.zeros(3, 4, dtype=torch.bool)
    zeros = torch.zeros(3, 4, dtype=torch.float64)
    assert torch.equal(DistanceMaps().to_background(nothing, (1.0, 1.0)), zeros)
    assert torch.equal(separable(nothing, (1.0, 1.0)), zeros)


def test_an_equal_mask_is_remembered() -> None:
    maps = DistanceMaps()
    mask = random_masks((9, 13))[1]
    first = maps.to_background(mask, (1.0, 1.0))
    assert torch.equal(maps.to_background(mask.clone(), (1.0, 1.0)), first)
    assert (maps.hits, maps.misses) == (1, 1)


def test_other_pixels_shapes_and_spacings_are_not_taken_for_each_other() -> None:
    maps = DistanceMaps()
    mask = torch.tensor([True, False, True, True, True, True])
    changed = mask.clone()
    changed[5] = False
    maps.to_background(mask, (1.0,))
    assert maps.to_background(changed, (1.0,))[4] == 1.0
    assert maps.to_background(mask, (3.0,))[5] == 12.0
    assert maps.to_background(mask.view(2, 3), (1.0, 1.0))[1, 2] == math.sqrt(2.0)
    assert maps.to_background(mask.view(3, 2), (1.0, 1.0))[2, 1] == 2.0
    assert (maps.hits, maps.misses) == (0, 5)


def test_a_view_with_holes_is_read_as_it_looks() -> None:
    wide = random_masks((9, 13))[1]
    maps = DistanceMaps()
    assert torch.equal(
        maps.to_background(wide[:, ::2], (1.0, 1.0)),
        maps.to_background(wide[:, ::2].clone(), (1.0, 1.0)),
    )
    assert (maps.hits, maps.misses) == (1, 1)


def test_the_budget_forgets_what_was_used_longest_ago() -> None:
    maps = DistanceMaps(budget_bytes=2 * 4 * 10)  # squares in integers
    masks = [torch.arange(10) != place for place in range(3)]
    for mask in (masks[0], masks[1], masks[0], masks[2]):
        maps.to_background(mask, (1.0,))
    assert (maps.hits, maps.misses) == (1, 3)
    maps.to_background(masks[0], (1.0,))
    assert (maps.hits, maps.misses) == (2, 3)
    maps.to_background(masks[1], (1.0,))
    assert (maps.hits, maps.misses) == (2, 4)


def test_a_map_beyond_the_budget_is_answered_and_not_kept() -> None:
    maps = DistanceMaps(budget_bytes=8)
    mask = torch.arange(10) != 0
    for _ in range(2):
        assert maps.to_background(mask, (1.0,))[9] == 9.0
    assert (maps.hits, maps.misses) == (0, 2)
