"""Losses of scores and of values in histograms, by loops over the classes of one sample."""

import math
from typing import Any

import torch
from torch import Tensor

from oracles.whole import RowOracle


def quality_focal(row: dict[str, Tensor], params: dict[str, Any]) -> Tensor:
    beta = params.get("beta", 2.0)
    logits, target = row["logits"], row["target"]
    distance = (target - logits.sigmoid()).abs()
    if beta < 1.0:
        distance = distance.clamp(min=1e-7)
    cross_entropy = torch.logaddexp(torch.zeros_like(logits), logits) - logits * target
    return (distance.pow(beta) * cross_entropy).sum()


def distribution_focal(row: dict[str, Tensor], params: dict[str, Any]) -> Tensor:
    assert not params
    logits = row["logits"]
    bins = torch.arange(len(logits), dtype=torch.float64)
    tent = (1.0 - (row["target"] - bins).abs()).clamp(min=0.0)
    return -(tent * logits.log_softmax(0)).sum()


def svm_hinge(row: dict[str, Tensor], params: dict[str, Any]) -> Tensor:
    logits, own = row["logits"], int(row["target"])
    total = logits.new_zeros(())
    for rival, score in enumerate(logits):
        behind = score - logits[own] + params.get("margin", 1.0)
        if rival != own and behind > 0:
            total = total + behind
    return total / len(logits) if params.get("reduction_over_classes") == "mean" else total


def softmax_l2(row: dict[str, Tensor], params: dict[str, Any]) -> Tensor:
    weights = row["weights"]
    scores = torch.stack([(row["features"] * column).sum() for column in weights.T])
    penalty = 0.5 * params.get("l2", 0.1) * weights.pow(2).sum()
    total: Tensor = scores.logsumexp(0) - scores[int(row["target"])] + penalty
    return total


def ghm_regression(row: dict[str, Tensor], params: dict[str, Any]) -> Tensor:
    bins, mu = params.get("bins", 10), params.get("mu", 0.02)
    residuals = (row["prediction"] - row["target"]).reshape(-1)
    crowd: dict[int, list[Tensor]] = {}
    for residual in residuals:
        root = (residual**2 + mu**2).sqrt()
        length = abs(float(residual.detach())) / float(root.detach())
        place = min(math.floor(round(length * bins, 9)), bins - 1)
        crowd.setdefault(place, []).append(root - mu)
    return torch.stack([torch.stack(errors).mean() for errors in crowd.values()]).mean()


ORACLE: dict[str, RowOracle] = {
    "distribution_focal": distribution_focal,
    "ghm_regression": ghm_regression,
    "quality_focal": quality_focal,
    "softmax_l2": softmax_l2,
    "svm_hinge": svm_hinge,
}
