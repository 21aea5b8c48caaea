"""Multiclass kernels: softmax over the class axis of a pile of tiles.

Shapes: `logits` `[K, C, T]`, `weight` `[K, T]`, `gamma` `[K, 1]` (focusing exponent of the tile's
sample). Targets are labels, int32 `[K, T]` with -1 = removed, or distributions over the classes,
`[K, C, T]` with -1 at removed pixels. Every output of a tile depends on that tile alone.

`*_statistics` returns the sums of `vocabulary`; `*_gradient` writes
`Σ_s coefficient_s · ∂sum_s/∂logits`; `*_map` returns the per-pixel terms of a combination of pixel
sums. The derivative of a sum stands beside the sum it belongs to.
"""

import torch
from torch import Tensor

from lossd.core import vocabulary as v
from lossd.core.summation import tile_sum


def _power(base: Tensor, exponent: Tensor) -> Tensor:
    """`base ** exponent` for a base in [0, 1]; finite for every exponent."""
    floor = torch.finfo(base.dtype).tiny
    return torch.exp(exponent * torch.log(base.clamp_min(floor)))


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
        (cross_entropy),
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
            over_own(weighted * _power(miss, gamma)),
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
    focal = of_label(pixel[v.FOCAL]) * weight * _power(miss, gamma)
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
        of_label(pixel[v.CROSS_ENTROPY]) + of_label(pixel[v.FOCAL]) * _power(miss, gamma)
    )
    return weight * (own_terms + spread)


# -- distributions -------------------------------------------------------------------------------


def _distribution_terms(logits: Tensor, target: Tensor) -> tuple[Tensor, ...]:
    valid = target[:, 0] >= 0
    logits = torch.where(valid[:, None], logits, 0.0)
    target = torch.where(valid[:, None], target, 0.0)
    top = logits.amax(1)
    is_top = logits == top[:, None]
    exponential = torch.exp(logits - top[:, None])
    others = torch.where(is_top, 0.0, exponential).sum(1) + (
        torch.where(is_top, 1.0, 0.0).sum(1) - 1.0
    )
    total = 1.0 + others
    probability = exponential / total[:, None]
    # Only the top class can be near 1, where 1 - p would lose its digits.
    miss = torch.where(is_top, (others / total)[:, None], 1.0 - probability)
    surprise = (top[:, None] - logits) + torch.log1p(others)[:, None]
    error = torch.where(target == 1.0, -miss, probability - target)
    return valid, logits, target, is_top, probability, miss, surprise, error


def distribution_statistics(
    logits: Tensor, target: Tensor, weight: Tensor, gamma: Tensor
) -> tuple[Tensor, Tensor]:
    """Region sums `[6, K, C]` and pixel sums `[4, K, C]` of each tile."""
    valid, logits, target, _, probability, miss, surprise, error = _distribution_terms(
        logits, target
    )
    here = torch.where(valid[:, None], 1.0, 0.0).to(logits.dtype)
    rest = here - target
    squared = error * error
    region = torch.stack(
        [
            tile_sum(target),
            tile_sum(target * miss),
            tile_sum(rest * probability),
            tile_sum(target * squared),
            tile_sum(rest * squared),
            tile_sum(target * target),
        ]
    )
    weight = torch.where(valid, weight, 0.0)[:, None]
    weighted = weight * target * surprise
    pixel = torch.stack(
        [
            tile_sum(weight * target),
            tile_sum(weighted),
            tile_sum(weighted * _power(miss, gamma[:, None])),
            tile_sum(torch.where(valid[:, None], weight * surprise, 0.0)),
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
    valid, logits, target, is_top, probability, miss, surprise, error = _distribution_terms(
        logits, target
    )
    slope = (
        (1.0 - target)
        * (
            region[v.FALSE_POSITIVE][:, :, None]
            + 2.0 * region[v.SQUARED_ERROR_OUTSIDE][:, :, None] * error
        )
        - target * region[v.FALSE_NEGATIVE][:, :, None]
        + 2.0 * target * region[v.SQUARED_ERROR_INSIDE][:, :, None] * error
    )
    # ∂/∂z_j Σ_k f(p_k) = p_j (slope_j - Σ_k slope_k p_k); at the top class p ≈ 1, so its own part
    # is taken out of the sum before the subtraction: slope_j·q_j minus the others' share.
    share = slope * probability
    top_share = torch.where(is_top, share, 0.0).sum(1)[:, None]
    other_share = torch.where(is_top, 0.0, share).sum(1)[:, None]
    through_region = probability * torch.where(
        is_top,
        slope * miss - (top_share - share) - other_share,
        slope - top_share - other_share,
    )

    # ∂/∂z_j Σ_c u_c·(-ln p_c) = U·p_j - u_j, in the same two forms.
    weight = torch.where(valid, weight, 0.0)[:, None]
    exponent = gamma[:, None]
    focusing = _power(miss, exponent) + exponent * probability * surprise * _power(
        miss.clamp_min(_FOCUS_FLOOR), exponent - 1.0
    )
    pull = weight * (
        target * (pixel[v.CROSS_ENTROPY][:, :, None] + pixel[v.FOCAL][:, :, None] * focusing)
        + pixel[v.NEGATIVE_LOG_LIKELIHOOD][:, :, None]
    )
    pull_total = pull.sum(1)[:, None]
    through_pixel = torch.where(
        is_top, (pull_total - pull) - pull_total * miss, pull_total * probability - pull
    )
    out.copy_(torch.where(valid[:, None], through_region + through_pixel, 0.0))


_FOCUS_FLOOR = 1e-7
"""Below this miss a fractional focusing power would have an infinite slope."""


def distribution_map(
    logits: Tensor, target: Tensor, weight: Tensor, gamma: Tensor, pixel: Tensor
) -> Tensor:
    """Per-pixel terms `[K, T]` whose sum is `Σ_s coefficient_s · sum_s`; 0 at removed pixels."""
    valid, logits, target, _, _, miss, surprise, _ = _distribution_terms(logits, target)
    weight = torch.where(valid, weight, 0.0)
    factor = target * (
        pixel[v.CROSS_ENTROPY][:, :, None]
        + pixel[v.FOCAL][:, :, None] * _power(miss, gamma[:, None])
    )
    terms = surprise * (factor + pixel[v.NEGATIVE_LOG_LIKELIHOOD][:, :, None])
    return weight * terms.sum(1)
