"""Samples of any size as tiles of one size, and back.

A sample is `G` groups of `[D, P]` values: softmax has one group with its classes as depth `D = C`,
sigmoid has a group of depth 1 per channel. Each group is cut along its pixels into
`ceil(P / TILE_PIXELS)` tiles `[D, TILE_PIXELS]`; the last one is filled up with removed pixels. A
batch is the pile of all tiles in order, worked on in chunks that fit the processor's cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

TILE_PIXELS = 4096
"""Pixels per tile; static in every graph."""

REMOVED = -1
"""Target of a pixel that does not count."""


@dataclass(frozen=True)
class Extent:
    """How many groups a sample has, and how many tiles each of them."""

    groups: int
    tiles: int

    @property
    def total(self) -> int:
        """Tiles of the whole sample."""
        return self.groups * self.tiles


@dataclass(frozen=True)
class Sample:
    """One sample's tensors as groups, see above: softmax G = 1, D = C; sigmoid G = C, D = 1."""

    logits: Tensor
    """`[G, D, P]`."""
    target: Tensor
    """`[G, 1, P]`, or `[1, C, P]` for a distribution; labels may stand for a distribution."""
    weight: Tensor | None
    """`[1, 1, P]`."""

    @cached_property
    def extent(self) -> Extent:
        """Groups and tiles of the sample."""
        return Extent(self.logits.shape[0], tiles_of(self.logits.shape[-1]))


@dataclass(frozen=True)
class Piece:
    """Tiles `[first_tile, last_tile)` of groups `[first_group, last_group)` of a sample.

    A piece holds either whole groups or a range of tiles of a single group.
    """

    sample: int
    first_group: int
    last_group: int
    first_tile: int
    last_tile: int
    at: int
    """Where in the chunk the piece's first tile stands."""

    @property
    def total(self) -> int:
        """Tiles in the piece."""
        return (self.last_group - self.first_group) * (self.last_tile - self.first_tile)


@dataclass(frozen=True)
class Chunk:
    """Tiles `[first, first + total)` of the pile."""

    first: int
    total: int
    pieces: tuple[Piece, ...]


def tiles_of(pixels: int) -> int:
    """Tiles that hold so many pixels.

    Example:
        >>> tiles_of(1), tiles_of(4096), tiles_of(4097)
        (1, 1, 2)
    """
    return -(-pixels // TILE_PIXELS)


def chunks(extents: Sequence[Extent], capacity: int) -> Iterator[Chunk]:
    """The pile in chunks of at most `capacity` tiles, in order, none empty.

    Example:
        >>> [chunk.total for chunk in chunks([Extent(1, 3), Extent(2, 2)], 4)]
        [3, 4]
        >>> [chunk.total for chunk in chunks([Extent(1, 9)], 4)]
        [4, 4, 1]
    """
    first = filled = 0
    pieces: list[Piece] = []
    for sample, extent in enumerate(extents):
        for piece_shape in _pieces(extent, capacity):
            piece = Piece(sample, *piece_shape, at=filled)
            if filled and filled + piece.total > capacity:
                yield Chunk(first, filled, tuple(pieces))
                first, filled, pieces = first + filled, 0, []
                piece = Piece(sample, *piece_shape, at=0)
            pieces.append(piece)
            filled += piece.total
    if pieces:
        yield Chunk(first, filled, tuple(pieces))


def _pieces(extent: Extent, capacity: int) -> Iterator[tuple[int, int, int, int]]:
    if extent.tiles <= capacity:
        step = capacity // extent.tiles
        for group in range(0, extent.groups, step):
            yield group, min(group + step, extent.groups), 0, extent.tiles
        return
    for group in range(extent.groups):
        for tile in range(0, extent.tiles, capacity):
            yield group, group + 1, tile, min(tile + capacity, extent.tiles)


def pack(source: Tensor, piece: Piece, tiles: Tensor, *, fill: float | None = None) -> None:
    """Copies a piece of a sample into its tiles, casting on the way.

    Args:
        source: the sample, `[G, D, P]`.
        piece: which part of it.
        tiles: the chunk, `[K, D, TILE_PIXELS]`.
        fill: value of the pixels behind the sample's end; None leaves what is there.
    """
    for inside, outside in _runs(source, piece, tiles):
        inside.copy_(outside)
    tail = source.shape[-1] % TILE_PIXELS
    if tail and fill is not None and piece.last_tile == tiles_of(source.shape[-1]):
        _block(piece, tiles)[:, -1, :, tail:].fill_(fill)


def unpack(tiles: Tensor, piece: Piece, target: Tensor) -> None:
    """Copies a piece's tiles back into the sample `[G, D, P]`, casting on the way.

    Args:
        tiles: the chunk, `[K, D, TILE_PIXELS]`.
        piece: which part of the sample the tiles hold.
        target: the sample.
    """
    for inside, outside in _runs(target, piece, tiles):
        outside.copy_(inside)


def unpack_added(tiles: Tensor, piece: Piece, target: Tensor) -> None:
    """Adds a piece's tiles to the sample `[G, D, P]`; arguments as in `unpack`."""
    for inside, outside in _runs(target, piece, tiles):
        outside.add_(inside)


def tiles_of_piece(tiles: Tensor, piece: Piece) -> Tensor:
    """A piece's tiles in the chunk, `[total, D, TILE_PIXELS]`, as a view."""
    return tiles[piece.at : piece.at + piece.total]


def _block(piece: Piece, tiles: Tensor) -> Tensor:
    """The piece's tiles, `[groups, tiles, D, TILE_PIXELS]`."""
    groups = piece.last_group - piece.first_group
    shape = (groups, piece.last_tile - piece.first_tile)
    block: Tensor = tiles_of_piece(tiles, piece).unflatten(0, shape)
    return block


def _runs(sample: Tensor, piece: Piece, tiles: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of equal views, in the tiles and in the sample: whole tiles first, then the tail."""
    block = _block(piece, tiles)
    groups = sample[piece.first_group : piece.last_group]
    whole, tail = divmod(sample.shape[-1], TILE_PIXELS)
    full = min(piece.last_tile, whole) - piece.first_tile
    if full > 0:
        start = piece.first_tile * TILE_PIXELS
        pixels = groups[:, :, start : start + full * TILE_PIXELS]
        yield block[:, :full], pixels.unflatten(2, (full, TILE_PIXELS)).transpose(1, 2)
    if tail and piece.last_tile == whole + 1:
        yield block[:, -1, :, :tail], groups[:, :, whole * TILE_PIXELS :]
