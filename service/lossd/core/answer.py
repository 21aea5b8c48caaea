"""The tensors of one job's answer while they come in: values, gradients, maps, statistics."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lossd.core import tiles as tl
from lossd.core import vocabulary as v
from lossd.core.confusion import hard_counts
from lossd.core.in_place import SCORES
from lossd.core.job import (
    HALF_TOP_EXPONENT,
    SMALLEST_SCALE_EXPONENT,
    TORCH_DTYPES,
    Job,
    Outcome,
)
from lossd_client.wire import NUMPY_DTYPES, Array, numbered

Note = Literal["fell_back", "empty"]

_NOTES: dict[Note, str] = {
    "fell_back": "no class is present in {samples}, so all classes counted",
    "empty": "a denominator is empty in {samples}; the catalogue says what the loss is there",
}
_SHOWN_SAMPLES = 8

PROBABILITY_FLOOR = 1e-7
"""Given probabilities are kept this far from 0 and 1; outside, the derivative is 0."""

CLAMPED_LOGIT = math.log1p(-PROBABILITY_FLOOR) - math.log(PROBABILITY_FLOOR)
"""Logit of the largest probability."""


class GradientWriter:
    """Receives one gradient of a job, in tiles and in whole samples, and writes its arrays.

    Several contributions to a sample are added up before anything is rounded. Half-precision
    gradients are divided by a power of two per sample, so that the largest entry comes out just
    below the top of the range and as little as possible is flushed to zero.
    """

    def __init__(self, job: Job, first: int, *, rounds: int, whole: int) -> None:
        """Makes the arrays.

        Args:
            job: whose gradient it is.
            first: number of the job's first sample in its batch.
            rounds: how many passes over the tiles contribute.
            whole: how many contributions come as whole samples.
        """
        self.rounds = rounds
        dtype = TORCH_DTYPES[job.gradient_dtype]
        self.arrays = [torch.empty(part.logits.shape, dtype=dtype) for part in job.parts]
        self.scales = [np.ones(len(array), np.float32) for array in self.arrays]
        self.scaled = dtype in HALF_TOP_EXPONENT
        self._job = job
        self._contributions = rounds + whole
        self._direct = self._contributions == 1 and not job.activated
        self._where = _places(job, first)
        self._staged: dict[int, Tensor] = {}
        self._missing: dict[int, int] = {}

    def take(self, piece: tl.Piece, tiles: Tensor) -> None:
        """Tiles `[K, D, TILE_PIXELS]` that hold a piece of one of the job's samples."""
        index, row = self._where[piece.sample]
        target = self._grouped(self.arrays[index][row])
        whole = piece.total == target.shape[0] * tl.tiles_of(target.shape[-1])
        if self._direct and (whole or not self.scaled):
            if self.scaled:
                own = tl.tiles_of_piece(tiles, piece)
                self.scales[index][row] = scale_down(own, target.dtype)
            tl.unpack(tiles, piece, target)
            return
        tl.unpack_added(tiles, piece, self._grouped(self._stage(piece.sample)))
        self._received(piece.sample, piece.total)

    def place(self, number: int) -> Tensor | None:
        """Where a sample's gradient `[C, P]` may be written at once; None if it is added up."""
        index, row = self._where[number]
        if not self._direct or self.arrays[index].dtype not in SCORES:
            return None
        return self.arrays[index][row]

    def placed(self, number: int, factor: float) -> None:
        """Says that it was written, multiplied with a power of two."""
        index, row = self._where[number]
        self.scales[index][row] = 1.0 / factor

    def add(self, number: int, gradient: Tensor) -> None:
        """A whole contribution `[C, P]` to one of the job's samples, which may be written over."""
        if number in self._staged or gradient.dtype != self._job.dtype:
            self._stage(number).add_(gradient)
        else:
            self._stage(number, gradient)
        groups = self._grouped(gradient)
        self._received(number, groups.shape[0] * tl.tiles_of(groups.shape[-1]))

    def _stage(self, number: int, first: Tensor | None = None) -> Tensor:
        """Where the contributions to a sample are added up, `[C, P]`; the first, if it can be."""
        staged = self._staged.get(number)
        if staged is None:
            index, row = self._where[number]
            shape = self.arrays[index][row].shape
            staged = torch.zeros(shape, dtype=self._job.dtype) if first is None else first
            self._staged[number] = staged
            groups = self._grouped(staged)
            self._missing[number] = (
                self._contributions * groups.shape[0] * tl.tiles_of(groups.shape[-1])
            )
        return staged

    def _received(self, number: int, tiles: int) -> None:
        self._missing[number] -= tiles
        if self._missing[number] == 0:
            self._finish(number, self._staged.pop(number))

    def _finish(self, number: int, staged: Tensor) -> None:
        index, row = self._where[number]
        if self._job.activated:
            staged.mul_(slope_of_logits(self._job.parts[index].logits[row]))
        if self.scaled:
            self.scales[index][row] = scale_down(staged, self.arrays[index].dtype)
        self.arrays[index][row].copy_(staged)

    def _grouped(self, sample: Tensor) -> Tensor:
        return sample.unsqueeze(1) if self._job.by_channel else sample.unsqueeze(0)


