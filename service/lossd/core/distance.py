"""Exact Euclidean distance transforms, remembered by the content of the mask.

On the CPU scipy's transform is used; torch has none, so on other devices a separable one in torch
is. Both are exact, not approximations by chamfer masks.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

_STEP_BYTES = 64 * 2**20
_FLOAT64_BYTES = 8
_LARGEST_INT32 = 2**31 - 1

Array = np.ndarray[Any, Any]


class DistanceMaps:
    """Distance transforms of masks; the least recently used are forgotten first.

    Annotators send one target many times and losses ask for the same map each on its own, so what
    was computed once is kept. Not safe for several threads: it belongs to the engine's one.
    """

    def __init__(self, budget_bytes: int = 256 * 2**20) -> None:
        self.hits = 0
        """How many maps were remembered."""
        self.misses = 0
        """How many had to be computed."""
        self._budget_bytes = budget_bytes
        self._held_bytes = 0
        self._maps: OrderedDict[tuple[str, bytes, str], Tensor] = OrderedDict()

    def to_edge(self, mask: Tensor, spacing: Sequence[float]) -> Tensor:
        """Distance of every pixel to the nearest one on the other side of the mask's edge.

        Args:
            mask: `[*S]` bool with at least one false and one true pixel; one to three axes.
            spacing: physical size of a pixel along each axis of `*S`.

        Returns:
            `[*S]` float64, on the mask's device.

        Raises:
            ValueError: the mask has no edge.
        """
        return self._remembered("edge", mask, spacing, _squared_to_edge)

    def to_background(self, mask: Tensor, spacing: Sequence[float]) -> Tensor:
        """Distance of every true pixel to the nearest false one, 0 at false pixels.

        Args:
            mask: `[*S]` bool with at least one false pixel; one to three axes.
            spacing: physical size of a pixel along each axis of `*S`.

        Returns:
            `[*S]` float64, on the mask's device.

        Raises:
            ValueError: the mask has no false pixel, so there is no distance.
        """
        return self._remembered("background", mask, spacing, _squared_to_background)

    def _remembered(
        self,
        what: str,
        mask: Tensor,
        spacing: Sequence[float],
        squared: Callable[[Tensor, Sequence[float]], Tensor],
    ) -> Tensor:
        key = what, _digest(mask, spacing), str(mask.device)
        found = self._maps.get(key)
        if found is None:
            self.misses += 1
            found = squared(mask, spacing)
            self._keep(key, found)
        else:
            self.hits += 1
            self._maps.move_to_end(key)
        return _root(found, spacing)

    def _keep(self, key: tuple[str, bytes, str], found: Tensor) -> None:
        self._maps[key] = found
        self._held_bytes += found.nbytes
        while self._held_bytes > self._budget_bytes:
            _, forgotten = self._maps.popitem(last=False)
            self._held_bytes -= forgotten.nbytes


def _squared_to_edge(mask: Tensor, spacing: Sequence[float]) -> Tensor:
    inside = _squared_to_background(mask, spacing)
    return inside.add_(_squared_to_background(~mask, spacing))


def _squared_to_background(mask: Tensor, spacing: Sequence[float]) -> Tensor:
    """Squared distances `[*S]`: where the spacing is isotropic, in integers and of pixels.

    That takes half the memory of a distance and loses no digit.
    """
    if bool(mask.all()):
        raise ValueError("a mask without a false pixel has no distance to one")
    if mask.device.type == "cpu":
        return torch.from_numpy(_squared_by_scipy(mask.numpy(), spacing))
    if _is_isotropic(spacing):
        return _separable_squares(mask, (1.0,) * mask.ndim).long()
    return _separable_squares(mask, spacing)


def _root(squared: Tensor, spacing: Sequence[float]) -> Tensor:
    # Not in place where it is float64 already: that is the map which is remembered.
    distance = squared.to(torch.float64, copy=True).sqrt_()
    return distance.mul_(spacing[0]) if _is_isotropic(spacing) else distance


def _is_isotropic(spacing: Sequence[float]) -> bool:
    return len(set(spacing)) == 1


def _squared_by_scipy(mask: Array, spacing: Sequence[float]) -> Array:
    """Squared distances `[*S]` of a mask: in integers, of pixels, if its spacing is isotropic."""
    isotropic = _is_isotropic(spacing)
    small = sum(length**2 for length in mask.shape) < _LARGEST_INT32
    integer = np.int32 if small else np.int64
    squared: Array = np.zeros(mask.shape, integer if isotropic else np.float64)
    if not mask.any():
        return squared
    box = _box(mask)
    nearest = ndimage.distance_transform_edt(
        mask[box], sampling=spacing, return_distances=False, return_indices=True
    )
    found: Array = squared[box]
    for axis, unit in enumerate(spacing):
        places = np.arange(found.shape[axis]).reshape(-1, *(1,) * (mask.ndim - 1 - axis))
        apart = np.subtract(nearest[axis], places, dtype=squared.dtype)
        if not isotropic:
            apart *= unit
        np.add(found, np.multiply(apart, apart, out=apart), out=found)
    return squared


def _box(mask: Array) -> tuple[slice, ...]:
    """What holds all true pixels and the false pixels nearest to them: one further on each side.

    A false pixel beyond it has one at its border that is nearer along every axis.
    """
    box = []
    for axis, length in enumerate(mask.shape):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        (lines,) = np.nonzero(np.any(mask, axis=others))
        box.append(slice(max(lines[0] - 1, 0), min(lines[-1] + 2, length)))
    return tuple(box)


def separable(mask: Tensor, spacing: Sequence[float]) -> Tensor:
    """Distance of every true pixel to the nearest false one, axis by axis, on any device.

    Along the first axis the nearest false pixel is found by a scan. Along every further axis the
    squared distance is the minimum over j of `squared[j] + ((i - j)·spacing)²`.

    Args:
        mask: `[*S]` bool with at least one false pixel.
        spacing: physical size of a pixel along each axis of `*S`.

    Returns:
        `[*S]` float64, on the mask's device.

    Example:
        >>> mask = torch.tensor([[True, True, False], [True, True, True]])
        >>> separable(mask, (1.0, 1.0))
        tensor([[2.0000, 1.0000, 0.0000],
                [2.2361, 1.4142, 1.0000]], dtype=torch.float64)
    """
    return _separable_squares(mask, spacing).sqrt().contiguous()


def _separable_squares(mask: Tensor, spacing: Sequence[float]) -> Tensor:
    squared = _along_first_axis(mask, spacing[0]) ** 2
    for axis in range(1, mask.ndim):
        last = squared.movedim(axis, -1)
        nearest = _nearest_along_last_axis(last.reshape(-1, last.shape[-1]), spacing[axis])
        squared = nearest.view(last.shape).movedim(-1, axis)
    return squared


def _along_first_axis(mask: Tensor, spacing: float) -> Tensor:
    """Distance to the nearest false pixel of the same line; infinite where a line has none."""
    places = torch.arange(len(mask), dtype=torch.float64, device=mask.device)
    places = places.view(-1, *(1,) * (mask.ndim - 1)).expand_as(mask)
    before = torch.where(mask, -torch.inf, places).cummax(0).values
    after = torch.where(mask, torch.inf, places).flip(0).cummin(0).values.flip(0)
    return torch.minimum(places - before, after - places) * spacing


def _nearest_along_last_axis(squared: Tensor, spacing: float) -> Tensor:
    """Minimum over j of `squared[:, j] + ((i - j)·spacing)²`, `[lines, i]`."""
    lines, length = squared.shape
    pairs = _STEP_BYTES // _FLOAT64_BYTES
    places_per_step = max(1, min(length, pairs // length))
    lines_per_step = max(1, pairs // (length * places_per_step))
    places = torch.arange(length, dtype=torch.float64, device=squared.device)
    nearest = torch.empty_like(squared)
    for to in places.long().split(places_per_step):
        steps = ((places[to, None] - places) * spacing) ** 2  # [i, j]
        for line in range(0, lines, lines_per_step):
            some = slice(line, line + lines_per_step)
            nearest[some, to] = (squared[some, None, :] + steps).amin(-1)
    return nearest


def _digest(mask: Tensor, spacing: Sequence[float]) -> bytes:
    """What tells a mask and its spacing from all others."""
    digest = hashlib.blake2b(repr((tuple(mask.shape), tuple(spacing))).encode())
    digest.update(np.packbits(mask.cpu().contiguous().numpy()).data)
    return digest.digest()
