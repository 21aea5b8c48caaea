"""What the core is asked and what it answers: frozen values, validated before they get here."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from lossd.core.compiled import SIGMOID_FAMILIES
from lossd.core.tiles import tiles_of
from lossd.losses.declare import SampleLoss, TileLoss
from lossd.losses.registry import Loss

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from lossd.core.compiled import Family
    from lossd.losses import Options, Task
    from lossd_client.qa_wire import PredictionKind
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


HALF_TOP_EXPONENT = {torch.float16: 15, torch.bfloat16: 0}
"""Exponent of the largest gradient of a sample after scaling, by dtype: 2^15 leaves float16 one
binade to round into."""

SMALLEST_SCALE_EXPONENT = -126
"""Of a gradient's scale: float32 has its inverse, too. Gradients smaller than that by themselves,
of masks that are right by 75 nats or so, keep fewer digits, and 0 in the end."""

L_co = TypeVar("L_co", bound=Loss, covariant=True)


@dataclass(frozen=True)
class LossCall(Generic[L_co]):
    """One row of a request: a loss with validated options, its weight in the total, its label."""

    label: str
    loss: L_co
    options: Options
    weight: float

    @property
    def key(self) -> tuple[str, str]:
        """Equal for rows that compute the same thing."""
        return self.loss.name, self.options.text


@dataclass(frozen=True)
class Part:
    """Samples of one size; P is the number of pixels of a sample, row-major.

    The target says which pixels count: -1 removes one. Which layout it has follows from the
    job's family: labels `[B, P]` integer; a distribution `[B, C, P]`; or, for sigmoid, one target
    in [0, 1] per channel `[B, C, P]`. Labels may stand for a distribution.
    """

    logits: Tensor
    """`[B, C, P]`, float16 to float64; anything at removed pixels. Of given probabilities, the
    logits of a sigmoid that would have made them."""
    target: Tensor
    weight_map: Tensor | None
    """`[B, P]`, finite, at least 0."""
    shape: tuple[int, ...]
    """`(B, C, *S)` as the caller sent it."""
    valid_pixels: tuple[int, ...]
    """How many pixels of each sample count."""
    whole_target: Tensor | None = None
    """The target without the mask, -1 only where a pixel has no class; None where there is no
    mask or no loss looks behind it."""

    device_logits: Tensor | None = None
    """The same logits on the device that computes, where they lie there already. Only the passes
    read them, and the part is not charged for them."""

    @cached_property
    def nbytes(self) -> int:
        """Bytes of the part's tensors."""
        tensors = (self.logits, self.target, self.weight_map, self.whole_target)
        return sum([one.nbytes for one in tensors if one is not None])


@dataclass(frozen=True)
class Job:
    """One request of the pixel kind, ready to compute."""

    parts: tuple[Part, ...]
    task: Task
    family: Family
    dtype: torch.dtype
    """What it is computed in: float32, or float64 for float64 logits, probabilities, rich sums."""
    calls: tuple[LossCall[Loss], ...]
    gradient: Gradient = "none"
    gradient_dtype: GradientDtype = "float32"
    maps: bool = False
    map_dtype: torch.dtype = torch.float32
    per_class: bool = False
    statistics: bool = False
    aggregate: Aggregate = "sample"
    activated: bool = False
    """The input was probabilities. They are computed as rows of a sigmoid, one per channel, even
    for multiclass: each is then a variable of its own, as the derivative asks."""
    spacing: tuple[float, ...] = ()
    """Physical size of a pixel along each spatial axis."""
    warnings: tuple[str, ...] = ()
    """What was noticed while the request was read."""
    preset: dict[str, Any] | None = None
    """What the answer says of a preset."""

    def of(self, parts: tuple[Part, ...], warnings: tuple[str, ...]) -> Job:
        """The same job for parts of the same shapes and dtypes.

        What follows from shapes holds for it too and is not reckoned again.
        """
        other = object.__new__(Job)
        other.__dict__.update(self.__dict__)
        other.__dict__.update(parts=parts, warnings=warnings)
        other.__dict__.pop("nbytes", None)
        return other

    @property
    def differentiable(self) -> str:
        """Input that the gradient is taken of."""
        return "probabilities" if self.activated else "logits"

    @cached_property
    def tile_calls(self) -> tuple[LossCall[TileLoss], ...]:
        """The rows whose losses are functions of sums."""
        return tuple(
            LossCall(call.label, call.loss, call.options, call.weight)
            for call in self.calls
            if isinstance(call.loss, TileLoss)
        )

    @cached_property
    def sample_calls(self) -> tuple[LossCall[SampleLoss], ...]:
        """The rows whose losses look at whole samples."""
        return tuple(
            LossCall(call.label, call.loss, call.options, call.weight)
            for call in self.calls
            if isinstance(call.loss, SampleLoss)
        )

    @cached_property
    def exponents(self) -> tuple[float, ...]:
        """Distinct exponents of the tile losses, in order of first use; a pass for each."""
        found = [call.loss.exponent(call.options) for call in self.tile_calls]
        return tuple(dict.fromkeys(value for value in found if value is not None))

    @property
    def by_channel(self) -> bool:
        """Whether every channel is a row of tiles of its own."""
        return self.family in SIGMOID_FAMILIES

    @cached_property
    def channels(self) -> int:
        """Channels of the logits, the same in all parts."""
        return self.parts[0].logits.shape[1]

    @cached_property
    def samples(self) -> int:
        """Number of samples in all parts."""
        return sum(part.logits.shape[0] for part in self.parts)

    @cached_property
    def nbytes(self) -> int:
        """Bytes the job holds while it waits."""
        return sum(part.nbytes for part in self.parts)

    @cached_property
    def tiles(self) -> int:
        """Tiles that its samples are cut into."""
        groups = self.channels if self.by_channel else 1
        return sum(
            part.logits.shape[0] * groups * tiles_of(part.logits.shape[2]) for part in self.parts
        )

    @cached_property
    def group(self) -> tuple[Any, ...]:
        """Jobs of equal group can be computed in one batch."""
        width = 1 if self.by_channel else self.channels
        return self.family, self.dtype, width

    @cached_property
    def workload(self) -> tuple[Any, ...]:
        """Jobs of equal workload take about as long for a byte.

        Which losses hardly matters, except for those of whole samples, but how often the logits are
        gone through does.
        """
        rounds = len(self.tile_calls) if self.gradient == "each" or self.maps else 0
        whole = tuple(sorted(call.loss.name for call in self.sample_calls))
        return self.group, self.gradient, self.maps, rounds, len(self.exponents), whole


