"""Multiclass kernels of distributions: softmax over the class axis, soft targets, lean and rich.

Shapes: `logits` `[K, C, T]`, `target` `[K, C, T]` in [0, 1] with -1 at removed pixels, `weight`
`[K, T]`, `gamma` `[K, 1]` (focusing exponent of the tile's sample). Every output of a tile depends
on that tile alone. Labels whose losses read rich sums are packed as distributions.

`*statistics` returns the sums of `vocabulary`, `*gradient` writes
`Σ_s coefficient_s · ∂sum_s/∂logits`, `*value_map` returns the per-pixel terms of a combination of
pixel sums.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lossd.core import vocabulary as v
from lossd.core.pointwise import (
    floored_power,
    floored_power_slope,
    jensen_shannon,
    jensen_shannon_slope,
    kullback_leibler,
    power,
)
from lossd.core.summation import tile_sum

_HALF = 0.5


@dataclass(frozen=True)
class _Terms:
    """Quantities of every pixel and class, `[K, C, T]` unless said otherwise."""

    valid: Tensor
    """`[K, 1, T]`"""
    logits: Tensor
    """0 at removed pixels."""
    target: Tensor
    is_top: Tensor
    alone: Tensor
    """The one class above all others, where there is one."""
    log_total: Tensor
    """`[K, 1, T]`, logarithm of the sum of exponentials relative to the top."""
    probability: Tensor
    miss: Tensor
    surprise: Tensor
    error: Tensor
    """p - y with the digits of small misses."""
    weight: Tensor
    """`[K, 1, T]`, 0 at removed pixels."""


def _terms(logits: Tensor, target: Tensor, weight: Tensor) -> _Terms:
    valid = target[:, :1] >= 0
    logits = torch.where(valid, logits, 0.0)
    target = torch.where(valid, target, 0.0)
    top = logits.amax(1)[:, None]
    is_top = logits == top
    exponential = torch.exp(logits - top)
    tops = torch.where(is_top, 1.0, 0.0).sum(1)[:, None]
    others = torch.where(is_top, 0.0, exponential).sum(1)[:, None] + (tops - 1.0)
    total = 1.0 + others
    probability = exponential / total
    # Only the top class can be near 1, where 1 - p would lose its digits.
    miss = torch.where(is_top, others / total, 1.0 - probability)
    log_total = torch.log1p(others)
    return _Terms(
        valid=valid,
        logits=logits,
        target=target,
        is_top=is_top,
        alone=is_top & (tops == 1.0),
        log_total=log_total,
        probability=probability,
        miss=miss,
        surprise=(top - logits) + log_total,
        # 1 - y is exact where y is at least a half, and the miss has the digits that p has lost.
        error=torch.where(is_top & (target >= _HALF), (1.0 - target) - miss, probability - target),
        weight=torch.where(valid, weight[:, None], 0.0),
    )


def _runners_up(one: _Terms) -> tuple[Tensor, Tensor]:
    """What stands behind the top class.

    Returns:
        `[K, C, T]`: the softmax of all classes but the top ones; `[K, 1, T]`: -ln(1 - p) of a
        class that is alone at the top, finite however far it stands above the others.
    """
    lowest = torch.finfo(one.logits.dtype).min
    top = one.logits.amax(1)[:, None]
    second = torch.where(one.is_top, lowest, one.logits).amax(1)[:, None]
    behind = torch.exp(torch.where(one.is_top, -torch.inf, one.logits - second))
    total = behind.sum(1)[:, None].clamp_min(1.0)
    return behind / total, one.log_total + (top - second) - torch.log(total)


def _complement_surprise(one: _Terms) -> Tensor:
    """-ln(1 - p), `[K, C, T]`."""
    _, of_top = _runners_up(one)
    return torch.where(
        one.alone, of_top, -torch.log1p(-torch.where(one.alone, 0.0, one.probability))
    )


def _region_sums(one: _Terms) -> list[Tensor]:
    rest = torch.where(one.valid, 1.0 - one.target, 0.0)
    squared = one.error * one.error
    return [
        tile_sum(one.target),
        tile_sum(one.target * one.miss),
        tile_sum(rest * one.probability),
        tile_sum(one.target * squared),
        tile_sum(rest * squared),
        tile_sum(one.target * one.target),
    ]


def _pixel_sums(one: _Terms, gamma: Tensor) -> list[Tensor]:
    weighted = one.weight * one.target
    return [
        tile_sum(weighted),
        tile_sum(weighted * one.surprise),
        tile_sum(weighted * one.surprise * power(one.miss, gamma)),
        tile_sum(torch.where(one.valid, one.weight * one.surprise, 0.0)),
    ]


def statistics(
    logits: Tensor, target: Tensor, weight: Tensor, gamma: Tensor
) -> tuple[Tensor, Tensor]:
    """Region sums `[6, K, C]` and pixel sums `[4, K, C]` of each tile."""
    one = _terms(logits, target, weight)
    return torch.stack(_region_sums(one)), torch.stack(_pixel_sums(one, gamma[:, None]))


def rich_statistics(
    logits: Tensor, target: Tensor, weight: Tensor, gamma: Tensor
) -> tuple[Tensor, Tensor]:
    """Region sums `[8, K, C]` and pixel sums `[9, K, C]` of each tile."""
    one = _terms(logits, target, weight)
    error = torch.where(one.valid, one.error, 0.0)
    weighted, exponent = one.weight * one.target, gamma[:, None]
    region = [*_region_sums(one), tile_sum(torch.relu(-error)), tile_sum(torch.relu(error))]
    pixel = [
        *_pixel_sums(one, exponent),
        tile_sum(weighted * one.miss),
        tile_sum(weighted * floored_power(one.surprise, exponent)),
        tile_sum(one.weight * kullback_leibler(one.target, one.error, one.surprise)),
        tile_sum(one.weight * jensen_shannon(one.probability, one.target, one.error)),
        tile_sum(one.weight * (1.0 - one.target) * _complement_surprise(one)),
    ]
    return torch.stack(region), torch.stack(pixel)


def gradient(  # noqa: PLR0917 - a kernel takes its tensors by position
    logits: Tensor,
    target: Tensor,
    weight: Tensor,
    gamma: Tensor,
    region: Tensor,
    pixel: Tensor,
    out: Tensor,
) -> None:
    """Derivative with respect to the logits, into `out` `[K, C, T]`.

    `region` `[6, K, C]` and `pixel` `[4, K, C]` are the coefficients of the sums; those of targets
    and weights are not read.
    """
    one = _terms(logits, target, weight)
    region, pixel = region[:, :, :, None], pixel[:, :, :, None]
    through_pixels = _through_surprise(one, _pull(one, gamma[:, None], pixel))
    result = _through_probability(one, _slope(one, region)) + one.weight * through_pixels
    out.copy_(torch.where(one.valid, result, 0.0))


def rich_gradient(  # noqa: PLR0917 - a kernel takes its tensors by position
    logits: Tensor,
    target: Tensor,
    weight: Tensor,
    gamma: Tensor,
    region: Tensor,
    pixel: Tensor,
    out: Tensor,
) -> None:
    """As `gradient`, with coefficients `[8, K, C]` and `[9, K, C]` of all sums."""
    one = _terms(logits, target, weight)
    region, pixel, exponent = region[:, :, :, None], pixel[:, :, :, None], gamma[:, None]
    slope = _slope(one, region)
    slope = slope - torch.where(one.error < 0, region[v.SOFT_FALSE_NEGATIVE], 0.0)
    slope = slope + torch.where(one.error > 0, region[v.SOFT_FALSE_POSITIVE], 0.0)
    jensen = jensen_shannon_slope(one.probability, one.target, one.error)
    slope = slope + one.weight * (pixel[v.JENSEN_SHANNON] * jensen - pixel[v.MISS] * one.target)
    powered = pixel[v.POWERED_CROSS_ENTROPY] * floored_power_slope(one.surprise, exponent)
    pull = _pull(one, exponent, pixel) + one.target * (pixel[v.KULLBACK_LEIBLER] + powered)
    result = (
        _through_probability(one, slope)
        + one.weight * _through_surprise(one, pull)
        + _through_complement(one, pixel[v.COMPLEMENT_CROSS_ENTROPY])
    )
    out.copy_(torch.where(one.valid, result, 0.0))


def _slope(one: _Terms, region: Tensor) -> Tensor:
    """Derivative of the lean region sums with respect to each class's probability."""
    outside = region[v.FALSE_POSITIVE] + 2.0 * region[v.SQUARED_ERROR_OUTSIDE] * one.error
    inside = 2.0 * region[v.SQUARED_ERROR_INSIDE] * one.error - region[v.FALSE_NEGATIVE]
    return (1.0 - one.target) * outside + one.target * inside


