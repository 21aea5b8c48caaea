"""Exact Euclidean distance transforms, remembered by the content of the mask.

On the CPU scipy's transform is used; torch has none, so on other devices a separable one in torch
is. Both are exact, not approximations by chamfer masks.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

_STEP_BYTES = 64 * 2**20
_FLOAT64_BYTES = 8


class DistanceMaps:
    """Distance transforms of masks; the least recently used are forgotten first.

    Annotators send one target many times and losses ask for the same map each on its own, so what
    was computed once is kept. Not safe for several threads: it belongs to the engine's one. Two
    calls may return the same tensor, which must therefore not be written to.
    """

    def __init__(self, budget_bytes: int = 256 * 2**20) -> None:
        self.hits = 0
        """How many maps were remembered."""
        self.misses = 0
        """How many had to be computed."""
        self._budget_bytes = budget_bytes
        self._held_bytes = 0
        self._maps: OrderedDict[tuple[bytes, str], Tensor] = OrderedDict()

    def to_background(self, mask: Tensor, spacing: Sequence[float]) -> Tensor:
        """Distance of every true pixel to the nearest false one, 0 at false pixels.

        Args:
            mask: `[*S]` bool with at least one false pixel; one to three axes.
            spacing: physical size of a pixel along each axis of `*S`.

        Returns:
            `[*S]` float64, on the mask's device; not to be written to.

        Raises:
            ValueError: the mask has no false pixel, so there is no distance.
        """
        if bool(mask.all()):
            raise ValueError("a mask without a false pixel has no distance to one")
        on_cpu = mask.cpu().contiguous().numpy()
        key = _digest(on_cpu, spacing), str(mask.device)
        found = self._maps.get(key)
        if found is not None:
            self.hits += 1
            self._maps.move_to_end(key)
            return found
        self.misses += 1
        if mask.device.type == "cpu":
            found = torch.from_numpy(ndimage.distance_transform_edt(on_cpu, sampling=spacing))
        else:
            found = separable(mask, spacing)
        self._keep(key, found)
        return found

    def _keep(self, key: tuple[bytes, str], found: Tensor) -> None:
        self._maps[key] = found
        self._held_bytes += found.nbytes
        while self._held_bytes > self._budget_bytes:
            _, forgotten = self._maps.popitem(last=False)
            self._held_bytes -= forgotten.nbytes


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
    squared = _along_first_axis(mask, spacing[0]) ** 2
    for axis in range(1, mask.ndim):
        last = squared.movedim(axis, -1)
        nearest = _nearest_along_last_axis(last.reshape(-1, last.shape[-1]), spacing[axis])
        squared = nearest.view(last.shape).movedim(-1, axis)
    return squared.sqrt().contiguous()


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


def _digest(mask: np.ndarray, spacing: Sequence[float]) -> bytes:
    """What tells a mask and its spacing from all others."""
    digest = hashlib.blake2b(repr((mask.shape, tuple(spacing))).encode())
    digest.update(np.packbits(mask).tobytes())
    return digest.digest()
