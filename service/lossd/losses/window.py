"""Losses that look at a pixel's neighbours: repeated erosion, local statistics, skeletons.

Windows reach across removed pixels, which leave the means alone: prediction and target are seen
whole, and a pixel with an ignored label has no class. What looks only so far is computed strip by
strip, small enough for the processor's cache, and again for its derivative, so that intermediate
results are held of one strip at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, Self

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from lossd.losses.declare import class_loss
from lossd.losses.mask_class import MaskClass
from lossd.losses.options import (
    AllClassesOptions,
    ClassOptions,
    Fraction,
    NonNegative,
    Positive,
    Problem,
)
from lossd.losses.sums import Task, pixel_sum, ratio

Iterations = Annotated[int, Field(ge=1, le=64)]
Power = Annotated[float, Field(ge=0, le=8)]
Width = Annotated[int, Field(ge=1, le=63)]

_STRIP_PIXELS = 1 << 16
"""Pixels of a strip without what it reaches: half a mebibyte in float64."""
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
def hausdorff_erosion(one: MaskClass, *, alpha: Power = 2.0, iterations: Iterations = 10) -> Tensor:
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
        one: a class.
        alpha: power of the erosion's number, by which errors that survive long weigh more.
        iterations: number K of erosions; errors that are thicker than those reach weigh no more.

    Returns:
        Terms `[*S]`; the value is at least 0, and 0 at p = y and wherever no error survives the
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
        >>> from lossd.losses.mask_sample import MaskSample
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
        >>> one = MaskClass(sample, 0)
        >>> hausdorff_erosion(one, iterations=1)  # three thick: the middle survives
        tensor([0.0000, 0.3333, 1.0000, 0.3333, 0.0000], dtype=torch.float64)

    References:
        Karimi and Salcudean, "Reducing the Hausdorff Distance in Medical Image Segmentation with
        Convolutional Neural Networks", 2019, https://arxiv.org/abs/1904.10030
    """
    error = one.error.square()
    total = torch.zeros_like(error)
    for number in range(1, iterations + 1):
        error = _rescaled(_by_strips(_eroded, 1, one, error))
        total = total + error * float(number) ** alpha
    return total


def _window_problems(options: Any, task: Task, channels: int) -> Iterator[Problem]:
    del task, channels
    if options.window % 2 == 0:
        yield "window", f"must be odd, so that it has a middle, got {options.window}"


