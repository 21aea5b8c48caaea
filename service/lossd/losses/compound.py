"""Losses made of other losses."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from lossd.core.vocabulary import POWER_FLOOR
from lossd.losses.declare import SIGMOID_TASKS, Parts, compound_loss, pooled_loss
from lossd.losses.options import Fraction, NonNegative, Options, Positive
from lossd.losses.region import dice, log_dice
from lossd.losses.sums import Sums, class_sum, power, ratio


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

    Use:
        The workhorse of segmentation, and a good first choice: cross entropy gives every pixel a
        smooth gradient, Dice looks after small objects. Either part alone tells more about a mask,
        so for reports ask for both beside it. Where misses and false alarms differ in price, add
        `tversky` to `cross_entropy` instead; weights of losses in a request do that.

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

    Traps:
        - nnU-Net subtracts the Dice coefficient, so that its values are lower by the Dice weight
          and often negative. The gradient is the same.
        - `include_background: false` acts on the Dice part alone, in MONAI as well. Cross entropy
          needs the background, or nothing would be pushed there.
        - `class_weights` acts on both parts. MONAI's `weight` turns into the weight of positives
          when there is one channel.
        - Dice stops at 1, cross entropy does not: one confident mistake over a large area can
          outweigh everything Dice has to say.
        - `ce_weight` and `dice_weight` are factors and not shares; the paper's are both 1.

    Example:
        >>> import torch
        >>> values = {"cross_entropy": torch.tensor([0.4]), "dice": torch.tensor([0.3])}
        >>> dice_ce(lambda loss, **_: values[loss], dice_weight=2.0)
        tensor([1.])

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

    Use:
        Binary cross entropy plus Dice for one foreground class, or for channels that may overlap.
        It is `dice_ce` under the name that such code uses, with the same values. Classes that
        exclude each other need the softmax of `dice_ce`.

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

    Traps:
        - Half of the sum, as in the code that goes with the survey, is `ce_weight` 0.5 and
          `dice_weight` 0.5.
        - Binary cross entropy of a softmax's channels is not cross entropy, so multiclass is
          refused rather than guessed.
        - An empty mask that is rightly empty costs next to nothing, but the slightest false alarm
          on it almost the whole Dice weight.

    Example:
        >>> from lossd.losses.registry import find_loss
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


@pooled_loss(family="compound", focusing="gamma")
def dice_focal(
    sums: Sums,
    weights: Tensor,
    *,
    focal_weight: NonNegative = 1.0,
    gamma: NonNegative = 2.0,
    reduction_over_classes: Literal["mean", "sum"] = "mean",
) -> Tensor:
    r"""Dice loss of every class plus the focal loss of its pixels, as in AnatomyNet.

    Formula:
        \sum_c \left(1 - \frac{TP_c}{TP_c + \frac12 FN_c + \frac12 FP_c}\right)
        - \lambda\,\frac{1}{N}\sum_c \sum_i y_{ic}\,(1-p_{ic})^{\gamma} \ln p_{ic}

    Use:
        For many structures of very different sizes, such as organs of head and neck: Dice of every
        class, and a focal term that looks at the pixels a class has still wrong. With few classes
        of similar size `dice_ce` does as well and is easier to read.

    Args:
        sums: all sums, made with this gamma.
        weights: weight of each class, `[B, C]`, 0 where it does not count.
        focal_weight: weight of the focal part.
        gamma: focusing exponent of the focal part.
        reduction_over_classes: `sum` is the paper's; `mean` divides both parts by the weights of
            the classes that count.

    Returns:
        `[B]`, at least 0. Binary: the foreground alone; multilabel: the foreground of every
        channel.

    Traps:
        - MONAI's `DiceFocalLoss` is the mean of Dice plus a focal loss of sigmoids, which is not
          this.
        - The exponent of the focal part is fixed. A text in circulation replaces it by a class's
          number of positive pixels, which the paper does not.
        - The paper sums over the classes; `mean`, the default here, divides both parts by their
          number, so that values of different tasks compare.
        - The focal part sees pixels of the class only. False alarms cost through Dice, and for
          binary there is no class that would charge them otherwise.
        - There is no smoothing: a class that is asked for but absent costs 1 for the slightest
          prediction.

    Example:
        >>> from lossd.losses.registry import find_loss
        >>> find_loss("dice_focal").parameters().reduction_over_classes
        'mean'

    References:
        Zhu et al., "AnatomyNet: Deep learning for fast and fully automated whole-volume
        segmentation of head and neck anatomy", 2018, https://arxiv.org/abs/1808.05238
    """
    del gamma  # the kernels have applied it
    focal = sums.pixel.focal[:, 0] if sums.task == "multiclass" else sums.pixel.focal[..., 1]
    terms = dice(sums.region, smooth_nr=0.0, smooth_dr=0.0)
    terms = terms + focal_weight * ratio(focal, sums.pixels[:, None])
    total = class_sum(weights * torch.where(weights > 0, terms, 0.0))[:, 0]
    if reduction_over_classes == "sum":
        return total
    return ratio(total, class_sum(weights)[:, 0])


@pooled_loss(family="compound", vocabulary="rich")
def combo(
    sums: Sums,
    weights: Tensor,
    *,
    alpha: Fraction = 0.5,
    beta: Fraction = 0.5,
    smooth: NonNegative = 1.0,
) -> Tensor:
    r"""Weighted cross entropy and Dice loss of each class, as in the combo loss.

    Formula:
        -\frac{\alpha}{N}\sum_i \left[\beta\,y_i \ln p_i + (1-\beta)(1-y_i)\ln(1-p_i)\right]
        + (1-\alpha)\left(1 - \frac{2\,TP + s}{2\,TP + FP + FN + s}\right)

    Use:
        For masks where the balance of misses and false alarms is to be set by one number, beta, and
        the balance of pixels and regions by another, alpha. Made for several organs of different
        size. If neither is to be tuned, `dice_ce` has fewer numbers.

    Args:
        sums: all sums.
        weights: weight of each class, `[B, C]`, 0 where it does not count.
        alpha: share of the cross entropy, 1 - alpha that of the Dice loss.
        beta: weight of pixels of the class, 1 - beta of all others; above 0.5 misses cost more.
        smooth: added to both sides of the Dice fraction, in pixels.

    Returns:
        `[B]`, at least 0: the paper's value plus 1 - alpha, with the same gradient. Multiclass and
        multilabel: mean over classes of each one against the rest.

    Traps:
        - The authors' published code has a wrong sign in the second logarithm and so rewards errors
          on the background.
        - The paper's formula has beta (t - ln p) in one place, where a product belongs, and texts
          have copied it.
        - The paper subtracts the Dice coefficient. Here it is one minus it, so that values are not
          negative: larger by 1 - alpha, with the same gradient.
        - With alpha 1 and beta 0.5 it is half of binary cross entropy, not all of it.
        - The smoothing of 1 pixel is part of the definition; on objects of a few pixels it shows.

    Example:
        >>> from lossd.losses.registry import find_loss
        >>> find_loss("combo").parameters().smooth
        1.0

    References:
        Taghanaki et al., "Combo Loss: Handling Input and Output Imbalance in Multi-Organ
        Segmentation", 2018, https://arxiv.org/abs/1805.02798
    """
    on = sums.pixel.cross_entropy[:, 0]
    off = sums.pixel.complement_cross_entropy[:, 0]
    if sums.task != "multiclass":
        on, off = sums.pixel.cross_entropy[..., 1], sums.pixel.cross_entropy[..., 0]
    cross_entropy = ratio(beta * on + (1.0 - beta) * off, sums.pixels[:, None])
    overlap = dice(sums.region, smooth_nr=smooth, smooth_dr=smooth)
    terms = alpha * cross_entropy + (1.0 - alpha) * overlap
    total = class_sum(weights * torch.where(weights > 0, terms, 0.0))[:, 0]
    return ratio(total, class_sum(weights)[:, 0])


@pooled_loss(family="compound", options=Options, focusing="gamma_ce", vocabulary="rich")
def exponential_logarithmic(
    sums: Sums,
    weights: Tensor,
    *,
    dice_weight: NonNegative = 0.8,
    ce_weight: NonNegative = 0.2,
    gamma_dice: Positive = 0.3,
    gamma_ce: Positive = 0.3,
    smooth: NonNegative = 1.0,
) -> Tensor:
    r"""Powers of the logarithmic Dice loss and of the cross entropy, rare labels weighing more.

    Formula:
        w_D\,\mathrm{mean}_c\,(-\ln D_c)^{\gamma_D}
        + \frac{w_X}{N} \sum_i w_{y_i} (-\ln p_{i,y_i})^{\gamma_X},
        \quad D_c = \frac{2\,TP_c + s}{2\,TP_c + FP_c + FN_c + s},
        \quad w_c = \sqrt{N / N_c}

    Use:
        For labels whose sizes differ by orders of magnitude: the logarithm of each label's Dice and
        a cross entropy weighted by rarity, both raised to a power below 1, which keeps them pulling
        when they are small already. Values are not comparable to other losses, and with so many
        knobs it is a loss to train with rather than to report.

    Args:
        sums: all sums, made with the exponent of the cross entropy.
        weights: taken for the sake of one signature; the paper fixes which labels count.
        dice_weight: weight of the Dice part.
        ce_weight: weight of the cross entropy part.
        gamma_dice: power of each label's -ln D, whose base is at least 1e-7.
        gamma_ce: power of each pixel's -ln p, whose base is at least 1e-7.
        smooth: added to both sides of the Dice fraction, in pixels.

    Returns:
        `[B]`, at least 0. Labels that no valid pixel has leave the Dice mean. Binary: the labels
        are off and on; multilabel: the mean over channels of the binary value.

    Traps:
        - A power below 1 is infinitely steep at a perfect pixel. Here bases stop at 1e-7, so that a
          perfect mask costs about 0.008 to 0.01 with the default powers, and not 0.
        - `ExpLog` of SegLoss is another loss: it takes the logarithm of the mean Dice and leaves
          cross entropy without its power.
        - Label frequencies are those of each sample, where the paper counts its training set; a
          label weighs differently in every crop.
        - Labels that no valid pixel has leave the mean of Dice; their weight is never formed.
        - The smoothing of 1 pixel is the paper's, inside the logarithm.

    Example:
        >>> from lossd.losses.registry import find_loss
        >>> find_loss("exponential_logarithmic").parameters().gamma_dice
        0.3

    References:
        Wong et al., "3D Segmentation with Exponential Logarithmic Loss for Highly Unbalanced
        Object Sizes", 2018, https://arxiv.org/abs/1809.00076
    """
    del weights, gamma_ce  # the kernels have applied the exponent
    overlap = log_dice(sums.region, smooth_nr=smooth, smooth_dr=smooth)
    overlap = overlap[:, None] if sums.task == "multiclass" else _off_and_on(sums, smooth)
    count = sums.pixel.count
    present = count > 0
    powered = torch.where(present, power(overlap.clamp_min(POWER_FLOOR), gamma_dice), 0.0)
    dice_part = ratio(class_sum(powered), class_sum(present.to(powered.dtype)))
    frequency = ratio(class_sum(count), count)
    cross_entropy = class_sum(frequency.sqrt() * sums.pixel.powered_cross_entropy)
    ce_part = ratio(cross_entropy, sums.pixels[:, None, None])
    groups = class_sum((dice_weight * dice_part + ce_weight * ce_part)[..., 0])[:, 0]
    return groups / count.shape[1]


def _off_and_on(sums: Sums, smooth: float) -> Tensor:
    """Logarithmic Dice loss of the labels off and on of every channel, `[B, G, 2]`."""
    off = sums.region.complement()
    rows = [log_dice(one, smooth_nr=smooth, smooth_dr=smooth) for one in (off, sums.region)]
    sums.region.empty.extend(off.empty)
    return torch.stack(rows, dim=-1)