def scale_down(gradient: Tensor, dtype: torch.dtype) -> float:
    """Divides a sample's gradient by a power of two, in place, which it returns."""
    largest = max(abs(float(bound)) for bound in torch.aminmax(gradient))
    if not 0.0 < largest < math.inf:
        return 1.0
    exponent = max(math.frexp(largest)[1] - HALF_TOP_EXPONENT[dtype], SMALLEST_SCALE_EXPONENT)
    gradient.mul_(2.0**-exponent)
    return float(2.0**exponent)


class MapWriter:
    """Receives one per-pixel map of a job; channels of a sigmoid are averaged."""

    def __init__(self, job: Job, first: int) -> None:
        groups = job.channels if job.by_channel else 1
        self._arrays = [
            torch.zeros(part.logits.shape[0], groups, part.logits.shape[2], dtype=job.map_dtype)
            for part in job.parts
        ]
        self._where = _places(job, first)

    def take(self, piece: tl.Piece, tiles: Tensor) -> None:
        """Tiles `[K, 1, TILE_PIXELS]` that hold a piece of one of the job's samples."""
        index, row = self._where[piece.sample]
        tl.unpack(tiles, piece, self._arrays[index][row].unsqueeze(1))

    def put(self, number: int, values: Tensor) -> None:
        """The whole map `[P]` of one of the job's samples."""
        index, row = self._where[number]
        self._arrays[index][row, 0] = values

    def arrays(self) -> list[Tensor]:
        """The maps of each part, `[B, P]`."""
        # The coefficients carry 1/G already: the channels' terms add up to the pixel's.
        return [array[:, 0] if array.shape[1] == 1 else array.sum(1) for array in self._arrays]


def _places(job: Job, first: int) -> dict[int, tuple[int, int]]:
    """Part and row of each of the job's samples, by its number in the batch."""
    places = [
        (index, row) for index, part in enumerate(job.parts) for row in range(len(part.logits))
    ]
    return {first + offset: place for offset, place in enumerate(places)}


