"""One class of a sample, as the losses that take classes one after the other see it."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lossd.losses.mask_sample import Distances, MaskSample

_HALF = 0.5


class MaskClass:
    """One channel of a sample: its score, what follows from it, and its target; `*S` axes.

    Everything is float64. `probability`, `miss`, their logarithms, `error` and `score` follow the
    channel's own score with the scores of other classes held fixed, so that
    `dp/dz = p·(1 - p)` for a softmax as well as for a sigmoid. `Slopes` turns that into
    derivatives with respect to all scores.
    """

    def __init__(self, sample: MaskSample, channel: int, *, differentiate: bool = False) -> None:
        self.sample = sample
        self._channel = channel
        self._differentiate = differentiate

    # -- what does not follow the score ----------------------------------------------------------

    @property
    def valid(self) -> Tensor:
        """`[*S]` bool: the pixels that count."""
        return self.sample.valid

    @property
    def pixels(self) -> int:
        """How many pixels count."""
        return self.sample.pixels

    @property
    def spacing(self) -> tuple[float, ...]:
        """Physical size of a pixel along each of `*S`."""
        return self.sample.spacing

    @property
    def distances(self) -> Distances:
        """Distance transforms of masks."""
        return self.sample.distances

    @cached_property
    def target(self) -> Tensor:
        """`[*S]` in [0, 1]; 0 where a pixel has no class."""
        return self.sample.target_of(self._channel)

    @cached_property
    def foreground(self) -> Tensor:
        """`[*S]` bool: target above one half, which for labels is where the class is."""
        return self.sample.is_class(self._channel)

    @property
    def plain_target(self) -> Tensor:
        """The same as `target`, of labels as int8, whose minima take an eighth of the time."""
        return self.foreground.to(torch.int8) if self.sample.labelled else self.target

    @property
    def object(self) -> Tensor:
        """`[*S]` bool: the foreground that counts; removed pixels have no class."""
        return self.foreground & self.valid

    @property
    def predicted(self) -> Tensor:
        """`[*S]` bool: p > 0.5, strictly."""
        return self._p > _HALF

    def within(self, values: Tensor) -> Tensor:
        """Values `[*S]`, 0 at removed pixels."""
        return self.sample.within(values)

    def counted(self, values: Tensor) -> Tensor:
        """Values of the pixels that count, `[N]`."""
        return values.flatten() if self.sample.whole else values.masked_select(self.valid)

    # -- what follows the score ------------------------------------------------------------------

    @cached_property
    def leaf(self) -> Tensor:
        """`[*S]`: what stands for the score where autograd asks for derivatives."""
        known = self._p if self.sample.softmax else self.sample.score(self._channel)
        return known.detach().requires_grad_(self._differentiate)

    @property
    def score(self) -> Tensor:
        """`[*S]`: the logit of a sigmoid; of a given probability, the one that would have made it.

        Raises:
            ValueError: the classes are those of a softmax, of which a score alone means nothing.
        """
        if self.sample.softmax is not None:
            msg = "a score of a softmax has a meaning only beside the others"
            raise ValueError(msg)
        return self.leaf

    @property
    def probability(self) -> Tensor:
        """`[*S]`, p."""
        return self._following(self._p, self._p, self._q)

    @property
    def miss(self) -> Tensor:
        """`[*S]`, 1 - p, with the digits of small misses."""
        return self._following(self._q, self._p, self._q, sign=-1.0)

    @property
    def log_probability(self) -> Tensor:
        """`[*S]`, ln p."""
        return self._following(self.sample.log_probability(self._channel), self._q)

    @property
    def log_miss(self) -> Tensor:
        """`[*S]`, ln(1 - p)."""
        log_q = self.sample.log_miss(self._channel, self._p)
        return self._following(log_q, self._p, sign=-1.0)

    @property
    def error(self) -> Tensor:
        """`[*S]`, p - y, with the digits of small misses."""
        if self.sample.labelled:
            error = torch.where(self.foreground, -self._q, self._p)
        else:
            error = torch.where(self.target == 1.0, -self._q, self._p - self.target)
        return self._following(error, self._p, self._q)

    @cached_property
    def _p(self) -> Tensor:
        return self.sample.probability(self._channel)

    @cached_property
    def _q(self) -> Tensor:
        return self.sample.miss(self._channel, self._p)

    def _following(self, value: Tensor, *factors: Tensor, sign: float = 1.0) -> Tensor:
        """A value whose derivative with respect to the score is the product of the factors."""
        if not self._differentiate:
            return value
        found: Tensor = _Following.apply(self.leaf, value, sign, *factors)  # type: ignore[no-untyped-call]
        return found


class _Following(torch.autograd.Function):
    """A known value of a score, with known factors of its derivative."""

    @staticmethod
    def forward(ctx: Any, score: Tensor, value: Tensor, sign: float, *factors: Tensor) -> Tensor:
        del score
        ctx.sign = sign
        ctx.save_for_backward(*factors)
        return value.view_as(value)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_value: Tensor) -> tuple[Tensor | None, ...]:
        slope = of_value * ctx.sign
        for factor in ctx.saved_tensors:
            slope *= factor
        return slope, None, None, *(None for _ in ctx.saved_tensors)
