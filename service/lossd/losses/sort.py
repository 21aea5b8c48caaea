"""Losses that sort the pixels of a sample: the Lovász extensions of Jaccard, and hard pixels only.

Removed pixels are taken out before anything is sorted, so a mask means the same as a crop.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from lossd.losses.declare import SIGMOID_TASKS, class_loss, map_loss
from lossd.losses.mask_class import MaskClass
from lossd.losses.mask_sample import MaskSample
from lossd.losses.options import Options, WeightOptions
from lossd.losses.sums import pixel_sum

_ROUNDING = 1e-12
"""Share of a number of pixels that is rounding of the fraction, and no pixel more."""

_ROUNDED_BITS = 13
"""Last of the 53 bits of a number in which equal errors of two pixels may differ, at least."""


def ranks(values: Tensor, rounded_bits: int = _ROUNDED_BITS) -> Tensor:
    """Integers in the order of the values, the same for values that differ by rounding only.

    Two errors of 0.2, one of them computed as 1 - 0.8, differ in their last bits; sorted by those,
    the derivative would depend on the processor.

    Args:
        values: float64, at least 0.
        rounded_bits: last bits of the 53 in which equal values may differ.

    Returns:
        The shape of the values, int64, at least 0 and less than 2^(63 - rounded bits); equal where
        the values agree in about 12 digits.

    Example:
        >>> errors = torch.tensor([0.2, 1.0 - 0.8, 0.3], dtype=torch.float64)
        >>> ranks(errors).diff().sign()
        tensor([0, 1])
    """
    # The bits of positive numbers, read as integers, are in the numbers' order; -0 is made 0.
    bits = (values.detach() + 0.0).view(torch.int64)
    return bits.add_(1 << (rounded_bits - 1)).bitwise_right_shift_(rounded_bits)


def jaccard_steps(errors: Tensor, foreground: Tensor) -> Tensor:
    """What each pixel adds to the Jaccard loss when pixels turn wrong, largest error first.

    Equal errors, up to rounding, keep the order of their pixels. The steps are at least 0 and add
    up to 1.

    Rank, number and kind of a pixel are the digits of one integer, because sorting integers takes
    a fifth of the time of sorting places. What the number needs, the rank lacks: of a million
    pixels, errors are equal that agree in 9 digits. Where two such change places, their steps
    change by a share of one in the number of pixels.

    Args:
        errors: `[N]` float64, at least 0; N at least 1.
        foreground: `[N]` bool.

    Returns:
        `[N]` float64, in the order of the pixels, constant for autograd. Without foreground the
        first of the largest errors has step 1, all others 0.

    Example:
        >>> errors = torch.tensor([0.2, 0.6, 0.3, 0.1], dtype=torch.float64)
        >>> jaccard_steps(errors, torch.tensor([True, True, False, False]))
        tensor([0.3333, 0.5000, 0.1667, 0.0000], dtype=torch.float64)
    """
    digits = len(errors).bit_length() + 1
    places = torch.arange(len(errors), device=errors.device).mul_(2).add_(foreground)
    keys = ranks(errors, max(_ROUNDED_BITS, digits)).neg_().mul_(1 << digits).add_(places)
    del places
    keys = _in_order(keys)
    hit = keys.bitwise_and(1).bool()
    left = hit.cumsum(0, dtype=torch.float64).neg_().add_(hit.sum())
    union = torch.arange(1, len(hit) + 1, dtype=torch.float64, device=hit.device).add_(left)
    # The differences of 1 - left / union in closed form: a million pixels leave a difference of
    # neighbours without digits. A union of one background pixel is the empty mask's first error.
    steps = (union - 1.0).clamp_min_(1.0).mul_(union)
    invented = left.div_(steps).masked_fill_(union == 1.0, 1.0)
    torch.where(hit, union.reciprocal_(), invented, out=steps)
    order = keys.bitwise_and_((1 << digits) - 1).bitwise_right_shift_(1)
    return left.scatter_(0, order, steps)


def lovasz_extension(errors: Tensor, foreground: Tensor) -> Tensor:
    """Lovász extension of the Jaccard loss of a mask at a vector of errors.

    Args:
        errors: `[N]` float64, at least 0.
        foreground: `[N]` bool.

    Returns:
        `[]`; for errors of 0 and 1 the Jaccard loss of that prediction. Its derivative is that of
        the linear piece at the errors; at ties, of the piece where earlier pixels are larger.

    Example:
        >>> wrong = torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=torch.float64)
        >>> lovasz_extension(wrong, torch.tensor([True, True, False, False]))
        tensor(0.6667, dtype=torch.float64)
    """
    return pixel_sum(errors * jaccard_steps(errors, foreground))


def lovasz_hinge_of(logits: Tensor, foreground: Tensor) -> Tensor:
    """Lovász hinge of one mask.

    Args:
        logits: `[N]` float64, positive where foreground is predicted.
        foreground: `[N]` bool.

    Returns:
        `[]`, at least 0; 0 where every pixel is right by a margin of 1.

    Example:
        >>> logits = torch.tensor([2.0, -0.5], dtype=torch.float64)
        >>> lovasz_hinge_of(logits, torch.tensor([True, False]))
        tensor(0.2500, dtype=torch.float64)
    """
    margins = torch.where(foreground, logits, -logits)
    return lovasz_extension((1.0 - margins).relu(), foreground)


def _in_order(keys: Tensor) -> Tensor:
    """The keys `[N]` int64, no two of them the same, from the least; they may be written over."""
    if keys.device.type != "cpu":
        return keys.sort().values
    keys.numpy().sort()  # four times as fast as torch's, which sorts places too
    return keys


@class_loss(family="sort")
def lovasz_softmax(one: MaskClass) -> Tensor:
    r"""Lovász extension of the Jaccard loss of each class, at the errors of the probabilities.

    Formula:
        L_c = \sum_{k=1}^{N} e_{(k)}\,\left(\Delta_k - \Delta_{k-1}\right),
        \quad e_i = |y_{ic} - p_{ic}|,
        \quad e_{(1)} \ge e_{(2)} \ge \dots,
        \quad \Delta_k = 1 - \frac{Y_c - Y_c^{(k)}}{Y_c + k - Y_c^{(k)}}

        \text{with } Y_c \text{ the pixels of class } c \text{ and } Y_c^{(k)}
        \text{ those among the } k \text{ largest errors}

    Use:
        Take it to raise the mean intersection over union itself, often as fine-tuning after cross
        entropy or added to it: early in training its gradients are small and noisy. It costs a
        sort per class, so soft Jaccard is the cheaper choice where any smooth surrogate will do.

    Args:
        one: a class. Binary: the sigmoid's foreground only.

    Returns:
        `[]`, in [0, 1]; 0 where every pixel is right with certainty. For predictions of 0
        and 1 it is 1 minus intersection over union. A class that no valid pixel has costs its
        largest probability, if it counts at all (`classes`).

    Traps:
        - It takes probabilities: errors of logits give the hinge, which is another loss.
        - A class's errors are measured against that class alone. Comparing with the id of the
          class instead goes unnoticed for ids 0 and 1; kornia did so before 0.9.
        - The authors' code and segmentation_models_pytorch sort all images of a batch together
          unless told otherwise, which couples the samples. Here each sample is sorted alone.
        - Of absent classes only the largest probability has a gradient. With `classes` `"all"`
          they fill the mean; the default for multiclass is `"present"`.
        - At equal errors the derivative is not unique. Here the earlier pixel ranks as the larger
          error, also where rounding alone makes the two differ.
        - Soft targets: the errors use the target as given, while the Jaccard steps need a set and
          take the pixels with a target above one half.

    Example:
        >>> from lossd.losses.registry import find_loss
        >>> find_loss("lovasz_softmax").returns
        ('value', 'gradient', 'per_class')
        >>> errors = torch.tensor([0.2, 0.6, 0.3, 0.1], dtype=torch.float64)
        >>> lovasz_extension(errors, torch.tensor([True, True, False, False]))
        tensor(0.4167, dtype=torch.float64)

    References:
        Berman et al., "The Lovász-Softmax loss: A tractable surrogate for the optimization of the
        intersection-over-union measure in neural networks", 2018,
        https://arxiv.org/abs/1705.08790
    """
    return lovasz_extension(one.counted(one.error.abs()), one.counted(one.foreground))


@class_loss(family="sort", tasks=SIGMOID_TASKS, options=Options)
def lovasz_hinge(one: MaskClass) -> Tensor:
    r"""Lovász extension of the Jaccard loss of each channel, at the hinge errors of the logits.

    Formula:
        L = \sum_{k=1}^{N} \max(0, e_{(k)})\,\left(\Delta_k - \Delta_{k-1}\right),
        \quad e_i = 1 - z_i\,(2 y_i - 1),
        \quad e_{(1)} \ge e_{(2)} \ge \dots,
        \quad \Delta_k = 1 - \frac{Y - Y^{(k)}}{Y + k - Y^{(k)}}

        \text{with } Y \text{ the pixels that are on and } Y^{(k)}
        \text{ those among the } k \text{ largest errors}

    Use:
        Take it for a binary mask whose intersection over union is to be raised and whose logits
        need a margin rather than calibrated probabilities. Fine-tune with it after a pixelwise
        loss. For probabilities that mean something take `lovasz_softmax`, which takes binary masks
        through the sigmoid.

    Args:
        one: a channel; several are averaged.

    Returns:
        `[]`, at least 0 and unbounded above; 0 where every pixel is right by a margin of 1. A
        channel with nothing on costs its largest positive error.

    Traps:
        - It takes logits, not probabilities: after a sigmoid no pixel that is off can reach its
          margin, and the loss never becomes 0.
        - It grows linearly with a wrong logit, so one mislabelled pixel of a confident model can
          outweigh the rest of the mask.
        - Per image or per batch: the authors' code sorts image by image, others all images
          together. Here each sample and channel is sorted alone.
        - At equal errors the earlier pixel ranks as the larger; at an error of exactly 0 the
          derivative is 0.
        - Soft targets: the hinge needs a side, which is on where the target exceeds one half.

    Example:
        >>> logits = torch.tensor([1.386294, -0.405465, -0.847298, -2.197225], dtype=torch.float64)
        >>> lovasz_hinge_of(logits, torch.tensor([True, True, False, False]))
        tensor(0.7282, dtype=torch.float64)

    References:
        Yu and Blaschko, "Learning Submodular Losses with the Lovász Hinge", 2015,
        https://proceedings.mlr.press/v37/yub15.html
    """
    return lovasz_hinge_of(one.counted(one.score), one.counted(one.foreground))


@map_loss(family="sort", options=WeightOptions)
def topk_cross_entropy(
    sample: MaskSample,
    *,
    fraction: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 0.1,
) -> Iterator[Tensor]:
    r"""Mean cross entropy of the hardest pixels of a sample.

    Formula:
        \frac{1}{k}\sum_{j=1}^{k} \ell_{(j)},
        \quad \ell_{(1)} \ge \ell_{(2)} \ge \dots,
        \quad \ell_i = -\ln p_{i,y_i},
        \quad k = \max(1, \lceil f\,N \rceil)

    Use:
        Take it where most pixels are easy and drown the few that matter, as with large backgrounds
        or thin boundaries; it is also known as online hard example mining. Not for noisy labels:
        wrong annotations are the hardest pixels of all, and nothing else would be learned.

    Args:
        sample: one sample. Binary and multilabel: every channel of every pixel is a candidate.
        fraction: share of the valid pixels that is kept; 1 is plain cross entropy.

    Yields:
        Weights `[*S]` of each channel's cross entropy.

    Returns:
        Terms per channel and pixel, `[G, *S]`, in nats, 0 where a pixel was not kept and scaled so
        that the mean over the valid pixels is the mean over the kept ones. The value is at least
        the cross entropy. At least one pixel is kept.

    Traps:
        - The number of pixels is rounded up. A product that floating point puts a hair above a
          whole number, as 0.1 · 30 may be, counts as that number.
        - The share is that of the valid pixels, not of the whole picture; ignored pixels are no
          candidates.
        - Multilabel: the candidates are all pixels of all channels together, so a hard channel
          may take every place.
        - The ranking is that of the weighted terms: `class_weights` and `weight_map` decide who is
          kept as well as what is added up.
        - Of equal terms the earlier channel, then the earlier pixel is kept. Elsewhere the order
          of ties may differ from run to run.
        - The mean is over the kept pixels. Code that zeroes the others and averages over all of
          them returns this value times the fraction.

    Example:
        >>> from lossd.losses.registry import find_loss
        >>> find_loss("topk_cross_entropy").parameters().fraction
        0.1
        >>> -torch.tensor([0.8, 0.4, 0.7, 0.9]).log().topk(2, largest=False).values.mean()
        tensor(0.6365)

    References:
        Wu et al., "Bridging Category-level and Instance-level Semantic Image Segmentation", 2016,
        https://arxiv.org/abs/1605.06885
    """
    terms = [sample.cross_entropy(group) for group in range(sample.groups)]
    candidates = ranks(torch.cat([term.masked_select(sample.valid) for term in terms]))
    keep = max(1, math.ceil(fraction * len(candidates) * (1.0 - _ROUNDING)))
    threshold = candidates.topk(keep, sorted=False).values.min()
    harder, tied = candidates > threshold, candidates == threshold
    kept = harder | (tied & (tied.cumsum(0) <= keep - harder.sum()))
    scale = len(candidates) / keep
    for of_channel in kept.split(sample.pixels):
        weights = torch.zeros(sample.shape, dtype=torch.float64, device=kept.device)
        yield weights.masked_scatter_(sample.valid, of_channel.double() * scale)