def _through_probability(one: _Terms, slope: Tensor) -> Tensor:
    """Derivative with respect to the logits, from that with respect to the probabilities."""
    # ∂/∂z_j Σ_k f(p_k) = p_j (slope_j - Σ_k slope_k p_k), the same whatever is added to all slopes.
    # Less the slope of the top class, whose p ≈ 1, what is left has all its digits.
    of_top = torch.where(one.is_top, slope, -torch.inf).amax(1)[:, None]
    relative = slope - of_top
    mean = (relative * one.probability).sum(1)[:, None]
    return one.probability * (relative - mean)


def _pull(one: _Terms, gamma: Tensor, pixel: Tensor) -> Tensor:
    """Derivative of the lean pixel sums with respect to each class's -ln p, before the weight."""
    focusing = power(one.miss, gamma) + gamma * one.probability * one.surprise * power(
        one.miss.clamp_min(v.POWER_FLOOR), gamma - 1.0
    )
    of_target = one.target * (pixel[v.CROSS_ENTROPY] + pixel[v.FOCAL] * focusing)
    return of_target + pixel[v.NEGATIVE_LOG_LIKELIHOOD]


def _through_surprise(one: _Terms, pull: Tensor) -> Tensor:
    """Derivative with respect to the logits, from that with respect to every -ln p."""
    # ∂/∂z_j Σ_c u_c·(-ln p_c) = U·p_j - u_j, in two forms as above.
    of_top = torch.where(one.is_top, pull, 0.0).sum(1)[:, None]
    of_others = torch.where(one.is_top, 0.0, pull).sum(1)[:, None]
    total = of_top + of_others
    return torch.where(
        one.is_top,
        (of_top - pull) + of_others - total * one.miss,
        total * one.probability - pull,
    )


