"""The drawn masks of `annotations.json`: reading them, filling them in, and spoiling three.

Coordinates are in pixels, x to the right and y down; pixel (column, row) covers the unit square
from there, and belongs to a shape when its centre (column + 0.5, row + 0.5) lies inside. Shapes
are painted in order, so a later one overwrites, and label 0 cuts a hole. README.md has the format.
"""

from pathlib import Path
from typing import Annotated, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage
from skimage import measure

HERE: Final = Path(__file__).resolve().parent
IGNORED: Final = 255

Mask = NDArray[np.uint8]
Point = tuple[float, float]


class Strict(BaseModel):
    """A part of the file; an unknown key is an error, not a typo without effect."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Circle(Strict):
    """Centre x, centre y and radius."""

    label: int = Field(ge=0, le=IGNORED)
    circle: tuple[float, float, float]

    def contains(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which of the points lie inside."""
        centre_x, centre_y, radius = self.circle
        return np.asarray(np.hypot(x - centre_x, y - centre_y) <= radius)

    def bounds(self) -> tuple[Point, Point]:
        """The least and the greatest x and y."""
        x, y, radius = self.circle
        return (x - radius, y - radius), (x + radius, y + radius)


class Ellipse(Strict):
    """Centre x, centre y, half width and half height."""

    label: int = Field(ge=0, le=IGNORED)
    ellipse: tuple[float, float, float, float]

    def contains(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which of the points lie inside."""
        centre_x, centre_y, half_width, half_height = self.ellipse
        return np.asarray(
            ((x - centre_x) / half_width) ** 2 + ((y - centre_y) / half_height) ** 2 <= 1
        )

    def bounds(self) -> tuple[Point, Point]:
        """The least and the greatest x and y."""
        x, y, half_width, half_height = self.ellipse
        return (x - half_width, y - half_height), (x + half_width, y + half_height)


class Polygon(Strict):
    """Corners in order; the last joins the first."""

    label: int = Field(ge=0, le=IGNORED)
    polygon: tuple[Point, ...] = Field(min_length=3)

    def contains(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which of the points lie inside."""
        points = np.stack([x.ravel(), y.ravel()], axis=-1)
        return np.asarray(measure.points_in_poly(points, self.polygon)).reshape(x.shape)

    def bounds(self) -> tuple[Point, Point]:
        """The least and the greatest x and y."""
        (left, right), (top, bottom) = (
            (min(axis), max(axis)) for axis in zip(*self.polygon, strict=True)
        )
        return (left, top), (right, bottom)


Shape = Circle | Ellipse | Polygon


class Remove(Strict):
    """An annotator overlooked one object."""

    operation: Literal["remove"]
    shape: int = Field(ge=0)
    reads: str


class Shift(Strict):
    """The whole mask slipped; what leaves the picture is lost."""

    operation: Literal["shift"]
    dx_px: int
    dy_px: int
    reads: str


class Add(Strict):
    """An annotator painted what is not there."""

    operation: Literal["add"]
    shape: Shape
    reads: str


Spoil = Annotated[Remove | Shift | Add, Field(discriminator="operation")]


class Annotation(Strict):
    """The shapes of one image and, for three of them, what was done to spoil the mask."""

    object: str
    shapes: tuple[Shape, ...] = Field(min_length=1)
    spoil: Spoil | None = None

    def drawn(self, height_px: int, width_px: int) -> Mask:
        """The mask as it was drawn, `[H, W]`."""
        return paint(self.shapes, height_px, width_px)

    def given(self, height_px: int, width_px: int) -> Mask:
        """The mask as it is handed to the service: as drawn, or spoiled."""
        match self.spoil:
            case None:
                return self.drawn(height_px, width_px)
            case Remove(shape=missing):
                kept = self.shapes[:missing] + self.shapes[missing + 1 :]
                return paint(kept, height_px, width_px)
            case Shift(dx_px=dx_px, dy_px=dy_px):
                mask = self.drawn(height_px, width_px)
                return np.asarray(ndimage.shift(mask, (dy_px, dx_px), order=0), dtype=np.uint8)
            case Add(shape=extra):
                return paint((*self.shapes, extra), height_px, width_px)


class Annotations(Strict):
    """The whole file."""

    classes: dict[int, str]
    images: dict[str, Annotation]


def read(path: Path = HERE / "annotations.json") -> Annotations:
    """The annotations in `path`."""
    return Annotations.model_validate_json(path.read_bytes())


def paint(shapes: tuple[Shape, ...], height_px: int, width_px: int) -> Mask:
    """The index mask `[H, W]` of `shapes`, painted in order over background 0."""
    row, column = np.mgrid[:height_px, :width_px]
    mask = np.zeros((height_px, width_px), dtype=np.uint8)
    for shape in shapes:
        mask[shape.contains(column + 0.5, row + 0.5)] = shape.label
    return mask
