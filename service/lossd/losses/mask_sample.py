"""One sample of the pixel kind as its tensors came, for losses that are no functions of sums.

Nothing is held for all classes at once but what was sent: a loss takes the classes one after the
other, as a `MaskClass`, in float64 whatever was sent. Removed pixels (of `mask` and
`ignore_index`) are still there, because distance maps and windows see whole masks; `valid` says
which pixels count.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from lossd.core.checkpoint import Checkpoint, go_on
from lossd.losses.sums import Task, elementwise, pixel_sum

_HALF = 0.5
_STRIP_LOGITS = 1 << 17
"""Logits of all classes that are looked at together: 1 MiB in float64."""
_STRIP_PIXELS = 1 << 12
"""Fewest pixels of a strip, so that many classes do not make it a matter of calls; at most four
times as many, which are half of what torch gives a thread at least."""


class Distances(Protocol):
    """Exact Euclidean distance transforms, remembered by the content of the mask."""

    def to_edge(self, mask: Tensor, spacing: Sequence[float]) -> Tensor:
        """Distance of every pixel to the nearest one on the other side of the mask's edge.

        Args:
            mask: `[*S]` bool with at least one false and one true pixel.
            spacing: physical size of a pixel along each axis of `*S`.

        Returns:
            `[*S]` float64, on the mask's device.
        """

    def to_background(self, mask: Tensor, spacing: Sequence[float]) -> Tensor:
        """Distance of every true pixel to the nearest false one, 0 at false pixels.

        Args:
            mask: `[*S]` bool with at least one false pixel.
            spacing: physical size of a pixel along each axis of `*S`.

        Returns:
            `[*S]` float64, on the mask's device.
        """


@dataclass(frozen=True)
class Softmax:
    """What the classes of a softmax share, for each of P pixels."""

    top: Tensor
    """`[P]` int16, the class with the largest logit."""
    log_others: Tensor
    """`[P]` float64, logarithm of the other classes' exponentials over that of the top one.

    Of the top class, 1 - p has no digits where p is next to 1; this has.
    """
    log_total: Tensor
    """`[P]` float64, logarithm of the sum of all exponentials."""


@dataclass(frozen=True)
class MaskSample:
    """One sample; `C` channels, `*S` one to three axes, `G` channels of the sigmoid or 1."""

    task: Task
    scores: Tensor
    """`[C, *S]`, any float dtype: logits; of given probabilities, those of the sigmoids that would
    have made them. Finite where pixels count."""
    activated: bool
    """Probabilities were given: every channel is a sigmoid of its own, even for multiclass."""
    target: Tensor
    """`[*S]` labels, negative where a pixel has no class; or `[C, *S]` in [0, 1], 0 or negative in
    all channels of a pixel without one."""
    valid: Tensor
    """`[*S]` bool: the pixels that count."""
    weight_map: Tensor | None
    """`[*S]`, at least 0."""
    spacing: tuple[float, ...]
    """Physical size of a pixel along each of `*S`."""
    distances: Distances
    class_weights: tuple[float, ...] | None = None
    """Weight of each channel in the cross entropy."""
    checkpoint: Checkpoint = go_on
    """Called between classes and within them; what it raises ends the computation."""
    softmax: Softmax | None = None
    """Made here where the classes are those of a softmax, unless it is known already."""

    def __post_init__(self) -> None:
        """Makes what the classes share."""
        if self.task == "multiclass" and not self.activated and self.softmax is None:
            object.__setattr__(self, "softmax", self._softmax())

    @property
    def channels(self) -> int:
        """C."""
        return self.scores.shape[0]

    @property
    def groups(self) -> int:
        """G: how many cross entropies a pixel has."""
        return 1 if self.task == "multiclass" else self.channels

    @property
    def shape(self) -> torch.Size:
        """`*S`."""
        return self.scores.shape[1:]

    @property
    def labelled(self) -> bool:
        """Whether the target is labels `[*S]`."""
        return self.target.ndim < self.scores.ndim

    @cached_property
    def pixels(self) -> int:
        """How many pixels count; at least 1, samples without are not computed."""
        return int(self.valid.sum())

    @property
    def whole(self) -> bool:
        """Whether every pixel counts."""
        return self.pixels == self.valid.numel()

    def within(self, values: Tensor) -> Tensor:
        """Values `[*S]`, 0 at removed pixels."""
        return values if self.whole else torch.where(self.valid, values, 0.0)

    def score(self, channel: int) -> Tensor:
        """`[*S]` float64; what does not count may hold anything, and windows look at it."""
        return self._finite(self.scores[channel].double(), self.valid)

    def is_class(self, channel: int) -> Tensor:
        """Where a class is, `[*S]` bool: its label, or a target above one half."""
        return self.target == channel if self.labelled else self.target[channel] > _HALF

    def target_of(self, channel: int) -> Tensor:
        """Target of a channel, `[*S]` float64 in [0, 1]."""
        if self.labelled:
            return (self.target == channel).double()
        return self.target[channel].double().clamp_min(0.0)

    def target_sums(self) -> Tensor:
        """Sum of every channel's target over the pixels that count, `[C]` float64 on the CPU."""
        sums = [pixel_sum(self.within(self.target_of(channel))) for channel in range(self.channels)]
        return torch.stack(sums).cpu()

    def labels(self) -> Tensor:
        """Class `[*S]` of every pixel, the largest of a soft target; negative without one."""
        if self.labelled:
            return torch.where(self.valid, self.target, -1)
        largest = self.target.argmax(0)
        known = (self.target.clamp_min(0.0).sum(0) > 0) & self.valid
        return torch.where(known, largest, -1)

    def predicted_labels(self) -> Tensor:
        """Class `[*S]` with the largest score of every pixel."""
        if self.softmax is not None:
            return self.softmax.top.view(self.shape)
        largest = [self.scores_in(strip).argmax(0) for strip in self.strips()]
        return torch.cat(largest).view(self.shape)

    # -- activation ------------------------------------------------------------------------------

    def log_probability(self, channel: int) -> Tensor:
        """Logarithm of p of a channel, `[*S]` float64, with its digits where p is next to 1."""
        score = self.score(channel)
        if self.softmax is None:
            return elementwise(functional.logsigmoid, score)
        return self._log_softmax(score, channel)

    def probability(self, channel: int) -> Tensor:
        """`[*S]` float64, p of a channel."""
        return elementwise(torch.exp, self.log_probability(channel))

    def miss(self, channel: int, probability: Tensor) -> Tensor:
        """1 - p of a channel, `[*S]` float64, with the digits of small misses."""
        if self.softmax is None:
            return elementwise(torch.sigmoid, -self.score(channel))
        return self._softmax_miss(probability, channel)

    def log_miss(self, channel: int, probability: Tensor) -> Tensor:
        """Logarithm of 1 - p of a channel, `[*S]` float64."""
        if self.softmax is None:
            return elementwise(functional.logsigmoid, -self.score(channel))
        return elementwise(_log_miss, probability, *self._top(channel))

    def _top(self, channel: int | Tensor) -> tuple[Tensor, Tensor]:
        """Where a channel, or each pixel's own one, has the largest score; `log_others`."""
        known = self._known_softmax
        return (known.top.view(self.shape) == channel), known.log_others.view(self.shape)

    def _log_softmax(self, score: Tensor, channel: int | Tensor) -> Tensor:
        apart = score - self._known_softmax.log_total.view(self.shape)
        return elementwise(_log_probability, apart, *self._top(channel))

    def _softmax_miss(self, probability: Tensor, channel: int | Tensor) -> Tensor:
        return elementwise(_miss, probability, *self._top(channel))

    @property
    def _known_softmax(self) -> Softmax:
        if self.softmax is None:
            msg = "the channels are sigmoids"
            raise ValueError(msg)
        return self.softmax

    def strips(self) -> Iterator[slice]:
        """Pixels that are looked at together where all classes are needed, in order."""
        length = min(max(_STRIP_LOGITS // self.channels, _STRIP_PIXELS), 4 * _STRIP_PIXELS)
        for first in range(0, self.valid.numel(), length):
            yield slice(first, first + length)

    def scores_in(self, strip: slice) -> Tensor:
        """`[C, strip]` float64."""
        valid = self.valid.view(-1)[strip]
        return self._finite(self.scores.flatten(1)[:, strip].double(), valid)

    def _finite(self, scores: Tensor, valid: Tensor) -> Tensor:
        if self.whole:
            return scores
        return torch.where(valid, scores, scores.nan_to_num(0.0, 0.0, 0.0))

    def _softmax(self) -> Softmax:
        pixels, device = self.valid.numel(), self.scores.device
        top = torch.empty(pixels, dtype=torch.int16, device=device)
        log_others = torch.empty(pixels, dtype=torch.float64, device=device)
        log_total = torch.empty_like(log_others)
        for strip in self.strips():
            scores = self.scores_in(strip)
            largest, first = scores.max(0)
            rest = scores.scatter(0, first[None], -torch.inf)
            second = rest.max(0).values
            # In the order of the classes, whatever the number of threads.
            others = torch.zeros_like(second)
            for score in rest:
                others += (score - second).exp_()
            top[strip] = first
            log_others[strip] = second - largest + others.log_()
            log_total[strip] = largest + log_others[strip].exp().log1p_()
        return Softmax(top, log_others, log_total)

    # -- cross entropy ---------------------------------------------------------------------------

    def cross_entropy(self, group: int) -> Tensor:
        """`[*S]` float64 in nats, times `class_weights` and `weight_map`; 0 at removed pixels.

        Multiclass: cross entropy of all classes, the one group. Otherwise binary cross entropy of
        a channel.
        """
        if self.task != "multiclass":
            log_p, target = self.log_probability(group), self.target_of(group)
            terms = target * log_p + (1.0 - target) * self.log_miss(
                group, elementwise(torch.exp, log_p)
            )
            return self._weighed(terms.mul_(-self._weight(group)))
        if self.labelled:
            return self._weighed(-self._weight_of_labels * self._log_probability_of_labels)
        terms = torch.zeros(self.shape, dtype=torch.float64, device=self.scores.device)
        for channel in range(self.channels):
            self.checkpoint()
            term = self.target_of(channel).mul_(self.log_probability(channel))
            terms -= term.mul_(self._weight(channel))
        return self._weighed(terms)

    def cross_entropy_slopes(self, group: int, weights: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Derivatives of the sum of weights `[*S]` times cross entropy.

        Yields:
            A channel, and the derivative `[*S]` with respect to its score, all others held fixed.
        """
        weights = self._weighed(weights)
        if self.task != "multiclass":
            p, target = self.probability(group), self.target_of(group)
            slope = (1.0 - target) * p - target * self.miss(group, p)
            yield group, slope.mul_(weights).mul_(self._weight(group))
        elif self.labelled:
            probability = elementwise(torch.exp, self._log_probability_of_labels)
            miss = self._softmax_miss(probability, self._own_labels)
            slope = (-self._weight_of_labels * miss).mul_(weights)
            for channel in range(self.channels):
                yield channel, torch.where(self.target == channel, slope, 0.0)
        else:
            for channel in range(self.channels):
                self.checkpoint()
                miss = self.miss(channel, self.probability(channel))
                slope = self.target_of(channel).mul_(miss).mul_(weights)
                yield channel, slope.mul_(-self._weight(channel))

    def applied_weight(self) -> float:
        """Sum over valid pixels of the weights in the cross entropies, averaged over G."""
        total = 0.0
        for channel in range(self.channels):
            if self.task == "multiclass":
                weights = self.target_of(channel)
            else:
                weights = torch.ones(self.shape, dtype=torch.float64, device=self.scores.device)
            total += self._weight(channel) * float(pixel_sum(self._weighed(weights)))
        return total / self.groups

    @property
    def _own_labels(self) -> Tensor:
        """Label of every pixel, any where it has none."""
        return self.target.clamp_min(0)

    @property
    def _log_probability_of_labels(self) -> Tensor:
        labels = self._own_labels
        score = self.scores.gather(0, labels.long()[None])[0].double()
        return self._log_softmax(score, labels)

    @property
    def _weight_of_labels(self) -> Tensor | float:
        if self.class_weights is None:
            return 1.0
        return self.scores.new_tensor(self.class_weights, dtype=torch.float64)[
            self._own_labels.long()
        ]

    def _weight(self, channel: int) -> float:
        return 1.0 if self.class_weights is None else self.class_weights[channel]

    def _weighed(self, terms: Tensor) -> Tensor:
        return self.within(terms if self.weight_map is None else terms * self.weight_map)


def _log_probability(apart: Tensor, top: Tensor, log_others: Tensor) -> Tensor:
    return torch.where(top, functional.logsigmoid(-log_others), apart)


def _miss(probability: Tensor, top: Tensor, log_others: Tensor) -> Tensor:
    return torch.where(top, log_others.sigmoid(), 1.0 - probability)


def _log_miss(probability: Tensor, top: Tensor, log_others: Tensor) -> Tensor:
    of_others = torch.log1p(-probability.masked_fill(top, 0.0))
    return torch.where(top, functional.logsigmoid(log_others), of_others)