class Answer:
    """What is known of a job's outcome so far."""

    def __init__(self, job: Job, first: int) -> None:
        self.job = job
        self.first = first
        self._values: dict[str, Array] = {}
        self._per_class: dict[str, Array] = {}
        self._gradients: dict[str, GradientWriter] = {}
        self._maps: dict[str, MapWriter] = {}
        self._statistics: dict[str, Array] = {}
        self._notes: dict[tuple[str, Note], Array] = {}

    def add_value(self, label: str, value: Array, per_class: Array | None) -> None:
        """Value `[B]` of one row and, if it has them, its classes' values `[B, C]`, float64."""
        self._values[label] = value
        if per_class is not None and self.job.per_class:
            self._per_class[label] = per_class

    def note(self, label: str, what: Note, samples: Array) -> None:
        """In which samples `[B]` bool something happened to a row that the caller should hear."""
        if samples.any():
            self._notes[label, what] = samples

    def gradient_writer(self, label: str) -> GradientWriter:
        """Receiver of the gradient of one row, or of the total (label "")."""
        if label not in self._gradients:
            tile, whole = len(self.job.tile_calls), len(self.job.sample_calls)
            rounds = max(1, len(self.job.exponents)) if tile else 0
            if label:
                rounds = int(any(call.label == label for call in self.job.tile_calls))
                whole = 1 - rounds
            self._gradients[label] = GradientWriter(
                self.job, self.first, rounds=rounds, whole=min(whole, 1)
            )
        return self._gradients[label]

    def map_writer(self, label: str) -> MapWriter:
        """Receiver of the map of one row."""
        if label not in self._maps:
            self._maps[label] = MapWriter(self.job, self.first)
        return self._maps[label]

    def add_statistics(self, region: Tensor) -> None:
        """Soft and hard counts from the job's region sums `[B, S, C]` and its tensors."""
        pixels = [count for part in self.job.parts for count in part.valid_pixels]
        valid = torch.tensor(pixels, dtype=torch.float64)[:, None].expand(-1, region.shape[2])
        positive, missed, extra = (
            region[:, index] for index in (v.TARGET, v.FALSE_NEGATIVE, v.FALSE_POSITIVE)
        )
        table = {
            "soft_tp": positive - missed,
            "soft_fp": extra,
            "soft_fn": missed,
            "soft_tn": valid - positive - extra,
            **hard_counts(self.job),
            "pixels": valid,
        }
        self._statistics = {name: values.numpy() for name, values in table.items()}

    def outcome(self) -> Outcome:
        """The finished answer."""
        values = {call.label: self._values[call.label] for call in self.job.calls}
        tensors: dict[str, Array] = {f"loss/{label}": value for label, value in values.items()}
        tensors["total"] = sum(
            (call.weight * values[call.label] for call in self.job.calls),
            start=np.zeros(self.job.samples),
        )
        for label, writer in self._gradients.items():
            name = f"{self.job.differentiable}/{label}" if label else self.job.differentiable
            tensors.update(self._gradient_tensors(name, writer))
        count = len(self.job.parts)
        for label, maps in self._maps.items():
            for index, (part, array) in enumerate(zip(self.job.parts, maps.arrays(), strict=True)):
                spatial = (part.shape[0], *part.shape[2:])
                tensors[numbered(index, f"map/{label}", count)] = array.numpy().reshape(spatial)
        for label, per_class in self._per_class.items():
            tensors[f"per_class/{label}"] = per_class
        for name, counts in self._statistics.items():
            tensors[f"statistics/{name}"] = counts
        mean = {label: float(value.mean()) for label, value in values.items()}
        return Outcome(tensors, mean, (*self.job.warnings, *self._warnings()))

    def _gradient_tensors(self, name: str, writer: GradientWriter) -> dict[str, Array]:
        tensors: dict[str, Array] = {}
        count = len(self.job.parts)
        for index, part in enumerate(self.job.parts):
            gradient = to_numpy(writer.arrays[index]).reshape(part.shape)
            tensors[numbered(index, f"gradient/{name}", count)] = gradient
            if writer.scaled:
                scales = writer.scales[index]
                tensors[numbered(index, f"gradient_scale/{name}", count)] = scales
        return tensors

    def _warnings(self) -> Iterator[str]:
        counts = [count for part in self.job.parts for count in part.valid_pixels]
        empty = [number for number, count in enumerate(counts) if count == 0]
        if empty:
            yield f"no pixel counts in {_listed(empty)}: its values and gradients are 0"
        for label, what in itertools.product((call.label for call in self.job.calls), _NOTES):
            if (label, what) in self._notes:
                found = [int(number) for number in np.flatnonzero(self._notes[label, what])]
                yield f"{label}: {_NOTES[what].format(samples=_listed(found))}"


def _listed(samples: Sequence[int]) -> str:
    shown = ", ".join(map(str, samples[:_SHOWN_SAMPLES]))
    return f"sample {shown}" + (", …" if len(samples) > _SHOWN_SAMPLES else "")


def slope_of_logits(logits: Tensor) -> Tensor:
    """Derivative of the sigmoid's logits with respect to its probabilities, 0 where clamped."""
    slope = 2.0 + torch.exp(logits) + torch.exp(-logits)  # = 1 / (p (1 - p))
    return torch.where(logits.abs() < CLAMPED_LOGIT, slope, 0.0)


def to_numpy(tensor: Tensor) -> np.ndarray[Any, Any]:
    """The tensor's memory as an array, bfloat16 included."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(NUMPY_DTYPES["bfloat16"])
    return tensor.numpy()
