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
        tp, fp, fn, _ = confusion(sample)
        if params.get("average") == "micro":
            rows = _counted(sample, params)
            tp, fp, fn = (x[rows].sum()[None] for x in (tp, fp, fn))
            return formula(tp, fp, fn, params)[0]
        return _class_average(formula(tp, fp, fn, params), sample, params)

    return value


def confusion(sample: Sample) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Soft TP, FP, FN, TN of each class, `[C]`."""
    log_p, log_q = sample.log_probability
    p, q, y = log_p.exp(), log_q.exp(), sample.target
    return (p * y).sum(1), (p * (1 - y)).sum(1), (q * y).sum(1), (q * (1 - y)).sum(1)


def _by_class(
    formula: Callable[[Tensor, Tensor, dict[str, Any]], Tensor],
) -> Callable[[Sample, dict[str, Any]], Tensor]:
    """`formula` takes probabilities and targets `[N]` of one class."""

    def value(sample: Sample, params: dict[str, Any]) -> Tensor:
        p, y = sample.log_probability[0].exp(), sample.target
        if params.get("average") == "micro":
            rows = _counted(sample, params)
            return formula(p[rows].reshape(-1), y[rows].reshape(-1), params)
        per_class = [formula(p[c], y[c], params) for c in range(len(p))]
        return _class_average(torch.stack(per_class), sample, params)

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


def _dice_squared(p: Tensor, y: Tensor, params: dict[str, Any]) -> Tensor:
    nr, dr = _smooth(params)
    value: Tensor = 1 - (2 * (p * y).sum() + nr) / ((p * p).sum() + (y * y).sum() + dr)
    return value


def _sensitivity_specificity(p: Tensor, y: Tensor, params: dict[str, Any]) -> Tensor:
    nr, dr = _smooth(params)
    weight = float(params.get("sensitivity_weight", 0.05))
    parts = []
    for where in (y, 1 - y):
        squared = (where * (p - y) ** 2).sum()
        count = where.sum()
        parts.append((squared + nr) / (count + dr) if float(count) > 0 else 0.0 * squared)
    return weight * parts[0] + (1 - weight) * parts[1]


def _matthews(p: Tensor, y: Tensor, params: dict[str, Any]) -> Tensor:
    del params
    tp, fp, fn = (p * y).sum(), (p * (1 - y)).sum(), ((1 - p) * y).sum()
    tn = ((1 - p) * (1 - y)).sum()
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    if float(product.detach()) <= 0:
        perfect = float(fp.detach()) == 0 and float(fn.detach()) == 0
        return p.sum() * 0.0 + (0.0 if perfect else 1.0)
    return torch.as_tensor(1 - (tp * tn - fp * fn) / product.sqrt())


def _focal_tversky(tp: Tensor, fp: Tensor, fn: Tensor, params: dict[str, Any]) -> Tensor:
    loss = _tversky(tp, fp, fn, params)
    return torch.as_tensor(loss.clamp_min(1e-7) ** float(params.get("exponent", 0.75)))


def _log_dice(tp: Tensor, fp: Tensor, fn: Tensor, params: dict[str, Any]) -> Tensor:
    nr, dr = _smooth(params)
    return -((2 * tp + nr) / (2 * tp + fp + fn + dr)).clamp_min(1e-7).log()


def _log_cosh_dice(tp: Tensor, fp: Tensor, fn: Tensor, params: dict[str, Any]) -> Tensor:
    return _dice(tp, fp, fn, params).cosh().log()


def _generalized_dice(sample: Sample, params: dict[str, Any]) -> Tensor:
    nr, dr = _smooth(params)
    tp, fp, fn, _ = confusion(sample)
    counted = _counted(sample, params)
    volume = sample.target.sum(1)
    power = {"square": 2, "simple": 1, "uniform": 0}[params.get("weighting", "square")]
    raw = {c: 1.0 / float(volume[c]) ** power for c in counted if float(volume[c]) > 0}
    largest = max(raw.values(), default=1.0)
    given = params.get("class_weights") or [1.0] * len(tp)
    top = bottom = torch.zeros((), dtype=torch.float64)
    for c in counted:
        weight = given[c] * raw.get(c, largest) / largest
        top = top + 2 * weight * tp[c]
        bottom = bottom + weight * (2 * tp[c] + fp[c] + fn[c])
    return 1 - (top + nr) / (bottom + dr)


def _weighted_cross_entropy(sample: Sample, params: dict[str, Any]) -> tuple[Tensor, Tensor]:
    if params.get("class_weights"):
        return _cross_entropy(sample, params)
    log_p, log_q = sample.log_probability
    y, pixels = sample.target, sample.target.shape[1]
    on = y.sum(1, keepdim=True)
    rare = (pixels - on) / pixels
    if sample.task == "multiclass":
        return -(rare * y * log_p), rare * y
    off_weight, on_weight = on / pixels, rare
    if params.get("beta") is not None:
        off_weight, on_weight = torch.ones_like(on), torch.full_like(on, params["beta"])
    terms = -(on_weight * y * log_p + off_weight * (1 - y) * log_q)
    return terms, on_weight * y + off_weight * (1 - y)


def _balanced_cross_entropy(sample: Sample, params: dict[str, Any]) -> tuple[Tensor, Tensor]:
    weights = _channel_weights(sample, params)
    terms, _ = _weighted_cross_entropy(sample, {})
    return weights * terms, weights.expand_as(terms)


def _pixel(
    term: Callable[[Sample, dict[str, Any]], tuple[Tensor, Tensor]],
) -> Callable[[Sample, dict[str, Any]], Tensor]:
    """`term` gives each pixel's loss per channel `[C, N]` (multiclass: already of its class)."""

    def value(sample: Sample, params: dict[str, Any]) -> Tensor:
        terms, applied = term(sample, params)
        channels = len(terms) if sample.task != "multiclass" else 1
        total: Tensor = (terms * sample.weight).sum() / channels
        if params.get("normalize") == "weights":
            weight = (applied * sample.weight).sum() / channels
            return total / weight if float(weight) else 0.0 * total
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
    "bce_dice": _dice_ce,
    "dice_squared": _by_class(_dice_squared),
    "sensitivity_specificity": _by_class(_sensitivity_specificity),
    "matthews": _by_class(_matthews),
    "focal_tversky": _region(_focal_tversky),
    "log_dice": _region(_log_dice),
    "log_cosh_dice": _region(_log_cosh_dice),
    "generalized_dice": _generalized_dice,
    "weighted_cross_entropy": _pixel(_weighted_cross_entropy),
    "balanced_cross_entropy": _pixel(_balanced_cross_entropy),
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
