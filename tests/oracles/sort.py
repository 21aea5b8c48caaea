"""Losses that sort or count the pixels of a sample, by set functions and loops over pixels."""

import math
from collections import Counter
from typing import Any

import torch
from torch import Tensor

from oracles.whole import Whole, WholeOracle


def _jaccard_loss(wrong: set[int], mask: set[int]) -> float:
    """Jaccard loss of the prediction that differs from the mask at the wrong pixels."""
    predicted = mask ^ wrong
    union = predicted | mask
    return 1.0 - len(predicted & mask) / len(union) if union else 0.0


def _hardest_first(values: list[float]) -> list[int]:
    """Pixels by falling value; values that agree in 12 digits keep the order of the pixels."""
    return sorted(range(len(values)), key=lambda pixel: -float(f"{values[pixel]:.11e}"))


def _choquet(errors: Tensor, foreground: Tensor) -> Tensor:
    """Choquet integral of the errors: heights between neighbours times the loss of level sets."""
    order = _hardest_first(errors.tolist())
    mask = {pixel for pixel, inside in enumerate(foreground.tolist()) if inside}
    total = errors.new_zeros(())
    wrong: set[int] = set()
    lower = [*order[1:], None]
    for pixel, following in zip(order, lower, strict=True):
        wrong.add(pixel)
        height = errors[pixel] - (0.0 if following is None else errors[following])
        total = total + height * _jaccard_loss(wrong, mask)
    return total


def _class_average(whole: Whole, per_class: list[Tensor], params: dict[str, Any]) -> Tensor:
    allowed = list(range(len(per_class)))
    if not params.get("include_background", True):
        allowed.remove(0)
    default = "present" if whole.task == "multiclass" else "all"
    chosen = params.get("classes") or default
    present = [c for c in allowed if float(whole.target[c][whole.valid].sum()) > 0]
    counted = {"all": allowed, "present_of_all": present, "present": present or allowed}.get(
        chosen if isinstance(chosen, str) else "", []
    )
    if isinstance(chosen, list):
        counted = [c for c in allowed if c in chosen]
    weights = params.get("class_weights") or [1.0] * len(per_class)
    divisor = sum(weights[c] for c in (allowed if chosen == "present_of_all" else counted))
    total = sum((weights[c] * per_class[c] for c in counted), torch.zeros((), dtype=torch.float64))
    return total / divisor if divisor else total * 0.0


def lovasz_softmax(whole: Whole, params: dict[str, Any]) -> Tensor:
    errors = (whole.target - whole.probability).abs()
    per_class = [
        _choquet(error[whole.valid], target[whole.valid] > 0.5)
        for error, target in zip(errors, whole.target, strict=True)
    ]
    return _class_average(whole, per_class, params)


def lovasz_hinge(whole: Whole, params: dict[str, Any]) -> Tensor:
    assert not params
    total = whole.logits.new_zeros(())
    for logits, target in zip(whole.logits, whole.target, strict=True):
        side = torch.where(target > 0.5, 1.0, -1.0)
        errors = torch.relu(1.0 - logits * side)
        total = total + _choquet(errors[whole.valid], target[whole.valid] > 0.5)
    return total / len(whole.logits)


def _cross_entropy(whole: Whole, weights: list[float] | None) -> list[Tensor]:
    """Terms of the valid pixels, channel after channel."""
    weight = whole.logits.new_tensor(weights or [1.0] * len(whole.logits))
    weight = weight.reshape(-1, *(1,) * whole.valid.ndim) * whole.weight
    if whole.task == "multiclass":
        terms = -(weight * whole.target * whole.logits.log_softmax(0)).sum(0, keepdim=True)
    else:
        terms = weight * torch.nn.functional.binary_cross_entropy_with_logits(
            whole.logits, whole.target, reduction="none"
        )
    return [term for channel in terms for term in channel[whole.valid]]


def topk_cross_entropy(whole: Whole, params: dict[str, Any]) -> Tensor:
    terms = _cross_entropy(whole, params.get("class_weights"))
    exact = params.get("fraction", 0.1) * len(terms)
    keep = max(1, math.ceil(round(exact, 9)))
    order = _hardest_first([float(term.detach()) for term in terms])
    return torch.stack([terms[pixel] for pixel in order[:keep]]).mean()


def ghm_classification(whole: Whole, params: dict[str, Any]) -> Tensor:
    bins = params.get("bins", 10)
    terms = _cross_entropy(whole, None)
    distances = (whole.target - whole.probability).abs().detach()
    places = [
        min(math.floor(round(float(distance) * bins, 9)), bins - 1)
        for channel in distances
        for distance in channel[whole.valid]
    ]
    crowd = Counter(places)
    shares = [sum(t for t, p in zip(terms, places, strict=True) if p == bin_) for bin_ in crowd]
    means = [share / count for share, count in zip(shares, crowd.values(), strict=True)]
    return torch.stack([torch.as_tensor(mean) for mean in means]).mean()


ORACLE: dict[str, WholeOracle] = {
    "ghm_classification": ghm_classification,
    "lovasz_hinge": lovasz_hinge,
    "lovasz_softmax": lovasz_softmax,
    "topk_cross_entropy": topk_cross_entropy,
}
