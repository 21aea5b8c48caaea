"""Functions of single numbers that several kernels share; written for the compiler to fuse."""

import torch
from torch import Tensor

from lossd.core.vocabulary import POWER_FLOOR

_SERIES_LIMIT = 0.02
"""Where six terms of the series below are exact to float64's last digit."""


_CLOSE = 0.5
"""Relative error below which a logarithm of a ratio is made from the error."""


def power(base: Tensor, exponent: Tensor) -> Tensor:
    """`base ** exponent` for a base in [0, 1]; finite for every exponent."""
    floor = torch.finfo(base.dtype).tiny
    return torch.exp(exponent * torch.log(base.clamp_min(floor)))


def floored_power(base: Tensor, exponent: Tensor) -> Tensor:
    """`base ** exponent` for a base of at least 0, constant below `POWER_FLOOR`."""
    return torch.exp(exponent * torch.log(base.clamp_min(POWER_FLOOR)))


def floored_power_slope(base: Tensor, exponent: Tensor) -> Tensor:
    """Derivative of `floored_power`, 0 below the floor."""
    steep = exponent * floored_power(base, exponent) / base.clamp_min(POWER_FLOOR)
    return torch.where(base > POWER_FLOOR, steep, 0.0)


def negative_entropy(target: Tensor) -> Tensor:
    """`y ln y`, 0 at 0."""
    return target * torch.log(target.clamp_min(torch.finfo(target.dtype).tiny))


def kullback_leibler(target: Tensor, error: Tensor, surprise: Tensor) -> Tensor:
    """`y ln(y/p)`, given `error = p - y` with its digits and `surprise = -ln p`.

    Over the classes these terms nearly cancel where p is close to y; there each is made from the
    error, which has the digits that `ln p` has lost.
    """
    floor = torch.finfo(target.dtype).tiny
    ratio = error / target.clamp_min(floor)
    close = ratio.abs() < _CLOSE
    near = -target * torch.log1p(torch.where(close, ratio, 0.0))
    return torch.where(close, near, negative_entropy(target) + target * surprise)


def jensen_shannon(probability: Tensor, target: Tensor, error: Tensor) -> Tensor:
    """`(y ln(y/m) + p ln(p/m)) / 2` with `m = (p + y) / 2`, given `error = p - y` with its digits.

    With `r = error / 2m` it is `m ((1-r) ln(1-r) + (1+r) ln(1+r)) / 2`, a series in `r²` where p
    and y are close and the logarithms cancel.
    """
    middle, ratio, close = _middle(probability, target, error)
    square = ratio * ratio
    series = square * (
        1.0
        + square * (1 / 6 + square * (1 / 15 + square * (1 / 28 + square * (1 / 45 + square / 66))))
    )
    share_target, share_probability = target / middle, probability / middle
    direct = negative_entropy(share_target) + negative_entropy(share_probability)
    return 0.5 * middle * torch.where(close, series, direct)


def jensen_shannon_slope(probability: Tensor, target: Tensor, error: Tensor) -> Tensor:
    """Derivative of `jensen_shannon` with respect to the probability, `ln(p/m) / 2`."""
    middle, ratio, close = _middle(probability, target, error)
    floor = torch.finfo(probability.dtype).tiny
    direct = torch.log((probability / middle).clamp_min(floor))
    return 0.5 * torch.where(close, torch.log1p(ratio), direct)


def _middle(probability: Tensor, target: Tensor, error: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    floor = torch.finfo(probability.dtype).tiny
    middle = (0.5 * (probability + target)).clamp_min(floor)
    ratio = 0.5 * error / middle
    return middle, ratio, ratio.abs() < _SERIES_LIMIT
