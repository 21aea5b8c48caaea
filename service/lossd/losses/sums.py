"""What a loss of the pixel kind sees of its samples: sums per class, in float64."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor

from lossd.core import vocabulary as v

Task = Literal["binary", "multiclass", "multilabel"]


@dataclass(frozen=True)
class RegionSums:
    """Sums over valid pixels, each `[B, C]` (`pixels` `[B, 1]`); see `core.vocabulary`."""

    target: Tensor
    false_negative: Tensor
    false_positive: Tensor
    squared_error_inside: Tensor
    squared_error_outside: Tensor
    target_squared: Tensor
    pixels: Tensor

    @property
    def true_negative(self) -> Tensor:
        """`Σ (1 - p)·(1 - y)`."""
        return self.pixels - self.target - self.false_positive

    @property
    def true_positive(self) -> Tensor:
        """`Σ p·y`, from the complement so that good masks keep their digits."""
        return self.target - self.false_negative

    def over_classes(self, counted: Tensor) -> RegionSums:
        """The same sums, `[B, 1]`, over the classes where `counted` `[B, C]` is true."""
        return RegionSums(
            *(
                class_sum(torch.where(counted, getattr(self, field.name), 0.0))
                for field in fields(self)
            )
        )

    def over_samples(self) -> RegionSums:
        """Each row the sum of all rows, differentiable with respect to its own row only."""
        return RegionSums(*(_shared(getattr(self, field.name)) for field in fields(self)))


@dataclass(frozen=True)
class PixelSums:
    """Weighted sums of pixel quantities per label, each `[B, G, L]`; see `core.vocabulary`.

    Multiclass: one group, L = C labels. Binary and multilabel: a group per channel, labels off, on.
    """

    count: Tensor
    """`Σ y`, whatever the weight map."""
    weight: Tensor
    cross_entropy: Tensor
    focal: Tensor
    negative_log_likelihood: Tensor


@dataclass(frozen=True)
class Sums:
    """The sums of B samples of one task."""

    task: Task
    region: RegionSums
    pixel: PixelSums
    pixels: Tensor
    """Valid pixels of each sample, `[B]`, whatever the aggregate of the region sums."""

    def aggregated(self) -> Sums:
        """The samples' region sums added up; everything else stays per sample."""
        return replace(self, region=self.region.over_samples())


def region_sums(region: Tensor, pixels: Tensor) -> RegionSums:
    """Named view of `[B, 6, C]` and `[B]`."""
    return RegionSums(
        target=region[:, v.TARGET],
        false_negative=region[:, v.FALSE_NEGATIVE],
        false_positive=region[:, v.FALSE_POSITIVE],
        squared_error_inside=region[:, v.SQUARED_ERROR_INSIDE],
        squared_error_outside=region[:, v.SQUARED_ERROR_OUTSIDE],
        target_squared=region[:, v.TARGET_SQUARED],
        pixels=pixels[:, None],
    )


def class_sum(values: Tensor) -> Tensor:
    """Sum over the last axis, kept as size 1, added in class order however many rows there are.

    A library sum may split its work by the number of rows and change the last bits with it.
    """
    return values.cumsum(-1)[..., -1:]


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """`numerator / denominator`, and 0 with gradient 0 where the denominator is 0."""
    empty = denominator == 0
    return torch.where(empty, 0.0, numerator / torch.where(empty, 1.0, denominator))


def _shared(values: Tensor) -> Tensor:
    # The value is the total, the derivative that of the own row: each sample's gradient is that of
    # the one shared value with respect to its own logits, not B times as much.
    return values.sum(0, keepdim=True).detach() + (values - values.detach())
