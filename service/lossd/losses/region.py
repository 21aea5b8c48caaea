"""Losses over regions: functions of the sums of true and false, positive and negative.

Numerators are written with the errors, not as `1 - overlap`, so that a mask which is right to the
ninth digit gets a loss with digits of its own.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lossd.core.vocabulary import POWER_FLOOR
from lossd.losses.declare import pooled_loss, region_loss
from lossd.losses.options import Fraction, NonNegative, OverlapOptions
from lossd.losses.sums import RegionSums, Sums, class_sum, power

_HALF = 0.5


@region_loss()
def dice(
    sums: RegionSums, *, smooth_nr: NonNegative = 1e-5, smooth_dr: NonNegative = 1e-5
) -> Tensor:
    r"""Soft Dice loss: one minus twice the overlap over the sum of both areas.

    Formula:
        1 - \frac{2\,TP + s_{nr}}{2\,TP + FP + FN + s_{dr}}

    Use:
        The usual loss of masks whose object is small: pixels on which both agree to be background
        do not count, so that area does not dilute an error. It is the soft form of the overlap
        score by which masks are reported, and moves all pixels of a class together. Add cross
        entropy (`dice_ce`) where probabilities are to mean something, and prefer another loss where
        most samples lack the class.

    Args:
        sums: sums per class, `[B, C]`, over soft probabilities `p` and targets `y`.
        smooth_nr: added to the numerator, in pixels; above 0, empty against empty costs 0.
        smooth_dr: added to the denominator, in pixels.

    Returns:
        `[B, C]`, in [0, 1] for equal smoothing; 0 is a perfect mask. 0 where nothing is there to
        divide by.

    Traps:
        - Smoothing has no canonical value: MONAI adds 1e-5 above and below, mmsegmentation 1,
          kornia 1e-8 below only, segmentation_models_pytorch nothing but a floor. nnU-Net's classes
          have 1 by default, its trainer gives them 1e-5. On objects of a few pixels that decides
          the value; here both are parameters, in pixels.
        - Smoothing inside the factor 2, `2 (overlap + 1) / (areas + 1)`, makes perfect masks
          negative, and an empty mask that is rightly empty -1.
        - A class that the target lacks costs almost 1 for the slightest prediction, with next to no
          gradient. MONAI counts it, segmentation_models_pytorch sets it to 0 and still divides by
          it (`present_of_all` here). Multiclass leaves it out by default; where no class is present
          all of them count, with a warning.
        - Every sample has a value of its own. Libraries that add up the batch first
          (segmentation_models_pytorch, an option of nnU-Net) give other numbers; `aggregate: batch`
          asks for that.
        - A soft target is not matched best by itself: at p = y = 0.5 the loss is 0.5. `soft_label`
          or `dice_squared` mend that.
        - `average: micro` over all classes of a softmax is one minus the mean probability of the
          labelled class, which knows no regions any more.
        - The gradient of the coefficient, which several texts print, has the opposite sign; and the
          sums in it run over the region, so background pixels do have a gradient.

    Example:
        >>> import torch
        >>> from lossd.losses.sums import region_sums
        >>> # p = 0.8, 0.4, 0.3, 0.1 where y = 1, 1, 0, 0; the sums in the vocabulary's order
        >>> of_class = torch.tensor([2.0, 0.8, 0.4, 0.4, 0.1, 2.0]).view(1, 6, 1)
        >>> dice(region_sums(of_class, torch.tensor([4.0])))
        tensor([[0.3333]])

    References:
        Drozdzal et al., "The Importance of Skip Connections in Biomedical Image Segmentation",
        2016, https://arxiv.org/abs/1608.04117
    """
    errors = sums.false_positive + sums.false_negative
    both = 2.0 * sums.true_positive + errors + smooth_dr
    return sums.ratio(errors + (smooth_dr - smooth_nr), both)


@region_loss(aliases=("iou",))
def jaccard(
    sums: RegionSums, *, smooth_nr: NonNegative = 1e-5, smooth_dr: NonNegative = 1e-5
) -> Tensor:
    r"""Soft Jaccard loss: one minus intersection over union.

    Formula:
        1 - \frac{TP + s_{nr}}{TP + FP + FN + s_{dr}}

    Use:
        For masks that are judged by intersection over union, of which this is the soft form. It
        ranks masks as Dice does and charges poor overlap more: a Dice loss of 1/3 is a Jaccard loss
        of 1/2. Boxes have `iou_box`, and `lovasz_softmax` follows the intersection over union of
        hard masks more closely.

    Args:
        sums: sums per class, `[B, C]`.
        smooth_nr: added to the intersection, in pixels.
        smooth_dr: added to the union, in pixels.

    Returns:
        `[B, C]`, in [0, 1] for equal smoothing; never below the Dice loss of the same mask.

    Traps:
        - It is not Dice with another denominator: the factor 2 of the numerator goes as well.
        - J = D / (2 - D) converts scores. Losses convert by L_J = 2 L_D / (1 + L_D); putting losses
          into the formula of the scores is wrong.
        - MONAI's `jaccard=True` is (2 TP + s) / (2 union + s): its smoothing s is s/2 here.
          `log_loss` of segmentation_models_pytorch is -ln J instead.
        - A perfect overlap costs 0 and no overlap costs 1; only the logarithmic form is unbounded.
        - A class absent from target and prediction costs 0 for equal smoothing above 0; without
          smoothing 0/0 is answered with value 0, gradient 0 and a warning.

    Example:
        >>> import torch
        >>> from lossd.losses.sums import region_sums
        >>> # p = 0.8, 0.4, 0.3, 0.1 where y = 1, 1, 0, 0; the sums in the vocabulary's order
        >>> of_class = torch.tensor([2.0, 0.8, 0.4, 0.4, 0.1, 2.0]).view(1, 6, 1)
        >>> jaccard(region_sums(of_class, torch.tensor([4.0])))
        tensor([[0.5000]])

    References:
        Rahman and Wang, "Optimizing Intersection-Over-Union in Deep Neural Networks for Image
        Segmentation", 2016, https://doi.org/10.1007/978-3-319-50835-1_22
    """
    errors = sums.false_positive + sums.false_negative
    union = sums.true_positive + errors + smooth_dr
    return sums.ratio(errors + (smooth_dr - smooth_nr), union)


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

    Use:
        For masks in which a miss and a false alarm have different prices, such as small lesions.
        The defaults charge misses more. With weights that add up to 1 it is one minus the F score
        of b = sqrt(fn_weight / fp_weight). With 0.5 for both it is `dice`, with 1 for both
        `jaccard`.

    Args:
        sums: sums per class, `[B, C]`.
        fp_weight: price of a false positive pixel (the paper's alpha).
        fn_weight: price of a false negative pixel (the paper's beta).
        smooth_nr: added to the numerator, in pixels.
        smooth_dr: added to the denominator, in pixels.

    Returns:
        `[B, C]`, in [0, 1] for equal smoothing. (0.5, 0.5) is Dice, (1, 1) is Jaccard.

    Traps:
        - Which weight belongs to which error is the most common mistake around this loss: the
          paper's alpha charges false positives and its beta false negatives, several well-known
          implementations and texts have it the other way round. Here the names say it.
        - Defaults differ: MONAI and segmentation_models_pytorch take 0.5 and 0.5, which is Dice;
          mmsegmentation 0.3 and 0.7, as here.
        - With `average: micro` over all classes of a softmax every false positive is another
          class's false negative, so that only the sum of the weights matters. kornia gave that for
          all weights before 0.9.
        - An absent class costs almost 1 for the slightest prediction, as with Dice; multiclass
          leaves it out by default.

    Example:
        >>> import torch
        >>> from lossd.losses.sums import region_sums
        >>> # p = 0.8, 0.4, 0.3, 0.1 where y = 1, 1, 0, 0; the sums in the vocabulary's order
        >>> of_class = torch.tensor([2.0, 0.8, 0.4, 0.4, 0.1, 2.0]).view(1, 6, 1)
        >>> tversky(region_sums(of_class, torch.tensor([4.0])))
        tensor([[0.3617]])

    References:
        Salehi et al., "Tversky loss function for image segmentation using 3D fully convolutional
        deep networks", 2017, https://arxiv.org/abs/1706.05721
    """
    errors = fp_weight * sums.false_positive + fn_weight * sums.false_negative
    return sums.ratio(errors + (smooth_dr - smooth_nr), sums.true_positive + errors + smooth_dr)


