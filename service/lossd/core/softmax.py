"""Multiclass kernels: softmax over the class axis of a pile of tiles.

Shapes: `logits` `[K, C, T]`, `weight` `[K, T]`, `gamma` `[K, 1]` (focusing exponent of the tile's
sample). Targets are labels, int32 `[K, T]` with -1 = removed, or distributions over the classes,
`[K, C, T]` with -1 at removed pixels. Every output of a tile depends on that tile alone.

The kernels of labels are lean, those of distributions rich (see `vocabulary`): labels whose losses
read rich sums are packed as distributions.

`*_statistics` returns the sums of `vocabulary`; `*_gradient` writes
`Σ_s coefficient_s · ∂sum_s/∂logits`; `*_map` returns the per-pixel terms of a combination of pixel
sums. The derivative of a sum stands beside the sum it belongs to.
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
    negative_entropy,
    power,
)
from lossd.core.summation import tile_sum

# -- labels --------------------------------------------------------------------------------------


def _label_terms(logits: Tensor, label: Tensor) -> tuple[Tensor, ...]:
    valid = label >= 0
    logits = torch.where(valid[:, None], logits, 0.0)  # what is removed may hold NaN
    classes = torch.arange(logits.shape[1], dtype=torch.int32, device=logits.device)
    own = label[:, None] == classes[None, :, None]
    top = logits.amax(1)
    exponential = torch.exp(logits - top[:, None])
    own_exponential = torch.where(own, exponential, 0.0).sum(1)
    others = torch.where(own, 0.0, exponential).sum(1)
    total = own_exponential + others
    miss = others / total  # 1 - p of the labelled class, without the subtraction
    gap = top - torch.where(own, logits, 0.0).sum(1)
    log_total = torch.log(total)
    cross_entropy = torch.where(
        others > own_exponential, gap + log_total, torch.log1p(others / own_exponential)
    )
    cross_entropy = torch.where(valid, cross_entropy, 0.0)
    return (
        valid,
        logits,
        own,
        top,
        exponential,
        own_exponential,
        others,
        total,
        miss,
        cross_entropy,
        log_total,
    )


def label_statistics(
    logits: Tensor, label: Tensor, weight: Tensor, gamma: Tensor
) -> tuple[Tensor, Tensor]:
    """Region sums `[6, K, C]` and pixel sums `[4, K, C]` of each tile."""
    valid, logits, own, top, exponential, _, _, total, miss, cross_entropy, log_total = (
        _label_terms(logits, label)
    )
    weight = torch.where(valid, weight, 0.0)
    probability = torch.where(valid[:, None] & ~own, exponential / total[:, None], 0.0)

    def over_own(value: Tensor) -> Tensor:
        return tile_sum(torch.where(own, value[:, None], 0.0))

    count = tile_sum(torch.where(own, 1.0, 0.0).to(logits.dtype))
    region = torch.stack(
        [
            count,
            over_own(miss),
            tile_sum(probability),
            over_own(miss * miss),
            tile_sum(probability * probability),
            count,
        ]
    )
    weighted = weight * cross_entropy
    surprise = torch.where(own, cross_entropy[:, None], (top + log_total)[:, None] - logits)
    pixel = torch.stack(
        [
            over_own(weight),
            over_own(weighted),
            over_own(weighted * power(miss, gamma)),
            tile_sum(torch.where(valid[:, None], surprise * weight[:, None], 0.0)),
        ]
    )
    return region, pixel


def label_gradient(  # noqa: PLR0917 - a kernel takes its tensors by position
    logits: Tensor,
    label: Tensor,
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
    valid, logits, own, _, exponential, own_exponential, others, total, miss, cross_entropy, _ = (
        _label_terms(logits, label)
    )
    weight = torch.where(valid, weight, 0.0)

    def of_label(coefficient: Tensor) -> Tensor:
        return torch.where(own, coefficient[:, :, None], 0.0).sum(1)

    # Everything that depends on the labelled class alone changes along one direction: its miss
    # moves by p_y·q·r and its cross entropy by q·r, with r = -1 at the class and e_c/Σ_others else.
    hit = own_exponential / total
    focal = of_label(pixel[v.FOCAL]) * weight * power(miss, gamma)
    through_miss = hit * (
        of_label(region[v.FALSE_NEGATIVE]) + 2.0 * of_label(region[v.SQUARED_ERROR_INSIDE]) * miss
    )
    along = focal * gamma * hit * cross_entropy + miss * (
        through_miss + weight * of_label(pixel[v.CROSS_ENTROPY]) + focal
    )
    tiny = torch.finfo(logits.dtype).tiny
    direction = torch.where(own, -1.0, exponential / others.clamp_min(tiny)[:, None])

    probability = exponential / total[:, None]
    outside = torch.where(
        own,
        0.0,
        region[v.FALSE_POSITIVE][:, :, None]
        + 2.0 * region[v.SQUARED_ERROR_OUTSIDE][:, :, None] * probability,
    )
    outside_mean = (outside * probability).sum(1)

    spread = pixel[v.NEGATIVE_LOG_LIKELIHOOD]
    spread_total = spread.sum(1)[:, None, None]
    spread_rest = spread_total - spread[:, :, None]
    through_spread = torch.where(
        own,
        spread_rest - spread_total * miss[:, None],
        spread_total * probability - spread[:, :, None],
    )
    gradient = (
        direction * along[:, None]
        + probability * (outside - outside_mean[:, None])
        + weight[:, None] * through_spread
    )
    out.copy_(torch.where(valid[:, None], gradient, 0.0))


def label_map(
    logits: Tensor, label: Tensor, weight: Tensor, gamma: Tensor, pixel: Tensor
) -> Tensor:
    """Per-pixel terms `[K, T]` whose sum is `Σ_s coefficient_s · sum_s`; 0 at removed pixels."""
    valid, logits, own, top, _, _, _, _, miss, cross_entropy, log_total = _label_terms(
        logits, label
    )
    weight = torch.where(valid, weight, 0.0)

    def of_label(coefficient: Tensor) -> Tensor:
        return torch.where(own, coefficient[:, :, None], 0.0).sum(1)

    surprise = torch.where(own, cross_entropy[:, None], (top + log_total)[:, None] - logits)
    spread = (pixel[v.NEGATIVE_LOG_LIKELIHOOD][:, :, None] * surprise).sum(1)
    own_terms = cross_entropy * (
        of_label(pixel[v.CROSS_ENTROPY]) + of_label(pixel[v.FOCAL]) * power(miss, gamma)
    )
    return weight * (own_terms + spread)


# -- distributions -------------------------------------------------------------------------------


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


def _distribution_terms(logits: Tensor, target: Tensor, weight: Tensor) -> _Terms:
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
        error=torch.where(target == 1.0, -miss, probability - target),
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


def distribution_statistics(
    logits: Tensor, target: Tensor, weight: Tensor, gamma: Tensor
) -> tuple[Tensor, Tensor]:
    """Region sums `[8, K, C]` and pixel sums `[9, K, C]` of each tile."""
    one = _distribution_terms(logits, target, weight)
    here = torch.where(one.valid, 1.0, 0.0).to(logits.dtype)
    rest = here - one.target
    squared = one.error * one.error
    error = torch.where(one.valid, one.error, 0.0)
    region = torch.stack(
        [
            tile_sum(one.target),
            tile_sum(one.target * one.miss),
            tile_sum(rest * one.probability),
            tile_sum(one.target * squared),
            tile_sum(rest * squared),
            tile_sum(one.target * one.target),
            tile_sum(torch.relu(-error)),
            tile_sum(torch.relu(error)),
        ]
    )
    weighted = one.weight * one.target
    exponent = gamma[:, None]
    pixel = torch.stack(
        [
            tile_sum(weighted),
            tile_sum(weighted * one.surprise),
            tile_sum(weighted * one.surprise * power(one.miss, exponent)),
            tile_sum(torch.where(one.valid, one.weight * one.surprise, 0.0)),
            tile_sum(weighted * one.miss),
            tile_sum(weighted * floored_power(one.surprise, exponent)),
            tile_sum(one.weight * negative_entropy(one.target)),
            tile_sum(one.weight * jensen_shannon(one.probability, one.target, one.error)),
            tile_sum(one.weight * (1.0 - one.target) * _complement_surprise(one)),
        ]
    )
    return region, pixel


def distribution_gradient(  # noqa: PLR0917 - a kernel takes its tensors by position
    logits: Tensor,
    target: Tensor,
    weight: Tensor,
    gamma: Tensor,
    region: Tensor,
    pixel: Tensor,
    out: Tensor,
) -> None:
    """Derivative with respect to the logits, into `out`; arguments as in `label_gradient`."""
    one = _distribution_terms(logits, target, weight)
    region, pixel = region[:, :, :, None], pixel[:, :, :, None]
    result = (
        _through_probability(one, region, pixel)
        + one.weight * _through_surprise(one, gamma[:, None], pixel)
        + _through_complement(one, pixel[v.COMPLEMENT_CROSS_ENTROPY])
    )
    out.copy_(torch.where(one.valid, result, 0.0))


def _through_probability(one: _Terms, region: Tensor, pixel: Tensor) -> Tensor:
    """Derivative of the sums of functions of p."""
    outside = region[v.FALSE_POSITIVE] + 2.0 * region[v.SQUARED_ERROR_OUTSIDE] * one.error
    inside = 2.0 * region[v.SQUARED_ERROR_INSIDE] * one.error - region[v.FALSE_NEGATIVE]
    slope = (1.0 - one.target) * outside + one.target * inside
    slope = slope - torch.where(one.error < 0, region[v.SOFT_FALSE_NEGATIVE], 0.0)
    slope = slope + torch.where(one.error > 0, region[v.SOFT_FALSE_POSITIVE], 0.0)
    jensen = jensen_shannon_slope(one.probability, one.target, one.error)
    slope = slope + one.weight * (pixel[v.JENSEN_SHANNON] * jensen - pixel[v.MISS] * one.target)
    # ∂/∂z_j Σ_k f(p_k) = p_j (slope_j - Σ_k slope_k p_k); at the top class p ≈ 1, so its own part
    # is taken out of the sum before the subtraction: slope_j·q_j minus the others' share.
    share = slope * one.probability
    top_share = torch.where(one.is_top, share, 0.0).sum(1)[:, None]
    other_share = torch.where(one.is_top, 0.0, share).sum(1)[:, None]
    return one.probability * torch.where(
        one.is_top,
        slope * one.miss - (top_share - share) - other_share,
        slope - top_share - other_share,
    )


def _through_surprise(one: _Terms, gamma: Tensor, pixel: Tensor) -> Tensor:
    """Derivative of the sums of functions of -ln p, before the weight."""
    # ∂/∂z_j Σ_c u_c·(-ln p_c) = U·p_j - u_j, in two forms as above.
    focusing = power(one.miss, gamma) + gamma * one.probability * one.surprise * power(
        one.miss.clamp_min(v.POWER_FLOOR), gamma - 1.0
    )
    pull = (
        one.target
        * (
            pixel[v.CROSS_ENTROPY]
            + pixel[v.FOCAL] * focusing
            + pixel[v.POWERED_CROSS_ENTROPY] * floored_power_slope(one.surprise, gamma)
        )
        + pixel[v.NEGATIVE_LOG_LIKELIHOOD]
    )
    total = pull.sum(1)[:, None]
    return torch.where(
        one.is_top, (total - pull) - total * one.miss, total * one.probability - pull
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


def distribution_map(
    logits: Tensor, target: Tensor, weight: Tensor, gamma: Tensor, pixel: Tensor
) -> Tensor:
    """Per-pixel terms `[K, T]` whose sum is `Σ_s coefficient_s · sum_s`; 0 at removed pixels."""
    one = _distribution_terms(logits, target, weight)
    exponent, pixel = gamma[:, None], pixel[:, :, :, None]
    of_target = (
        one.surprise * (pixel[v.CROSS_ENTROPY] + pixel[v.FOCAL] * power(one.miss, exponent))
        + pixel[v.MISS] * one.miss
        + pixel[v.POWERED_CROSS_ENTROPY] * floored_power(one.surprise, exponent)
    )
    terms = (
        one.target * of_target
        + pixel[v.NEGATIVE_LOG_LIKELIHOOD] * one.surprise
        + pixel[v.NEGATIVE_ENTROPY] * negative_entropy(one.target)
        + pixel[v.JENSEN_SHANNON] * jensen_shannon(one.probability, one.target, one.error)
    )
    return torch.where(one.valid, one.weight * terms, 0.0).sum(1)
