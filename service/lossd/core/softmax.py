"""Multiclass kernels of labels: softmax over the class axis of a pile of tiles.

Shapes: `logits` `[K, C, T]`, `label` int32 `[K, T]` with -1 = removed, `weight` `[K, T]`, `gamma`
`[K, 1]` (focusing exponent of the tile's sample). Every output of a tile depends on that tile
alone.

`statistics` returns the lean sums of `vocabulary`; `gradient` writes
`Σ_s coefficient_s · ∂sum_s/∂logits`; `value_map` returns the per-pixel terms of a combination of
pixel sums. The derivative of a sum stands beside the sum it belongs to.
"""

import torch
from torch import Tensor

from lossd.core import vocabulary as v
from lossd.core.pointwise import power
from lossd.core.summation import tile_sum


def _terms(logits: Tensor, label: Tensor) -> tuple[Tensor, ...]:
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


def statistics(
    logits: Tensor, label: Tensor, weight: Tensor, gamma: Tensor
) -> tuple[Tensor, Tensor]:
    """Region sums `[6, K, C]` and pixel sums `[4, K, C]` of each tile."""
    valid, logits, own, top, exponential, _, _, total, miss, cross_entropy, log_total = _terms(
        logits, label
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


def gradient(  # noqa: PLR0917 - a kernel takes its tensors by position
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
        _terms(logits, label)
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
    result = (
        direction * along[:, None]
        + probability * (outside - outside_mean[:, None])
        + weight[:, None] * through_spread
    )
    out.copy_(torch.where(valid[:, None], result, 0.0))


def value_map(
    logits: Tensor, label: Tensor, weight: Tensor, gamma: Tensor, pixel: Tensor
) -> Tensor:
    """Per-pixel terms `[K, T]` whose sum is `Σ_s coefficient_s · sum_s`; 0 at removed pixels."""
    valid, logits, own, top, _, _, _, _, miss, cross_entropy, log_total = _terms(logits, label)
    weight = torch.where(valid, weight, 0.0)

    def of_label(coefficient: Tensor) -> Tensor:
        return torch.where(own, coefficient[:, :, None], 0.0).sum(1)

    surprise = torch.where(own, cross_entropy[:, None], (top + log_total)[:, None] - logits)
    spread = (pixel[v.NEGATIVE_LOG_LIKELIHOOD][:, :, None] * surprise).sum(1)
    own_terms = cross_entropy * (
        of_label(pixel[v.CROSS_ENTROPY]) + of_label(pixel[v.FOCAL]) * power(miss, gamma)
    )
    return weight * (own_terms + spread)
