"""Every loss once more, by its textbook formula, in float64, one sample at a time.

Nothing here is shared with the service: probabilities are taken as probabilities, sums as sums,
and the gradient is autograd's. A loss without an oracle fails the tests.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lossd_client.wire import Array


@dataclass(frozen=True)
class Sample:
    """One sample's valid pixels: logits and target `[C, N]`, weights `[N]`."""

    task: str
    logits: Tensor
    target: Tensor
    weight: Tensor

    @property
    def log_probability(self) -> tuple[Tensor, Tensor]:
        """ln p and ln(1 - p) of every channel."""
        if self.task == "multiclass":
            log_p = self.logits.log_softmax(0)
            classes = range(len(self.logits))
            others = [[other for other in classes if other != one] for one in classes]
            log_q = torch.stack([self.logits[rest].logsumexp(0) for rest in others])
            return log_p, log_q - self.logits.logsumexp(0)
        sigmoid = torch.nn.functional.logsigmoid
        return sigmoid(self.logits), sigmoid(-self.logits)


def _class_average(per_class: Tensor, sample: Sample, params: dict[str, Any]) -> Tensor:
    counted = _counted(sample, params)
    weights = torch.tensor(params.get("class_weights") or [1.0] * len(per_class))
    weights = weights.double()
    top = sum(weights[c] * per_class[c] for c in counted)
    return torch.as_tensor(top / sum(weights[c] for c in counted))


def _counted(sample: Sample, params: dict[str, Any]) -> list[int]:
    channels = range(len(sample.target))
    allowed = [c for c in channels if params.get("include_background", True) or c != 0]
    chosen = params.get("classes") or ("present" if sample.task == "multiclass" else "all")
    if chosen == "all":
        return allowed
    if chosen == "present":
        return [c for c in allowed if float(sample.target[c].sum()) > 0] or allowed
    return [c for c in allowed if c in chosen]


def _region(
    formula: Callable[[Tensor, Tensor, Tensor, dict[str, Any]], Tensor],
) -> Callable[[Sample, dict[str, Any]], Tensor]:
    def value(sample: Sample, params: dict[str, Any]) -> Tensor:
        log_p, log_q = sample.log_probability
        p, q, y = log_p.exp(), log_q.exp(), sample.target
        tp, fp, fn = (p * y).sum(1), (p * (1 - y)).sum(1), (q * y).sum(1)
        if params.get("average") == "micro":
            rows = _counted(sample, params)
            tp, fp, fn = (x[rows].sum()[None] for x in (tp, fp, fn))
            return formula(tp, fp, fn, params)[0]
        return _class_average(formula(tp, fp, fn, params), sample, params)

    return value


def _smooth(params: dict[str, Any]) -> tuple[float, float]:
    return float(params.get("smooth_nr", 1e-5)), float(params.get("smooth_dr", 1e-5))


def _dice(tp: Tensor, fp: Tensor, fn: Tensor, params: dict[str, Any]) -> Tensor:
    nr, dr = _smooth(params)
    return 1 - (2 * tp + nr) / (2 * tp + fp + fn + dr)


def _jaccard(tp: Tensor, fp: Tensor, fn: Tensor, params: dict[str, Any]) -> Tensor:
    nr, dr = _smooth(params)
    return 1 - (tp + nr) / (tp + fp + fn + dr)


def _tversky(tp: Tensor, fp: Tensor, fn: Tensor, params: dict[str, Any]) -> Tensor:
    nr, dr = _smooth(params)
    wrong = float(params.get("fp_weight", 0.3)) * fp + float(params.get("fn_weight", 0.7)) * fn
    return 1 - (tp + nr) / (tp + wrong + dr)


def _pixel(
    term: Callable[[Sample, dict[str, Any]], tuple[Tensor, Tensor]],
) -> Callable[[Sample, dict[str, Any]], Tensor]:
    """`term` gives each pixel's loss per channel `[C, N]` (multiclass: already of its class)."""

    def value(sample: Sample, params: dict[str, Any]) -> Tensor:
        terms, applied = term(sample, params)
        channels = len(terms) if sample.task != "multiclass" else 1
        total: Tensor = (terms * sample.weight).sum() / channels
        if params.get("normalize") == "weights":
            return total / ((applied * sample.weight).sum() / channels)
        return total / sample.logits.shape[1]

    return value


def _channel_weights(sample: Sample, params: dict[str, Any]) -> Tensor:
    given = params.get("class_weights") or [1.0] * len(sample.target)
    return torch.tensor(given, dtype=torch.float64)[:, None]


