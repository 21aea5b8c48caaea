"""Distance losses by brute force: every pixel is compared with every other one."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from oracles.whole import Whole, WholeOracle


def distance_to(goal: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Distance of every pixel to the nearest true one; there has to be one."""
    steps = np.asarray(spacing)
    goals = np.argwhere(goal) * steps
    found = np.empty(goal.shape)
    for place in np.ndindex(goal.shape):
        found[place] = math.sqrt(((goals - np.asarray(place) * steps) ** 2).sum(-1).min())
    return found


def live_logits(whole: Whole) -> Tensor:
    """Logits without a derivative where pixels are removed."""
    return torch.where(whole.valid, whole.logits, whole.logits.detach())


def probability(whole: Whole) -> Tensor:
    """`[C, *S]` of the live logits."""
    logits = live_logits(whole)
    return logits.softmax(0) if whole.task == "multiclass" else logits.sigmoid()


def average_over_classes(
    per_class: Sequence[Tensor], whole: Whole, params: dict[str, Any], *, background: bool = True
) -> Tensor:
    """Weighted mean over the classes that count, absent ones included unless asked otherwise."""
    asked = params.get("classes") or "all"
    eligible = list(range(len(per_class)))
    if not params.get("include_background", background):
        eligible.remove(0)
    present = [c for c in eligible if float(whole.target[c][whole.valid].sum()) > 0]
    if isinstance(asked, list):
        counted = [c for c in eligible if c in asked]
    elif asked == "present":
        counted = present or eligible
    else:
        counted = present if asked == "present_of_all" else eligible
    weights: list[float] = params.get("class_weights") or [1.0] * len(per_class)
    divided_by = sum(weights[c] for c in (eligible if asked == "present_of_all" else counted))
    total = sum((weights[c] * per_class[c] for c in counted), 0.0 * per_class[0])
    return total / divided_by if divided_by else total


def _objects(whole: Whole) -> list[np.ndarray]:
    return [((one > 0.5) & whole.valid).numpy() for one in whole.target]


def _has_edge(mask: np.ndarray) -> bool:
    return 0 < int(mask.sum()) < mask.size


def _boundary(whole: Whole, params: dict[str, Any]) -> Tensor:
    values = []
    for mask, p in zip(_objects(whole), probability(whole), strict=True):
        signed = np.zeros(mask.shape)
        if _has_edge(mask):
            signed = distance_to(mask, whole.spacing)
            signed[mask] = 1.0 - distance_to(~mask, whole.spacing)[mask]
        values.append((torch.from_numpy(signed) * p)[whole.valid].mean())
    return average_over_classes(values, whole, params)


def _hausdorff_dt(whole: Whole, params: dict[str, Any]) -> Tensor:
    alpha = params.get("alpha", 2.0)
    values = []
    rows = zip(_objects(whole), probability(whole), whole.target, strict=True)
    for mask, p, y in rows:
        field = np.zeros(mask.shape)
        guess = (p > 0.5).numpy()
        for one in (mask,) if params.get("one_sided") else (mask, guess):
            if _has_edge(one):
                both = distance_to(one, whole.spacing) + distance_to(~one, whole.spacing)
                field = field + both**alpha
        mean = ((p - y) ** 2 * torch.from_numpy(field))[whole.valid].mean()
        values.append(torch.log(1.0 + mean) if params.get("log") else mean)
    return average_over_classes(values, whole, params)


def _cross_entropy(whole: Whole, class_weights: Sequence[float] | None) -> tuple[Tensor, Tensor]:
    """Terms and their weights, `[G, *S]`."""
    logits = live_logits(whole)
    weights = torch.tensor(class_weights or [1.0] * len(logits), dtype=torch.float64)
    weights = weights.view(-1, *(1,) * whole.valid.ndim)
    if whole.task == "multiclass":
        terms = -(weights * whole.target * logits.log_softmax(0)).sum(0, keepdim=True)
        applied = (weights * whole.target).sum(0, keepdim=True)
    else:
        terms = weights * functional.binary_cross_entropy_with_logits(
            logits, whole.target, reduction="none"
        )
        applied = weights.expand_as(logits)
    return terms * whole.weight, applied * whole.weight


def _inverted(mask: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Largest depth less depth within a mask, over its own largest value; 0 outside of it."""
    found = np.zeros(mask.shape)
    if _has_edge(mask):
        depth = distance_to(~mask, spacing)[mask]
        height = depth.max() - depth
        if height.max() > 1e-9 * depth.max():
            found[mask] = height / height.max()
    return found


def _labels(whole: Whole) -> np.ndarray:
    labels = whole.target.argmax(0).numpy().copy()
    labels[(whole.target.sum(0) == 0).numpy() | ~whole.valid.numpy()] = -1
    return labels


def _distance_map_cross_entropy(whole: Whole, params: dict[str, Any]) -> Tensor:
    terms, applied = _cross_entropy(whole, params.get("class_weights"))
    if whole.task == "multiclass":
        labels = _labels(whole)
        maps = [sum(_inverted(labels == c, whole.spacing) for c in range(len(whole.target)))]
    else:
        maps = [
            _inverted(mask, whole.spacing) + _inverted(~mask, whole.spacing)
            for mask in _objects(whole)
        ]
    raised = terms * (1.0 + torch.from_numpy(np.stack(maps)))
    total = raised[:, whole.valid].sum()
    if params.get("normalize") == "weights":
        weight = applied[:, whole.valid].sum()
        return total / weight if float(weight) > 0 else total * 0.0
    return total / (len(raised) * whole.valid.sum())


def _contour(mask: np.ndarray) -> np.ndarray:
    """Pixels of the mask that lie next to a pixel of the image that is not in it."""
    found = np.zeros_like(mask)
    for place in map(tuple, np.argwhere(mask)):
        for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
            other = list(place)
            other[axis] += step
            if 0 <= other[axis] < mask.shape[axis] and not mask[tuple(other)]:
                found[place] = True
    return found


def _apart(guess: np.ndarray, truth: np.ndarray, spacing: Sequence[float]) -> float:
    from_here, to_there = _contour(guess), _contour(truth)
    if not from_here.any() or not to_there.any():
        return 0.0
    return float(distance_to(to_there, spacing)[from_here].mean())


def _shape_aware(whole: Whole, params: dict[str, Any]) -> Tensor:
    terms, _ = _cross_entropy(whole, params.get("class_weights"))
    factors = np.ones(tuple(terms.shape))
    weight = params.get("weight", 1.0)
    if whole.task == "multiclass":
        labels, guess = _labels(whole), whole.logits.detach().argmax(0).numpy()
        for c in range(len(whole.target)):
            wrong = (labels == c) & (guess != c)
            factors[0][wrong] += weight * _apart(guess == c, labels == c, whole.spacing)
    else:
        for c, (truth, p) in enumerate(zip(_objects(whole), whole.probability, strict=True)):
            on = (p.detach() > 0.5).numpy()
            factors[c][on != truth] += weight * _apart(on, truth, whole.spacing)
    return (terms * torch.from_numpy(factors))[:, whole.valid].mean()


ORACLE: dict[str, WholeOracle] = {
    "boundary": _boundary,
    "hausdorff_dt": _hausdorff_dt,
    "distance_map_cross_entropy": _distance_map_cross_entropy,
    "shape_aware": _shape_aware,
}
