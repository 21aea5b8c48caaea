"""Losses over regions: functions of the sums of true and false, positive and negative.

Numerators are written with the errors, not as `1 - overlap`, so that a mask which is right to the
ninth digit gets a loss with digits of its own.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lossd.losses.declare import Fraction, NonNegative, pooled_loss, region_loss
from lossd.losses.sums import RegionSums, class_sum, ratio

_HALF = 0.5
_FLOOR = 1e-7
"""Base of a fractional power or a logarithm; below it the slope is 0 instead of infinite."""


@region_loss()
def dice(
    sums: RegionSums, *, smooth_nr: NonNegative = 1e-5, smooth_dr: NonNegative = 1e-5
) -> Tensor:
    r"""Soft Dice loss: one minus twice the overlap over the sum of both areas.

    Formula:
        1 - \frac{2\,TP + s_{nr}}{2\,TP + FP + FN + s_{dr}}

    Args:
        sums: sums per class, `[B, C]`, over soft probabilities `p` and targets `y`.
        smooth_nr: added to the numerator, in pixels; above 0, empty against empty costs 0.
        smooth_dr: added to the denominator, in pixels.

    Returns:
        `[B, C]`, in [0, 1] for equal smoothing; 0 is a perfect mask. 0 where nothing is there to
        divide by.

    Example:
        >>> from lossd.losses.declare import find_loss
        >>> find_loss("dice").name
        'dice'

    References:
        Drozdzal et al., "The Importance of Skip Connections in Biomedical Image Segmentation",
        2016, https://arxiv.org/abs/1608.04117
    """
    errors = sums.false_positive + sums.false_negative
    both = 2.0 * sums.true_positive + errors + smooth_dr
    return ratio(errors + (smooth_dr - smooth_nr), both)


@region_loss(aliases=("iou",))
def jaccard(
    sums: RegionSums, *, smooth_nr: NonNegative = 1e-5, smooth_dr: NonNegative = 1e-5
) -> Tensor:
    r"""Soft Jaccard loss: one minus intersection over union.

    Formula:
        1 - \frac{TP + s_{nr}}{TP + FP + FN + s_{dr}}

    Args:
        sums: sums per class, `[B, C]`.
        smooth_nr: added to the intersection, in pixels.
        smooth_dr: added to the union, in pixels.

    Returns:
        `[B, C]`, in [0, 1] for equal smoothing; never below the Dice loss of the same mask.

    Example:
        >>> from lossd.losses.declare import find_loss
        >>> find_loss("iou").name
        'jaccard'

    References:
        Rahman and Wang, "Optimizing Intersection-Over-Union in Deep Neural Networks for Image
        Segmentation", 2016, https://doi.org/10.1007/978-3-319-50835-1_22
    """
    errors = sums.false_positive + sums.false_negative
    union = sums.true_positive + errors + smooth_dr
    return ratio(errors + (smooth_dr - smooth_nr), union)


@region_loss()
def tversky(
    sums: RegionSums,
    *,
    fp_weight: NonNegative = 0.3,
    fn_weight: NonNegative = 0.7,
    smooth_nr: NonNegative = 1e-5,
    smooth_dr: NonNegative = 1e-5,
) -> Tensor:
    r"""Tversky loss: Dice with a price of its own for each kind of error.

    Formula:
        1 - \frac{TP + s_{nr}}{TP + w_{fp}\,FP + w_{fn}\,FN + s_{dr}}

    Args:
        sums: sums per class, `[B, C]`.
        fp_weight: price of a false positive pixel (the paper's alpha).
        fn_weight: price of a false negative pixel (the paper's beta).
        smooth_nr: added to the numerator, in pixels.
        smooth_dr: added to the denominator, in pixels.

    Returns:
        `[B, C]`, in [0, 1] for equal smoothing. (0.5, 0.5) is Dice, (1, 1) is Jaccard.

    Example:
        >>> from lossd.losses.declare import find_loss
        >>> find_loss("tversky").parameters().fn_weight
        0.7

    References:
        Salehi et al., "Tversky loss function for image segmentation using 3D fully convolutional
        deep networks", 2017, https://arxiv.org/abs/1706.05721
    """
    errors = fp_weight * sums.false_positive + fn_weight * sums.false_negative
    return ratio(errors + (smooth_dr - smooth_nr), sums.true_positive + errors + smooth_dr)


@region_loss()
def dice_squared(
    sums: RegionSums, *, smooth_nr: NonNegative = 1e-5, smooth_dr: NonNegative = 1e-5
) -> Tensor:
    r"""Dice loss with squared sums, as in V-Net.

    Formula:
        1 - \frac{2\sum p\,y + s_{nr}}{\sum p^2 + \sum y^2 + s_{dr}}

    Args:
        sums: sums per class, `[B, C]`.
        smooth_nr: added to the numerator, in pixels.
        smooth_dr: added to the denominator, in pixels.

    Returns:
        `[B, C]`, in [0, 1] for equal smoothing; unlike Dice, 0 at p = y for soft targets too.

    Example:
        >>> from lossd.losses.declare import find_loss
        >>> find_loss("dice_squared").family
        'region'

    References:
        Milletari et al., "V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image
        Segmentation", 2016, https://arxiv.org/abs/1606.04797
    """
    squared_error = sums.squared_error_inside + sums.squared_error_outside
    squares = squared_error + 2.0 * sums.true_positive  # = sum of p^2 + sum of y^2
    return ratio(squared_error + (smooth_dr - smooth_nr), squares + smooth_dr)


@region_loss()
def focal_tversky(
    sums: RegionSums,
    *,
    fp_weight: NonNegative = 0.3,
    fn_weight: NonNegative = 0.7,
    exponent: NonNegative = 0.75,
    smooth_nr: NonNegative = 1e-5,
    smooth_dr: NonNegative = 1e-5,
) -> Tensor:
    r"""Tversky loss of each class, raised to a power.

    Formula:
        \mathrm{Tversky}_c^{\,\gamma}

    Args:
        sums: sums per class, `[B, C]`.
        fp_weight: price of a false positive pixel.
        fn_weight: price of a false negative pixel.
        exponent: power of each class's loss, before the average (the paper's 1/gamma = 3/4).
        smooth_nr: added to the numerator, in pixels.
        smooth_dr: added to the denominator, in pixels.

    Returns:
        `[B, C]`, in [0, 1] for equal smoothing. Below a loss of 1e-7 the power stays that of 1e-7.

    Example:
        >>> from lossd.losses.declare import find_loss
        >>> find_loss("focal_tversky").parameters().exponent
        0.75

    References:
        Abraham and Khan, "A Novel Focal Tversky loss function with improved Attention U-Net for
        lesion segmentation", 2018, https://arxiv.org/abs/1810.07842
    """
    loss = tversky(
        sums, fp_weight=fp_weight, fn_weight=fn_weight, smooth_nr=smooth_nr, smooth_dr=smooth_dr
    )
    return loss.clamp_min(_FLOOR) ** exponent


@region_loss()
def log_dice(
    sums: RegionSums, *, smooth_nr: NonNegative = 1e-5, smooth_dr: NonNegative = 1e-5
) -> Tensor:
    r"""Negative logarithm of the soft Dice coefficient of each class.

    Formula:
        -\ln\frac{2\,TP + s_{nr}}{2\,TP + FP + FN + s_{dr}}

    Args:
        sums: sums per class, `[B, C]`.
        smooth_nr: added to the numerator, in pixels.
        smooth_dr: added to the denominator, in pixels.

    Returns:
        `[B, C]`, at least 0 for equal smoothing, at most -ln 1e-7 = 16.1.

    Example:
        >>> from lossd.losses.declare import find_loss
        >>> find_loss("log_dice").family
        'region'

    References:
        Wong et al., "3D Segmentation with Exponential Logarithmic Loss for Highly Unbalanced
        Object Sizes", 2018, https://arxiv.org/abs/1809.00076
    """
    loss = dice(sums, smooth_nr=smooth_nr, smooth_dr=smooth_dr)
    overlap = 2.0 * sums.true_positive
    areas = overlap + sums.false_positive + sums.false_negative
    coefficient = ratio(overlap + smooth_nr, areas + smooth_dr)
    # Each form where it keeps its digits: next to 1 the loss, elsewhere the coefficient.
    good = loss < _HALF
    return torch.where(
        good,
        -torch.log1p(-torch.where(good, loss, 0.0)),
        -torch.log(torch.where(good, 1.0, coefficient).clamp_min(_FLOOR)),
    )


@region_loss()
def log_cosh_dice(
    sums: RegionSums, *, smooth_nr: NonNegative = 1e-5, smooth_dr: NonNegative = 1e-5
) -> Tensor:
    r"""Logarithm of the hyperbolic cosine of the Dice loss of each class.

    Formula:
        \ln\cosh(\mathrm{Dice}_c)

    Args:
        sums: sums per class, `[B, C]`.
        smooth_nr: added to the numerator of the Dice coefficient, in pixels.
        smooth_dr: added to its denominator, in pixels.

    Returns:
        `[B, C]`, in [0, 0.433781] for equal smoothing; its slope vanishes near the optimum.

    Example:
        >>> from lossd.losses.declare import find_loss
        >>> find_loss("log_cosh_dice").family
        'region'

    References:
        Jadon, "A survey of loss functions for semantic segmentation", 2020,
        https://arxiv.org/abs/2006.14822
    """
    loss = dice(sums, smooth_nr=smooth_nr, smooth_dr=smooth_dr)
    return torch.log1p(2.0 * torch.sinh(0.5 * loss) ** 2)  # ln cosh, exact for small losses


@region_loss()
def sensitivity_specificity(
    sums: RegionSums,
    *,
    sensitivity_weight: Fraction = 0.05,
    smooth_nr: NonNegative = 1e-5,
    smooth_dr: NonNegative = 1e-5,
) -> Tensor:
    r"""Mean squared error inside the target and outside of it, weighed against each other.

    Formula:
        r\,\frac{\sum y\,(p-y)^2 + s_{nr}}{\sum y + s_{dr}}
        + (1-r)\,\frac{\sum (1-y)(p-y)^2 + s_{nr}}{\sum (1-y) + s_{dr}}

    Args:
        sums: sums per class, `[B, C]`.
        sensitivity_weight: weight r of the error inside.
        smooth_nr: added to both numerators, in pixels.
        smooth_dr: added to both denominators, in pixels.

    Returns:
        `[B, C]`, in [0, 1]; a term whose denominator is 0 is 0.

    Example:
        >>> from lossd.losses.declare import find_loss
        >>> find_loss("sensitivity_specificity").parameters().sensitivity_weight
        0.05

    References:
        Brosch et al., "Deep Convolutional Encoder Networks for Multiple Sclerosis Lesion
        Segmentation", 2015, https://doi.org/10.1007/978-3-319-24574-4_1
    """
    inside = ratio(sums.squared_error_inside + smooth_nr, sums.target + smooth_dr)
    elsewhere = sums.pixels - sums.target
    outside = ratio(sums.squared_error_outside + smooth_nr, elsewhere + smooth_dr)
    nothing_inside, nothing_outside = sums.target == 0, elsewhere == 0
    inside = torch.where(nothing_inside, 0.0, inside)
    outside = torch.where(nothing_outside, 0.0, outside)
    return sensitivity_weight * inside + (1.0 - sensitivity_weight) * outside


@region_loss(aliases=("mcc",))
def matthews(
    sums: RegionSums, *, smooth_nr: NonNegative = 0.0, smooth_dr: NonNegative = 0.0
) -> Tensor:
    r"""One minus Matthews' correlation coefficient of prediction and target.

    Formula:
        1 - \frac{TP\cdot TN - FP\cdot FN}{\sqrt{(TP+FP)(TP+FN)(TN+FP)(TN+FN)}}

    Args:
        sums: sums per class, `[B, C]`.
        smooth_nr: taken for the sake of one signature; the coefficient has no smoothing.
        smooth_dr: likewise.

    Returns:
        `[B, C]`, in [0, 2]; 1 is no better than chance. Where the denominator is 0, the
        coefficient is 1 without errors and 0 with.

    Example:
        >>> from lossd.losses.declare import find_loss
        >>> find_loss("mcc").name
        'matthews'

    References:
        Abhishek and Hamarneh, "Matthews Correlation Coefficient Loss for Deep Convolutional
        Networks: Application to Skin Lesion Segmentation", 2020, https://arxiv.org/abs/2010.13454
    """
    del smooth_nr, smooth_dr
    positive, negative = sums.true_positive, sums.true_negative
    extra, missed = sums.false_positive, sums.false_negative
    product = (positive + extra) * (positive + missed) * (negative + extra) * (negative + missed)
    degenerate = product <= 0
    root = torch.where(degenerate, 1.0, product).sqrt()
    coefficient = (positive * negative - extra * missed) / root
    faultless = torch.where((extra == 0) & (missed == 0), 1.0, 0.0).to(product.dtype)
    return 1.0 - torch.where(degenerate, faultless, coefficient)


@pooled_loss()
def generalized_dice(
    sums: RegionSums,
    weights: Tensor,
    *,
    weighting: Literal["square", "simple", "uniform"] = "square",
    smooth_nr: NonNegative = 1e-5,
    smooth_dr: NonNegative = 1e-5,
) -> Tensor:
    r"""Dice loss of all classes at once, small classes weighing as much as large ones.

    Formula:
        1 - \frac{2\sum_c w_c\,TP_c + s_{nr}}{\sum_c w_c\,(2\,TP_c + FP_c + FN_c) + s_{dr}},
        \quad w_c = 1/Y_c^2

    Args:
        sums: sums per class, `[B, C]`.
        weights: weight of each class, `[B, C]`, 0 where it does not count.
        weighting: 1/Y², 1/Y or 1 for a class of Y pixels, scaled by the sample's largest; a class
            that counts but is absent gets the largest weight of its sample.
        smooth_nr: added to the numerator.
        smooth_dr: added to the denominator.

    Returns:
        `[B]`, in [0, 1] for equal smoothing.

    Example:
        >>> from lossd.losses.declare import find_loss
        >>> find_loss("generalized_dice").parameters().weighting
        'square'

    References:
        Sudre et al., "Generalised Dice overlap as a deep learning loss function for highly
        unbalanced segmentations", 2017, https://arxiv.org/abs/1707.03237
    """
    volume = sums.target.detach()
    power = {"square": 2.0, "simple": 1.0, "uniform": 0.0}[weighting]
    present = (volume > 0) & (weights > 0)
    smallest = torch.where(present, volume, torch.inf).amin(-1, keepdim=True)
    # (smallest / volume) ** power is the weight divided by the sample's largest.
    relative = torch.where(present, (smallest / torch.where(present, volume, 1.0)) ** power, 1.0)
    scaled = weights * relative
    errors = class_sum(scaled * (sums.false_positive + sums.false_negative))[:, 0]
    overlap = class_sum(scaled * 2.0 * sums.true_positive)[:, 0]
    return ratio(errors + (smooth_dr - smooth_nr), overlap + errors + smooth_dr)
