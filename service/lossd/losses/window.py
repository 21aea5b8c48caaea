"""Losses that look at a pixel's neighbours: repeated erosion, local statistics, skeletons.

Windows reach across removed pixels, which leave the means alone: prediction and target are seen
whole, and a pixel with an ignored label has no class. Each class, and in it each iteration, is
computed again for its derivative, so that the intermediate results of one iteration are held at a
time and many classes, pixels or iterations do not exhaust the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any, Self

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from lossd.losses.declare import class_loss
from lossd.losses.mask_sample import MaskSample
from lossd.losses.options import (
    AllClassesOptions,
    ClassOptions,
    Fraction,
    NonNegative,
    Positive,
    Problem,
)
from lossd.losses.sums import Task, ratio

Iterations = Annotated[int, Field(ge=1, le=64)]
Power = Annotated[float, Field(ge=0, le=8)]
Width = Annotated[int, Field(ge=1, le=63)]

_SOFT_THRESHOLD = 0.5
_CONSTANT_RANGE = 1e-9
"""Largest range of an eroded map that is rounding and not a map."""
_CONTRAST_FLOOR = 0.01
"""Added to local deviations; the C4 of the paper."""
_DIFFERENCE_FLOOR = 1e-4
"""Least value that the largest structural difference is taken for."""
_SAME_STRUCTURE = 1e-12
"""Structural difference that is rounding, which counts as none whatever the share."""
_CONSTANT_VARIANCE = 1e-24
"""Largest variance of a window that is rounding."""
_NOTHING = 1e-15
"""Largest size of a skeleton, in pixels, and largest overlap, as a share, that is none."""


@class_loss(family="window", options=AllClassesOptions, gives="pixels")
def hausdorff_erosion(
    sample: MaskSample, *, alpha: Power = 2.0, iterations: Iterations = 10
) -> Tensor:
    r"""Hausdorff loss by repeated erosion of the squared error: thick errors cost more.

    Formula:
        \frac{1}{N}\sum_i \sum_{k=1}^{K} k^{\alpha}\, e_k(i), \quad e_0 = (p - y)^2, \quad
        e_k = \mathrm{rescale}\left(\max\left(B * e_{k-1} - \tfrac12, 0\right)\right)

    Use:
        Like `hausdorff_dt`, where errors should count by how thick they are and the derivative
        should see more than the squared error: here all of it is differentiable. It needs no
        distance transform, but is the rougher measure: single pixels and errors well below 1 are
        gone with the first erosion, so add a region loss that sees them.

    Args:
        sample: one sample.
        alpha: power of the erosion's number, by which errors that survive long weigh more.
        iterations: number K of erosions; errors that are thicker than those reach weigh no more.

    Returns:
        Terms `[C, *S]`; the value is at least 0, and 0 at p = y and wherever no error survives the
        first erosion.

    Traps:
        - Every eroded map is rescaled to [0, 1] over the whole image, so the largest surviving
          error always counts fully, however faint it was, and the value jumps where it vanishes.
          Tolerances in a comparison have to be wide: rescaling multiplies rounding.
        - B is a cross, weights 1/5 in two dimensions, 1/7 in three and 1/3 in one, so a line one
          pixel thick survives in two dimensions (3/5) and not in three (3/7). The border erodes,
          as nothing lies beyond it.
        - A constant map has no range to rescale by and stays as it is, as in kornia; the range
          counts as none below 1e-9.
        - kornia takes probabilities and averages over the stacked classes too, which is what the
          mean over classes does here.
        - Spacing is not looked at: the unit is an erosion.

    Example:
        >>> from lossd.core.distance import DistanceMaps
        >>> target = torch.zeros(1, 5, dtype=torch.float64)
        >>> sample = MaskSample(
        ...     task="binary",
        ...     scores=torch.tensor([[-50.0, 50.0, 50.0, 50.0, -50.0]], dtype=torch.float64),
        ...     activated=False,
        ...     target=target,
        ...     valid=torch.ones(5, dtype=torch.bool),
        ...     weight_map=None,
        ...     spacing=(1.0,),
        ...     distances=DistanceMaps(),
        ... )
        >>> hausdorff_erosion(sample, iterations=1)  # three thick: the middle survives
        tensor([[0.0000, 0.3333, 1.0000, 0.3333, 0.0000]], dtype=torch.float64)

    References:
        Karimi and Salcudean, "Reducing the Hausdorff Distance in Medical Image Segmentation with
        Convolutional Neural Networks", 2019, https://arxiv.org/abs/1904.10030
    """

    def eroded(probability: Tensor, target: Tensor) -> Tensor:
        error = (probability - target) ** 2
        total = torch.zeros_like(error)
        for number in range(1, iterations + 1):
            error = _recomputed(_eroded, error)
            total = total + error * float(number) ** alpha
        return total

    return _by_class(eroded, sample.probability, sample.target)


def _window_problems(options: Any, task: Task, channels: int) -> Iterator[Problem]:
    del task, channels
    if options.window % 2 == 0:
        yield "window", f"must be odd, so that it has a middle, got {options.window}"


@class_loss(family="window", aliases=("cmssl",), options=ClassOptions, check=_window_problems)
def structural_similarity(
    sample: MaskSample,
    *,
    beta: Fraction = 0.1,
    weight: Fraction = 0.5,
    window: Width = 3,
    sigma: Positive = 1.5,
) -> Tensor:
    r"""Cross entropy, with more of it where the local structure of both masks differs.

    Formula:
        \frac{\lambda}{N}\sum_i \mathrm{BCE}_i + \frac{1-\lambda}{M}\sum_i e_i f_i\,\mathrm{BCE}_i,
        \quad e = \left|\frac{y - \mu_y + C}{\sigma_y + C}
        - \frac{p - \mu_p + C}{\sigma_p + C}\right|,
        \quad f_i = [e_i > \beta\,e_{max}], \quad M = \sum_i f_i

    Use:
        Where edges and fine structure have to be right: pixels whose place in their neighbourhood
        differs from the target's cost more, and pixels well inside a region only the share of
        plain cross entropy. A region that is constant in both masks has no structure and is seen
        by that share alone, even if it is all wrong, so keep `weight` above 0.

    Args:
        sample: one sample.
        beta: share of the largest difference from which on a pixel counts as different.
        weight: share of plain binary cross entropy; 1 is nothing else.
        window: width of the square window in pixels, odd.
        sigma: width of the Gaussian that weighs the window's pixels, in pixels.

    Returns:
        `[C]`, in nats, at least 0: of each channel against the rest. 0 is a perfect mask.

    Traps:
        - There is no official code and the published ones disagree (means swapped, one mean for
          the image, an absolute threshold). Here: Gaussian weights of sum 1, biased variance,
          C = 0.01, e differentiated, f and M not.
        - The root of a constant window's variance has an infinite slope; the deviation and its
          derivative are 0 there.
        - Where both masks have the same structure, the largest difference is rounding, and a share
          of it would select everything. It is therefore taken for at least 1e-4.
        - The largest difference is that of the sample's channel, removed pixels included, never of
          a batch.
        - Padding decides values at the border. It mirrors without repeating the border, as often
          as needed where the image is smaller than the window.

    Example:
        >>> from lossd.core.distance import DistanceMaps
        >>> target = torch.tensor([[0.0, 0.0, 1.0, 1.0]], dtype=torch.float64)
        >>> sample = MaskSample(
        ...     task="binary",
        ...     scores=0.6 * target + 0.2,
        ...     activated=True,
        ...     target=target,
        ...     valid=torch.ones(4, dtype=torch.bool),
        ...     weight_map=None,
        ...     spacing=(1.0,),
        ...     distances=DistanceMaps(),
        ... )
        >>> structural_similarity(sample, weight=1.0)  # cross entropy at p = 0.8 everywhere
        tensor([0.2231], dtype=torch.float64)
        >>> structural_similarity(sample, weight=0.0)
        tensor([0.0030], dtype=torch.float64)

    References:
        Zhao et al., "Correlation Maximized Structural Similarity Loss for Semantic Segmentation",
        2019, https://arxiv.org/abs/1910.08711
    """
    weights = _gaussian(window, sigma)

    def similarity(log_probability: Tensor, log_miss: Tensor, target: Tensor) -> Tensor:
        cross_entropy = -(target * log_probability + (1.0 - target) * log_miss)
        cross_entropy = torch.where(sample.valid, cross_entropy, 0.0)
        with torch.no_grad():
            structure = _structure(target, weights)
        difference = (structure - _structure(log_probability.exp(), weights)).abs()
        largest = difference.detach().max().clamp_min(_DIFFERENCE_FLOOR)
        differs = difference.detach() > max(beta * float(largest), _SAME_STRUCTURE)
        differs = differs & sample.valid
        selected = torch.where(differs, difference * cross_entropy, 0.0).sum()
        plain = cross_entropy.sum() / sample.pixels
        return weight * plain + (1.0 - weight) * ratio(selected, differs.double().sum())

    return _by_class(similarity, sample.log_probability, sample.log_miss, sample.target)


class SkeletonOptions(ClassOptions):
    """Options of a loss over classes in which a background has no meaning of its own."""

    # A default that depends on the task needs a third value, which the base does not have.
    include_background: bool | None = Field(  # type: ignore[assignment]
        default=None,
        description="False drops class 0 after the activation. Null: false for multiclass, true "
        "otherwise.",
    )

    def of_task(self, task: Task) -> Self:
        """The same with the background dropped for multiclass unless it says otherwise."""
        if self.include_background is not None:
            return self
        return self.model_copy(update={"include_background": task != "multiclass"})

    def problems(self, task: Task, channels: int) -> Iterator[Problem]:
        """What is wrong with the options for a task and a number of channels."""
        return ClassOptions.problems(self.of_task(task), task, channels)


@class_loss(family="window", options=SkeletonOptions)
def soft_cldice(
    sample: MaskSample, *, iterations: Iterations = 3, smooth: NonNegative = 1.0
) -> Tensor:
    r"""Centreline Dice: one minus the agreement of each mask with the other's skeleton.

    Formula:
        1 - \frac{2\,T_p\,T_s}{T_p + T_s}, \quad
        T_p = \frac{\sum_i S_p\,y + s}{\sum_i S_p + s}, \quad
        T_s = \frac{\sum_i S_y\,p + s}{\sum_i S_y + s}

    Use:
        For vessels, roads and other thin connected things, where a gap of one pixel is worse than
        a width that is off: the skeletons carry the connections, and thickness hardly matters. As
        it lets thickness go, add Dice to it. For compact objects it says little.

    Args:
        sample: one sample. S is the soft skeleton of prediction or target.
        iterations: number of erosions after the first; at least half the thickest object's width,
            more cost time and change nothing.
        smooth: added to both sides of both fractions, in pixels.

    Returns:
        `[C]`, in [0, 1]; 0 where each mask covers the other's skeleton. A skeleton that is empty
        counts as covered, so empty against empty is 0.

    Traps:
        - A thick line against its thin centre costs 0 while Dice is 0.5; that is the purpose.
        - The mean is over classes, and multiclass leaves out class 0 by default, as the skeleton
          of a background means nothing. `include_background: true` takes it in.
        - Smoothing belongs in both fractions. MONAI before 1.6 had it in the harmonic mean too,
          which biased the value, and answered 0 for a single channel.
        - The skeleton of the prediction is differentiated as well. Ties of minimum and maximum
          share or choose the derivative, which leaves it a subgradient.
        - Too few iterations leave a thick object's core out of the skeleton.

    Example:
        >>> from lossd.core.distance import DistanceMaps
        >>> target = torch.zeros(1, 7, 7, dtype=torch.float64)
        >>> target[0, 3] = 1.0
        >>> gap = target.clone()
        >>> gap[0, 3, 0] = 0.0
        >>> sample = MaskSample(
        ...     task="binary",
        ...     scores=100.0 * gap - 50.0,
        ...     activated=False,
        ...     target=target,
        ...     valid=torch.ones(7, 7, dtype=torch.bool),
        ...     weight_map=None,
        ...     spacing=(1.0, 1.0),
        ...     distances=DistanceMaps(),
        ... )
        >>> soft_cldice(sample)  # precision 1, sensitivity (6 + 1) / (7 + 1)
        tensor([0.0667], dtype=torch.float64)

    References:
        Shit et al., "clDice - A Novel Topology-Preserving Loss Function for Tubular Structure
        Segmentation", 2020, https://arxiv.org/abs/2003.07311
    """

    def distance(log_probability: Tensor, log_miss: Tensor, target: Tensor) -> Tensor:
        probability = log_probability.exp()
        with torch.no_grad():
            true = torch.where(sample.valid, _soft_skeleton(target, iterations), 0.0)
        guess = torch.where(sample.valid, _soft_skeleton(probability, iterations), 0.0)
        precision, stray = _covered(guess * target, guess * (1.0 - target), smooth)
        sensitivity, missed = _covered(true * probability, true * log_miss.exp(), smooth)
        # 1 - 2uv/(u + v), written with 1 - u and 1 - v so that good masks keep their digits.
        both = precision + sensitivity
        disjoint = both.detach() <= _NOTHING
        some = torch.where(disjoint, 1.0, both)
        return torch.where(
            disjoint, 1.0, (sensitivity / some) * stray + (precision / some) * missed
        )

    return _by_class(distance, sample.log_probability, sample.log_miss, sample.target)


def _by_class(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """The function of every class's share of tensors `[C, *S]`, stacked."""
    return torch.stack([_recomputed(function, *channel) for channel in zip(*tensors, strict=True)])


