"""Losses of plain numbers: any table of predictions against one of the same shape."""

from __future__ import annotations

from torch import Tensor

from lossd.losses.declare import row_loss
from lossd.losses.options import NonNegative, Positive
from lossd.losses.rows import row_mean


def _mean(terms: Tensor) -> Tensor:
    """Mean of each sample's elements, `[B]` from `[B, …]`, no further axes included."""
    return row_mean(terms.reshape(len(terms), -1))


@row_loss("value", family="regression")
def l1(prediction: Tensor, target: Tensor) -> Tensor:
    r"""Mean absolute error of each sample's elements.

    Formula:
        \frac{1}{n}\sum_i |d_i|, \quad d = \mathrm{prediction} - \mathrm{target}

    Use:
        For targets with outliers, or to report an error in the target's own unit. Its best constant
        is the median. The gradient does not shrink near the target, so that training hovers there;
        `smooth_l1` and `huber` land.

    Args:
        prediction: `[B, …]`.
        target: of the same shape.

    Returns:
        `[B]`, at least 0, in the unit of the target; 0 where everything is right.

    Traps:
        - The value is a mean over a sample's elements, not their sum: a longer vector does not cost
          more.
        - The slope at 0 is taken as 0, where any number from -1 to 1 would do.
        - On boxes it depends on their scale, and on which corners describe them; box losses do not.

    Example:
        >>> import torch
        >>> l1(torch.tensor([[1.0, -3.0]]).double(), torch.zeros(1, 2).double())
        tensor([2.], dtype=torch.float64)

    References:
        Zhao et al., "Loss Functions for Image Restoration with Neural Networks", 2016,
        https://arxiv.org/abs/1511.08861
    """
    return _mean((prediction - target).abs())


@row_loss("value", family="regression")
def l2(prediction: Tensor, target: Tensor) -> Tensor:
    r"""Mean squared error of each sample's elements.

    Formula:
        \frac{1}{n}\sum_i d_i^2, \quad d = \mathrm{prediction} - \mathrm{target}

    Use:
        For targets whose noise is alike everywhere and has no outliers: its best constant is the
        mean. One element that is far off outweighs many that are slightly wrong, and in images it
        blurs; `l1` or `huber` are for those.

    Args:
        prediction: `[B, …]`.
        target: of the same shape.

    Returns:
        `[B]`, at least 0, in the square of the target's unit; 0 where everything is right.

    Traps:
        - No factor 1/2, as in torch's `mse_loss`: the gradient is 2 d / n. Texts that write d²/2
          have half of both.
        - It is the square of the Euclidean norm over n, not the norm, although both go by L2.
        - Its root is not the mean of the samples' roots: take roots per sample before averaging.

    Example:
        >>> import torch
        >>> l2(torch.tensor([[1.0, -3.0]]).double(), torch.zeros(1, 2).double())
        tensor([5.], dtype=torch.float64)

    References:
        Mathieu et al., "Deep multi-scale video prediction beyond mean square error", 2015,
        https://arxiv.org/abs/1511.05440
    """
    return _mean((prediction - target).square())


@row_loss("value", family="regression")
def smooth_l1(prediction: Tensor, target: Tensor, *, beta: NonNegative = 1.0) -> Tensor:
    r"""Mean absolute error, rounded to a parabola where an error is below beta.

    Formula:
        \frac{1}{n}\sum_i \begin{cases} d_i^2 / (2\beta) & |d_i| < \beta \\
        |d_i| - \beta/2 & \text{otherwise} \end{cases}, \quad d = \mathrm{prediction} -
        \mathrm{target}

    Use:
        The regression loss of detectors: outliers pull no harder than in `l1`, and near the target
        the pull fades. `beta` says from which error on an element is an outlier, in the unit of the
        target. `huber` is the same curve in another scale.

    Args:
        prediction: `[B, …]`.
        target: of the same shape.
        beta: error at which the parabola meets the line, in the unit of the target; 0 is `l1`.

    Returns:
        `[B]`, at least 0; 0 where everything is right. Slopes are at most 1 per element, whatever
        beta is.

    Traps:
        - It comes from Fast R-CNN. Faster R-CNN, which is often named, took it over.
        - It is `huber` divided by its delta, and equal to it only at 1. As beta goes to 0 this one
          becomes `l1`; `huber` becomes 0.
        - A larger beta makes small errors cheaper, not dearer: below beta the slope is d / beta.
        - With beta 0 the quotient d² / (2 beta) is never formed; value and gradient are those of
          `l1`.

    Example:
        >>> import torch
        >>> smooth_l1(torch.tensor([[2.0]]).double(), torch.zeros(1, 1).double())
        tensor([1.5000], dtype=torch.float64)

    References:
        Girshick, "Fast R-CNN", 2015, https://arxiv.org/abs/1504.08083
    """
    if beta == 0:
        return l1(prediction, target)
    # Both branches in one: where the error is above beta, `inner` is beta and a constant.
    error = (prediction - target).abs()
    inner = error.clamp_max(beta)
    return _mean(inner * (inner / (2.0 * beta)) + (error - inner))


@row_loss("value", family="regression")
def huber(prediction: Tensor, target: Tensor, *, delta: Positive = 1.0) -> Tensor:
    r"""Half the squared error up to delta, and the line that continues it beyond.

    Formula:
        \frac{1}{n}\sum_i \begin{cases} d_i^2 / 2 & |d_i| \le \delta \\
        \delta\,|d_i| - \delta^2/2 & \text{otherwise} \end{cases}, \quad d = \mathrm{prediction} -
        \mathrm{target}

    Use:
        Squared error for the bulk of the elements without its trust in outliers: `delta` is where
        an error stops being taken at its word, about one and a half standard deviations of the
        noise. With a scale that is unknown or changes between data sets, `l1` needs no such number.

    Args:
        prediction: `[B, …]`.
        target: of the same shape.
        delta: error at which the parabola becomes a line, in the unit of the target; also the
            steepest slope.

    Returns:
        `[B]`, at least 0, in the square of the target's unit; 0 where everything is right.

    Traps:
        - As delta goes to 0 the loss goes to 0, not to the mean absolute error, as is often
          written; only divided by delta, which is `smooth_l1`, it does.
        - As delta grows it becomes half of `l2`, not `l2`.
        - The unit is squared, that of `smooth_l1` is not, so the two need different weights beside
          other losses.

    Example:
        >>> import torch
        >>> huber(torch.tensor([[2.0]]).double(), torch.zeros(1, 1).double(), delta=0.5)
        tensor([0.8750], dtype=torch.float64)

    References:
        Huber, "Robust Estimation of a Location Parameter", 1964,
        https://doi.org/10.1214/aoms/1177703732
    """
    error = (prediction - target).abs()
    inner = error.clamp_max(delta)
    return _mean(0.5 * inner.square() + delta * (error - inner))
