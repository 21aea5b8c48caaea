"""What a loss of the tiles sees of its samples: sums per class, in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Literal

import torch
from torch import Tensor

from lossd.core import vocabulary as v

Task = Literal["binary", "multiclass", "multilabel"]

ZERO = torch.zeros((), dtype=torch.float64)
ONE = torch.ones((), dtype=torch.float64)
"""Numbers where a tensor is asked for: torch makes a tensor of every plain one, each time anew."""

_BLOCK_PIXELS = 4096
_PIECE_ELEMENTS = 1 << 14
"""Half of what torch gives a thread at least."""


@dataclass(frozen=True)
class RegionSums:
    """Sums over valid pixels, each `[B, C]` (`pixels` `[B, 1]`); see `core.vocabulary`."""

    target: Tensor
    false_negative: Tensor
    false_positive: Tensor
    squared_error_inside: Tensor
    squared_error_outside: Tensor
    target_squared: Tensor
    soft_false_negative: Tensor
    soft_false_positive: Tensor
    pixels: Tensor
    empty: list[Tensor] = field(default_factory=list, init=False, compare=False)
    """Where there was nothing to divide by, `[B, C]` or `[B]` bool each."""

    @property
    def true_negative(self) -> Tensor:
        """`Σ (1 - p)·(1 - y)`."""
        return self.pixels - self.target - self.false_positive

    @property
    def true_positive(self) -> Tensor:
        """`Σ p·y`, from the complement so that good masks keep their digits."""
        return self.target - self.false_negative

    def ratio(self, numerator: Tensor, denominator: Tensor) -> Tensor:
        """`numerator / denominator`; 0 with gradient 0, and noted, where the denominator is 0."""
        empty = denominator == 0
        self.note_empty(empty)
        return _ratio(numerator, denominator, empty)

    def note_empty(self, where: Tensor) -> None:
        """Notes that there is nothing to divide by, `[B, C]` bool, for the answer's warnings."""
        self.empty.append(where.detach())

    def semimetric(self) -> RegionSums:
        """The same with `Σ min(p, y)` as the true positives: both errors and it add up again."""
        return replace(
            self,
            false_negative=self.soft_false_negative,
            false_positive=self.soft_false_positive,
        )

    def complement(self) -> RegionSums:
        """The sums of the label off, for channels of a sigmoid: what is on is off."""
        return RegionSums(
            target=self.pixels - self.target,
            false_negative=self.false_positive,
            false_positive=self.false_negative,
            squared_error_inside=self.squared_error_outside,
            squared_error_outside=self.squared_error_inside,
            target_squared=self.pixels - 2.0 * self.target + self.target_squared,
            soft_false_negative=self.soft_false_positive,
            soft_false_positive=self.soft_false_negative,
            pixels=self.pixels,
        )

    def over_classes(self, counted: Tensor) -> RegionSums:
        """The same sums, `[B, 1]`, over the classes where `counted` `[B, C]` is true."""
        return RegionSums(
            *(class_sum(torch.where(counted, values, 0.0)) for values in self._tensors())
        )

    def _tensors(self) -> list[Tensor]:
        return [getattr(self, entry.name) for entry in fields(self) if entry.name != "empty"]


@dataclass(frozen=True)
class PixelSums:
    """Weighted sums of pixel quantities per label, each `[B, G, L]`; see `core.vocabulary`.

    Multiclass: one group, L = C labels. Binary and multilabel: a group per channel, labels off, on.
    Those behind `negative_log_likelihood` hold zeros unless the losses' vocabulary is rich.
    """

    count: Tensor
    """`Σ y`, whatever the weight map."""
    weight: Tensor
    cross_entropy: Tensor
    focal: Tensor
    negative_log_likelihood: Tensor
    miss: Tensor
    powered_cross_entropy: Tensor
    kullback_leibler: Tensor
    jensen_shannon: Tensor
    complement_cross_entropy: Tensor


