"""Where the gradient of a sample's losses is added up, class by class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lossd.losses.mask_sample import MaskSample
from lossd.losses.sums import elementwise

_UNDERFLOW = 1e-290


class Slopes:
    r"""Derivatives with respect to each class's own score, the others held fixed, added up.

    Classes of a softmax are no independent variables, but this is all that one class's loss can
    know. Afterwards, with :math:`t_c` for the sum of class c,

        \frac{\partial L}{\partial z_j} = t_j - p_j \sum_{c \ne j} \frac{t_c}{1 - p_c}

    since the scores of the others divide what a class leaves to them in the ratio of their
    probabilities. Written that way there are no differences of numbers next to each other, however
    sure a prediction is.
    """

    def __init__(self, sample: MaskSample, dtype: torch.dtype) -> None:
        """Makes zeros.

        Args:
            sample: whose derivatives they are.
            dtype: in which they are added up.
        """
        self._sample = sample
        self._slopes = torch.zeros(sample.scores.shape, dtype=dtype, device=sample.scores.device)

    def add(self, channel: int, slope: Tensor, weight: float) -> None:
        """Weight times derivatives `[*S]`; what is at removed pixels is left out."""
        self._slopes[channel] += self._sample.within(slope) * weight

    def gradient(self) -> Tensor:
        """Derivatives `[C, *S]` with respect to all scores; the sums are written over."""
        softmax = self._sample.softmax
        if softmax is None:
            return self._slopes
        slopes = self._slopes.flatten(1)
        for strip in self._sample.strips():
            self._sample.checkpoint()
            top = softmax.top[strip].long()[None]
            log_miss = functional.logsigmoid(softmax.log_others[strip])
            miss = log_miss.exp()
            own = slopes[:, strip].double()
            log_share = self._sample.scores_in(strip) - softmax.log_total[strip]
            share = elementwise(torch.exp, log_share).scatter_(0, top, (1.0 - miss)[None])
            of_top = own.gather(0, top)[0]
            others = (own / (1.0 - share).scatter_(0, top, 1.0)).scatter_(0, top, 0.0)
            # In the order of the classes, whatever the number of threads.
            total = torch.zeros_like(of_top)
            for one in others:
                total += one
            # Share of each class in what the top one leaves, whose own 1 - p may underflow.
            if bool(miss.min() < _UNDERFLOW):
                left = elementwise(torch.exp, log_share - log_miss)
            else:
                left = share / miss
            found = own - share * (total - others) - left * of_top
            found_of_top = of_top - (1.0 - miss) * total
            slopes[:, strip] = found.scatter_(0, top, found_of_top[None])
        return self._slopes


@dataclass(frozen=True)
class Weighed:
    """What one loss adds to slopes."""

    slopes: Slopes
    weight: float
    """Factor of the loss."""

    def add(self, channel: int, slope: Tensor, weight: float = 1.0) -> None:
        """Derivatives `[*S]` of the loss, times a weight, with respect to a channel's score."""
        self.slopes.add(channel, slope, weight * self.weight)
