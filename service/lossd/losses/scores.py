"""Losses of scores without pixels: one row of classes, or one row of bins, per sample."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lossd.core.vocabulary import POWER_FLOOR
from lossd.losses.declare import row_loss
from lossd.losses.kinds import Input
from lossd.losses.options import NonNegative
from lossd.losses.rows import row_sum
from lossd.losses.sums import power


def row_cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Cross entropy of the softmax of each row, with the digits of small misses.

    Args:
        logits: `[B, C]` float64; one class alone costs 0.
        label: `[B]` int64, in [0, C - 1].

    Returns:
        `[B]`, in nats.

    Example:
        >>> logits = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
        >>> row_cross_entropy(logits, torch.tensor([2]))
        tensor([0.4076], dtype=torch.float64)
    """
    own = _one_hot(logits, label)
    others = torch.where(own, -torch.inf, logits)
    top = others.detach().amax(1, keepdim=True)
    # At least 1, by the largest of the others, unless there are no others.
    total = row_sum((others - top.clamp_min(torch.finfo(top.dtype).min)).exp()).clamp_min(1.0)
    margin = logits.gather(1, label[:, None])[:, 0] - top[:, 0] - total.log()
    return -torch.nn.functional.logsigmoid(margin)


def _one_hot(logits: Tensor, label: Tensor) -> Tensor:
    """`[B, C]` bool: the labelled class of each row."""
    return torch.arange(logits.shape[1], device=logits.device) == label[:, None]


def _power(base: Tensor, exponent: float) -> Tensor:
    """Power of numbers of at least 0; below 1 its base is clamped, where its slope has no end."""
    if exponent < 1.0:
        base = base.clamp_min(POWER_FLOOR)
    zero = base == 0.0
    return torch.where(zero, 0.0, power(torch.where(zero, 1.0, base), exponent))


@row_loss("scores", family="scores", replaced=(Input("target", "B C", "unit"),))
def quality_focal(logits: Tensor, target: Tensor, *, beta: NonNegative = 2.0) -> Tensor:
    r"""Focal loss for scores that should predict a quality between 0 and 1.

    Formula:
        -\sum_c |y_c - p_c|^{\beta}\left[y_c \ln p_c + (1-y_c)\ln(1-p_c)\right],
        \quad p = \sigma(z)

    Use:
        Take it where a class score doubles as an estimate of localisation quality: the target of
        the right class is the overlap of the predicted box with the true one, that of all other
        classes 0. For targets of 0 and 1 only, it is the focal loss without class weights.

    Args:
        logits: `[B, C]`, scores before the sigmoid, one per class.
        target: `[B, C]`, in [0, 1], the quality to be predicted.
        beta: focusing exponent; 0 is binary cross entropy, summed over classes.

    Returns:
        `[B]`, in nats, at least 0; with beta above 0, 0 where every score equals its quality. For
        beta between 0 and 1 the distance below the power is at least 1e-7, with derivative 0
        there.

    Traps:
        - The first public code left out the absolute value: an odd beta then makes the loss
          negative, a fractional one NaN.
        - The focusing factor takes part in the derivative.
        - A soft target in a plain focal loss is something else: its factor is not the distance
          to the target, and its minimum not at the target.
        - Detectors divide the sum over all anchors by the number of positive ones. Here a sample
          is one row and the sum over its classes stays as it is.
        - At p = y the loss is 0, although binary cross entropy has the entropy of y left.

    Example:
        >>> zero = torch.zeros(1, 1, dtype=torch.float64)
        >>> quality_focal(zero, torch.full_like(zero, 0.8))
        tensor([0.0624], dtype=torch.float64)

    References:
        Li et al., "Generalized Focal Loss: Learning Qualified and Distributed Bounding Boxes for
        Dense Object Detection", 2020, https://arxiv.org/abs/2006.04388
    """
    log_on = torch.nn.functional.logsigmoid(logits)
    log_off = torch.nn.functional.logsigmoid(-logits)
    cross_entropy = -(target * log_on + (1.0 - target) * log_off)
    distance = (target * log_off.exp() - (1.0 - target) * log_on.exp()).abs()
    return row_sum(_power(distance, beta) * cross_entropy)


