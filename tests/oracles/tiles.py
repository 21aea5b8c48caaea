"""Oracles of the losses that are functions of sums: plain probabilities, plain sums."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


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
    top = sum((weights[c] * per_class[c] for c in counted), start=per_class.sum() * 0.0)
    over = _allowed(sample, params) if params.get("classes") == "present_of_all" else counted
    return torch.as_tensor(top / sum(weights[c] for c in over))


def _allowed(sample: Sample, params: dict[str, Any]) -> list[int]:
    channels = range(len(sample.target))
    return [c for c in channels if params.get("include_background", True) or c != 0]


def _counted(sample: Sample, params: dict[str, Any]) -> list[int]:
    allowed = _allowed(sample, params)
    chosen = params.get("classes") or ("present" if sample.task == "multiclass" else "all")
    if chosen == "present_of_all":
        return [c for c in allowed if float(sample.target[c].sum()) > 0]
    if chosen == "all":
        return allowed
    if chosen == "present":
        return [c for c in allowed if float(sample.target[c].sum()) > 0] or allowed
    return [c for c in allowed if c in chosen]


def _region(
    formula: Callable[[Tensor, Tensor, Tensor, dict[str, Any]], Tensor],
) -> Callable[[Sample, dict[str, Any]], Tensor]:
    def value(sample: Sample, params: dict[str, Any]) -> Tensor:
        tp, fp, fn = _errors(sample, params)
        if params.get("average") == "micro":
            rows = _counted(sample, params)
            tp, fp, fn = (x[rows].sum()[None] for x in (tp, fp, fn))
            return formula(tp, fp, fn, params)[0]
        return _class_average(formula(tp, fp, fn, params), sample, params)

    return value


def _errors(sample: Sample, params: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """TP, FP, FN of each class, `[C]`, with the overlap that was asked for."""
    if not params.get("soft_label"):
        return confusion(sample)[:3]
    p, y = sample.log_probability[0].exp(), sample.target
    overlap = torch.minimum(p, y).sum(1)
    return overlap, p.sum(1) - overlap, y.sum(1) - overlap


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
    tp, fp, fn = (p * y).sum(), (p * (1 - y)).sum(), ((1 - p) * y).sum()
    tn = ((1 - p) * (1 - y)).sum()
    if params.get("soft_label"):
        tp, tn = torch.minimum(p, y).sum(), torch.minimum(1 - p, 1 - y).sum()
        fp, fn = p.sum() - tp, y.sum() - tp
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
    tp, fp, fn = _errors(sample, params)
    counted = _counted(sample, params)
    volume = sample.target.sum(1)
    power = {"square": 2, "simple": 1, "uniform": 0}[params.get("weighting", "square")]
    raw = {c: 1.0 / float(volume[c]) ** power for c in counted if float(volume[c]) > 0}
    if params.get("smoothing") == "unscaled":
        divisor, largest = 1.0, max(raw.values(), default=0.0 if power else 1.0)
    else:
        divisor = largest = max(raw.values(), default=1.0)
    given = params.get("class_weights") or [1.0] * len(tp)
    top = bottom = torch.zeros((), dtype=torch.float64)
    for c in counted:
        weight = given[c] * raw.get(c, largest) / divisor
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
        # beta is a price, not one of the weights that normalize divides by
        return -(params["beta"] * y * log_p + (1 - y) * log_q), torch.ones_like(y)
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


def _poly1(sample: Sample, params: dict[str, Any]) -> tuple[Tensor, Tensor]:
    terms, applied = _cross_entropy(sample, {"class_weights": params.get("class_weights")})
    weights, epsilon = _channel_weights(sample, params), float(params.get("epsilon", 1.0))
    p, y = sample.log_probability[0].exp(), sample.target
    missed = y * (1 - p) if sample.task == "multiclass" else y * (1 - p) + (1 - y) * p
    return terms + epsilon * weights * missed, applied


def _kl(sample: Sample, params: dict[str, Any]) -> tuple[Tensor, Tensor]:
    terms, applied = _cross_entropy(sample, {"class_weights": params.get("class_weights")})
    weights, y = _channel_weights(sample, params), sample.target
    entropy = torch.xlogy(y, y)
    if sample.task != "multiclass":
        entropy = entropy + torch.xlogy(1 - y, 1 - y)
    return terms + weights * entropy, applied


def _js(sample: Sample, params: dict[str, Any]) -> tuple[Tensor, Tensor]:
    weights, y = _channel_weights(sample, params), sample.target
    p = sample.log_probability[0].exp()

    def half(p: Tensor, y: Tensor) -> Tensor:
        m = ((p + y) / 2).clamp_min(1e-300)
        ratio = (p / m).clamp_min(1e-300)
        return 0.5 * (torch.xlogy(y, y) - torch.xlogy(y, m) + p * ratio.log())

    terms = half(p, y) if sample.task == "multiclass" else half(p, y) + half(1 - p, 1 - y)
    applied = weights * y if sample.task == "multiclass" else weights.expand_as(y)
    return weights * terms, applied


def _combo(sample: Sample, params: dict[str, Any]) -> Tensor:
    alpha, beta = float(params.get("alpha", 0.5)), float(params.get("beta", 0.5))
    smooth = float(params.get("smooth", 1.0))
    log_p, log_q = sample.log_probability
    y = sample.target
    entropy = -(beta * y * log_p + (1 - beta) * (1 - y) * log_q) * sample.weight
    tp, fp, fn, _ = confusion(sample)
    overlap = _dice(tp, fp, fn, {"smooth_nr": smooth, "smooth_dr": smooth})
    per_class = alpha * entropy.sum(1) / y.shape[1] + (1 - alpha) * overlap
    return _class_average(per_class, sample, params)


def _dice_focal(sample: Sample, params: dict[str, Any]) -> Tensor:
    gamma, factor = float(params.get("gamma", 2.0)), float(params.get("focal_weight", 1.0))
    log_p, log_q = sample.log_probability
    y = sample.target
    focal = -(y * (gamma * log_q).exp() * log_p * sample.weight).sum(1) / y.shape[1]
    tp, fp, fn, _ = confusion(sample)
    per_class = 1 - tp / (tp + fp / 2 + fn / 2) + factor * focal
    mean = _class_average(per_class, sample, params)
    if params.get("reduction_over_classes", "mean") == "mean":
        return mean
    weights = params.get("class_weights") or [1.0] * len(y)
    return torch.as_tensor(mean * sum(weights[c] for c in _counted(sample, params)))


def _exponential_logarithmic(sample: Sample, params: dict[str, Any]) -> Tensor:
    log_p, log_q = sample.log_probability
    y = sample.target
    groups = [(y, log_p)]
    if sample.task != "multiclass":
        groups = [
            (torch.stack([1 - y[c], y[c]]), torch.stack([log_q[c], log_p[c]]))
            for c in range(len(y))
        ]
    values = [_exp_log_group(target, log, sample.weight, params) for target, log in groups]
    return torch.stack(values).mean()


def _exp_log_group(y: Tensor, log_p: Tensor, weight: Tensor, params: dict[str, Any]) -> Tensor:
    smooth, pixels = float(params.get("smooth", 1.0)), y.shape[1]
    p, count = log_p.exp(), y.sum(1)
    overlap = -((2 * (p * y).sum(1) + smooth) / (p.sum(1) + count + smooth)).log()
    powered = overlap.clamp_min(1e-7) ** float(params.get("gamma_dice", 0.3))
    dice = powered[count > 0].mean()
    rarity = torch.where(count > 0, pixels / count, 0.0).sqrt()
    surprise = (-log_p).clamp_min(1e-7) ** float(params.get("gamma_ce", 0.3))
    entropy = (weight * rarity[:, None] * y * surprise).sum() / pixels
    return (
        float(params.get("dice_weight", 0.8)) * dice + float(params.get("ce_weight", 0.2)) * entropy
    )


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
    "poly1_cross_entropy": _pixel(_poly1),
    "kl_divergence": _pixel(_kl),
    "js_divergence": _pixel(_js),
    "combo": _combo,
    "dice_focal": _dice_focal,
    "exponential_logarithmic": _exponential_logarithmic,
}
