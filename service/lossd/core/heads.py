"""The losses on a cohort's sums, and their derivatives by the sums.

Torch and its autograd compute them, in float64 on the CPU whatever the device. A loss that is
asked for again and again with the same parameters is recorded, if it can be, and computed by its
`program` from then on, to the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Final, NamedTuple

import numpy as np
import structlog
import torch
from torch import Tensor

from lossd.core import vocabulary as v
from lossd.core.job import LossCall
from lossd.core.program import Library, Program
from lossd.core.recording import UnrecordableError, record
from lossd.losses.declare import TileLoss, Values
from lossd.losses.sums import PixelSums, Sums, Task, region_sums

Array = np.ndarray[Any, Any]

RECORDED_AFTER: Final = 8
"""Uses after which a loss is recorded, which takes as long as some ten of them."""
_MAX_KNOWN: Final = 1024

log = structlog.get_logger(__name__)

_LEAVES: Final = ("region", "pixel", "focused")

_Found = Mapping[str, Tensor | None]


class Kind(NamedTuple):
    """How a cohort's sums are to be read."""

    task: Task
    by_channel: bool
    """Multiclass probabilities: their channels are rows of a sigmoid."""


@dataclass(frozen=True)
class Tables:
    """The sums of B samples, float64, contiguous."""

    kind: Kind
    region: Tensor
    """`[B, S, C]`."""
    pixel: list[Tensor]
    """`[B, S, G, L]` for each round."""
    pixels: Tensor
    """How many count, `[B]`."""

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Of the sums of a sample."""
        return (*self.region.shape[1:], *self.pixel[0].shape[1:])

    def of_round(self, number: int) -> list[Tensor]:
        """The tables that a loss reads whose exponent is that of a round."""
        pixel = self.pixel[:1] if number == 0 else [self.pixel[0], self.pixel[number]]
        return [self.pixels, self.region, *pixel]


@dataclass(frozen=True)
class Slopes:
    """Derivatives of something of R samples by their sums; None where all are 0."""

    region: Array | None
    """By the region sums, `[R, S, C]`."""
    pixel: Array | None
    """By the pixel sums of round 0, `[R, S, G, L]`."""
    focused: Array | None
    """By the pixel sums of the loss's round, if it is another."""


@dataclass(frozen=True)
class Evaluated(Slopes):
    """A loss of R samples, and the derivatives of its values times the seeds.

    What the loss does not have is None.
    """

    value: Array
    """`[R]`."""
    per_class: Array | None
    """`[R, C]`."""
    fell_back: Array | None
    """`[R]` bool."""
    empty: Array | None
    """`[R]` bool."""


