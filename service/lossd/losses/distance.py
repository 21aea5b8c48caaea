"""Losses that measure how far an error lies from the edge it should be at.

Distances are exact, Euclidean, in units of `spacing` and never differentiated: they are weights.
Maps reach across removed pixels, which leave the means: a prediction is seen whole, and a target
has no class there, whether `mask` or `ignore_index` removed them. A mask that is empty or fills
the image has no edge, and its map is 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from lossd.losses.declare import class_loss, map_loss
from lossd.losses.mask_class import MaskClass
from lossd.losses.mask_sample import MaskSample
from lossd.losses.options import AllClassesOptions, NonNegative, PixelOptions, WeightOptions
from lossd.losses.sums import elementwise, pixel_sum

Power = Annotated[float, Field(ge=0, le=8)]

_ROUNDING = 1e-12
"""Relative difference of two distances below which they are the same."""


@class_loss(family="boundary", options=AllClassesOptions, gives="pixels")
def boundary(one: MaskClass) -> Tensor:
    r"""Boundary loss: probability times the signed distance to the target's edge.

    Formula:
        \frac{1}{N}\sum_i \phi_i\,p_i, \quad
        \phi_i = \begin{cases} -(d_i - 1) & y_i = 1 \\ d_i & y_i = 0 \end{cases}

    Use:
        Beside a region loss, for small or very unbalanced objects: a false positive far outside
        costs more than one at the edge, which Dice and cross entropy cannot tell. Give it a small
        weight that grows in training; alone it is minimised by claiming the inside and little else,
        and with nothing in the target it is silent. To rank masks use `hausdorff_dt`, which is 0
        for a perfect one.

    Args:
        one: a class. Inside of the target d is the distance to the nearest pixel outside,
            outside of it the distance to the nearest pixel inside, in units of `spacing`.

    Returns:
        Terms `[*S]`; the value is negative for a good mask, and its least value is that of
        p = 1 wherever the distance is negative. 0 for a class whose target is empty or full.

    Traps:
        - It is no error measure: a perfect mask has a negative value, which depends on the size
          of the object. Compare values for one target only.
        - Inside it is -(d - 1), so the outermost pixels of the object have distance 0. Codes that
          leave out the 1 leave no pixel at 0. Under `spacing` d is physical and the 1 stays 1, so
          with pixels smaller than 1 the outermost pixels count as outside.
        - A transform of a mask without background is undefined; scipy answers with a ramp of
          meaningless numbers. Empty and full targets have distance 0 everywhere here.
        - The map is the target's alone, so it says nothing about where the prediction is.
        - Many codes leave out the background class. MONAI's boundary loss counts all classes, as
          here unless `include_background` or `classes` says otherwise; only its Hausdorff loss
          leaves the background out by default.

    Example:
        >>> from lossd.core.distance import DistanceMaps
        >>> target = torch.tensor([[0.0, 1.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
        >>> sample = MaskSample(
        ...     task="binary",
        ...     scores=torch.zeros_like(target),
        ...     activated=False,
        ...     target=target,
        ...     valid=torch.ones(5, dtype=torch.bool),
        ...     weight_map=None,
        ...     spacing=(1.0,),
        ...     distances=DistanceMaps(),
        ... )
        >>> boundary(MaskClass(sample, 0))  # distances 1, 0, 0, 1, 2 at p = 0.5
        tensor([0.5000, 0.0000, 0.0000, 0.5000, 1.0000], dtype=torch.float64)

    References:
        Kervadec et al., "Boundary loss for highly unbalanced segmentation", 2018,
        https://arxiv.org/abs/1812.07032
    """
    mask = one.object
    if not _has_edge(mask):
        return one.probability * 0.0
    distance = one.distances.to_edge(mask, one.spacing)
    return one.probability * torch.where(mask, 1.0 - distance, distance)


@class_loss(family="boundary", options=AllClassesOptions, gives="pixels")
def hausdorff_dt(
    one: MaskClass, *, alpha: Power = 2.0, one_sided: bool = False, log: bool = False
) -> Tensor:
    r"""Hausdorff loss by distance transforms: squared error times distance to both edges.

    Formula:
        \frac{1}{N}\sum_i (p_i - y_i)^2 \left(d_i(\hat y)^{\alpha} + d_i(y)^{\alpha}\right),
        \quad d(m) = \mathrm{edt}(m) + \mathrm{edt}(\neg m), \quad \hat y = [p > 0.5]

    Use:
        To find masks with an error far from the edge, such as a stray island or a missing limb:
        a smooth stand-in for the Hausdorff distance, which a single pixel decides. It grows with
        the image size to the power alpha, so weigh it against another loss or take `log`. For thin
        objects, of which a miss is never far from an edge, use `soft_cldice`.

    Args:
        one: a class. Distances are in units of `spacing`.
        alpha: power of the distance; 0 leaves twice the squared error, larger values look at the
            farthest errors only.
        one_sided: true: the distance to the target's edge alone; errors of the prediction far
            from its own edge are then no dearer.
        log: true: ln(1 + L) of each class's mean L, so that large values do not rule an average.

    Returns:
        Terms `[*S]`; the value is at least 0, and 0 at p = y. With `log` a term is the pixel's
        share of the logarithm, so that the mean of terms is the value.

    Traps:
        - Distances are weights: the derivative is that of the squared error alone, though the
          predicted mask, and with it the value, jumps when a pixel crosses 0.5.
        - An empty or full mask has no edge and its distance is 0 everywhere. With an empty target
          and no p above 0.5 the loss is exactly 0, however far p is from 0; add a region loss.
        - The predicted mask is p > 0.5 strictly, per channel, also for several classes. The
          arg max gives other masks where no class reaches a half.
        - MONAI leaves out the background class and knows no spacing. Other codes use the distance
          inside the mask alone, which lets false positives go free.
        - A value of one image size cannot be compared with that of another.

    Example:
        >>> from lossd.core.distance import DistanceMaps
        >>> target = torch.tensor([[0.0, 1.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
        >>> probability = torch.tensor([[0.1, 0.9, 0.4, 0.2, 0.1]], dtype=torch.float64)
        >>> sample = MaskSample(
        ...     task="binary",
        ...     scores=probability.logit(),
        ...     activated=True,
        ...     target=target,
        ...     valid=torch.ones(5, dtype=torch.bool),
        ...     weight_map=None,
        ...     spacing=(1.0,),
        ...     distances=DistanceMaps(),
        ... )
        >>> hausdorff_dt(MaskClass(sample, 0)).mean()
        tensor(0.2180, dtype=torch.float64)

    References:
        Karimi and Salcudean, "Reducing the Hausdorff Distance in Medical Image Segmentation with
        Convolutional Neural Networks", 2019, https://arxiv.org/abs/1904.10030
    """
    distance = torch.zeros_like(one.target)
    if _has_edge(one.object):
        distance += _power(one.distances.to_edge(one.object, one.spacing), alpha)
    if not one_sided and _has_edge(one.predicted):
        distance += _power(one.distances.to_edge(one.predicted, one.spacing), alpha)
    terms = distance * one.error.square()
    return _share_of_logarithm(one, terms) if log else terms


@map_loss(family="boundary", options=PixelOptions)
def distance_map_cross_entropy(sample: MaskSample) -> Iterator[Tensor]:
    r"""Cross entropy that weighs pixels more, the nearer they lie to the target's edge.

    Formula:
        -\frac{1}{N}\sum_i (1 + \phi_i) \ln p_{i,y_i}, \quad
        \phi = \frac{\max d - d}{\max(\max d - d)}

    Use:
        Where the edge of a mask matters more than its bulk and the edge is blurred: errors next to
        it cost up to twice as much, and far from it as much as in cross entropy. It cannot see a
        far island better than cross entropy can; `hausdorff_dt` and `boundary` do the opposite.

    Args:
        sample: one sample; d is the distance to the target's edge, inverted inside and outside of
            it, each side divided by its own largest value.

    Yields:
        Weights `[*S]` of each channel's cross entropy, from 1 to 2.

    Returns:
        Terms `[G, *S]`, in nats; at least the cross entropy and at most twice as much.

    Traps:
        - The map comes from the target alone, not from target and prediction.
        - The reference implementation computes the weighted terms and returns the mean of the
          unweighted ones.
        - A side that is one pixel thick has d = max d everywhere: 0/0 there. Such a side, and an
          empty or full mask, have weight 0, which leaves plain cross entropy.
        - For several classes each pixel's map is that of its own true class against the rest;
          pixels without a class have none. Two classes are then the same as one channel.
        - Soft targets: the object is where the target is above 0.5; with several classes each
          pixel belongs to its largest.
        - `normalize: weights` divides by class weights and weight map; phi is none of those.

    Example:
        >>> from lossd.core.distance import DistanceMaps
        >>> target = torch.tensor([[0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
        >>> sample = MaskSample(
        ...     task="binary",
        ...     scores=torch.zeros_like(target),
        ...     activated=False,
        ...     target=target,
        ...     valid=torch.ones(7, dtype=torch.bool),
        ...     weight_map=None,
        ...     spacing=(1.0,),
        ...     distances=DistanceMaps(),
        ... )
        >>> next(distance_map_cross_entropy(sample))  # the value is ln 2 times 11/7
        tensor([1., 2., 2., 1., 2., 2., 1.], dtype=torch.float64)

    References:
        Caliva et al., "Distance Map Loss Penalty Term for Semantic Segmentation", 2019,
        https://arxiv.org/abs/1908.03679
    """
    if sample.task != "multiclass":
        for channel in range(sample.channels):
            yield 1.0 + _nearness(sample, MaskClass(sample, channel).object)
        return
    labels = sample.labels()
    weights = torch.ones(sample.shape, dtype=torch.float64, device=labels.device)
    for label in range(sample.channels):
        sample.checkpoint()
        mask = labels == label
        if _has_edge(mask):
            weights += _inverted(sample.distances.to_background(mask, sample.spacing))
    yield weights


@map_loss(family="boundary", options=WeightOptions)
def shape_aware(sample: MaskSample, *, weight: NonNegative = 1.0) -> Iterator[Tensor]:
    r"""Cross entropy, raised at wrong pixels by how far the contours of both masks lie apart.

    Formula:
        -\frac{1}{N}\sum_i \left(1 + w\,E\,[\hat y_i \ne y_i]\right) \ln p_{i,y_i}, \quad
        E = \frac{1}{|\hat C|} \sum_{x \in \hat C} \min_{x' \in C} \lVert x - x' \rVert

    Use:
        For objects of one known shape, such as a vertebra: wrong pixels become dearer, the farther
        the whole predicted outline has drifted. All wrong pixels of a mask share one factor, so it
        tells good masks from bad ones rather than good pixels from bad ones. Many small objects in
        one mask blur E; `distance_map_cross_entropy` weighs pixel by pixel.

    Args:
        sample: one sample. E is in units of `spacing`.
        weight: factor of the second term; 0 is cross entropy.

    Yields:
        Weights `[*S]` of each channel's cross entropy, at least 1.

    Returns:
        Terms `[G, *S]`, in nats; at least the cross entropy, and equal to it where both contours
        are the same or one of them is empty.

    Traps:
        - The paper prints both terms with a minus; that is right for y ln p, and wrong for cross
          entropy, whose sign is turned already.
        - No definition of E is common. Here the contour is the mask without its erosion by direct
          neighbours, and the image's border does not erode: a straight edge from border to border
          that is off by k pixels has E = k, and a mask that fills the image has no contour.
        - E is the mean over the predicted contour of the distance to the true one, not the other
          way round: an object that is missed altogether, with the rest right, adds little.
        - E is a weight: it has no derivative, and it jumps when a pixel crosses 0.5.
        - Several classes: the predicted mask is the arg max, E is that of the pixel's true class.
          As the contour is the inner one, two classes are not quite the same as one channel.

    Example:
        >>> from lossd.core.distance import DistanceMaps
        >>> target = torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
        >>> probability = torch.tensor([[0.9, 0.9, 0.9, 0.9, 0.1]], dtype=torch.float64)
        >>> sample = MaskSample(
        ...     task="binary",
        ...     scores=probability.logit(),
        ...     activated=True,
        ...     target=target,
        ...     valid=torch.ones(5, dtype=torch.bool),
        ...     weight_map=None,
        ...     spacing=(1.0,),
        ...     distances=DistanceMaps(),
        ... )
        >>> next(shape_aware(sample))  # the contours lie 2 pixels apart
        tensor([1., 1., 3., 3., 1.], dtype=torch.float64)

    References:
        Al Arif et al., "Shape-Aware Deep Convolutional Neural Network for Vertebrae Segmentation",
        2017, https://doi.org/10.1007/978-3-319-74113-0_2
    """
    if sample.task != "multiclass":
        for channel in range(sample.channels):
            one = MaskClass(sample, channel)
            apart = _contour_distance(sample, one.predicted, one.object)
            yield 1.0 + weight * apart * (one.predicted != one.object).double()
        return
    labels, predicted = sample.labels(), sample.predicted_labels()
    weights = torch.ones(sample.shape, dtype=torch.float64, device=labels.device)
    for label in range(sample.channels):
        sample.checkpoint()
        apart = _contour_distance(sample, predicted == label, labels == label)
        wrong = (labels == label) & (predicted != label)
        weights += weight * apart * wrong.double()
    yield weights


def _has_edge(mask: Tensor) -> bool:
    return bool(mask.any()) and not bool(mask.all())


def _power(distance: Tensor, exponent: float) -> Tensor:
    return elementwise(lambda some: some**exponent, distance)


def _nearness(sample: MaskSample, mask: Tensor) -> Tensor:
    """1 next to the mask's edge, falling to 0 at the pixels farthest from it, on either side."""
    if not _has_edge(mask):
        return torch.zeros_like(mask, dtype=torch.float64)
    distance = sample.distances.to_edge(mask, sample.spacing)
    return _inverted(torch.where(mask, distance, 0.0)) + _inverted(torch.where(mask, 0.0, distance))


def _inverted(depth: Tensor) -> Tensor:
    """1 where a depth is least, falling to 0 where it is largest; 0 where there is none."""
    deepest = depth.max()
    inverted = torch.where(depth > 0, deepest - depth, 0.0)
    # Equal distances along two axes may differ in the last bit, which is no depth.
    if bool(inverted.max() <= _ROUNDING * deepest):
        return torch.zeros_like(depth)
    return inverted / inverted.max()


def _contour_distance(sample: MaskSample, predicted: Tensor, true: Tensor) -> float:
    """Mean distance of the predicted contour to the true one; 0 if either is empty."""
    contour, goal = _contour(predicted), _contour(true)
    if not bool(contour.any()) or not bool(goal.any()):
        return 0.0
    return float(sample.distances.to_background(~goal, sample.spacing)[contour].mean())


def _contour(mask: Tensor) -> Tensor:
    """Pixels of the mask that have a direct neighbour outside of it."""
    inner = mask.clone()
    for axis, length in enumerate(mask.shape):
        inner.narrow(axis, 0, length - 1).logical_and_(mask.narrow(axis, 1, length - 1))
        inner.narrow(axis, 1, length - 1).logical_and_(mask.narrow(axis, 0, length - 1))
    return mask & ~inner


def _share_of_logarithm(one: MaskClass, terms: Tensor) -> Tensor:
    """Terms whose mean over valid pixels is ln(1 + L), L being that of the given ones."""
    mean = pixel_sum(one.within(terms)) / one.pixels
    silent = mean == 0
    some = torch.where(silent, 1.0, mean)
    return terms * torch.where(silent, 1.0, some.log1p() / some)
