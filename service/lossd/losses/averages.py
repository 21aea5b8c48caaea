"""Which classes count in a sample, and the average over them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lossd.losses.sums import ZERO, RegionSums, Task, class_sum, ratio


def counted_classes(region: RegionSums, task: Task, options: Any) -> tuple[Tensor, Tensor]:
    """Which classes count in each sample `[B, C]` bool, and `[B]`: whether none was present."""
    return present_classes(region.target.detach(), task, options)


def present_classes(target: Tensor, task: Task, options: Any) -> tuple[Tensor, Tensor]:
    """The same from the sums of the targets, `[B, C]`: see `counted_classes`."""
    channels = target.shape[1]
    nowhere = torch.zeros(len(target), dtype=torch.bool)
    allowed = torch.ones(channels, dtype=torch.bool)
    if not getattr(options, "include_background", True):
        allowed[0] = False
    chosen = getattr(options, "classes", None) or ("present" if task == "multiclass" else "all")
    if isinstance(chosen, list):
        listed = torch.zeros(channels, dtype=torch.bool)
        listed[chosen] = True
        return (allowed & listed).expand_as(target), nowhere
    if chosen == "all":
        return allowed.expand_as(target), nowhere
    present = allowed & (target > 0)
    if chosen == "present_of_all":
        return present, nowhere
    absent = ~present.any(-1)
    return torch.where(absent[:, None], allowed, present), absent


def class_weights(counted: Tensor, options: Any) -> Tensor:
    """Weights of the classes, `[B, C]` float64, 0 where one does not count."""
    weights = torch.ones(counted.shape[1], dtype=torch.float64)
    given = getattr(options, "class_weights", None)
    if given is not None:
        weights = weights.new_tensor(given)
    return torch.where(counted, weights, ZERO)


def class_mean(per_class: Tensor, counted: Tensor, options: Any) -> Tensor:
    """Weighted mean `[B]` over the classes that count of values `[B, C]`."""
    weights = class_weights(counted, options)
    total = class_sum(weights * torch.where(counted, per_class, ZERO))[:, 0]
    return ratio(total, class_normalizer(weights, options))


def class_normalizer(weights: Tensor, options: Any) -> Tensor:
    """What a weighted sum over classes is divided by, without the last axis."""
    if getattr(options, "classes", None) != "present_of_all":
        return class_sum(weights)[..., 0]
    allowed = torch.ones(weights.shape[-1], dtype=torch.bool)
    if not options.include_background:
        allowed[0] = False
    every = class_weights(allowed[None], options)
    return class_sum(every)[0, 0].expand(weights.shape[:-1])
