"""The passes over a batch's tiles: sums of every sample, gradients and maps of the samples asked.

A pass packs a chunk, runs one kernel and drops the tiles; a batch that fits one chunk is packed
once. Sums of tiles are float32 (float64 for float64 jobs) and are added in float64 in the order of
the sample's tiles, so that nothing of a sample depends on the company it is computed in.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lossd.core import tiles as tl
from lossd.core.checkpoint import Checkpoint, go_on
from lossd.core.compiled import (
    DISTRIBUTION_FAMILIES,
    SIGMOID_FAMILIES,
    Family,
    Kernels,
    KernelTable,
)
from lossd.core.distance import DistanceMaps
from lossd.core.heads import Heads
from lossd.core.in_place import InPlace, Lot
from lossd.core.tiles import TILE_PIXELS, Sample

_LOT_LOGITS = 1 << 20
"""Some 0.6 ms on two processors; what is written is still in their caches when it is scaled."""
_MIN_TILES = 2  # a pile of one tile is a graph of its own, with other last bits


class Receiver(Protocol):
    """What takes the gradient of some samples."""

    def take(self, piece: tl.Piece, tiles: Tensor) -> None:
        """A piece of a sample, in tiles `[K, D, TILE_PIXELS]` that are overwritten afterwards."""

    def place(self, number: int) -> Tensor | None:
        """Where a sample's gradient `[C, P]` may be written at once; None if it is added up."""

    def placed(self, number: int, factor: float) -> None:
        """Says that it was, multiplied with a power of two."""

    def add(self, number: int, gradient: Tensor) -> None:
        """A sample's gradient `[C, P]`."""


@dataclass(frozen=True)
class Packed:
    """A chunk's tiles as the kernels take them."""

    chunk: tl.Chunk
    logits: Tensor
    target: Tensor
    weight: Tensor
    out: Tensor