@row_loss("scores", family="scores", replaced=(Input("target", "B", "bin"),))
def distribution_focal(logits: Tensor, target: Tensor) -> Tensor:
    r"""Cross entropy with the two bins around a real target, shared by nearness.

    Formula:
        -\left[(l + 1 - y)\ln p_l + (y - l)\ln p_{l+1}\right],
        \quad l = \lfloor y \rfloor, \quad p = \mathrm{softmax}(z)

    Use:
        Take it to learn a number, such as the distance from an anchor to the side of a box, as a
        distribution over bins whose mean is the prediction. It sharpens the distribution around
        the target. Add a loss of the decoded number, such as `giou`, because this one does not
        look at the mean itself.

    Args:
        logits: `[B, C]`, scores of bins at 0, 1, …, C - 1.
        target: `[B]`, real, in [0, C - 1], in units of bins.

    Returns:
        `[B]`, in nats, at least the entropy of the two shares: 0 is possible only where the target
        falls on a bin.

    Traps:
        - The minimum is not 0 between bins; at 2.3 it is the entropy of (0.7, 0.3).
        - A target of exactly C - 1 has no bin to its right, and common code then reads beyond the
          end or has to clamp the target below it. Here it is the cross entropy of the last bin.
        - A target on a bin is plain cross entropy with that label.
        - Despite its name it has no focusing factor.
        - Detectors weigh it with 0.25 and average over the four sides of a box. Here there is
          neither; send each side as a row of its own.

    Example:
        >>> zeros = torch.zeros(1, 4, dtype=torch.float64)
        >>> distribution_focal(zeros, torch.tensor([2.3], dtype=torch.float64))
        tensor([1.3863], dtype=torch.float64)

    References:
        Li et al., "Generalized Focal Loss: Learning Qualified and Distributed Bounding Boxes for
        Dense Object Detection", 2020, https://arxiv.org/abs/2006.04388
    """
    left = target.detach().floor()
    share = target - left
    lower = left.long()
    # On the last bin its share is 0, so that any neighbour will do.
    upper = (lower + 1).clamp_max(logits.shape[1] - 1)
    return (1.0 - share) * row_cross_entropy(logits, lower) + share * row_cross_entropy(
        logits, upper
    )


@row_loss("scores", family="scores")
def svm_hinge(
    logits: Tensor,
    target: Tensor,
    *,
    margin: NonNegative = 1.0,
    reduction_over_classes: Literal["sum", "mean"] = "sum",
) -> Tensor:
    r"""Hinge loss of a multiclass support vector machine.

    Formula:
        \sum_{j \ne y} \max(0, z_j - z_y + m)

    Use:
        Take it for a classifier whose scores should be ranked with a margin and are not read as
        probabilities; classes that are far enough behind no longer matter. For calibrated
        probabilities take cross entropy.

    Args:
        logits: `[B, C]`, one score per class.
        target: `[B]`, the right class.
        margin: by how much the right class has to lead every other one, in units of the scores.
        reduction_over_classes: `sum` over the wrong classes; `mean` divides it by the number C of
            all classes, the right one included, as torch does.

    Returns:
        `[B]`, in units of the scores, at least 0; 0 where the right class leads by the margin.
        With equal scores (C - 1) times the margin, divided by C for the mean.

    Traps:
        - It is the sum over wrong classes, as in the CS231n notes. `MultiMarginLoss` of torch
          divides it by C, which is `mean` here, and not by the C - 1 wrong ones.
        - The right class itself must stay out of the sum; with it every value is larger by the
          margin.
        - On the edge of a margin the derivative is taken as 0.
        - Scores and margin have one scale: without a penalty on the weights, larger scores alone
          satisfy any margin.

    Example:
        >>> scores = torch.tensor([[3.2, 5.1, -1.7]], dtype=torch.float64)
        >>> svm_hinge(scores, torch.tensor([0]))
        tensor([2.9000], dtype=torch.float64)

    References:
        Weston and Watkins, "Support Vector Machines for Multi-Class Pattern Recognition", 1999,
        https://www.esann.org/sites/default/files/proceedings/legacy/es1999-461.pdf
    """
    own = _one_hot(logits, target)
    behind = logits - logits.gather(1, target[:, None]) + margin
    total = row_sum(torch.where(own, 0.0, behind.relu()))
    return total if reduction_over_classes == "sum" else total / logits.shape[1]


@row_loss("linear", family="scores")
def softmax_l2(
    features: Tensor, weights: Tensor, target: Tensor, *, l2: NonNegative = 0.1
) -> Tensor:
    r"""Cross entropy of a linear classifier plus the squared length of its weights.

    Formula:
        \ln \sum_j e^{(x W)_j} - (x W)_y + \frac{\lambda}{2} \lVert W \rVert_F^2

    Use:
        Take it to score or to train the last linear layer of a network, or softmax regression,
        where features and weights are at hand. It gives the gradients of both. Where only scores
        are at hand take cross entropy.

    Args:
        features: `[B, D]`.
        weights: `[D, C]`, shared by all samples.
        target: `[B]`, the right class.
        l2: factor of half the squared length of the weights; 0 is cross entropy.

    Returns:
        `[B]`, in nats, at least 0. Every sample carries the whole penalty.

    Traps:
        - The gradient of the weights is summed over the samples, so it holds the penalty B times.
          To get the usual objective, divide by B: then both parts are right.
        - Some write the penalty without the half and need half the factor for the same weights.
        - The logarithm of a softmax that underflowed is infinite; here the scores themselves are
          subtracted.
        - A column of ones among the features is a bias, and its weights are penalised too.

    Example:
        >>> features = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
        >>> softmax_l2(features, torch.eye(2, dtype=torch.float64), torch.tensor([0]))
        tensor([1.4133], dtype=torch.float64)

    References:
        Stanford CS231n, "Linear classification: Support Vector Machine, Softmax", 2015,
        https://cs231n.github.io/linear-classify/
    """
    # Row by row, and copied to memory of the same alignment: a product of matrices may add up in
    # another order if there are more rows or if they start elsewhere.
    shared = weights.clone()
    rows = [
        row_cross_entropy(features[row : row + 1].clone() @ shared, target[row : row + 1])
        for row in range(len(features))
    ]
    penalty = 0.5 * l2 * weights.square().sum()
    return torch.cat(rows) + penalty
