"""What the core is asked and what it answers: frozen values, validated before they get here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np

    from lossd.core.compiled import Family
    from lossd.losses import Loss, Options, Task
    from lossd_client.wire import Aggregate, Gradient, GradientDtype

TORCH_DTYPES: dict[str, torch.dtype] = {
    "bool": torch.bool,
    "uint8": torch.uint8,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}
"""torch's dtype for each dtype of the wire."""


@dataclass(frozen=True)
class LossCall:
    """One row of a request: a loss with validated options, its weight in the total, its label."""

    label: str
    loss: Loss
    options: Options
    weight: float

    @property
    def key(self) -> tuple[str, str]:
        """Equal for rows that compute the same thing."""
        return self.loss.name, self.options.model_dump_json()


@dataclass(frozen=True)
class Part:
    """Samples of one size; P is the number of pixels of a sample, row-major.

    The target says which pixels count: -1 removes one. Which layout it has follows from the
    job's family: labels `[B, P]` integer; a distribution `[B, C, P]`; or, for sigmoid, one target
    in [0, 1] per channel `[B, C, P]`.
    """

    logits: Tensor
    """`[B, C, P]`, float16 to float64; anything at removed pixels."""
    target: Tensor
    weight_map: Tensor | None
    """`[B, P]`, finite, at least 0."""
    shape: tuple[int, ...]
    """`(B, C, *S)` as the caller sent it."""
    valid_pixels: tuple[int, ...]
    """How many pixels of each sample count."""

    @property
    def nbytes(self) -> int:
        """Bytes of the part's tensors."""
        tensors = [self.logits, self.target]
        if self.weight_map is not None:
            tensors.append(self.weight_map)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass(frozen=True)
class Job:
    """One request, ready to compute."""

    parts: tuple[Part, ...]
    task: Task
    family: Family
    dtype: torch.dtype
    """What it is computed in: float32, or float64 for float64 logits."""
    calls: tuple[LossCall, ...]
    gradient: Gradient = "none"
    gradient_dtype: GradientDtype = "float32"
    maps: bool = False
    per_class: bool = False
    statistics: bool = False
    aggregate: Aggregate = "sample"

    @property
    def channels(self) -> int:
        """Channels of the logits, the same in all parts."""
        return self.parts[0].logits.shape[1]

    @property
    def samples(self) -> int:
        """Number of samples in all parts."""
        return sum(part.logits.shape[0] for part in self.parts)

    @property
    def nbytes(self) -> int:
        """Bytes the job holds while it waits."""
        return sum(part.nbytes for part in self.parts)

    @property
    def group(self) -> tuple[Any, ...]:
        """Jobs of equal group can be computed in one batch."""
        width = self.channels if self.family != "sigmoid" else 1
        return self.family, self.dtype, width


@dataclass(frozen=True)
class Outcome:
    """Answer to a job: tensors by their name on the wire, and what to warn of."""

    tensors: dict[str, np.ndarray[Any, Any]]
    mean: dict[str, float]
    warnings: tuple[str, ...] = field(default=())
