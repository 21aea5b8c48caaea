"""Window losses pixel by pixel and offset by offset."""

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from oracles.distance import average_over_classes, live_logits, probability
from oracles.whole import Whole, WholeOracle

_CONVOLUTIONS = (functional.conv1d, functional.conv2d, functional.conv3d)


def _cross(axes: int) -> list[tuple[int, ...]]:
    """Offsets of a pixel and its direct neighbours."""
    box = itertools.product((-1, 0, 1), repeat=axes)
    return [step for step in box if sum(map(abs, step)) <= 1]


def _hausdorff_erosion(whole: Whole, params: dict[str, Any]) -> Tensor:
    axes = whole.valid.ndim
    kernel = torch.zeros((1, 1, *(3,) * axes), dtype=torch.float64)
    for step in _cross(axes):
        kernel[0, 0][tuple(1 + offset for offset in step)] = 1.0 / (2 * axes + 1)
    values = []
    for p, y in zip(probability(whole), whole.target, strict=True):
        remaining = (p - y) ** 2
        total = torch.zeros_like(remaining)
        for k in range(1, params.get("iterations", 10) + 1):
            mean = _CONVOLUTIONS[axes - 1](remaining[None, None], kernel, padding=1)[0, 0]
            remaining = torch.where(mean > 0.5, mean - 0.5, 0.0)
            span = remaining.max() - remaining.min()
            if float(span.detach()) > 1e-9:
                remaining = (remaining - remaining.min()) / span
            total = total + k ** params.get("alpha", 2.0) * remaining
        values.append(total[whole.valid].mean())
    return average_over_classes(values, whole, params)


def _windows(values: Tensor, width: int) -> Tensor:
    """Every pixel's window, `[width^axes, *S]`, mirrored at the border."""
    radius = width // 2
    mirrored = [np.pad(np.arange(size), radius, mode="reflect") for size in values.shape]
    shifted = []
    for step in itertools.product(range(width), repeat=values.ndim):
        moved = values
        for axis, (offset, index) in enumerate(zip(step, mirrored, strict=True)):
            chosen = torch.from_numpy(index[offset : offset + values.shape[axis]].copy())
            moved = moved.index_select(axis, chosen)
        shifted.append(moved)
    return torch.stack(shifted)


def _structure(values: Tensor, params: dict[str, Any]) -> Tensor:
    width, sigma = params.get("window", 3), params.get("sigma", 1.5)
    windows = _windows(values, width)
    steps = itertools.product(range(width), repeat=values.ndim)
    squares = torch.tensor(
        [sum((offset - width // 2) ** 2 for offset in step) for step in steps],
        dtype=torch.float64,
    )
    weights = torch.softmax(-squares / (2.0 * sigma**2), 0).view(-1, *(1,) * values.ndim)
    mean = (weights * windows).sum(0)
    variance = (weights * (windows - mean) ** 2).sum(0)
    varies = windows.detach().amax(0) - windows.detach().amin(0) > 1e-12
    deviation = torch.where(varies, torch.where(varies, variance, 1.0).sqrt(), 0.0)
    return (values - mean + 0.01) / (deviation + 0.01)


def _structural_similarity(whole: Whole, params: dict[str, Any]) -> Tensor:
    share = params.get("weight", 0.5)
    values = []
    logits = live_logits(whole)
    for c, (p, y) in enumerate(zip(probability(whole), whole.target, strict=True)):
        if whole.task == "multiclass":
            others = torch.cat([logits[:c], logits[c + 1 :]]).logsumexp(0)
            margin = logits[c] - others
        else:
            margin = logits[c]
        bce = functional.binary_cross_entropy_with_logits(margin, y, reduction="none")
        e = (_structure(y, params) - _structure(p, params)).abs()
        largest = max(float(e.detach().max()), 1e-4)
        threshold = max(params.get("beta", 0.1) * largest, 1e-12)
        chosen = (e.detach() > threshold) & whole.valid
        local = (e * bce)[chosen].mean() if chosen.any() else 0.0 * p.sum()
        values.append(share * bce[whole.valid].mean() + (1.0 - share) * local)
    # Its default is `present` for several classes.
    asked = params.get("classes") or ("present" if whole.task == "multiclass" else "all")
    return average_over_classes(values, whole, params | {"classes": asked})


def _moved(values: Tensor, step: Iterable[int], beyond: float) -> Tensor:
    """Each pixel's neighbour at an offset."""
    padded = torch.nn.functional.pad(values, (1, 1) * values.ndim, value=beyond)
    window = tuple(
        slice(1 + offset, 1 + offset + size)
        for offset, size in zip(step, values.shape, strict=True)
    )
    return padded[window]


def _erode(mask: Tensor) -> Tensor:
    return torch.stack([_moved(mask, step, np.inf) for step in _cross(mask.ndim)]).amin(0)


def _dilate(mask: Tensor) -> Tensor:
    box = itertools.product((-1, 0, 1), repeat=mask.ndim)
    return torch.stack([_moved(mask, step, -np.inf) for step in box]).amax(0)


def _skeleton(mask: Tensor, iterations: int) -> Tensor:
    """One minus the product of what every erosion leaves out of the skeleton."""
    left_out = torch.ones_like(mask)
    for _ in range(iterations + 1):
        left_out = left_out * (1.0 - torch.relu(mask - _dilate(_erode(mask))))
        mask = _erode(mask)
    return 1.0 - left_out


def _soft_cldice(whole: Whole, params: dict[str, Any]) -> Tensor:
    iterations, smooth = params.get("iterations", 3), params.get("smooth", 1.0)
    values = []
    for p, y in zip(probability(whole), whole.target, strict=True):
        shares = []
        for skeleton, other in ((_skeleton(p, iterations), y), (_skeleton(y, iterations), p)):
            on = skeleton[whole.valid]
            covered = (on * other[whole.valid]).sum() + smooth
            whole_length = on.sum() + smooth
            empty = float(whole_length.detach()) < 1e-15
            shares.append(0.0 * p.sum() + 1.0 if empty else covered / whole_length)
        precision, sensitivity = shares
        both = precision + sensitivity
        nothing = float(both.detach()) < 1e-15
        values.append(1.0 - (0.0 * both if nothing else 2.0 * precision * sensitivity / both))
    asked = params.get("classes") or ("present" if whole.task == "multiclass" else "all")
    background = whole.task != "multiclass"
    given = {key: value for key, value in params.items() if value is not None}
    return average_over_classes(values, whole, given | {"classes": asked}, background=background)


ORACLE: dict[str, WholeOracle] = {
    "hausdorff_erosion": _hausdorff_erosion,
    "structural_similarity": _structural_similarity,
    "soft_cldice": _soft_cldice,
}
