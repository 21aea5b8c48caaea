"""Pixels inside a polygon, by COCO's rule for every tool's polygons.

COCO's own tools, and CVAT's exports through them, do it so: corners are rounded to a grid five
times as fine as the pixels, edges are drawn on it, and a column of pixels is cut where an edge
passes from the third to the fourth of its five fine columns, which is its middle. Going down a
column, each cut turns outside into inside or back (even-odd), from the first pixel whose middle is
not above the cut. So a pixel is inside when its middle is, up to a fifth of a pixel; other tools,
which fill outlines too (OpenCV, Pillow), cover about half a pixel more all around. Tests hold the
rule bit for bit against pycocotools.

Polygons may leave the image: what lies outside is cut off.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lossd_client.qa.rle import Inside

Points = npt.NDArray[np.float64]

FINE = 5
"""Fine columns and rows in a pixel."""

MAX_COORDINATE_PX = 1 << 16
"""How far from the origin a corner may lie."""

_MIN_CORNERS = 3
_ELLIPSE_CORNERS = 64


@dataclass(frozen=True)
class Patch:
    """Pixels of one object, and the corner of the image's part that they are given for.

    Attributes:
        top: first row of the part.
        left: first column of the part.
        inside: `[h, w]` bool, True on the object.
    """

    top: int
    left: int
    inside: Inside

    @property
    def area_px(self) -> int:
        """Number of pixels of the object."""
        return int(np.count_nonzero(self.inside))


def cropped(inside: Inside) -> Patch:
    """The part of a mask that holds its object.

    Args:
        inside: `[H, W]` bool.

    Returns:
        The smallest part with every True pixel.
    """
    rows, columns = (np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0)))
    if rows.size == 0:
        return Patch(0, 0, np.zeros((0, 0), np.bool_))
    top, left = int(rows[0]), int(columns[0])
    return Patch(top, left, inside[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1].copy())


def union(patches: Sequence[Patch]) -> Patch:
    """Pixels that are inside any of several polygons.

    Args:
        patches: one or more parts of the same image.

    Returns:
        A part of the image that holds them all.
    """
    top, left = (min(patch.top for patch in patches), min(patch.left for patch in patches))
    bottom = max(patch.top + patch.inside.shape[0] for patch in patches)
    right = max(patch.left + patch.inside.shape[1] for patch in patches)
    inside = np.zeros((bottom - top, right - left), np.bool_)
    for patch in patches:
        rows, columns = patch.inside.shape
        y, x = patch.top - top, patch.left - left
        inside[y : y + rows, x : x + columns] |= patch.inside
    return Patch(top, left, inside)


def polygon_points(numbers: Sequence[float]) -> Points:
    """Corners of a polygon out of a flat list.

    Args:
        numbers: x and y of each corner in turn, pixels, origin at the image's upper left corner.

    Returns:
        `[n, 2]` float64.

    Raises:
        ValueError: an odd number of numbers, fewer than three corners, or a corner that is not
            finite or farther away than `MAX_COORDINATE_PX`.
    """
    points = np.array(numbers, np.float64)
    if points.ndim != 1 or points.size % 2 or points.size < 2 * _MIN_CORNERS:
        raise ValueError(
            f"a polygon of {points.size} numbers; it takes x and y of 3 or more corners"
        )
    if not np.isfinite(points).all() or np.abs(points).max() > MAX_COORDINATE_PX:
        worst = points[np.argmax(np.where(np.isfinite(points), np.abs(points), np.inf))]
        raise ValueError(f"a polygon's coordinate {worst}; allowed are up to {MAX_COORDINATE_PX}")
    return points.reshape(-1, 2)


def fill_polygon(points: Points, height: int, width: int) -> Patch:
    """Pixels inside a polygon.

    Args:
        points: `[n, 2]` float64, x and y of the corners in pixels.
        height: rows of the image.
        width: columns of the image.

    Returns:
        The object in the smallest part of the image that holds it.

    Example:
        >>> import numpy as np
        >>> square = np.array([[1, 0], [3, 0], [3, 2], [1, 2]], float)
        >>> patch = fill_polygon(square, 2, 4)
        >>> patch.left, patch.inside.astype(int).tolist()
        (1, [[1, 1], [1, 1]])
    """
    # Truncation, not floor: the rule rounds negative corners towards the image.
    corners = np.trunc(points * FINE + 0.5).astype(np.int64)
    ends = np.roll(corners, -1, axis=0)
    cuts = [_edge_cuts(start, end) for start, end in zip(corners, ends, strict=True)]
    columns = np.concatenate([column for column, _ in cuts])
    rows = np.concatenate([row for _, row in cuts])
    kept = (columns >= 0) & (columns < width)
    columns, rows = columns[kept], np.clip(rows[kept], 0, height)
    if columns.size == 0:
        return Patch(0, 0, np.zeros((0, 0), np.bool_))
    left, top = int(columns.min()), int(rows.min())
    turns = np.zeros((int(columns.max()) - left + 1, int(rows.max()) - top + 1), np.uint8)
    # Cuts of one place cancel in pairs, so counting them modulo 256 loses nothing.
    np.add.at(turns, (columns - left, rows - top), 1)
    inside = np.cumsum(turns, axis=1, dtype=np.uint8)[:, :-1] % 2 == 1
    return Patch(top, left, inside.T)


def box_points(left: float, top: float, right: float, bottom: float) -> Points:
    """Corners of a box, as a polygon.

    Args:
        left: smallest x, pixels.
        top: smallest y, pixels.
        right: largest x, pixels.
        bottom: largest y, pixels.

    Returns:
        `[4, 2]` float64, clockwise on the screen from the upper left.

    Raises:
        ValueError: as `polygon_points`.
    """
    return polygon_points([left, top, right, top, right, bottom, left, bottom])


def ellipse_points(x: float, y: float, radii: tuple[float, float]) -> Points:
    """Corners of a polygon that is as good as an ellipse.

    Args:
        x: its middle's column, pixels.
        y: its middle's row, pixels.
        radii: half of its width and of its height, pixels.

    Returns:
        `[64, 2]` float64.

    Raises:
        ValueError: as `polygon_points`.
    """
    turn = np.linspace(0, 2 * np.pi, _ELLIPSE_CORNERS, endpoint=False)
    around = np.stack([x + radii[0] * np.cos(turn), y + radii[1] * np.sin(turn)], axis=1)
    return polygon_points(around.ravel().tolist())


def rotate(points: Points, angle_deg: float, center: tuple[float, float]) -> Points:
    """Points turned about a center, clockwise on the screen.

    Args:
        points: `[n, 2]` float64.
        angle_deg: degrees.
        center: x and y that stay where they are.

    Returns:
        `[n, 2]` float64.
    """
    cosine, sine = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    turned: Points = (points - center) @ np.array([[cosine, sine], [-sine, cosine]]) + center
    return turned


def _edge_cuts(
    start: npt.NDArray[np.int64], end: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Columns that an edge of the fine grid cuts, and the first row below each cut."""
    span = np.abs(end - start)
    along = 0 if span[0] >= span[1] else 1
    if span[along] == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    # An edge is drawn from its smaller end, so that both directions give the same pixels.
    first, last = (start, end) if start[along] <= end[along] else (end, start)
    step = np.arange(span[along] + 1)
    slope = (last[1 - along] - first[1 - along]) / span[along]
    line = np.empty((step.size, 2), np.int64)
    line[:, along] = first[along] + step
    line[:, 1 - along] = np.trunc(first[1 - along] + slope * step + 0.5)
    before, after = line[:-1], line[1:]
    lower = np.minimum(before[:, 0], after[:, 0])
    crosses = (before[:, 0] != after[:, 0]) & (lower % FINE == FINE // 2)
    row = np.minimum(before[crosses, 1], after[crosses, 1])
    return lower[crosses] // FINE, np.ceil((row + 0.5) / FINE - 0.5).astype(np.int64)