class Workspace:
    """Memory for one chunk, made once and used for every batch by the engine's one thread.

    Args:
        device: that computes.
        chunk_logits: how many logits a chunk holds.
        heads: computes losses of sums; those of another workspace of the same thread, or its own.
    """

    def __init__(self, device: torch.device, chunk_logits: int, heads: Heads | None = None) -> None:
        self.device = device
        self.distances = DistanceMaps()
        self.heads = Heads() if heads is None else heads
        self.chunk_logits = max(chunk_logits, _MIN_TILES * TILE_PIXELS)
        self._memory: dict[tuple[str, torch.dtype], Tensor] = {}
        self._ones: dict[torch.dtype, Tensor] = {}

    def release(self) -> None:
        """Lets go of the memory, which the next batch makes anew."""
        self._memory.clear()
        self._ones.clear()

    def capacity(self, depth: int) -> int:
        """Tiles of that depth in a chunk."""
        return max(_MIN_TILES, self.chunk_logits // (depth * TILE_PIXELS))

    def view(self, role: str, dtype: torch.dtype, *shape: int) -> Tensor:
        """Memory of a role in a shape; what an earlier chunk left is still in it."""
        count = 1
        for size in shape:
            count *= size
        memory = self._memory.get((role, dtype))
        if memory is None or memory.numel() < count:
            memory = torch.zeros(count, dtype=dtype, device=self.device)
            self._memory[role, dtype] = memory
        return memory[:count].view(*shape)

    def ones(self, dtype: torch.dtype, *shape: int) -> Tensor:
        """Ones in a shape, never written to."""
        count = shape[0] * shape[1]
        ones = self._ones.get(dtype)
        if ones is None or ones.numel() < count:
            ones = torch.ones(count, dtype=dtype, device=self.device)
            self._ones[dtype] = ones
        return ones[:count].view(*shape)


class Passes:
    """The passes over one batch of samples of the same family, depth and dtype.

    They run without autograd's recording, which the compiled kernels are guarded against.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        family: Family,
        dtype: torch.dtype,
        table: KernelTable,
        workspace: Workspace,
        *,
        checkpoint: Checkpoint = go_on,
    ) -> None:
        self.samples = samples
        self._family = family
        self._dtype = dtype
        self._kernels: Kernels = table[family, dtype]
        self.programs = self._kernels.programs
        """What runs the programs of heads, if anything does."""
        self._workspace = workspace
        self._checkpoint = checkpoint
        self._depth = samples[0].logits.shape[1]
        self._resident: tuple[tuple[int, ...], Packed] | None = None
        self._prepared: dict[tuple[int, ...], Lot] = {}
        groups = (sample.extent.groups for sample in samples)
        self.group_offsets = list(itertools.accumulate(groups, initial=0))
        """Where each sample's groups begin in the tables of groups, and their total."""

    @torch.no_grad()
    def sums(self, gamma: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of every group of every sample.

        Args:
            gamma: focusing exponent of each sample, `[B]`.

        Returns:
            Region sums `[ΣG, S, D]` and pixel sums `[ΣG, S, L]`, float64, on the CPU; how many and
            which they are depends on the family, see `vocabulary`.
        """
        if self._kernels.in_place is not None:
            return self._sums_in_place(self._kernels.in_place, gamma)
        return self._packed_sums(gamma)

    def _sums_in_place(self, in_place: InPlace, gamma: Tensor) -> tuple[Tensor, Tensor]:
        found = []
        for lot in self._lots(range(len(self.samples))):
            self._checkpoint()
            found.append(in_place.sums(self._prepare(in_place, lot), gamma[lot[0] : lot[-1] + 1]))
        if len(found) == 1:
            region, pixel = found[0]
        else:
            region, pixel = (torch.cat(lots) for lots in zip(*found, strict=True))
        return self._add_tiles(region), self._add_tiles(pixel)

    def _prepare(self, in_place: InPlace, lot: Sequence[int]) -> Lot:
        """What the C++ is told of some samples; the passes of a batch say the same."""
        key = tuple(lot)
        if key not in self._prepared:
            self._prepared[key] = in_place.prepare([self.samples[number] for number in lot])
        return self._prepared[key]

    def _packed_sums(self, gamma: Tensor) -> tuple[Tensor, Tensor]:
        everyone = range(len(self.samples))
        tiles = sum(sample.extent.total for sample in self.samples)
        region = pixel = None
        for packed in self._packed(everyone):
            exponent = self._per_tile(packed, gamma[:, None])
            chunk_region, chunk_pixel = self._kernels.statistics(
                packed.logits, packed.target, packed.weight, exponent
            )
            if region is None or pixel is None:
                region = chunk_region.new_empty(tiles, *_shape(chunk_region))
                pixel = chunk_pixel.new_empty(tiles, *_shape(chunk_pixel))
            span = slice(packed.chunk.first, packed.chunk.first + packed.chunk.total)
            region[span] = chunk_region[:, : packed.chunk.total].transpose(0, 1)
            pixel[span] = chunk_pixel[:, : packed.chunk.total].transpose(0, 1)
        if region is None or pixel is None:
            msg = "a batch has at least one sample"
            raise ValueError(msg)
        return self._add_tiles(region), self._add_tiles(pixel)

    @torch.no_grad()
    def gradients(
        self,
        receivers: Mapping[int, Receiver],
        gamma: Tensor,
        region: Tensor,
        pixel: Tensor,
    ) -> None:
        """Derivatives of `Σ_s coefficient_s · sum_s` with respect to some samples' logits.

        Args:
            receivers: who gets them, by number of the sample.
            gamma: focusing exponent of each sample of the batch, `[B]`.
            region: coefficients of the region sums of all groups of the batch, `[ΣG, S, D]`.
            pixel: coefficients of the pixel sums, `[ΣG, S, L]`.
        """
        chosen = sorted(receivers)
        if self._kernels.in_place is not None:
            self._gradients_in_place(self._kernels.in_place, receivers, gamma, region, pixel)
            return
        for packed in self._packed(chosen):
            self._kernels.gradient(
                packed.logits,
                packed.target,
                packed.weight,
                self._per_tile(packed, gamma[:, None]),
                self._per_group(packed, region),
                self._per_group(packed, pixel),
                packed.out,
            )
            self._deliver(
                packed,
                packed.out,
                self._depth,
                lambda piece, tiles: receivers[piece.sample].take(piece, tiles),
            )

    def _gradients_in_place(
        self,
        in_place: InPlace,
        receivers: Mapping[int, Receiver],
        gamma: Tensor,
        region: Tensor,
        pixel: Tensor,
    ) -> None:
        offsets = self.group_offsets
        for lot in self._lots(sorted(receivers)):
            self._checkpoint()
            places = [receivers[number].place(number) for number in lot]
            targets = [
                torch.empty(self.samples[number].logits.shape, dtype=self._dtype)
                if place is None
                else place
                for number, place in zip(lot, places, strict=True)
            ]
            lot_gamma, lot_region, lot_pixel = gamma, region, pixel
            if len(lot) < len(self.samples):
                rows = torch.tensor(lot)
                groups = torch.tensor(
                    [group for n in lot for group in range(offsets[n], offsets[n + 1])]
                )
                lot_gamma, lot_region, lot_pixel = gamma[rows], region[groups], pixel[groups]
            prepared = self._prepare(in_place, lot)
            factors = in_place.gradients(prepared, lot_gamma, lot_region, lot_pixel, targets)
            for number, place, target, factor in zip(lot, places, targets, factors, strict=True):
                if place is None:
                    receivers[number].add(number, target.flatten(0, 1))
                else:
                    receivers[number].placed(number, factor)

    def _lots(self, chosen: Sequence[int]) -> Iterator[list[int]]:
        """Samples that are computed in one call; between calls a batch can be interrupted."""
        lot: list[int] = []
        logits = 0
        for number in chosen:
            own = self.samples[number].logits.numel()
            if lot and logits + own > _LOT_LOGITS:
                yield lot
                lot, logits = [], 0
            lot.append(number)
            logits += own
        if lot:
            yield lot

    @torch.no_grad()
    def maps(
        self,
        chosen: Sequence[int],
        gamma: Tensor,
        pixel: Tensor,
        take: Callable[[tl.Piece, Tensor], None],
    ) -> None:
        """Per-pixel terms of `Σ_s coefficient_s · sum_s` of the chosen samples.

        Args:
            chosen: numbers of the samples.
            gamma: as in `gradients`.
            pixel: as in `gradients`.
            take: called with (piece, tiles `[K, 1, TILE_PIXELS]`) for every piece; the tiles are
                overwritten after it returns.
        """
        for packed in self._packed(chosen):
            values = self._kernels.value_map(
                packed.logits,
                packed.target,
                packed.weight,
                self._per_tile(packed, gamma[:, None]),
                self._per_group(packed, pixel),
            )
            self._deliver(packed, values, 1, take)

    # -- packing ---------------------------------------------------------------------------------

    def _packed(self, chosen: Sequence[int]) -> Iterator[Packed]:
        self._checkpoint()
        key = tuple(chosen)
        if self._resident is not None and self._resident[0] == key:
            yield self._resident[1]
            return
        self._resident = None
        extents = [self.samples[number].extent for number in chosen]
        plan = list(tl.chunks(extents, self._workspace.capacity(self._depth)))
        for chunk in plan:
            self._checkpoint()
            pieces = tuple(replace(piece, sample=chosen[piece.sample]) for piece in chunk.pieces)
            packed = self._pack(replace(chunk, pieces=pieces))
            if len(plan) == 1:
                self._resident = key, packed
            yield packed

    def _pack(self, chunk: tl.Chunk) -> Packed:
        space, depth = self._workspace, self._depth
        count = max(chunk.total, _MIN_TILES)
        label_dtype = torch.int32 if self._family == "softmax_labels" else self._dtype
        target_depth = depth if self._family in DISTRIBUTION_FAMILIES else 1
        logits = space.view("logits", self._dtype, count, depth, TILE_PIXELS)
        target = space.view("target", label_dtype, count, target_depth, TILE_PIXELS)
        target[chunk.total :].fill_(tl.REMOVED)
        members = [self.samples[piece.sample] for piece in chunk.pieces]
        weight = space.ones(self._dtype, count, TILE_PIXELS)
        if any(sample.weight is not None for sample in members):
            weight = space.view("weight", self._dtype, count, TILE_PIXELS)
            weight.fill_(1.0)
        for sample, piece in zip(members, chunk.pieces, strict=True):
            tl.pack(sample.logits, piece, logits)
            self._pack_target(sample.target, piece, target)
            if sample.weight is not None:
                groups = sample.weight.expand(sample.extent.groups, 1, -1)
                tl.pack(groups, piece, weight.unsqueeze(1))
        out = space.view("out", self._dtype, count, depth, TILE_PIXELS)
        if self._family in SIGMOID_FAMILIES:
            logits, target, out = logits[:, 0], target[:, 0], out[:, 0]
        elif self._family == "softmax_labels":
            target = target[:, 0]
        return Packed(chunk, logits, target, weight, out)

    def _pack_target(self, target: Tensor, piece: tl.Piece, tiles: Tensor) -> None:
        if target.shape[1] == tiles.shape[1]:
            tl.pack(target, piece, tiles, fill=tl.REMOVED)
            return
        # Labels where the kernels take distributions: each class is 1 or 0, or all are removed.
        labels = self._workspace.view("labels", torch.int32, len(tiles), 1, TILE_PIXELS)
        tl.pack(target, piece, labels, fill=tl.REMOVED)
        own = tl.tiles_of_piece(labels, piece)
        classes = torch.arange(tiles.shape[1], dtype=torch.int32, device=tiles.device)
        one_hot = (own == classes[:, None]).to(tiles.dtype)
        tl.tiles_of_piece(tiles, piece).copy_(torch.where(own < 0, float(tl.REMOVED), one_hot))

    def _per_tile(self, packed: Packed, values: Tensor) -> Tensor:
        """Rows of a table `[B, …]` of the batch's samples, one per tile of the chunk."""
        rows = [piece.sample for piece in packed.chunk.pieces]
        counts = [piece.total for piece in packed.chunk.pieces]
        return self._spread(packed, values, rows, counts)

    def _per_group(self, packed: Packed, table: Tensor) -> Tensor:
        """Coefficients `[S, K, …]` of the chunk's tiles from a table of groups `[ΣG, S, …]`."""
        offsets = self.group_offsets
        rows: list[int] = []
        counts: list[int] = []
        for piece in packed.chunk.pieces:
            first = offsets[piece.sample]
            groups = range(first + piece.first_group, first + piece.last_group)
            rows.extend(groups)
            counts.extend([piece.last_tile - piece.first_tile] * len(groups))
        return self._spread(packed, table, rows, counts).transpose(0, 1).contiguous()

    def _spread(self, packed: Packed, table: Tensor, rows: list[int], counts: list[int]) -> Tensor:
        missing = packed.out.shape[0] - packed.chunk.total
        # numpy, because torch wakes its worker threads for a repeat of any length
        index = np.repeat([*rows, rows[0]], [*counts, missing])
        picked = table[torch.from_numpy(index)]
        return picked.to(dtype=self._dtype).to(self._workspace.device, non_blocking=True)

    def _deliver(
        self,
        packed: Packed,
        values: Tensor,
        depth: int,
        take: Callable[[tl.Piece, Tensor], None],
    ) -> None:
        tiles = values.view(-1, depth, TILE_PIXELS).cpu()
        for piece in packed.chunk.pieces:
            take(piece, tiles)

    def _add_tiles(self, values: Tensor) -> Tensor:
        """Sums of groups `[ΣG, S, D]` from sums of tiles `[tiles, S, D]`, in tile order."""
        if len(values) == self.group_offsets[-1]:  # every group is one tile
            return values.double().cpu()
        lengths = [
            sample.extent.tiles for sample in self.samples for _ in range(sample.extent.groups)
        ]
        added = torch.segment_reduce(
            values.double().flatten(1),
            "sum",
            lengths=torch.tensor(lengths, device=values.device),
            axis=0,
        )
        return added.view(-1, *values.shape[1:]).cpu()


def _shape(chunk_sums: Tensor) -> tuple[int, int]:
    """Shape `[S, D]` of one tile's sums, from `[S, K, D]`."""
    return chunk_sums.shape[0], chunk_sums.shape[2]