def _cross_entropy(sample: Sample, params: dict[str, Any]) -> tuple[Tensor, Tensor]:
    log_p, log_q = sample.log_probability
    weights = _channel_weights(sample, params)
    smoothing = params.get("label_smoothing", 0.0)
    if sample.task == "multiclass":
        y = sample.target * (1 - smoothing) + smoothing / len(sample.target)
        return -(weights * y * log_p), weights * sample.target
    y = sample.target * (1 - smoothing) + smoothing / 2
    positive = params.get("pos_weight", 1.0)
    return -weights * (positive * y * log_p + (1 - y) * log_q), weights.expand_as(y)


def _focal(sample: Sample, params: dict[str, Any]) -> tuple[Tensor, Tensor]:
    log_p, log_q = sample.log_probability
    weights = _channel_weights(sample, params)
    gamma, alpha, y = params.get("gamma", 2.0), params.get("alpha"), sample.target
    if sample.task == "multiclass":
        label = torch.tensor(alpha or [1.0] * len(y), dtype=torch.float64)[:, None]
        return -(weights * label * y * (1 - log_p.exp()) ** gamma * log_p), weights * y
    on, off = (1.0, 1.0) if alpha is None else (alpha, 1 - alpha)
    p = log_p.exp()
    terms = on * y * (1 - p) ** gamma * log_p + off * (1 - y) * p**gamma * log_q
    return -weights * terms, weights.expand_as(y)


def _dice_ce(sample: Sample, params: dict[str, Any]) -> Tensor:
    shared = {"class_weights": params.get("class_weights")}
    dice = ORACLE["dice"](sample, params)
    cross_entropy = ORACLE["cross_entropy"](sample, shared)
    weights = float(params.get("ce_weight", 1.0)), float(params.get("dice_weight", 1.0))
    return weights[0] * cross_entropy + weights[1] * dice


ORACLE: dict[str, Callable[[Sample, dict[str, Any]], Tensor]] = {
    "dice": _region(_dice),
    "jaccard": _region(_jaccard),
    "tversky": _region(_tversky),
    "cross_entropy": _pixel(_cross_entropy),
    "binary_cross_entropy": _pixel(_cross_entropy),
    "focal": _pixel(_focal),
    "dice_ce": _dice_ce,
}


def expected(
    loss: str,
    params: dict[str, Any],
    *,
    task: str,
    inputs: dict[str, Array],
    ignore_index: int | None = None,
) -> tuple[Array, Array]:
    """Values `[B]` and the gradient of their sum, both float64."""
    logits = torch.tensor(np.asarray(inputs["logits"], dtype=np.float64), requires_grad=True)
    values = [
        _value(
            logits[b],
            {name: array[b] for name, array in inputs.items()},
            loss=loss,
            params=params,
            task=task,
            ignore_index=ignore_index,
        )
        for b in range(len(logits))
    ]
    total = torch.stack(values)
    (gradient,) = torch.autograd.grad(total.sum(), logits, materialize_grads=True)
    return total.detach().numpy(), gradient.numpy()


def _value(
    logits: Tensor,
    arrays: dict[str, Array],
    *,
    loss: str,
    params: dict[str, Any],
    task: str,
    ignore_index: int | None,
) -> Tensor:
    channels = len(logits)
    given = np.asarray(arrays["target"])
    pixels = logits[0].numel()
    keep = np.ones(pixels, dtype=bool)
    if "mask" in arrays:
        keep &= arrays["mask"].reshape(-1) != 0
    if ignore_index is not None:
        keep &= given.reshape(-1) != ignore_index
    chosen = torch.from_numpy(keep.nonzero()[0])
    if len(chosen) == 0:
        return logits.new_zeros(()) * 0.0
    if given.ndim == logits.ndim - 1 and channels > 1:
        flat = given.reshape(-1)[keep].astype(np.int64)
        target = torch.nn.functional.one_hot(torch.from_numpy(flat), channels).T.double()
    else:
        target = torch.from_numpy(given.reshape(channels, -1)[:, keep].astype(np.float64))
    weight = np.asarray(arrays.get("weight_map", np.ones(pixels)), dtype=np.float64).reshape(-1)
    sample = Sample(
        task, logits.reshape(channels, -1)[:, chosen], target, torch.from_numpy(weight[keep])
    )
    return ORACLE[loss](sample, params)
