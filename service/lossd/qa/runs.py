"""Connected pixels of equal code, by way of runs.

A run is what lies side by side in a row and has one code. An image has far fewer runs than pixels,
and everything that is said of connected pixels, their number, their box, their outline, follows
from their runs. Pixels touch by edges and corners, and all codes are done at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

Codes = npt.NDArray[np.integer]
Indices = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Components:
    """The runs of an image, and which of them are connected.

    Components are numbered in reading order of their first pixels. Runs are in reading order.
    """

    width: int
    """Columns of the image."""
    row: Indices
    """`[R]` row of each run."""
    start: Indices
    """`[R]` its first column."""
    end: Indices
    """`[R]` the column behind its last."""
    component: Indices
    """`[R]` which component it belongs to."""
    code: Indices
    """`[K]` code of each component."""
    area: Indices
    """`[K]` pixels of each component."""

    @property
    def length(self) -> Indices:
        """`[R]` pixels of each run."""
        return self.end - self.start

    @property
    def top(self) -> Indices:
        """`[K]` first row of each component."""
        rows = np.zeros(len(self.code), np.intp)
        rows[self.component[::-1]] = self.row[::-1]  # the first run of each is written last
        return rows

    def of(self, places: Indices) -> Indices:
        """Component of each pixel by its place in reading order, `[N]`; -1 in no run."""
        if not len(self.row):
            return np.full(len(places), -1)
        begin = self.row * self.width + self.start
        run = np.maximum(np.searchsorted(begin, places, side="right") - 1, 0)
        offset = places - begin[run]
        return np.where((offset >= 0) & (offset < self.length[run]), self.component[run], -1)


def components(codes: Codes) -> Components:
    """Connected pixels of equal code; those of code 0 are left out.

    Args:
        codes: `[H, W]` integers, at least 0.

    Returns:
        Their runs and components.

    Example:
        >>> found = components(np.array([[1, 0, 2], [0, 1, 2]]))
        >>> found.code.tolist(), found.area.tolist()
        ([1, 2], [2, 2])
    """
    height, width = codes.shape
    wide = width + 1  # a column of code 0 ends every row's last run
    flat = np.zeros((height, wide), codes.dtype)
    flat[:, :width] = codes
    flat = flat.reshape(-1)
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    start = np.concatenate(([0], edges))
    start = start[flat[start] != 0]
    end = edges[np.searchsorted(edges, start, side="right")] if len(start) else start
    code = flat[start].astype(np.intp)
    number = _connected(start, end, code, wide)
    count = int(number.max()) + 1 if len(number) else 0
    area = np.bincount(number, weights=end - start, minlength=count).astype(np.intp)
    codes_of = np.zeros(count, np.intp)
    codes_of[number] = code
    row = start // wide
    return Components(width, row, start - row * wide, end - row * wide, number, codes_of, area)


def _connected(start: Indices, end: Indices, code: Indices, wide: int) -> Indices:
    """Number of each run's component."""
    if not len(start):
        return start
    # Runs of the row below that reach from one pixel before to one behind.
    first = np.searchsorted(end, start + wide - 1, side="right")
    last = np.searchsorted(start, end + wide + 1, side="left")
    number = np.maximum(last - first, 0)
    total = int(number.sum())
    upper = np.repeat(np.arange(len(start)), number)
    lower = np.arange(total) + np.repeat(first - np.cumsum(number) + number, number)
    same = code[upper] == code[lower]
    upper, lower = upper[same], lower[same]
    begins = np.searchsorted(upper, np.arange(len(start) + 1))
    graph = csr_array((np.ones(len(upper), np.int8), lower, begins), (len(start), len(start)))
    found: Indices = connected_components(graph, directed=False)[1].astype(np.intp)
    return found
