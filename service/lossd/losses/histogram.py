"""Losses that count how hard the elements of a sample are and weigh crowded degrees down.

The histograms are the sample's own and nothing is remembered between samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from lossd.losses.declare import SIGMOID_TASKS, map_loss, row_loss
from lossd.losses.mask_class import MaskClass
from lossd.losses.mask_sample import MaskSample
from lossd.losses.options import Options, Positive
from lossd.losses.rows import row_sum

Bins = Annotated[int, Field(ge=1, le=1000)]

_ROUNDED_UP = 1.0 + 1e-12
"""Lifts a length onto the edge of a bin from which only rounding keeps it; 0.5 is such an edge."""


def bin_of(gradient_length: Tensor, bins: int) -> Tensor:
    """Bin of every element, int64; 1 itself belongs to the last.

    Args:
        gradient_length: in [0, 1].
        bins: equal parts of [0, 1].

    Example:
        >>> bin_of(torch.tensor([0.03, 0.05, 0.35, 0.85, 1.0]), bins=10)
        tensor([0, 0, 3, 8, 9])
    """
    return (gradient_length.detach() * bins * _ROUNDED_UP).long().clamp_max(bins - 1)


def bin_weights(counts: Tensor) -> Tensor:
    """Weight of each bin's elements so that each bin that holds any weighs the same in total.

    Args:
        counts: `[…, bins]` int64, elements in each bin.

    Returns:
        `[…, bins]` float64; the weights of all elements add up to their number. Of a bin without
        elements, which has nobody to give it to, infinity.

    Example:
        >>> bin_weights(torch.tensor([2, 0, 1, 1]))
        tensor([0.6667,    inf, 1.3333, 1.3333], dtype=torch.float64)
    """
    filled = (counts > 0).sum(-1, keepdim=True)
    return counts.sum(-1, keepdim=True) / (counts * filled).to(torch.float64)


def harmony(gradient_length: Tensor, bins: int) -> Tensor:
    """Weight of every element so that each bin that holds any weighs the same in total.

    Args:
        gradient_length: `[B, N]`, in [0, 1]; each row has a histogram of its own.
        bins: equal parts of [0, 1].

    Returns:
        `[B, N]` float64, constant for autograd; each row adds up to N.

    Example:
        >>> harmony(torch.tensor([[0.03, 0.05, 0.35, 0.85]]), bins=10)
        tensor([[0.6667, 0.6667, 1.3333, 1.3333]], dtype=torch.float64)
    """
    place = bin_of(gradient_length, bins)
    counts = torch.zeros(len(place), bins, dtype=torch.long, device=place.device)
    counts.scatter_add_(1, place, counts.new_ones(1, 1).expand_as(place))
    return bin_weights(counts).gather(1, place)


@map_loss(family="histogram", tasks=SIGMOID_TASKS, options=Options)
def ghm_classification(sample: MaskSample, *, bins: Bins = 10) -> Iterator[Tensor]:
    r"""Binary cross entropy in which every degree of difficulty weighs the same.

    Formula:
        \frac{1}{N}\sum_{i=1}^{N} \frac{N}{R_{j(i)}\,n}\;\mathrm{BCE}(z_i, y_i),
        \quad j(i) = \min(\lfloor M\,|p_i - y_i| \rfloor, M-1)

        \text{with } R_j \text{ the pixels in bin } j \text{ of } M
        \text{ and } n \text{ the bins that are not empty}

    Use:
        Take it where easy pixels dominate and some labels are wrong: unlike focal loss it also
        turns down the crowd of very hard pixels, which are often annotation errors. Rather not on
        few pixels, where a bin of one pixel weighs as much as any other.

    Args:
        sample: one sample; one histogram over its valid pixels and all channels.
        bins: equal parts of [0, 1] in which the lengths of the gradient are counted; 1 is plain
            binary cross entropy.

    Yields:
        Weights `[*S]` of each channel's cross entropy, which average 1.

    Returns:
        Terms per channel and pixel, `[C, *S]`, in nats; the value is at least 0, and 0 where
        every pixel is right with certainty.

    Traps:
        - The paper divides by the number of bins, its authors' code by the number of bins that are
          not empty. Here it is the latter, so that the weights average 1; the paper's value is
          smaller by the share of the bins that are filled.
        - The usual moving average of the histogram (momentum) makes a loss depend on what was
          computed before. There is none here.
        - The weights are constants: the derivative is that of the cross entropy alone, weighted.
        - The last bin holds 1 as well; a plain floor would put it into a bin of its own.
        - A length on the edge of two bins, as a logit of 0 has with 10 bins, may fall on either
          side with the last digit of the sigmoid, and the value jumps. Here what only rounding
          keeps below an edge lies on it, and an edge belongs to the bin above.
        - `weight_map` weighs the cross entropy and leaves the histogram alone.

    Example:
        >>> probability = torch.tensor([[0.97, 0.95, 0.65, 0.15]], dtype=torch.float64)
        >>> (harmony(1.0 - probability, bins=10) * -probability.log()).mean()
        tensor(0.7896, dtype=torch.float64)

    References:
        Li et al., "Gradient Harmonized Single-stage Detector", 2018,
        https://arxiv.org/abs/1811.05181
    """
    places = torch.empty(sample.scores.shape, dtype=torch.int16, device=sample.scores.device)
    counts = torch.zeros(bins, dtype=torch.long, device=places.device)
    for channel in range(sample.channels):
        sample.checkpoint()
        one = MaskClass(sample, channel)
        places[channel] = bin_of(one.error.abs(), bins)
        counts += one.counted(places[channel]).long().bincount(minlength=bins)
    weights = bin_weights(counts)
    for place in places:
        # Removed pixels may lie in a bin of their own, whose weight is no number to multiply with.
        yield torch.where(sample.valid, weights[place.long()], 0.0)


@row_loss("value", family="histogram")
def ghm_regression(
    prediction: Tensor, target: Tensor, *, bins: Bins = 10, mu: Positive = 0.02
) -> Tensor:
    r"""Smoothed absolute error in which every degree of difficulty weighs the same.

    Formula:
        \frac{1}{N}\sum_{i=1}^{N} \frac{N}{R_{j(i)}\,n}\left(\sqrt{d_i^2 + \mu^2} - \mu\right),
        \quad j(i) = \min\left(\left\lfloor \frac{M\,|d_i|}{\sqrt{d_i^2 + \mu^2}} \right\rfloor,
        M-1\right),
        \quad d = x - t

        \text{with } R_j \text{ the elements in bin } j \text{ of } M
        \text{ and } n \text{ the bins that are not empty}

    Use:
        Take it to regress boxes or other numbers where most residuals are tiny and a few are
        outliers, and neither crowd should rule. It was made for many elements per sample; with one
        element, or with all in one bin, it is the mean of the smoothed absolute errors. For clean
        data `smooth_l1` is simpler.

    Args:
        prediction: `[B, …]`.
        target: as `prediction`.
        bins: equal parts of [0, 1] in which the lengths of the gradient are counted; 1 gives all
            elements the same weight.
        mu: residual, in units of the prediction, around which the error turns from quadratic to
            linear.

    Returns:
        `[B]`, in units of the prediction, at least 0; 0 where both are equal.

    Traps:
        - The histogram is that of one sample's elements. Code that counts over a batch lets
          samples change each other's values.
        - The derivative is that of the errors with the weights held constant.
        - Divided by the bins that are not empty, as the authors' code does and the paper does not;
          no momentum.
        - The root minus mu loses its digits for residuals far below mu; it is computed as the
          square over the sum, which does not.
        - Residuals far above mu all fall into the last bin: mu sets where the bins resolve
          anything, so scale it with the data.

    Example:
        >>> prediction = torch.tensor([[0.0, 0.02, 1.0]], dtype=torch.float64)
        >>> ghm_regression(prediction, torch.zeros_like(prediction), bins=1)
        tensor([0.3295], dtype=torch.float64)

    References:
        Li et al., "Gradient Harmonized Single-stage Detector", 2018,
        https://arxiv.org/abs/1811.05181
    """
    residual = (prediction - target).reshape(len(prediction), -1)
    # Scaled by the larger of both, the squares neither overflow nor vanish.
    scale = residual.detach().abs().clamp_min(mu)
    root = scale * ((residual / scale).square() + (mu / scale).square()).sqrt()
    errors = residual * (residual / (root + mu))
    weights = harmony(residual.detach().abs() / root.detach(), bins)
    return row_sum(errors * weights) / residual.shape[1]
