"""The tensors of one job's answer while they come in: values, gradients, maps, statistics."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lossd.core import tiles as tl
from lossd.core import vocabulary as v
from lossd.core.confusion import hard_counts
from lossd.core.job import TORCH_DTYPES, Job, LossCall, Outcome
from lossd_client.wire import NUMPY_DTYPES, Array, numbered

# Largest gradient of a sample after scaling: 2^15 leaves float16 one binade to round into.
_HALF_TOP_EXPONENT = {torch.float16: 15, torch.bfloat16: 0}


class GradientWriter:
    """Receives the tiles of one gradient of a job and writes them as the answer's arrays.

    Half-precision gradients are divided by a power of two per sample, so that the largest entry
    comes out just below the top of the range and as little as possible is flushed to zero.
    """

    def __init__(self, job: Job, first: int, passes: int) -> None:
        self.passes = passes
        dtype = TORCH_DTYPES[job.gradient_dtype]
        self.arrays = [torch.empty(part.logits.shape, dtype=dtype) for part in job.parts]
        self.scales = [torch.ones(len(array), dtype=torch.float32) for array in self.arrays]
        self.scaled = dtype in _HALF_TOP_EXPONENT
        self._computed = job.dtype
        self._sigmoid = job.family == "sigmoid"
        self._where = {}
        number = first
        for index, array in enumerate(self.arrays):
            for row in range(len(array)):
                self._where[number] = index, row
                number += 1
        self._staged: dict[int, Tensor] = {}
        self._missing: dict[int, int] = {}

    def take(self, piece: tl.Piece, tiles: Tensor) -> None:
        """Tiles `[K, D, TILE_PIXELS]` that hold a piece of one of the job's samples."""
        index, row = self._where[piece.sample]
        target = self._grouped(self.arrays[index][row])
        whole = piece.total == target.shape[0] * tl.tiles_of(target.shape[-1])
        if self.passes == 1 and (whole or not self.scaled):
            if self.scaled:
                self._scale(tl.tiles_of_piece(tiles, piece), self.scales[index][row], target.dtype)
            tl.unpack(tiles, piece, target)
            return
        staged = self._staged.get(piece.sample)
        if staged is None:
            staged = torch.zeros(target.shape, dtype=self._computed)
            self._staged[piece.sample] = staged
            self._missing[piece.sample] = (
                self.passes * target.shape[0] * tl.tiles_of(target.shape[-1])
            )
        tl.unpack_added(tiles, piece, staged)
        self._missing[piece.sample] -= piece.total
        if self._missing[piece.sample] == 0:
            self._finish(self._staged.pop(piece.sample), target, self.scales[index][row])

    def _finish(self, staged: Tensor, target: Tensor, scale: Tensor) -> None:
        if self.scaled:
            self._scale(staged, scale, target.dtype)
        target.copy_(staged)

    def _scale(self, gradient: Tensor, scale: Tensor, dtype: torch.dtype) -> None:
        """Divides a sample's gradient by a power of two, in place, and notes it in `scale`."""
        largest = max(abs(float(bound)) for bound in torch.aminmax(gradient))
        if 0.0 < largest < math.inf:
            exponent = math.frexp(largest)[1] - _HALF_TOP_EXPONENT[dtype]
            scale.fill_(2.0**exponent)
            gradient.mul_(2.0**-exponent)

    def _grouped(self, sample: Tensor) -> Tensor:
        return sample.unsqueeze(1) if self._sigmoid else sample.unsqueeze(0)


class MapWriter:
    """Receives the tiles of one per-pixel map of a job; channels of a sigmoid are averaged."""

    def __init__(self, job: Job, first: int) -> None:
        groups = job.channels if job.family == "sigmoid" else 1
        self._arrays = [
            torch.empty(part.logits.shape[0], groups, part.logits.shape[2], dtype=job.dtype)
            for part in job.parts
        ]
        self._where = {}
        number = first
        for array in self._arrays:
            for row in range(len(array)):
                self._where[number] = array[row]
                number += 1

    def take(self, piece: tl.Piece, tiles: Tensor) -> None:
        """Tiles `[K, 1, TILE_PIXELS]` that hold a piece of one of the job's samples."""
        tl.unpack(tiles, piece, self._where[piece.sample].unsqueeze(1))

    def arrays(self) -> list[Tensor]:
        """The maps of each part, `[B, P]`."""
        # The coefficients carry 1/G already: the channels' terms add up to the pixel's.
        return [array[:, 0] if array.shape[1] == 1 else array.sum(1) for array in self._arrays]