@dataclass(frozen=True)
class RowJob:
    """One request of any other kind: tables whose rows are samples."""

    parts: tuple[Mapping[str, Tensor], ...]
    """Tensors by input name; those with a sample axis have it first. Numbers are float64, or
    int64 where the input holds integers."""
    shared: tuple[str, ...]
    """Inputs that belong to all samples of their part."""
    differentiable: tuple[str, ...]
    """Inputs that gradients are given for."""
    calls: tuple[LossCall[Loss], ...]
    gradient: Gradient = "none"
    gradient_dtype: GradientDtype = "float32"
    warnings: tuple[str, ...] = ()
    preset: dict[str, Any] | None = None
    """What the answer says of a preset."""
    tiles: ClassVar[int] = 0
    """Tables are not cut."""

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of samples in each part."""
        return tuple(
            next(len(tensor) for name, tensor in part.items() if name not in self.shared)
            for part in self.parts
        )

    @cached_property
    def samples(self) -> int:
        """Number of samples in all parts."""
        return sum(self.sizes)

    @cached_property
    def nbytes(self) -> int:
        """Bytes the job holds while it waits."""
        return sum(tensor.nbytes for part in self.parts for tensor in part.values())

    @cached_property
    def group(self) -> tuple[Any, ...]:
        """Row jobs share nothing but their place in the queue."""
        return ("rows",)

    @cached_property
    def workload(self) -> tuple[Any, ...]:
        """Jobs of equal workload take about as long for a byte."""
        return self.group, self.gradient, *sorted(call.loss.name for call in self.calls)


@dataclass(frozen=True)
class ObservationPart:
    """Images of one size, to be looked at for annotation QA; P is the pixels of an image."""

    prediction: Tensor
    """`[B, C, P]` logits or probabilities, `[B, 1, P]` for two classes; labels `[B, 1, P]`."""
    target: Tensor
    """`[B, P]` integers, -1 where a pixel does not count."""
    size: tuple[int, int]
    """Height and width."""
    loc: tuple[str | int, ...]
    """Where the prediction stands in the request."""

    @property
    def images(self) -> int:
        """How many images."""
        return self.target.shape[0]


@dataclass(frozen=True)
class ObservationJob:
    """One request of annotation QA, ready to be looked at."""

    parts: tuple[ObservationPart, ...]
    kind: PredictionKind
    classes: int
    tiles: ClassVar[int] = 0
    """Images are not cut."""

    @cached_property
    def samples(self) -> int:
        """Number of images in all parts."""
        return sum(part.images for part in self.parts)

    @cached_property
    def nbytes(self) -> int:
        """Bytes the job holds while it waits."""
        return sum(part.prediction.nbytes + part.target.nbytes for part in self.parts)

    @cached_property
    def group(self) -> tuple[Any, ...]:
        """Images are looked at one by one; the jobs share nothing but their place in the queue."""
        return ("observation",)

    @cached_property
    def workload(self) -> tuple[Any, ...]:
        """Jobs of equal workload take about as long for a byte."""
        return self.group, self.kind, self.classes, str(self.parts[0].prediction.dtype)


AnyJob = Job | RowJob | ObservationJob


@dataclass(frozen=True)
class Outcome:
    """Answer to a job: tensors by their name on the wire, and what to warn of."""

    tensors: dict[str, np.ndarray[Any, Any]]
    mean: dict[str, float]
    warnings: tuple[str, ...] = field(default=())