class Heads:
    """Computes losses of sums; used by one thread."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], int | Program | None] = {}
        """How often each loss was asked for, then its program; None if there can be none."""
        self._due: dict[tuple[object, ...], Callable[[], Program | None]] = {}

    def __len__(self) -> int:
        """Of how many losses something is known."""
        return len(self._known)

    @property
    def programs(self) -> int:
        """How many losses have a program."""
        return sum(isinstance(one, Program) for one in self._known.values())

    def evaluate(
        self,
        call: LossCall[TileLoss],
        tables: Tables,
        rows: Array,
        seeds: Array,
        *,
        number: int,
        is_aggregated: bool,
        library: Library | None,
    ) -> Evaluated:
        """A loss of some samples.

        Args:
            call: the loss and its parameters.
            tables: the sums of all samples.
            rows: which of them, `[R]` int64.
            seeds: what the derivatives of each value are multiplied with, `[R]`.
            number: round of the loss's exponent.
            is_aggregated: whether the samples' region sums are added up.
            library: what runs programs; without it there are none.
        """
        given = tables.of_round(number)
        if is_aggregated:
            given, rows = _with_totals(given, rows), np.arange(len(rows))
        if library is not None:
            known = self._program(call, tables, number, given, is_aggregated=is_aggregated)
            if known is not None:
                return _by_program(known, library, given, rows, seeds)
        own = [table[torch.from_numpy(rows)] for table in given]
        weights = torch.from_numpy(seeds) if seeds.any() else None
        found = _computed(call, tables.kind, own, weights, is_aggregated=is_aggregated)
        return _evaluated(
            {name: None if one is None else one.numpy() for name, one in found.items()}, len(rows)
        )

    def record_next(self) -> None:
        """Records one of the losses that have been asked for often enough, if there is any.

        To be called when nobody waits: it takes longer than a small batch.
        """
        if self._due:
            key = next(iter(self._due))
            recorded = self._due.pop(key)()
            if key in self._known:
                self._known[key] = recorded

    def _program(
        self,
        call: LossCall[TileLoss],
        tables: Tables,
        number: int,
        given: Sequence[Tensor],
        *,
        is_aggregated: bool,
    ) -> Program | None:
        """The program of a loss, if it has one; `given` is what `_computed` takes."""
        key = (*call.key, tables.kind, tables.shape, number > 0, is_aggregated)
        known = self._known.get(key, 0)
        if not isinstance(known, int):
            return known
        self._known[key] = known + 1
        if known + 1 == RECORDED_AFTER:
            shapes = [tuple(table.shape[1:]) for table in given]
            self._due[key] = partial(
                _recorded, call, tables.kind, shapes, is_aggregated=is_aggregated
            )
        if len(self._known) > _MAX_KNOWN:
            oldest = next(iter(self._known))
            del self._known[oldest]
            self._due.pop(oldest, None)
        return None


def _by_program(
    program: Program, library: Library, tables: Sequence[Tensor], rows: Array, seeds: Array
) -> Evaluated:
    of_samples = np.zeros(len(tables[0]))
    of_samples[rows] = seeds
    arrays = [*(table.numpy() for table in tables), of_samples]
    return _evaluated(program.run(library, arrays, rows), len(rows))


def _evaluated(found: Mapping[str, Array | None], rows: int) -> Evaluated:
    value, flags = found["value"], [found["fell_back"], found["empty"]]
    fell_back, empty = (None if one is None else one.astype(np.bool_) for one in flags)
    return Evaluated(
        region=found["region"],
        pixel=found["pixel"],
        focused=found["focused"],
        value=np.zeros(rows) if value is None else value,
        per_class=found["per_class"],
        fell_back=fell_back,
        empty=empty,
    )


def map_coefficients(
    call: LossCall[TileLoss], tables: Tables, rows: Array, *, number: int
) -> Slopes | None:
    """What the pixels' terms are multiplied with to make up a loss, before its normaliser.

    Args:
        call: the loss and its parameters.
        tables: the sums of all samples.
        rows: which of them, `[R]` int64.
        number: round of the loss's exponent.

    Returns:
        By the sums; None of a loss that is no sum of terms of pixels.
    """
    pixels, region, *pixel = (table[torch.from_numpy(rows)] for table in tables.of_round(number))
    pixel = [one.requires_grad_() for one in pixel]
    sums = _sums(tables.kind, (pixels, region), (pixels, region), *pixel)
    terms = call.loss.values(sums, call.options).pixel_terms
    if terms is None:
        return None
    found = torch.autograd.grad(terms.sum(), pixel, materialize_grads=True)
    slopes = [one.numpy() for one in found]
    return Slopes(None, slopes[0], slopes[1] if len(slopes) > 1 else None)


def _recorded(
    call: LossCall[TileLoss],
    kind: Kind,
    shapes: Sequence[tuple[int, ...]],
    *,
    is_aggregated: bool,
) -> Program | None:
    """The program of a loss of sums of some shapes, if there can be one."""
    examples = [torch.ones(1, *shape, dtype=torch.float64) for shape in [*shapes, ()]]

    def function(*given: Tensor) -> _Found:
        return _computed(call, kind, given[:-1], given[-1], is_aggregated=is_aggregated)

    try:
        return record(function, examples)
    except UnrecordableError:
        return None
    except Exception as error:
        log.exception("recording_failed", loss=call.loss.name, error=str(error))
        return None


def _computed(
    call: LossCall[TileLoss],
    kind: Kind,
    tables: Sequence[Tensor],
    seeds: Tensor | None,
    *,
    is_aggregated: bool,
) -> _Found:
    """The results of `Evaluated` by torch, from some samples' rows of `Tables.of_round`.

    If their region sums are added up, from those of `_with_totals`.
    """
    own = tables[0], tables[1]
    pixels, *leaves = tables[2:] if is_aggregated else tables
    known = {
        name: leaf.detach().requires_grad_() for name, leaf in zip(_LEAVES, leaves, strict=False)
    }
    region, *pixel = known.values()
    sums = _sums(kind, own, (pixels, region), *pixel)
    values: Values = call.loss.values(sums, call.options)
    slopes: dict[str, Tensor | None] = dict.fromkeys(_LEAVES)
    if seeds is not None:
        found = torch.autograd.grad(values.value, list(known.values()), seeds, allow_unused=True)
        slopes |= dict(zip(known, found, strict=True))
    return {
        "value": values.value.detach(),
        "per_class": None if values.per_class is None else values.per_class.detach(),
        "fell_back": values.fell_back,
        "empty": values.empty,
        **slopes,
    }


def _with_totals(tables: Sequence[Tensor], rows: Array) -> list[Tensor]:
    """Pixels and region sums of some samples, then all their tables, with the totals of the two.

    Each sample's derivative by the totals is that by its own sums: they are what it adds to them.
    """
    pixels, region, *pixel = (table[torch.from_numpy(rows)] for table in tables)
    totals = (one.sum(0, keepdim=True).expand(one.shape).contiguous() for one in (pixels, region))
    return [pixels, region, *totals, *pixel]


def _sums(
    kind: Kind,
    own: tuple[Tensor, Tensor],
    regional: tuple[Tensor, Tensor],
    pixel: Tensor,
    focused: Tensor | None = None,
) -> Sums:
    """Named views of some samples' sums.

    Args:
        kind: how they are to be read.
        own: their pixels and region sums.
        regional: those that losses of regions see, which may be totals.
        pixel: their pixel sums.
        focused: those of the loss's round, if it is another.
    """
    pixels, region = own
    return Sums(
        task=kind.task,
        region=region_sums(regional[1], regional[0]),
        pixel=_pixel_sums(kind, pixels, region, pixel, focused),
        pixels=pixels,
    )


def _pixel_sums(
    kind: Kind, pixels: Tensor, region: Tensor, table: Tensor, focused_table: Tensor | None
) -> PixelSums:
    pixel = _labels(kind, table).unbind(1)
    focused = pixel if focused_table is None else _labels(kind, focused_table).unbind(1)
    unmade = torch.zeros_like(pixel[0])

    def sums(index: int, source: tuple[Tensor, ...] = pixel) -> Tensor:
        return source[index] if index < len(source) else unmade

    complement = sums(v.COMPLEMENT_CROSS_ENTROPY)
    if kind.by_channel:
        complement = table[:, v.CROSS_ENTROPY, None, :, 0]
    return PixelSums(
        count=_label_counts(kind, pixels, region.detach()),
        weight=sums(v.WEIGHT),
        cross_entropy=sums(v.CROSS_ENTROPY),
        focal=sums(v.FOCAL, focused),
        negative_log_likelihood=sums(v.NEGATIVE_LOG_LIKELIHOOD),
        miss=sums(v.MISS),
        powered_cross_entropy=sums(v.POWERED_CROSS_ENTROPY, focused),
        kullback_leibler=sums(v.KULLBACK_LEIBLER),
        jensen_shannon=sums(v.JENSEN_SHANNON),
        complement_cross_entropy=complement,
    )


def _labels(kind: Kind, pixel: Tensor) -> Tensor:
    """Sums per label `[B, S, G, L]`; of multiclass channel rows, those of the label on."""
    return pixel[..., 1].unsqueeze(2) if kind.by_channel else pixel


def _label_counts(kind: Kind, pixels: Tensor, region: Tensor) -> Tensor:
    """Pixels of each label, `[B, G, L]`: of each class, or off and on of each channel."""
    on = region[:, v.TARGET]
    if kind.task == "multiclass":
        return on[:, None]
    return torch.stack([pixels[:, None] - on, on], dim=-1)