@region_loss(overlap="product")
def dice_squared(
    sums: RegionSums, *, smooth_nr: NonNegative = 1e-5, smooth_dr: NonNegative = 1e-5
) -> Tensor:
    r"""Dice loss with squared sums, as in V-Net.

    Formula:
        1 - \frac{2\sum p\,y + s_{nr}}{\sum p^2 + \sum y^2 + s_{dr}}

    Use:
        For soft targets, such as means of several annotators: unlike Dice it is smallest at p = y.
        Also for comparison with V-Net and with libraries whose Dice is this one. Half-hearted false
        alarms cost little, since a small probability counts squared; where these should cost, use
        `dice`.

    Args:
        sums: sums per class, `[B, C]`.
        smooth_nr: added to the numerator, in pixels.
        smooth_dr: added to the denominator, in pixels.

    Returns:
        `[B, C]`, in [0, 1] for equal smoothing; unlike Dice, 0 at p = y for soft targets too.

    Traps:
        - mmsegmentation and NiftyNet call this one Dice, MONAI needs `squared_pred=True`: numbers
          called Dice from two libraries need not be the same loss.
        - For hard predictions of hard targets it equals `dice`; what differs is what doubt costs.
        - `soft_label` changes nothing here: the overlap is the sum of p·y, which already suits soft
          targets.
        - Its gradient vanishes at pixels that are almost right on either side, so the last doubts
          linger longer than under Dice.

    Example:
        >>> import torch
        >>> from lossd.losses.sums import region_sums
        >>> # p = 0.8, 0.4, 0.3, 0.1 where y = 1, 1, 0, 0; the sums in the vocabulary's order
        >>> of_class = torch.tensor([2.0, 0.8, 0.4, 0.4, 0.1, 2.0]).view(1, 6, 1)
        >>> dice_squared(region_sums(of_class, torch.tensor([4.0])))
        tensor([[0.1724]])

    References:
        Milletari et al., "V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image
        Segmentation", 2016, https://arxiv.org/abs/1606.04797
    """
    squared_error = sums.squared_error_inside + sums.squared_error_outside
    squares = squared_error + 2.0 * sums.true_positive  # = sum of p^2 + sum of y^2
    return sums.ratio(squared_error + (smooth_dr - smooth_nr), squares + smooth_dr)


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
        \mathrm{Tversky}_c^{\,\mathrm{exponent}}

    Use:
        A Tversky loss whose slope depends on how good the class is already. An exponent below 1
        keeps pulling at classes that are nearly right, above 1 it turns them down in favour of the
        bad ones, as the focal loss does with pixels. With exponent 1 it is `tversky`, which is
        easier to reason about.

    Args:
        sums: sums per class, `[B, C]`.
        fp_weight: price of a false positive pixel.
        fn_weight: price of a false negative pixel.
        exponent: power of each class's loss, before the average (the paper's 1/gamma = 3/4).
        smooth_nr: added to the numerator, in pixels.
        smooth_dr: added to the denominator, in pixels.

    Returns:
        `[B, C]`, in [0, 1] for equal smoothing. Below a loss of 1e-7 the power stays that of 1e-7.

    Traps:
        - The paper raises to 1/gamma with gamma = 4/3, others to gamma between 1 and 3, which does
          the opposite. `exponent` is what the loss is raised to.
        - The paper puts its alpha = 0.7 on false negatives, the reverse of the Tversky paper's
          letters; both mean the defaults here.
        - The power is taken of each class before the average. segmentation_models_pytorch takes it
          of the average, and its gradient is NaN for an absent class.
        - Below 1 the power is infinitely steep at 0. Here the base stops at 1e-7 with gradient 0
          below, so a perfect mask costs 1e-7 to that power, 5.6e-6 by default.

    Example:
        >>> import torch
        >>> from lossd.losses.sums import region_sums
        >>> # p = 0.8, 0.4, 0.3, 0.1 where y = 1, 1, 0, 0; the sums in the vocabulary's order
        >>> of_class = torch.tensor([2.0, 0.8, 0.4, 0.4, 0.1, 2.0]).view(1, 6, 1)
        >>> focal_tversky(region_sums(of_class, torch.tensor([4.0])))
        tensor([[0.4664]])

    References:
        Abraham and Khan, "A Novel Focal Tversky loss function with improved Attention U-Net for
        lesion segmentation", 2018, https://arxiv.org/abs/1810.07842
    """
    loss = tversky(
        sums, fp_weight=fp_weight, fn_weight=fn_weight, smooth_nr=smooth_nr, smooth_dr=smooth_dr
    )
    return power(loss.clamp_min(POWER_FLOOR), exponent)


@region_loss()
def log_dice(
    sums: RegionSums, *, smooth_nr: NonNegative = 1e-5, smooth_dr: NonNegative = 1e-5
) -> Tensor:
    r"""Negative logarithm of the soft Dice coefficient of each class.

    Formula:
        -\ln\frac{2\,TP + s_{nr}}{2\,TP + FP + FN + s_{dr}}

    Use:
        A Dice loss that grows steeper the less overlap there is, where Dice itself is flat: the
        gradient is that of Dice divided by the coefficient. It adds up well with cross entropy,
        both being logarithms. As a figure to report it misleads, since one lost class outweighs all
        others.

    Args:
        sums: sums per class, `[B, C]`.
        smooth_nr: added to the numerator, in pixels.
        smooth_dr: added to the denominator, in pixels.

    Returns:
        `[B, C]`, at least 0 for equal smoothing, at most -ln 1e-7 = 16.1.

    Traps:
        - Without a floor no overlap costs infinity. Here the coefficient stops at 1e-7, so the
          value is at most 16.1, and the gradient below the floor is 0.
        - It is the mean of the classes' logarithms. The logarithm of their mean, as in SegLoss, is
          another number.
        - Smoothing keeps the coefficient away from 0: with 1 on both sides, ten missed pixels cost
          no more than ln 11 = 2.4.

    Example:
        >>> import torch
        >>> from lossd.losses.sums import region_sums
        >>> # p = 0.8, 0.4, 0.3, 0.1 where y = 1, 1, 0, 0; the sums in the vocabulary's order
        >>> of_class = torch.tensor([2.0, 0.8, 0.4, 0.4, 0.1, 2.0]).view(1, 6, 1)
        >>> log_dice(region_sums(of_class, torch.tensor([4.0])))
        tensor([[0.4055]])

    References:
        Wong et al., "3D Segmentation with Exponential Logarithmic Loss for Highly Unbalanced
        Object Sizes", 2018, https://arxiv.org/abs/1809.00076
    """
    loss = dice(sums, smooth_nr=smooth_nr, smooth_dr=smooth_dr)
    overlap = 2.0 * sums.true_positive
    areas = overlap + sums.false_positive + sums.false_negative
    coefficient = sums.ratio(overlap + smooth_nr, areas + smooth_dr)
    # Each form where it keeps its digits: next to 1 the loss, elsewhere the coefficient.
    good = loss < _HALF
    return torch.where(
        good,
        -torch.log1p(-torch.where(good, loss, 0.0)),
        -torch.log(torch.where(good, 1.0, coefficient).clamp_min(POWER_FLOOR)),
    )


@region_loss()
def log_cosh_dice(
    sums: RegionSums, *, smooth_nr: NonNegative = 1e-5, smooth_dr: NonNegative = 1e-5
) -> Tensor:
    r"""Logarithm of the hyperbolic cosine of the Dice loss of each class.

    Formula:
        \ln\cosh(\mathrm{Dice}_c)

    Use:
        A Dice loss that is rounded at the bottom: about half its square for good masks, a straight
        line for poor ones. For training that jitters near the optimum. It tells good masks apart
        badly, so rank and report with `dice`.

    Args:
        sums: sums per class, `[B, C]`.
        smooth_nr: added to the numerator of the Dice coefficient, in pixels.
        smooth_dr: added to its denominator, in pixels.

    Returns:
        `[B, C]`, in [0, 0.433781] for equal smoothing; its slope vanishes near the optimum.

    Traps:
        - The whole range is 0 to ln cosh 1 = 0.4338. Beside other losses it weighs less than Dice
          with the same factor.
        - The slope is tanh of the Dice loss, smaller than that of Dice everywhere and next to 0 for
          good masks.
        - `log((exp(x) + exp(-x)) / 2)` loses the digits of small x; here they are kept.
        - The logarithm is taken of each class before the average, as all outer functions are here.

    Example:
        >>> import torch
        >>> from lossd.losses.sums import region_sums
        >>> # p = 0.8, 0.4, 0.3, 0.1 where y = 1, 1, 0, 0; the sums in the vocabulary's order
        >>> of_class = torch.tensor([2.0, 0.8, 0.4, 0.4, 0.1, 2.0]).view(1, 6, 1)
        >>> log_cosh_dice(region_sums(of_class, torch.tensor([4.0])))
        tensor([[0.0546]])

    References:
        Jadon, "A survey of loss functions for semantic segmentation", 2020,
        https://arxiv.org/abs/2006.14822
    """
    loss = dice(sums, smooth_nr=smooth_nr, smooth_dr=smooth_dr)
    grown = torch.expm1(0.5 * loss)
    twice_sinh = grown + grown / (1.0 + grown)
    return torch.log1p(
        0.5 * twice_sinh * twice_sinh
    )  # ln cosh x = ln(1 + 2 sinh²(x/2)): digits of small x


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

    Use:
        For objects so small that a mean over pixels forgets them: the squared errors inside and
        outside of the target are means of their own, and one number weighs them. Made for lesions
        of a few voxels. Where classes may be absent or fill the image, one of the two means is
        missing, and Tversky is the safer choice.

    Args:
        sums: sums per class, `[B, C]`.
        sensitivity_weight: weight r of the error inside.
        smooth_nr: added to both numerators, in pixels.
        smooth_dr: added to both denominators, in pixels.

    Returns:
        `[B, C]`, in [0, 1]; a term whose denominator is 0 is 0.

    Traps:
        - A weighted sum of sensitivity and specificity, as some surveys print it, is a score to be
          maximised. This is the paper's loss, with squared errors.
        - Specificity is the share of the background that was left alone. It is not precision,
          though it is sometimes translated so.
        - The default 0.05 does not neglect the object: the error outside is divided by a far larger
          area, so a false alarm pixel weighs little too. SegLoss takes 0.1, and NiftyNet sums over
          the classes where this takes their mean.
        - Smoothing stands above and below, so a perfect mask costs a trace, smooth_nr over the
          area, not exactly 0.
        - Without target pixels the mean inside is 0, without background pixels that outside.

    Example:
        >>> import torch
        >>> from lossd.losses.sums import region_sums
        >>> # p = 0.8, 0.4, 0.3, 0.1 where y = 1, 1, 0, 0; the sums in the vocabulary's order
        >>> of_class = torch.tensor([2.0, 0.8, 0.4, 0.4, 0.1, 2.0]).view(1, 6, 1)
        >>> sensitivity_specificity(region_sums(of_class, torch.tensor([4.0])))
        tensor([[0.0575]])

    References:
        Brosch et al., "Deep Convolutional Encoder Networks for Multiple Sclerosis Lesion
        Segmentation", 2015, https://doi.org/10.1007/978-3-319-24574-4_1
    """
    inside = sums.ratio(sums.squared_error_inside + smooth_nr, sums.target + smooth_dr)
    elsewhere = sums.pixels - sums.target
    outside = sums.ratio(sums.squared_error_outside + smooth_nr, elsewhere + smooth_dr)
    nothing_inside, nothing_outside = sums.target == 0, elsewhere == 0
    sums.note_empty(nothing_inside | nothing_outside)
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

    Use:
        A correlation of the two masks that knows all four counts and treats object and background
        alike. For classes where calling everything an object should not look good, as it can with
        Dice. Not for samples that may hold one label only, where a correlation is undefined.

    Args:
        sums: sums per class, `[B, C]`.
        smooth_nr: taken for the sake of one signature; the coefficient has no smoothing.
        smooth_dr: likewise.

    Returns:
        `[B, C]`, in [0, 2]; 1 is no better than chance. Where the denominator is 0, the
        coefficient is 1 without errors and 0 with.

    Traps:
        - It runs from 0 to 2: 1 is no better than chance, 2 the exact opposite.
        - It is undefined where target or prediction holds one label only. Here the coefficient is
          then 1 without errors and 0 with any, and the gradient is 0. Probabilities are hardly ever
          right to the last digit, so an empty target costs 1 however little is predicted.
        - segmentation_models_pytorch takes probabilities, gives NaN for logits, adds 1e-5 to each
          count and pools the batch.
        - The smoothing parameters are accepted and change nothing; the coefficient has none.

    Example:
        >>> import torch
        >>> from lossd.losses.sums import region_sums
        >>> # p = 0.8, 0.4, 0.3, 0.1 where y = 1, 1, 0, 0; the sums in the vocabulary's order
        >>> of_class = torch.tensor([2.0, 0.8, 0.4, 0.4, 0.1, 2.0]).view(1, 6, 1)
        >>> matthews(region_sums(of_class, torch.tensor([4.0])))
        tensor([[0.5918]])

    References:
        Abhishek and Hamarneh, "Matthews Correlation Coefficient Loss for Deep Convolutional
        Networks: Application to Skin Lesion Segmentation", 2020, https://arxiv.org/abs/2010.13454
    """
    del smooth_nr, smooth_dr
    positive, negative = sums.true_positive, sums.true_negative
    extra, missed = sums.false_positive, sums.false_negative
    product = (positive + extra) * (positive + missed) * (negative + extra) * (negative + missed)
    degenerate = product <= 0
    sums.note_empty(degenerate)
    root = torch.where(degenerate, 1.0, product).sqrt()
    coefficient = (positive * negative - extra * missed) / root
    faultless = ((extra == 0) & (missed == 0)).to(product.dtype)
    return 1.0 - torch.where(degenerate, faultless, coefficient)


@pooled_loss(options=OverlapOptions)
def generalized_dice(
    sums: Sums,
    weights: Tensor,
    *,
    weighting: Literal["square", "simple", "uniform"] = "square",
    smoothing: Literal["scaled", "unscaled"] = "scaled",
    smooth_nr: NonNegative = 1e-5,
    smooth_dr: NonNegative = 1e-5,
) -> Tensor:
    r"""Dice loss of all classes at once, small classes weighing as much as large ones.

    Formula:
        1 - \frac{2\sum_c w_c\,TP_c + s_{nr}}{\sum_c w_c\,(2\,TP_c + FP_c + FN_c) + s_{dr}},
        \quad w_c = 1/Y_c^2

    Use:
        One Dice loss of all classes in which small classes weigh as much as large ones, so that a
        lesion is not drowned by an organ. For tasks whose classes differ in size by orders of
        magnitude and are mostly there. With equal sizes it says what micro Dice says.

    Args:
        sums: all sums.
        weights: weight of each class, `[B, C]`, 0 where it does not count.
        weighting: 1/Y², 1/Y or 1 for a class of Y pixels; a class that counts but is absent gets
            the largest weight of its sample.
        smoothing: `scaled` divides the weights by the sample's largest before smoothing enters;
            `unscaled` adds it beside the weights as they are, which is MONAI's.
        smooth_nr: added to the numerator; scaled, in pixels of the smallest class.
        smooth_dr: added to the denominator, in the same unit.

    Returns:
        `[B]`, in [0, 1] for equal smoothing. Where no class is present, `scaled` weighs all that
        count with 1. `unscaled` has no weight of 1/Y² or 1/Y to give there and leaves the smoothing
        alone: 0 for equal smoothing, gradient 0, with a warning.

    Traps:
        - An absent class would weigh infinitely much. Adding 1e-6 or 1e-10 to its squared area, as
          known implementations do, lets it decide the whole value. Here absent classes do not count
          by default; asked for with `all`, one takes the largest weight of its sample.
        - The sums over classes are taken before dividing, and areas belong to one class: a
          much-copied Keras version sums over the class axis as well, by which the weights cancel
          and micro Dice is left.
        - Inverse squared areas of volumes are far smaller than any smoothing: beside weights as
          they are, as in MONAI, 1e-5 takes a third off the loss of a single class of 100 000
          pixels. Here the smallest class has weight 1 by default, and smoothing means pixels of
          that class; `smoothing: unscaled` gives MONAI's number. Without smoothing both are the
          same where a class is present.
        - Unscaled, with weights of 1/Y² or 1/Y, a false alarm is free in a sample that lacks every
          class. Scaled, it costs almost 1.
        - The loss is by Sudre et al.; Crum et al. (2006), often cited for it, describe the metric.
        - The weights come from the target alone and are constants of the gradient.

    Example:
        >>> from lossd.losses.registry import find_loss
        >>> find_loss("generalized_dice").parameters().weighting
        'square'

    References:
        Sudre et al., "Generalised Dice overlap as a deep learning loss function for highly
        unbalanced segmentations", 2017, https://arxiv.org/abs/1707.03237
    """
    region = sums.region
    volume = region.target.detach()
    exponent = {"square": 2.0, "simple": 1.0, "uniform": 0.0}[weighting]
    present = (volume > 0) & (weights > 0)
    smallest = torch.where(present, volume, torch.inf).amin(-1, keepdim=True)
    # (smallest / volume) ** exponent is the weight divided by the sample's largest.
    relative = torch.where(present, (smallest / torch.where(present, volume, 1.0)) ** exponent, 1.0)
    unit = torch.ones_like(smallest[:, 0])
    if smoothing == "unscaled" and exponent > 0:
        nowhere = ~present.any(-1)
        region.note_empty(nowhere)
        relative = torch.where(nowhere[:, None], 0.0, relative)
        # Divided by the largest weight, as the weights are.
        unit = torch.where(nowhere, 1.0, smallest[:, 0] ** exponent)
    scaled = weights * relative
    errors = class_sum(scaled * (region.false_positive + region.false_negative))[:, 0]
    overlap = class_sum(scaled * 2.0 * region.true_positive)[:, 0]
    above, below = (smooth_dr - smooth_nr) * unit, smooth_dr * unit
    return region.ratio(errors + above, overlap + errors + below)
