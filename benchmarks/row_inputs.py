"""Random inputs of losses without pixels, made from their own descriptions."""

from typing import Any

import numpy as np

from lossd.losses import LOSSES
from lossd.losses.declare import RowLoss
from lossd.losses.kinds import Input
from lossd_client.wire import Array

ROW_LOSSES = {name: loss for name, loss in LOSSES.items() if isinstance(loss, RowLoss)}
SIZES = {"B": (6,), "C": (5,), "D": (7,), "*S": (9, 8), "…": (3, 4), "H": (9,), "W": (8,)}


def inputs_of(name: str, seed: int = 0, dtype: Any = np.float64) -> dict[str, Array]:
    """Random inputs of a loss, made from its own description."""
    rng = np.random.default_rng(seed)
    return {one.name: _random(rng, one, dtype) for one in ROW_LOSSES[name].inputs}


def _random(rng: np.random.Generator, one: Input, dtype: Any) -> Array:
    shape: list[int] = []
    for axis in one.axes.split():
        shape.extend((int(axis),) if axis.isdecimal() else SIZES[axis])
    if one.values in ("label", "ids"):
        return rng.integers(0, SIZES["C"][0] if one.values == "label" else 4, shape)
    if one.values == "zero_or_one":
        return rng.integers(0, 2, shape)
    if one.values == "unit":
        return rng.uniform(0, 1, shape)
    if one.values == "bin":
        return rng.uniform(0, SIZES["C"][0] - 1, shape)
    if shape[1:] == [4]:  # boxes: two corners, in whichever format they are read
        corner = rng.uniform(0, 1, (shape[0], 2))
        return np.concatenate([corner, corner + rng.uniform(0.3, 1.5, (shape[0], 2))], 1).astype(
            dtype
        )
    return rng.normal(0, 1, shape).astype(dtype)


def differentiable(name: str) -> tuple[str, ...]:
    """Inputs of a loss that gradients are given for."""
    return tuple(one.name for one in ROW_LOSSES[name].inputs if one.differentiable)


def shared(name: str) -> tuple[str, ...]:
    """Inputs of a loss that belong to all samples."""
    return tuple(one.name for one in ROW_LOSSES[name].inputs if "B" not in one.axes.split())
