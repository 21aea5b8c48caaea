"""Losses over regions: functions of the sums of true and false, positive and negative.

Numerators are written with the errors, not as `1 - overlap`, so that a mask which is right to the
ninth digit gets a loss with digits of its own.
"""

from __future__ import annotations

from torch import Tensor

from lossd.losses.declare import NonNegative, region_loss
from lossd.losses.sums import RegionSums, ratio


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