@class_loss(family="window", aliases=("cmssl",), options=ClassOptions, check=_window_problems)
def structural_similarity(
    one: MaskClass,
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
        one: a class.
        beta: share of the largest difference from which on a pixel counts as different.
        weight: share of plain binary cross entropy; 1 is nothing else.
        window: width of the square window in pixels, odd.
        sigma: width of the Gaussian that weighs the window's pixels, in pixels.

    Returns:
        `[]`, in nats, at least 0: of the class against the rest. 0 is a perfect mask.

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
        >>> from lossd.losses.mask_sample import MaskSample
        >>> target = torch.tensor([[0.0, 0.0, 1.0, 1.0]], dtype=torch.float64)
        >>> sample = MaskSample(
        ...     task="binary",
        ...     scores=(0.6 * target + 0.2).logit(),
        ...     activated=True,
        ...     target=target,
        ...     valid=torch.ones(4, dtype=torch.bool),
        ...     weight_map=None,
        ...     spacing=(1.0,),
        ...     distances=DistanceMaps(),
        ... )
        >>> one = MaskClass(sample, 0)
        >>> structural_similarity(one, weight=1.0)  # cross entropy at p = 0.8 everywhere
        tensor(0.2231, dtype=torch.float64)
        >>> structural_similarity(one, weight=0.0)
        tensor(0.0030, dtype=torch.float64)

    References:
        Zhao et al., "Correlation Maximized Structural Similarity Loss for Semantic Segmentation",
        2019, https://arxiv.org/abs/1910.08711
    """
    weights = _gaussian(window, sigma)

    reach = window // 2

    def structure(values: Tensor) -> Tensor:
        return _structure(values, weights)

    with torch.no_grad():
        true = _by_strips(structure, reach, one, one.target)
    difference = (true - _by_strips(structure, reach, one, one.probability)).abs()
    cross_entropy = one.within(_cross_entropy(one))
    largest = difference.detach().max().clamp_min(_DIFFERENCE_FLOOR)
    differs = difference.detach() > max(beta * float(largest), _SAME_STRUCTURE)
    differs = differs & one.valid
    selected = pixel_sum(torch.where(differs, difference * cross_entropy, 0.0))
    plain = pixel_sum(cross_entropy) / one.pixels
    return weight * plain + (1.0 - weight) * ratio(selected, differs.sum().double())


def _cross_entropy(one: MaskClass) -> Tensor:
    """Binary cross entropy of a class against the rest, `[*S]`."""
    return -(one.target * one.log_probability + (1.0 - one.target) * one.log_miss)


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
def soft_cldice(one: MaskClass, *, iterations: Iterations = 3, smooth: NonNegative = 1.0) -> Tensor:
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
        one: a class. S is the soft skeleton of prediction or target.
        iterations: number of erosions after the first; at least half the thickest object's width,
            more cost time and change nothing.
        smooth: added to both sides of both fractions, in pixels.

    Returns:
        `[]`, in [0, 1]; 0 where each mask covers the other's skeleton. A skeleton that is empty
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
        >>> from lossd.losses.mask_sample import MaskSample
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
        >>> soft_cldice(MaskClass(sample, 0))  # precision 1, sensitivity (6 + 1) / (7 + 1)
        tensor(0.0667, dtype=torch.float64)

    References:
        Shit et al., "clDice - A Novel Topology-Preserving Loss Function for Tubular Structure
        Segmentation", 2020, https://arxiv.org/abs/2003.07311
    """
    reach = iterations + 2

    def skeleton(mask: Tensor) -> Tensor:
        return _soft_skeleton(mask, iterations)

    with torch.no_grad():
        true = one.within(_by_strips(skeleton, reach, one, one.plain_target).double())
    guess = one.within(_by_strips(skeleton, reach, one, one.probability))
    precision, stray = _covered(guess * one.target, guess * (1.0 - one.target), smooth)
    sensitivity, missed = _covered(true * one.probability, true * one.miss, smooth)
    # 1 - 2uv/(u + v), written with 1 - u and 1 - v so that good masks keep their digits.
    both = precision + sensitivity
    disjoint = both.detach() <= _NOTHING
    some = torch.where(disjoint, 1.0, both)
    return torch.where(disjoint, 1.0, (sensitivity / some) * stray + (precision / some) * missed)


# -- strips --------------------------------------------------------------------------------------


def _by_strips(
    function: Callable[[Tensor], Tensor], reach: int, one: MaskClass, values: Tensor
) -> Tensor:
    """A function of an image, computed on strips of it.

    Args:
        function: from an image of any size to one of the same size, of which no pixel depends on
            pixels that lie farther away than `reach` along the first axis.
        reach: in pixels.
        one: whose checkpoint is called between strips.
        values: `[*S]`.
    """
    found: Tensor = _ByStrips.apply(function, reach, one, values)  # type: ignore[no-untyped-call]
    return found


def _strips(shape: torch.Size, reach: int) -> Iterator[tuple[slice, slice, slice]]:
    """For each strip: its rows, those with what it reaches, and its rows among the latter."""
    row = max(1, shape.numel() // max(1, shape[0]))
    height = max(_STRIP_PIXELS // row, 4 * reach, 1)
    for first in range(0, shape[0], height):
        last = min(first + height, shape[0])
        above, below = max(first - reach, 0), min(last + reach, shape[0])
        yield slice(first, last), slice(above, below), slice(first - above, last - above)


class _ByStrips(torch.autograd.Function):
    """What a strip needed is dropped, and made again for its derivative."""

    @staticmethod
    def forward(
        ctx: Any, function: Callable[[Tensor], Tensor], reach: int, one: MaskClass, values: Tensor
    ) -> Tensor:
        ctx.function, ctx.reach, ctx.checkpoint = function, reach, one.sample.checkpoint
        ctx.save_for_backward(values)
        found = torch.empty_like(values)
        for rows, reached, own in _strips(values.shape, reach):
            ctx.checkpoint()
            found[rows] = function(values[reached])[own]
        return found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_found: Tensor) -> tuple[None, None, None, Tensor]:
        (values,) = ctx.saved_tensors
        total = torch.zeros_like(values)
        for rows, reached, own in _strips(values.shape, ctx.reach):
            ctx.checkpoint()
            strip = values[reached].detach().requires_grad_()
            with torch.enable_grad():
                found = ctx.function(strip)[own]
            total[reached] += torch.autograd.grad(found, strip, of_found[rows])[0]
        return None, None, None, total


# -- erosion -------------------------------------------------------------------------------------


def _eroded(error: Tensor) -> Tensor:
    """Mean over the cross-shaped neighbourhood, softly thresholded."""
    cross = error
    for axis in range(error.ndim):
        padded = functional.pad(error, (0, 0) * (error.ndim - 1 - axis) + (1, 1))
        length = error.shape[axis]
        cross = cross + padded.narrow(axis, 0, length) + padded.narrow(axis, 2, length)
    return functional.relu(cross / (2 * error.ndim + 1) - _SOFT_THRESHOLD)


def _rescaled(kept: Tensor) -> Tensor:
    """An eroded map, stretched to [0, 1]; a constant one as it is."""
    if bool(kept.amax() - kept.amin() <= _CONSTANT_RANGE):
        return kept
    found: Tensor = _Stretched.apply(kept)  # type: ignore[no-untyped-call]
    return found


class _Stretched(torch.autograd.Function):
    """Values stretched to [0, 1]; equal extremes share the derivative."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        least = values.amin()
        width = values.amax() - least
        found = (values - least).div_(width)
        ctx.save_for_backward(found, width)
        return found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_found: Tensor) -> Tensor:
        found, width = ctx.saved_tensors
        slope: Tensor = of_found / width
        of_largest = pixel_sum(slope * found)
        of_least = pixel_sum(slope) - of_largest
        for extreme, total in (0.0, of_least), (1.0, of_largest):
            there = found == extreme
            slope = torch.where(there, slope - total / there.sum(), slope)
        return slope


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
    thinned = _thinned(mask)
    skeleton = functional.relu(mask - _widened(thinned))
    for _ in range(iterations):
        mask, thinned = thinned, _thinned(thinned)
        ridge = functional.relu(mask - _widened(thinned))
        skeleton = skeleton + functional.relu(ridge - skeleton * ridge)
    return skeleton


def _thinned(mask: Tensor) -> Tensor:
    """Minimum over the cross of direct neighbours; beyond the border there is none."""
    found: Tensor = _Extremum.apply(mask, range(mask.ndim), torch.minimum)  # type: ignore[no-untyped-call]
    return found


def _widened(mask: Tensor) -> Tensor:
    """Maximum over the square of neighbours; beyond the border there is none."""
    widened: Tensor = mask
    for axis in range(mask.ndim):
        widened = _Extremum.apply(widened, (axis,), torch.maximum)  # type: ignore[no-untyped-call]
    return widened


class _Extremum(torch.autograd.Function):
    """Extremum of each pixel and its direct neighbours along axes; ties choose the derivative.

    The pixel itself goes first, then the neighbours in the order of `_shifts`.
    """

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, axes: Iterable[int], extreme: Callable[..., Tensor]
    ) -> Tensor:
        found = values.clone()
        for here, there in _shifts(values.shape, axes):
            extreme(found[here], values[there], out=found[here])
        ctx.axes = axes
        ctx.save_for_backward(values, found)
        return found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_found: Tensor) -> tuple[Tensor, None, None]:
        values, found = ctx.saved_tensors
        own = torch.where(values == found, of_found, 0.0)
        rest = of_found - own
        for here, there in _shifts(values.shape, ctx.axes):
            taken = torch.where(values[there] == found[here], rest[here], 0.0)
            own[there] += taken
            rest[here] -= taken
        return own, None, None


def _shifts(
    shape: torch.Size, axes: Iterable[int]
) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """Pixels that have a neighbour, and that neighbour, for each direction along the axes."""
    for axis in axes:
        before = (slice(None),) * axis
        first, last = (*before, slice(0, shape[axis] - 1)), (*before, slice(1, None))
        yield last, first
        yield first, last


def _covered(hit: Tensor, missed: Tensor, smooth: float) -> tuple[Tensor, Tensor]:
    """Share of a skeleton that is hit, and that is missed; an empty one is hit."""
    hit_sum, missed_sum = pixel_sum(hit), pixel_sum(missed)
    whole = hit_sum + missed_sum + smooth
    empty = whole.detach() <= _NOTHING
    whole = torch.where(empty, 1.0, whole)
    hit_share = torch.where(empty, 1.0, (hit_sum + smooth) / whole)
    return hit_share, torch.where(empty, 0.0, missed_sum / whole)
