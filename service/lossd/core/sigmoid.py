"""Binary and multilabel kernels: a sigmoid of its own for every channel.

Channels do not see each other, so a channel of a sample is a row of tiles like any other and one
kernel serves every number of channels. Shapes: `logits`, `target` and `weight` `[R, T]`, target in
[0, 1] or -1 at removed pixels, `gamma` `[R, 1]`. Region sums are those of the label "on",
`[6, R, 1]`; pixel sums are given for both labels, `[4, R, 2]`, 0 = off and 1 = on.
"""

import torch
from torch import Tensor

from lossd.core import vocabulary as v
from lossd.core.summation import tile_sum


def _terms(logits: Tensor, target: Tensor) -> tuple[Tensor, ...]:
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
    surprise_on = log_sum + torch.relu(-logits)
    surprise_off = log_sum + torch.relu(logits)
    error = torch.where(on == 1.0, -miss, probability - on)
    return valid, on, off, probability, miss, surprise_on, surprise_off, error


def statistics(
    logits: Tensor, target: Tensor, weight: Tensor, gamma: Tensor
) -> tuple[Tensor, Tensor]:
    """Region sums `[6, R, 1]` and pixel sums `[4, R, 2]` of each row."""
    valid, on, off, probability, miss, surprise_on, surprise_off, error = _terms(logits, target)
    weight = torch.where(valid, weight, 0.0)
    squared = error * error
    region = torch.stack(
        [
            tile_sum(on),
            tile_sum(on * miss),
            tile_sum(off * probability),
            tile_sum(on * squared),
            tile_sum(off * squared),
            tile_sum(on * on),
        ]
    )
    # q^gamma = exp(gamma·ln q), and -ln q is at hand: it is the other label's surprise.
    weight_on, weight_off = weight * on, weight * off
    pixel = torch.stack(
        [
            tile_sum(weight_off),
            tile_sum(weight_on),
            tile_sum(weight_off * surprise_off),
            tile_sum(weight_on * surprise_on),
            tile_sum(weight_off * surprise_off * torch.exp(-gamma * surprise_on)),
            tile_sum(weight_on * surprise_on * torch.exp(-gamma * surprise_off)),
            tile_sum(torch.where(valid, weight * surprise_off, 0.0)),
            tile_sum(torch.where(valid, weight * surprise_on, 0.0)),
        ]
    )
    return region[:, :, None], pixel.unflatten(0, (v.PIXEL_SUMS, 2)).transpose(1, 2)


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
    valid, on, off, probability, miss, surprise_on, surprise_off, error = _terms(logits, target)
    weight = torch.where(valid, weight, 0.0)
    slope = (
        off * (region[v.FALSE_POSITIVE] + 2.0 * region[v.SQUARED_ERROR_OUTSIDE] * error)
        + 2.0 * on * region[v.SQUARED_ERROR_INSIDE] * error
        - on * region[v.FALSE_NEGATIVE]
    )
    focus_on = torch.exp(-gamma * surprise_off)
    focus_off = torch.exp(-gamma * surprise_on)
    spread = pixel[v.NEGATIVE_LOG_LIKELIHOOD]
    pull_on = (
        on * pixel[v.CROSS_ENTROPY][:, 1:] + spread[:, 1:] + on * pixel[v.FOCAL][:, 1:] * focus_on
    )
    pull_off = (
        off * pixel[v.CROSS_ENTROPY][:, :1]
        + spread[:, :1]
        + off * pixel[v.FOCAL][:, :1] * focus_off
    )
    focusing = gamma * (
        off * pixel[v.FOCAL][:, :1] * focus_off * miss * surprise_off
        - on * pixel[v.FOCAL][:, 1:] * focus_on * probability * surprise_on
    )
    result = probability * miss * slope + weight * (
        pull_off * probability - pull_on * miss + focusing
    )
    out.copy_(torch.where(valid, result, 0.0))


def value_map(
    logits: Tensor, target: Tensor, weight: Tensor, gamma: Tensor, pixel: Tensor
) -> Tensor:
    """Per-pixel terms `[R, T]` whose sum is `Σ_s coefficient_s · sum_s`; 0 at removed pixels."""
    valid, on, off, _, _, surprise_on, surprise_off, _ = _terms(logits, target)
    focus_on = torch.exp(-gamma * surprise_off)
    focus_off = torch.exp(-gamma * surprise_on)
    cross_entropy, focal = pixel[v.CROSS_ENTROPY], pixel[v.FOCAL]
    spread = pixel[v.NEGATIVE_LOG_LIKELIHOOD]
    terms = surprise_on * (
        on * (cross_entropy[:, 1:] + focal[:, 1:] * focus_on) + spread[:, 1:]
    ) + surprise_off * (off * (cross_entropy[:, :1] + focal[:, :1] * focus_off) + spread[:, :1])
    return torch.where(valid, weight * terms, 0.0)