class Answer:
    """What is known of a job's outcome so far."""

    def __init__(self, job: Job, first: int) -> None:
        self.job = job
        self._first = first
        self._values: dict[str, Tensor] = {}
        self._per_class: dict[str, Tensor] = {}
        self._gradients: dict[str, GradientWriter] = {}
        self._maps: dict[str, MapWriter] = {}
        self._statistics: dict[str, Array] = {}

    def add_value(self, call: LossCall, value: Tensor, per_class: Tensor | None) -> None:
        """Value `[B]` of one row and, if it has them, its classes' values `[B, C]`."""
        self._values[call.label] = value.detach()
        if per_class is not None and self.job.per_class:
            self._per_class[call.label] = per_class.detach()

    def gradient_writer(self, label: str) -> GradientWriter:
        """Receiver of the gradient of one row, or of the total (label "")."""
        passes = 1
        if not label:
            exponents = {call.loss.exponent(call.options) for call in self.job.calls} - {None}
            passes = max(1, len(exponents))
        self._gradients[label] = GradientWriter(self.job, self._first, passes)
        return self._gradients[label]

    def map_writer(self, label: str) -> MapWriter:
        """Receiver of the map of one row."""
        self._maps[label] = MapWriter(self.job, self._first)
        return self._maps[label]

    def add_statistics(self, region: Tensor) -> None:
        """Soft and hard counts from the job's region sums `[B, 6, C]` and its tensors."""
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
        tensors: dict[str, Array] = {
            f"loss/{label}": value.numpy() for label, value in self._values.items()
        }
        total = sum(
            (call.weight * self._values[call.label] for call in self.job.calls),
            start=torch.zeros(self.job.samples, dtype=torch.float64),
        )
        tensors["total"] = total.numpy()
        count = len(self.job.parts)
        for label, writer in self._gradients.items():
            suffix = f"logits/{label}" if label else "logits"
            for index, part in enumerate(self.job.parts):
                gradient = to_numpy(writer.arrays[index]).reshape(part.shape)
                tensors[numbered(index, f"gradient/{suffix}", count)] = gradient
                if writer.scaled:
                    scale = writer.scales[index].numpy()
                    tensors[numbered(index, f"gradient_scale/{suffix}", count)] = scale
        for label, maps in self._maps.items():
            for index, (part, array) in enumerate(zip(self.job.parts, maps.arrays(), strict=True)):
                spatial = (part.shape[0], *part.shape[2:])
                tensors[numbered(index, f"map/{label}", count)] = array.numpy().reshape(spatial)
        for label, values in self._per_class.items():
            tensors[f"per_class/{label}"] = values.numpy()
        for name, counts in self._statistics.items():
            tensors[f"statistics/{name}"] = counts
        mean = {label: float(value.mean()) for label, value in self._values.items()}
        return Outcome(tensors, mean, tuple(self._warnings()))

    def _warnings(self) -> list[str]:
        counts = [count for part in self.job.parts for count in part.valid_pixels]
        empty = [number for number, count in enumerate(counts) if count == 0]
        if not empty:
            return []
        which = ", ".join(map(str, empty[:8])) + (", …" if len(empty) > 8 else "")  # noqa: PLR2004
        return [f"no pixel counts in sample {which}: its values and gradients are 0"]


def to_numpy(tensor: Tensor) -> np.ndarray[Any, Any]:
    """The tensor's memory as an array, bfloat16 included."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(NUMPY_DTYPES["bfloat16"])
    return tensor.numpy()