def _recomputed(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """The function of the tensors, which holds nothing but them for its derivative."""
    found: Tensor = _Recomputed.apply(function, *tensors)  # type: ignore[no-untyped-call]
    return found


class _Recomputed(torch.autograd.Function):
    """A function whose intermediate results are dropped, and made again for its derivative.

    `torch.utils.checkpoint` keeps the empty graph of the first run, and its many small pieces
    between large freed ones keep the allocator from using those again.
    """

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(*tensors)
        return function(*tensors)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_result: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[1:]
        inputs = [
            tensor.detach().requires_grad_(want)
            for tensor, want in zip(ctx.saved_tensors, wanted, strict=True)
        ]
        with torch.enable_grad():
            result = ctx.function(*inputs)
        found = iter(
            torch.autograd.grad(result, [one for one in inputs if one.requires_grad], of_result)
        )
        return (None, *(next(found) if want else None for want in wanted))


def _neighbours(values: Tensor, axis: int, *, beyond: float) -> tuple[Tensor, Tensor]:
    """Every pixel's two neighbours along an axis, `beyond` where the image ends."""
    length = values.shape[axis]
    after = values.ndim - 1 - axis
    padded = functional.pad(values, (0, 0) * after + (1, 1), value=beyond)
    return padded.narrow(axis, 0, length), padded.narrow(axis, 2, length)


# -- erosion -------------------------------------------------------------------------------------


def _eroded(error: Tensor) -> Tensor:
    """Mean over the cross-shaped neighbourhood, softly thresholded and rescaled to [0, 1]."""
    cross = error
    for axis in range(error.ndim):
        before, behind = _neighbours(error, axis, beyond=0.0)
        cross = cross + before + behind
    kept = functional.relu(cross / (2 * error.ndim + 1) - _SOFT_THRESHOLD)
    least, largest = kept.amin(), kept.amax()
    if bool(largest - least <= _CONSTANT_RANGE):
        return kept
    return (kept - least) / (largest - least)


# -- local statistics ----------------------------------------------------------------------------


def _gaussian(width: int, sigma: float) -> list[float]:
    """Weights of a window along one axis; their sum is 1."""
    places = torch.arange(width, dtype=torch.float64) - width // 2
    weights = torch.exp(-0.5 * (places / sigma) ** 2)
    return (weights / weights.sum()).tolist()


def _structure(values: Tensor, weights: list[float]) -> Tensor:
    """Values less their window's mean over its deviation, both raised by the floor."""
    mean, variance = values, torch.zeros_like(values)
    for axis in range(values.ndim):
        radius = len(weights) // 2
        reach = _mirrored(mean, axis, radius), _mirrored(variance, axis, radius)
        mean, variance = _WindowMoments.apply(*reach, axis, weights)  # type: ignore[no-untyped-call]
    flat = variance <= _CONSTANT_VARIANCE
    deviation = torch.where(flat, 0.0, torch.where(flat, 1.0, variance).sqrt())
    return (values - mean + _CONTRAST_FLOOR) / (deviation + _CONTRAST_FLOOR)


def _mirrored(values: Tensor, axis: int, radius: int) -> Tensor:
    """The values continued by `radius` at both ends, mirrored without repeating the end itself."""
    if values.shape[axis] == 1:
        return torch.cat([values] * (2 * radius + 1), axis)
    while radius > 0:
        length = values.shape[axis]
        step = min(radius, length - 1)
        before = values.narrow(axis, 1, step).flip(axis)
        behind = values.narrow(axis, length - 1 - step, step).flip(axis)
        values = torch.cat([before, values, behind], axis)
        radius -= step
    return values


class _WindowMoments(torch.autograd.Function):
    """Mean and variance of windows along one axis, of pixels that have a variance of their own.

    The law of total variance, one axis after the other, is the variance of the whole window as a
    sum of squares, which is exact where a mean of squares less the squared mean would be rounding.
    """

    @staticmethod
    def forward(
        ctx: Any, mean: Tensor, variance: Tensor, axis: int, weights: list[float]
    ) -> tuple[Tensor, Tensor]:
        length = mean.shape[axis] - len(weights) + 1
        shifts = list(enumerate(weights))
        middle = torch.zeros_like(mean.narrow(axis, 0, length))
        for shift, weight in shifts:
            middle.add_(mean.narrow(axis, shift, length), alpha=weight)
        spread = torch.zeros_like(middle)
        for shift, weight in shifts:
            part = (mean.narrow(axis, shift, length) - middle).square_()
            spread.add_(part.add_(variance.narrow(axis, shift, length)), alpha=weight)
        ctx.save_for_backward(mean, middle)
        ctx.axis, ctx.weights = axis, weights
        return middle, spread

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, of_middle: Tensor, of_spread: Tensor
    ) -> tuple[Tensor, Tensor, None, None]:
        mean, middle = ctx.saved_tensors
        length = middle.shape[ctx.axis]
        of_mean, of_variance = torch.zeros_like(mean), torch.zeros_like(mean)
        for shift, weight in enumerate(ctx.weights):
            # Through the window's own mean the variance has no derivative: deviations sum to 0.
            part = (mean.narrow(ctx.axis, shift, length) - middle).mul_(2.0 * of_spread)
            of_mean.narrow(ctx.axis, shift, length).add_(part.add_(of_middle), alpha=weight)
            of_variance.narrow(ctx.axis, shift, length).add_(of_spread, alpha=weight)
        return of_mean, of_variance, None, None


