"""One sample of the pixel kind as whole tensors, for losses that are no functions of sums.

Everything is float64, whatever was sent: these losses sort, measure distances or take differences
of neighbours, and nothing of them is fused. Removed pixels (of `mask` and `ignore_index`) are
still there, because distance maps and windows see whole masks; `valid` says which pixels count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from lossd.losses.sums import Task

_HALF = 0.5


class Distances(Protocol):
    """Exact Euclidean distance transforms, remembered by the content of the mask."""

    def to_background(self, mask: Tensor, spacing: Sequence[float]) -> Tensor:
        """Distance of every true pixel to the nearest false one, 0 at false pixels.

        Args:
            mask: `[*S]` bool with at least one false pixel.
            spacing: physical size of a pixel along each axis of `*S`.

        Returns:
            `[*S]` float64, on the mask's device.
        """


@dataclass(frozen=True)
class MaskSample:
    """One sample; `C` channels, `*S` one to three spatial axes, `G` channels of the sigmoid or 1.

    Derivatives are taken with respect to `scores`. Its values at removed pixels are cut off from
    the derivative, so that the gradient there is exactly 0 whatever reads them.
    """

    task: Task
    scores: Tensor
    """`[C, *S]`: logits, or probabilities if `activated`; finite."""
    activated: bool
    target: Tensor
    """`[C, *S]` in [0, 1]: one-hot or soft; 0 in all channels of a pixel without a class."""
    valid: Tensor
    """`[*S]` bool: the pixels that count."""
    weight_map: Tensor | None
    """`[*S]`, at least 0."""
    spacing: tuple[float, ...]
    """Physical size of a pixel along each of `*S`."""
    distances: Distances
    class_weights: tuple[float, ...] | None = None
    """Weight of each channel in `cross_entropy`."""

    @property
    def channels(self) -> int:
        """C."""
        return self.scores.shape[0]

    @property
    def spatial_axes(self) -> int:
        """Number of axes of `*S`."""
        return self.scores.ndim - 1

    @cached_property
    def pixels(self) -> int:
        """How many pixels count; at least 1, samples without are not computed."""
        return int(self.valid.sum())

    @cached_property
    def _live(self) -> Tensor:
        return torch.where(self.valid, self.scores, self.scores.detach())

    @cached_property
    def logits(self) -> Tensor:
        """`[C, *S]` before the activation; of given probabilities, what would have made them."""
        if not self.activated:
            return self._live
        if self.task == "multiclass":
            return self._live.log()
        return self._live.log() - torch.log1p(-self._live)

    @cached_property
    def log_probability(self) -> Tensor:
        """`[C, *S]`, ln p."""
        if self.activated:
            return self._live.log()
        if self.task == "multiclass":
            return self._live.log_softmax(0)
        return torch.nn.functional.logsigmoid(self._live)

    @cached_property
    def log_miss(self) -> Tensor:
        """`[C, *S]`, ln(1 - p), with the digits of small misses."""
        if self.activated:
            return torch.log1p(-self._live)
        if self.task != "multiclass":
            return torch.nn.functional.logsigmoid(-self._live)
        # Of the class with the largest logit, 1 - p has no digits; the others' sum has.
        top = self._live.argmax(0, keepdim=True)
        is_top = torch.zeros_like(self._live, dtype=torch.bool).scatter_(0, top, value=True)
        others = torch.where(is_top, -torch.inf, self._live).logsumexp(0)
        of_top = others - self._live.logsumexp(0)
        small = torch.where(is_top, 0.0, self.probability)
        return torch.where(is_top, of_top, torch.log1p(-small))

    @cached_property
    def probability(self) -> Tensor:
        """`[C, *S]`, p."""
        return self._live if self.activated else self.log_probability.exp()

    @cached_property
    def predicted(self) -> Tensor:
        """`[C, *S]` bool: p > 0.5, strictly, for each channel."""
        return self.probability.detach() > _HALF

    @cached_property
    def foreground(self) -> Tensor:
        """`[C, *S]` bool: target > 0.5, which for labels is where the class is."""
        return self.target > _HALF

    @cached_property
    def cross_entropy(self) -> Tensor:
        """`[G, *S]` in nats, times `class_weights` and `weight_map`; 0 at removed pixels.

        Multiclass: cross entropy of the softmax, G = 1. Otherwise binary cross entropy of every
        channel, G = C.
        """
        weights = self._channel_weights
        if self.task == "multiclass":
            terms = -(weights * self.target * self.log_probability).sum(0, keepdim=True)
        else:
            on, off = self.target * self.log_probability, (1.0 - self.target) * self.log_miss
            terms = -weights * (on + off)
        if self.weight_map is not None:
            terms = terms * self.weight_map
        return torch.where(self.valid, terms, 0.0)

    @cached_property
    def applied_weight(self) -> Tensor:
        """Sum over valid pixels of the weights in `cross_entropy`, averaged over G."""
        weights = self._channel_weights.expand_as(self.target)
        if self.task == "multiclass":
            weights = (weights * self.target).sum(0, keepdim=True)
        if self.weight_map is not None:
            weights = weights * self.weight_map
        return torch.where(self.valid, weights, 0.0).sum() / len(weights)

    @property
    def _channel_weights(self) -> Tensor:
        weights = self.class_weights or (1.0,) * self.channels
        return self.scores.new_tensor(weights).view(-1, *(1,) * self.spatial_axes)
