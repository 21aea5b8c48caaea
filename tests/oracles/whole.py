"""One sample of the pixel kind as whole tensors, for oracles that look at all of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Whole:
    """`C` channels, `*S` spatial axes; all float64."""

    task: str
    logits: Tensor
    """`[C, *S]`, what the derivative is taken of."""
    target: Tensor
    """`[C, *S]` one-hot or soft, as it was sent; 0 where a pixel has no class (ignored)."""
    valid: Tensor
    """`[*S]` bool: neither ignored nor masked."""
    weight: Tensor
    """`[*S]` weight map."""
    spacing: tuple[float, ...]

    @property
    def probability(self) -> Tensor:
        """`[C, *S]`."""
        return self.logits.softmax(0) if self.task == "multiclass" else self.logits.sigmoid()


WholeOracle = Callable[[Whole, dict[str, Any]], Tensor]
"""Value `[]` of a sample, differentiable, given the parameters that differ from their default."""

RowOracle = Callable[[dict[str, Tensor], dict[str, Any]], Tensor]
"""Value `[]` of one sample of a row loss: each input without its sample axis, float64."""