@dataclass(frozen=True)
class Sums:
    """The sums of B samples of one task."""

    task: Task
    region: RegionSums
    pixel: PixelSums
    pixels: Tensor
    """Valid pixels of each sample, `[B]`, whatever the aggregate of the region sums."""


def region_sums(region: Tensor, pixels: Tensor) -> RegionSums:
    """Named view of `[B, 6 or 8, C]` and `[B]`.

    Lean sums have no soft errors; they are read for hard targets only, where both are the same.
    """
    rich = region.shape[1] > v.REGION_SUMS
    soft_negative = v.SOFT_FALSE_NEGATIVE if rich else v.FALSE_NEGATIVE
    soft_positive = v.SOFT_FALSE_POSITIVE if rich else v.FALSE_POSITIVE
    sums = region.unbind(1)  # one node for autograd, not one for each
    return RegionSums(
        target=sums[v.TARGET],
        false_negative=sums[v.FALSE_NEGATIVE],
        false_positive=sums[v.FALSE_POSITIVE],
        squared_error_inside=sums[v.SQUARED_ERROR_INSIDE],
        squared_error_outside=sums[v.SQUARED_ERROR_OUTSIDE],
        target_squared=sums[v.TARGET_SQUARED],
        soft_false_negative=sums[soft_negative],
        soft_false_positive=sums[soft_positive],
        pixels=pixels[:, None],
    )


def class_sum(values: Tensor) -> Tensor:
    """Sum over the last axis, kept as size 1, added in class order however many rows there are.

    A library sum may split its work by the number of rows and change the last bits with it.
    """
    return values.cumsum(-1)[..., -1:]


def power(base: Tensor, exponent: float) -> Tensor:
    """`base ** exponent` of float64 numbers above 0.

    By logarithms: torch's own power, like its hyperbolic functions, gives the last elements of a
    tensor other last bits than those before, and so would answer by the company of a sample.

    Example:
        >>> power(torch.tensor([0.25, 1.0], dtype=torch.float64), 0.5)
        tensor([0.5000, 1.0000], dtype=torch.float64)
    """
    return base if exponent == 1.0 else (exponent * base.log()).exp()


def elementwise(function: Callable[..., Tensor], *values: Tensor) -> Tensor:
    """A function of each element, computed in pieces of fixed size.

    Exponentials and logarithms of a vector unit differ in their last bits from those of the few
    elements that are left over, and where threads share an array that is in the middle of it.

    Args:
        function: of float64 tensors of one shape.
        values: of one shape.

    Example:
        >>> elementwise(torch.exp, torch.zeros(2, 2, dtype=torch.float64))
        tensor([[1., 1.],
                [1., 1.]], dtype=torch.float64)
    """
    flat = [one.flatten() for one in values]
    found = torch.empty(flat[0].shape, dtype=torch.float64, device=flat[0].device)
    pieces = zip(*(one.split(_PIECE_ELEMENTS) for one in (found, *flat)), strict=True)
    for piece, *given in pieces:
        piece.copy_(function(*given))
    return found.view(values[0].shape)


def pixel_sum(values: Tensor) -> Tensor:
    """Sum `[]` over all pixels of a sample, in blocks of fixed size.

    One sum over all of them would be split by the number of threads, and so would its last bits.

    Example:
        >>> pixel_sum(torch.ones(100, 100))
        tensor(10000.)
    """
    flat = values.flatten()
    while len(flat) > _BLOCK_PIXELS:
        whole = len(flat) // _BLOCK_PIXELS * _BLOCK_PIXELS
        blocks = flat[:whole].view(-1, _BLOCK_PIXELS).sum(1)
        flat = torch.cat([blocks, flat[whole:]])
    return flat.sum()


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """`numerator / denominator`, and 0 with gradient 0 where the denominator is 0."""
    return _ratio(numerator, denominator, denominator == 0)


def _ratio(numerator: Tensor, denominator: Tensor, empty: Tensor) -> Tensor:
    return torch.where(empty, ZERO, numerator / torch.where(empty, ONE, denominator))