def _through_complement(one: _Terms, coefficient: Tensor) -> Tensor:
    """Derivative of the sum of -ln(1 - p)."""
    # ∂/∂z_k of -ln(1 - p_c) is p_c at k = c and -p_k·p_c/(1 - p_c) elsewhere; for a class that is
    # alone at the top p_k/(1 - p_c) is the softmax of the others.
    shares, _ = _runners_up(one)
    factor = one.weight * (1.0 - one.target) * coefficient
    of_top = torch.where(one.alone, factor * one.probability, 0.0).sum(1)[:, None]
    odds = torch.where(one.alone, 0.0, factor * one.probability / one.miss.clamp_min(v.POWER_FLOOR))
    total = odds.sum(1)[:, None]
    pushed = torch.where(one.alone, 0.0, of_top * shares)
    return factor * one.probability - one.probability * (total - odds) - pushed


def _map(one: _Terms, gamma: Tensor, pixel: Tensor) -> Tensor:
    """Terms of the lean pixel sums of every class, before the weight."""
    factor = one.target * (pixel[v.CROSS_ENTROPY] + pixel[v.FOCAL] * power(one.miss, gamma))
    return one.surprise * (factor + pixel[v.NEGATIVE_LOG_LIKELIHOOD])


def value_map(
    logits: Tensor, target: Tensor, weight: Tensor, gamma: Tensor, pixel: Tensor
) -> Tensor:
    """Per-pixel terms `[K, T]` whose sum is `Σ_s coefficient_s · sum_s`; 0 at removed pixels."""
    one = _terms(logits, target, weight)
    terms = _map(one, gamma[:, None], pixel[:, :, :, None])
    return torch.where(one.valid, one.weight * terms, 0.0).sum(1)


def rich_value_map(
    logits: Tensor, target: Tensor, weight: Tensor, gamma: Tensor, pixel: Tensor
) -> Tensor:
    """As `value_map`, of all pixel sums but the complement, which has no map."""
    one = _terms(logits, target, weight)
    exponent, pixel = gamma[:, None], pixel[:, :, :, None]
    powered = pixel[v.POWERED_CROSS_ENTROPY] * floored_power(one.surprise, exponent)
    terms = (
        _map(one, exponent, pixel)
        + one.target * (pixel[v.MISS] * one.miss + powered)
        + pixel[v.KULLBACK_LEIBLER] * kullback_leibler(one.target, one.error, one.surprise)
        + pixel[v.JENSEN_SHANNON] * jensen_shannon(one.probability, one.target, one.error)
    )
    return torch.where(one.valid, one.weight * terms, 0.0).sum(1)