# -- skeletons -----------------------------------------------------------------------------------


def _soft_skeleton(mask: Tensor, iterations: int) -> Tensor:
    """What opening takes away from a mask `[*S]` and from its erosions, joined."""
    skeleton = _recomputed(_ridge, mask)
    for _ in range(iterations):
        mask = _recomputed(_thinned, mask)
        skeleton = _recomputed(_joined, skeleton, mask)
    return skeleton


def _joined(skeleton: Tensor, mask: Tensor) -> Tensor:
    """The skeleton and, where it is none, the ridge of a mask."""
    ridge = _ridge(mask)
    return skeleton + functional.relu(ridge - skeleton * ridge)


def _ridge(mask: Tensor) -> Tensor:
    """What opening takes away from a mask."""
    return functional.relu(mask - _opened(mask))


def _opened(mask: Tensor) -> Tensor:
    """Maximum over squares of the minimum over crosses."""
    opened = _thinned(mask)
    for axis in range(mask.ndim):
        before, behind = _neighbours(opened, axis, beyond=-torch.inf)
        opened = torch.maximum(torch.maximum(opened, before), behind)
    return opened


def _thinned(mask: Tensor) -> Tensor:
    """Minimum over the cross of direct neighbours; beyond the border there is none."""
    thinned = mask
    for axis in range(mask.ndim):
        before, behind = _neighbours(mask, axis, beyond=torch.inf)
        thinned = torch.minimum(torch.minimum(thinned, before), behind)
    return thinned


def _covered(hit: Tensor, missed: Tensor, smooth: float) -> tuple[Tensor, Tensor]:
    """Share of a skeleton that is hit, and that is missed; an empty one is hit."""
    whole = hit.sum() + missed.sum() + smooth
    empty = whole.detach() <= _NOTHING
    whole = torch.where(empty, 1.0, whole)
    hit_share = torch.where(empty, 1.0, (hit.sum() + smooth) / whole)
    return hit_share, torch.where(empty, 0.0, missed.sum() / whole)
