"""Losses made of other losses."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lossd.losses.declare import SIGMOID_TASKS, NonNegative, Parts, compound_loss


@compound_loss()
def dice_ce(
    part: Parts,
    *,
    ce_weight: NonNegative = 1.0,
    dice_weight: NonNegative = 1.0,
    smooth_nr: NonNegative = 1e-5,
    smooth_dr: NonNegative = 1e-5,
    class_weights: Any = None,
    **region: Any,
) -> Tensor:
    r"""Weighted sum of cross entropy and soft Dice loss.

    Formula:
        w_{ce}\,\mathrm{CE} + w_{dice}\,\mathrm{Dice}

    Args:
        part: values of the two parts.
        ce_weight: weight of the cross entropy (binary and multilabel: binary cross entropy).
        dice_weight: weight of the Dice loss.
        smooth_nr: added to the numerator of the Dice coefficient, in pixels.
        smooth_dr: added to its denominator, in pixels.
        class_weights: weights of the classes in both parts.
        region: the options of the Dice part: classes, include_background, average.

    Returns:
        `[B]`, at least 0.

    Example:
        >>> from lossd.losses.declare import find_loss
        >>> find_loss("dice_ce").family
        'compound'

    References:
        Isensee et al., "nnU-Net: Self-adapting Framework for U-Net-Based Medical Image
        Segmentation", 2018, https://arxiv.org/abs/1809.10486
    """
    cross_entropy = part("cross_entropy", class_weights=class_weights)
    dice = part(
        "dice", smooth_nr=smooth_nr, smooth_dr=smooth_dr, class_weights=class_weights, **region
    )
    return ce_weight * cross_entropy + dice_weight * dice


@compound_loss(tasks=SIGMOID_TASKS)
def bce_dice(
    part: Parts,
    *,
    ce_weight: NonNegative = 1.0,
    dice_weight: NonNegative = 1.0,
    smooth_nr: NonNegative = 1e-5,
    smooth_dr: NonNegative = 1e-5,
    class_weights: Any = None,
    **region: Any,
) -> Tensor:
    r"""Weighted sum of binary cross entropy and soft Dice loss.

    Formula:
        w_{ce}\,\mathrm{BCE} + w_{dice}\,\mathrm{Dice}

    Args:
        part: values of the two parts.
        ce_weight: weight of the binary cross entropy.
        dice_weight: weight of the Dice loss.
        smooth_nr: added to the numerator of the Dice coefficient, in pixels.
        smooth_dr: added to its denominator, in pixels.
        class_weights: weights of the channels in both parts.
        region: the options of the Dice part: classes, include_background, average.

    Returns:
        `[B]`, at least 0.

    Example:
        >>> from lossd.losses.declare import find_loss
        >>> find_loss("bce_dice").tasks
        ('binary', 'multilabel')

    References:
        Jadon, "A survey of loss functions for semantic segmentation", 2020,
        https://arxiv.org/abs/2006.14822
    """
    return dice_ce(
        part,
        ce_weight=ce_weight,
        dice_weight=dice_weight,
        smooth_nr=smooth_nr,
        smooth_dr=smooth_dr,
        class_weights=class_weights,
        **region,
    )
