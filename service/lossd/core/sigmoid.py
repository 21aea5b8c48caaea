"""Binary and multilabel kernels: a sigmoid of its own for every channel.

Channels do not see each other, so a channel of a sample is a row of tiles like any other and one
kernel serves every number of channels. Shapes: `logits`, `target` and `weight` `[R, T]`, target in
[0, 1] or -1 at removed pixels, `gamma` `[R, 1]`. Region sums are those of the label "on",
`[S, R, 1]`; pixel sums are given for both labels, `[S, R, 2]`, 0 = off and 1 = on.
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
)
from lossd.core.summation import tile_sum

_HALF = 0.5


@dataclass(frozen=True)
class _Terms:
    """Quantities of every pixel, `[R, T]` each."""

    valid: Tensor
    on: Tensor
    off: Tensor
    probability: Tensor
    miss: Tensor
    surprise_on: Tensor
    surprise_off: Tensor
    error: Tensor
    """p - y with the digits of small misses."""
    weight: Tensor
    """0 at removed pixels."""


def _terms(logits: Tensor, target: Tensor, weight: Tensor) -> _Terms:
    valid = target >= 0
    logits = torch.where(valid, logits, 0.0)
    on = torch.where(valid, target, 0.0)
    off = torch.where(valid, 1.0 - target, 0.0)
    decay = torch.exp(-logits.abs())
    near, far = 1.0 / (1.0 + decay), decay / (1.0 + decay)
    positive = logits >= 0
    probability = torch.where(positive, near, far)
    miss = torch.where(positive, far, near)
    log_sum = torch.log1p(decay)
    return _Terms(
        valid=valid,
        on=on,
        off=off,
        probability=probability,
        miss=miss,
        surprise_on=log_sum + torch.relu(-logits),
        surprise_off=log_sum + torch.relu(logits),
        # 1 - y is exact where y is at least a half, and the miss has the digits that p has lost.
        error=torch.where(positive & (on >= _HALF), off - miss, probability - on),
        weight=torch.where(valid, weight, 0.0),
    )


def _region_sums(one: _Terms) -> list[Tensor]:
    squared = one.error * one.error
    return [
        tile_sum(one.on),
        tile_sum(one.on * one.miss),
        tile_sum(one.off * one.probability),
        tile_sum(one.on * squared),
        tile_sum(one.off * squared),
        tile_sum(one.on * one.on),
    ]


def _pixel_sums(one: _Terms, gamma: Tensor) -> list[Tensor]:
    # q^gamma = exp(gamma·ln q), and -ln q is at hand: it is the other label's surprise.
    weight_on, weight_off = one.weight * one.on, one.weight * one.off
    return [
        tile_sum(weight_off),
        tile_sum(weight_on),
        tile_sum(weight_off * one.surprise_off),
        tile_sum(weight_on * one.surprise_on),
        tile_sum(weight_off * one.surprise_off * torch.exp(-gamma * one.surprise_on)),
        tile_sum(weight_on * one.surprise_on * torch.exp(-gamma * one.surprise_off)),
        tile_sum(torch.where(one.valid, one.weight * one.surprise_off, 0.0)),
        tile_sum(torch.where(one.valid, one.weight * one.surprise_on, 0.0)),
    ]


def _stacked(region: list[Tensor], pixel: list[Tensor]) -> tuple[Tensor, Tensor]:
    return (
        torch.stack(region)[:, :, None],
        torch.stack(pixel).unflatten(0, (-1, 2)).transpose(1, 2),
    )


def statistics(
    logits: Tensor, target: Tensor, weight: Tensor, gamma: Tensor
) -> tuple[Tensor, Tensor]:
    """Region sums `[6, R, 1]` and pixel sums `[4, R, 2]` of each row."""
    one = _terms(logits, target, weight)
    return _stacked(_region_sums(one), _pixel_sums(one, gamma))


def rich_statistics(
    logits: Tensor, target: Tensor, weight: Tensor, gamma: Tensor
) -> tuple[Tensor, Tensor]:
    """Region sums `[8, R, 1]` and pixel sums `[8, R, 2]` of each row."""
    one = _terms(logits, target, weight)
    weight_on, weight_off = one.weight * one.on, one.weight * one.off
    error = torch.where(one.valid, one.error, 0.0)
    soft = [tile_sum(torch.relu(-error)), tile_sum(torch.relu(error))]
    rich = [
        tile_sum(weight_off * one.probability),
        tile_sum(weight_on * one.miss),
        tile_sum(weight_off * floored_power(one.surprise_off, gamma)),
        tile_sum(weight_on * floored_power(one.surprise_on, gamma)),
        tile_sum(one.weight * kullback_leibler(one.off, -one.error, one.surprise_off)),
        tile_sum(one.weight * kullback_leibler(one.on, one.error, one.surprise_on)),
        tile_sum(one.weight * jensen_shannon(one.miss, one.off, -one.error)),
        tile_sum(one.weight * jensen_shannon(one.probability, one.on, one.error)),
    ]
    return _stacked([*_region_sums(one), *soft], [*_pixel_sums(one, gamma), *rich])


def _slope(one: _Terms, region: Tensor) -> Tensor:
    """Derivative of the region sums with respect to the probability."""
    return (
        one.off * (region[v.FALSE_POSITIVE] + 2.0 * region[v.SQUARED_ERROR_OUTSIDE] * one.error)
        + 2.0 * one.on * region[v.SQUARED_ERROR_INSIDE] * one.error
        - one.on * region[v.FALSE_NEGATIVE]
    )


def _through_pixels(one: _Terms, gamma: Tensor, pixel: Tensor) -> Tensor:
    """Derivative of the lean pixel sums with respect to the logits, before the weight."""
    focus_on = torch.exp(-gamma * one.surprise_off)
    focus_off = torch.exp(-gamma * one.surprise_on)
    on, off = one.on, one.off
    cross_entropy, focal = pixel[v.CROSS_ENTROPY], pixel[v.FOCAL]
    spread = pixel[v.NEGATIVE_LOG_LIKELIHOOD]
    pull_on = on * (cross_entropy[:, 1:] + focal[:, 1:] * focus_on) + spread[:, 1:]
    pull_off = off * (cross_entropy[:, :1] + focal[:, :1] * focus_off) + spread[:, :1]
    focusing = gamma * (
        off * focal[:, :1] * focus_off * one.miss * one.surprise_off
        - on * focal[:, 1:] * focus_on * one.probability * one.surprise_on
    )
    return pull_off * one.probability - pull_on * one.miss + focusing


def gradient(  # noqa: PLR0917 - a kernel takes its tensors by position
    logits: Tensor,
    target: Tensor,
    weight: Tensor,
    gamma: Tensor,
    region: Tensor,
    pixel: Tensor,
    out: Tensor,
) -> None:
    """Derivative with respect to the logits, into `out` `[R, T]`.

    `region` `[6, R, 1]` and `pixel` `[4, R, 2]` are the coefficients of the sums; those of targets
    and weights are not read.
    """
    one = _terms(logits, target, weight)
    result = one.probability * one.miss * _slope(one, region)
    result = result + one.weight * _through_pixels(one, gamma, pixel)
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
    """As `gradient`, with coefficients `[8, R, 1]` and `[8, R, 2]` of all sums."""
    one = _terms(logits, target, weight)
    slope = _slope(one, region)
    slope = slope - torch.where(one.error < 0, region[v.SOFT_FALSE_NEGATIVE], 0.0)
    slope = slope + torch.where(one.error > 0, region[v.SOFT_FALSE_POSITIVE], 0.0)
    miss, powered, jensen = (
        pixel[v.MISS],
        pixel[v.POWERED_CROSS_ENTROPY],
        pixel[v.JENSEN_SHANNON],
    )
    slope = slope + one.weight * (
        one.off * miss[:, :1]
        - one.on * miss[:, 1:]
        + jensen[:, 1:] * jensen_shannon_slope(one.probability, one.on, one.error)
        - jensen[:, :1] * jensen_shannon_slope(one.miss, one.off, -one.error)
    )
    leibler = pixel[v.KULLBACK_LEIBLER]
    powered_on = powered[:, 1:] * floored_power_slope(one.surprise_on, gamma)
    powered_off = powered[:, :1] * floored_power_slope(one.surprise_off, gamma)
    pull_on = one.on * (leibler[:, 1:] + powered_on)
    pull_off = one.off * (leibler[:, :1] + powered_off)
    through = _through_pixels(one, gamma, pixel) + pull_off * one.probability - pull_on * one.miss
    result = one.probability * one.miss * slope + one.weight * through
    out.copy_(torch.where(one.valid, result, 0.0))


def _map(one: _Terms, gamma: Tensor, pixel: Tensor) -> Tensor:
    """Terms of the lean pixel sums, before the weight."""
    focus_on = torch.exp(-gamma * one.surprise_off)
    focus_off = torch.exp(-gamma * one.surprise_on)
    cross_entropy, focal = pixel[v.CROSS_ENTROPY], pixel[v.FOCAL]
    spread = pixel[v.NEGATIVE_LOG_LIKELIHOOD]
    factor_on = one.on * (cross_entropy[:, 1:] + focal[:, 1:] * focus_on) + spread[:, 1:]
    factor_off = one.off * (cross_entropy[:, :1] + focal[:, :1] * focus_off) + spread[:, :1]
    return one.surprise_on * factor_on + one.surprise_off * factor_off


def value_map(
    logits: Tensor, target: Tensor, weight: Tensor, gamma: Tensor, pixel: Tensor
) -> Tensor:
    """Per-pixel terms `[R, T]` whose sum is `Σ_s coefficient_s · sum_s`; 0 at removed pixels."""
    one = _terms(logits, target, weight)
    return torch.where(one.valid, one.weight * _map(one, gamma, pixel), 0.0)


def rich_value_map(
    logits: Tensor, target: Tensor, weight: Tensor, gamma: Tensor, pixel: Tensor
) -> Tensor:
    """As `value_map`, of all pixel sums."""
    one = _terms(logits, target, weight)
    miss, powered = pixel[v.MISS], pixel[v.POWERED_CROSS_ENTROPY]
    leibler, jensen = pixel[v.KULLBACK_LEIBLER], pixel[v.JENSEN_SHANNON]
    of_on = (
        one.on * (miss[:, 1:] * one.miss + powered[:, 1:] * floored_power(one.surprise_on, gamma))
        + leibler[:, 1:] * kullback_leibler(one.on, one.error, one.surprise_on)
        + jensen[:, 1:] * jensen_shannon(one.probability, one.on, one.error)
    )
    powered_off = powered[:, :1] * floored_power(one.surprise_off, gamma)
    of_off = (
        one.off * (miss[:, :1] * one.probability + powered_off)
        + leibler[:, :1] * kullback_leibler(one.off, -one.error, one.surprise_off)
        + jensen[:, :1] * jensen_shannon(one.miss, one.off, -one.error)
    )
    terms = _map(one, gamma, pixel) + of_on + of_off
    return torch.where(one.valid, one.weight * terms, 0.0)
