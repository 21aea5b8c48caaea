"""Losses over the distribution of labels at every pixel: cross entropy and what grew from it.

Each returns terms per label, linear in the sums, so that class weights, the normaliser, maps and
gradients are the same code for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from lossd.losses.declare import SIGMOID_TASKS, Fraction, NonNegative, Problem, pixel_loss
from lossd.losses.sums import PixelSums, Task, class_sum, ratio


@pixel_loss(aliases=("ce",))
def cross_entropy(sums: PixelSums, *, label_smoothing: Fraction = 0.0) -> Tensor:
    r"""Cross entropy between the target and the softmax (or sigmoid) of the logits.

    Formula:
        -\frac{1}{N}\sum_i \sum_c y'_{ic} \ln p_{ic}, \quad y' = (1-\varepsilon)\,y + \varepsilon/C

    Args:
        sums: sums per label, `[B, G, L]`.
        label_smoothing: share of every pixel's target that is spread over all labels.

    Returns:
        Terms per label, `[B, G, L]`, in nats; the value is at least 0. For binary and multilabel
        the labels of a channel are off and on, so the value is binary cross entropy.

    Example:
        >>> from lossd.losses.declare import find_loss
        >>> find_loss("ce").name
        'cross_entropy'

    References:
        Szegedy et al., "Rethinking the Inception Architecture for Computer Vision" (smoothing),
        2015, https://arxiv.org/abs/1512.00567
    """
    return _smoothed(sums, label_smoothing)


@pixel_loss(aliases=("bce",), tasks=SIGMOID_TASKS)
def binary_cross_entropy(
    sums: PixelSums, *, pos_weight: NonNegative = 1.0, label_smoothing: Fraction = 0.0
) -> Tensor:
    r"""Binary cross entropy of every channel, from logits.

    Formula:
        -\frac{1}{N}\sum_i \left[w_+\,y'_i \ln p_i + (1-y'_i)\ln(1-p_i)\right],
        \quad y' = (1-\varepsilon)\,y + \varepsilon/2

    Args:
        sums: sums per label (off, on) of each channel, `[B, G, 2]`.
        pos_weight: factor on the pixels that are on.
        label_smoothing: share of every pixel's target that is spread over off and on.

    Returns:
        Terms per label, `[B, G, 2]`, in nats; the value is at least 0, and ln 2 at logit 0.

    Example:
        >>> from lossd.losses.declare import find_loss
        >>> find_loss("bce").tasks
        ('binary', 'multilabel')

    References:
        PyTorch, BCEWithLogitsLoss (pos_weight),
        https://docs.pytorch.org/docs/stable/generated/torch.nn.BCEWithLogitsLoss.html
    """
    terms = _smoothed(sums, label_smoothing)
    return terms * terms.new_tensor([1.0, pos_weight])


def _inverse_frequency(sums: PixelSums, *, beta: float | None = None) -> Tensor:
    """Share of the pixels that have another label; with `beta`, 1 off and `beta` on."""
    if beta is not None:
        return sums.count.new_tensor([1.0, beta]).expand_as(sums.count)
    pixels = class_sum(sums.count)
    return ratio(pixels - sums.count, pixels)


def _beta_problems(options: Any, task: Task, channels: int) -> Iterator[Problem]:
    del channels
    if options.beta is not None and task == "multiclass":
        yield "beta", "weighs the pixels that are on; multiclass has class_weights"


@pixel_loss(label_weights=_inverse_frequency, check=_beta_problems)
def weighted_cross_entropy(sums: PixelSums, *, beta: NonNegative | None = None) -> Tensor:
    r"""Cross entropy in which rare labels weigh more.

    Formula:
        -\frac{1}{N}\sum_i w_{y_i} \ln p_{i,y_i}, \quad w_c = \frac{N - N_c}{N}

    Args:
        sums: sums per label, `[B, G, L]`.
        beta: binary and multilabel: weight of pixels that are on, the others weigh 1. Null: the
            weights of the formula, per sample (and channel).

    Returns:
        Terms per label, `[B, G, L]`, in nats; the value is at least 0. A sample of one label only
        has weight 0 and costs 0.

    Example:
        >>> from lossd.losses.declare import find_loss
        >>> find_loss("weighted_cross_entropy").family
        'distribution'

    References:
        Jadon, "A survey of loss functions for semantic segmentation", 2020,
        https://arxiv.org/abs/2006.14822
    """
    del beta  # it is a weight, see _inverse_frequency
    return sums.cross_entropy


@pixel_loss(tasks=SIGMOID_TASKS)
def balanced_cross_entropy(sums: PixelSums) -> Tensor:
    r"""Binary cross entropy in which both labels weigh the same in total.

    Formula:
        -\frac{1}{N}\sum_i \left[\beta\,y_i \ln p_i + (1-\beta)(1-y_i)\ln(1-p_i)\right],
        \quad \beta = 1 - \frac{1}{N}\sum_i y_i

    Args:
        sums: sums per label (off, on) of each channel, `[B, G, 2]`.

    Returns:
        Terms per label, `[B, G, 2]`, in nats; the value is at least 0, and 0 where all pixels of
        a sample have one label.

    Example:
        >>> from lossd.losses.declare import find_loss
        >>> find_loss("balanced_cross_entropy").tasks
        ('binary', 'multilabel')

    References:
        Xie and Tu, "Holistically-Nested Edge Detection", 2015, https://arxiv.org/abs/1504.06375
    """
    return sums.cross_entropy * _inverse_frequency(sums)


def _alpha_problems(options: Any, task: Task, channels: int) -> Iterator[Problem]:
    alpha = options.alpha
    if task == "multiclass" and isinstance(alpha, float):
        yield "alpha", f"multiclass takes a list of {channels} weights, one per class, got {alpha}"
    if isinstance(alpha, list) and task != "multiclass":
        yield "alpha", f"{task} takes one weight, of the pixels that are on, got a list"
    elif isinstance(alpha, list) and len(alpha) != channels:
        yield "alpha", f"needs one weight per class, {channels}, got {len(alpha)}"


@pixel_loss(focusing="gamma", check=_alpha_problems)
def focal(
    sums: PixelSums,
    *,
    gamma: NonNegative = 2.0,
    alpha: Fraction | list[NonNegative] | None = None,
) -> Tensor:
    r"""Focal loss: cross entropy with the easy pixels turned down.

    Formula:
        -\frac{1}{N}\sum_i \alpha_{y_i}\,(1-p_{i,y_i})^{\gamma} \ln p_{i,y_i}

    Args:
        sums: sums per label, `[B, G, L]`, made with this gamma.
        gamma: focusing exponent; 0 is cross entropy.
        alpha: binary and multilabel: weight of pixels that are on, 1 - alpha on the others.
            Multiclass: list of one weight per class. Null: no weights.

    Returns:
        Terms per label, `[B, G, L]`, in nats; the value is at least 0. The derivative goes
        through the focusing factor too.

    Example:
        >>> from lossd.losses.declare import find_loss
        >>> find_loss("focal").focusing
        'gamma'

    References:
        Lin et al., "Focal Loss for Dense Object Detection", 2017,
        https://arxiv.org/abs/1708.02002
    """
    del gamma  # the kernels have applied it
    if alpha is None:
        return sums.focal
    weights = alpha if isinstance(alpha, list) else [1.0 - alpha, alpha]
    return sums.focal * sums.focal.new_tensor(weights)


def _smoothed(sums: PixelSums, label_smoothing: float) -> Tensor:
    labels = sums.cross_entropy.shape[-1]
    spread = label_smoothing / labels
    return (1.0 - label_smoothing) * sums.cross_entropy + spread * sums.negative_log_likelihood
