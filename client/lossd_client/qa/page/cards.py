"""What the page holds of one image: a thumbnail, its regions, and of the worst a view with layers.

A view's photo is at most 960 px on its longer side, its labels likewise and never enlarged: the
nearest pixel stands for those that fall away. Of heat, at most 480 px, the hottest stays. Labels
and heat are deflated bytes, which a browser inflates itself.
"""

import zlib
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from lossd_client.qa.decisions import region_id
from lossd_client.qa.export import Region
from lossd_client.qa.overlays import Overlay

THUMBNAIL_PX: Final = 160
"""Longer side of a thumbnail."""
PHOTO_PX: Final = 960
"""Longer side of a view's photo and labels, at most."""
HEAT_PX: Final = 480
"""Longer side of a view's heat, at most."""
HEAT_STEPS_PER_NAT: Final = 4
"""Heat is a whole number of quarters of a nat."""

_THUMBNAIL_QUALITY: Final = 60
_PHOTO_QUALITY: Final = 78
_FAST: Final = 2  # of WebP's methods 0 to 6
_BYTE_LABELS: Final = 255  # 255 is left for what does not count
_HOTTEST: Final = 255


@dataclass(frozen=True)
class View:
    """An image to be looked at closely.

    Attributes:
        photo: WebP.
        labels_size: rows and columns of the labels.
        labels: given labels, then predicted ones, row after row, deflated; bytes, or little-endian
            numbers of two bytes where there are more than 255 classes. The largest number stands
            for pixels that do not count.
        heat_size: rows and columns of the heat.
        heat_side_px: side of the square of the image that one value of the heat stands for.
        heat: bytes, row after row, deflated, in steps of a quarter of a nat.
    """

    photo: bytes
    labels_size: tuple[int, int]
    labels: bytes
    heat_size: tuple[int, int]
    heat_side_px: int
    heat: bytes

    def document(self) -> dict[str, Any]:
        """The view as JSON has it."""
        return {
            "photo": b64encode(self.photo).decode(),
            "labels_size": self.labels_size,
            "labels": b64encode(self.labels).decode(),
            "heat_size": self.heat_size,
            "heat_side": self.heat_side_px,
            "heat": b64encode(self.heat).decode(),
        }


@dataclass(frozen=True)
class Card:
    """An image of the gallery.

    Attributes:
        rank: its place.
        thumbnail: WebP; None where the photo cannot be read any more.
        regions: those that are shown.
        view: None where there is only the thumbnail.
    """

    rank: int
    thumbnail: bytes | None
    regions: Sequence[Region]
    view: View | None


def card_of(
    rank: int, photo: Image.Image | None, regions: Sequence[Region], view: View | None
) -> Card:
    """The card of an image.

    Args:
        rank: its place.
        photo: RGB, of any size.
        regions: those that are shown.
        view: what there is to look at closely.
    """
    if photo is None:
        return Card(rank, None, regions, view)
    return Card(rank, _webp(_fitted(photo, THUMBNAIL_PX), _THUMBNAIL_QUALITY), regions, view)


def view_of(overlay: Overlay, class_count: int) -> View:
    """The view of an image.

    Args:
        overlay: what a picture of it shows.
        class_count: how many classes there are.
    """
    height, width = overlay.given.shape
    scale = min(1.0, PHOTO_PX / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    is_byte = class_count <= _BYTE_LABELS
    dtype = np.dtype(np.uint8 if is_byte else "<u2")
    nothing = np.iinfo(dtype).max
    given = np.where(overlay.given == overlay.ignored_label, nothing, overlay.given)
    labels = [_nearest(mask, size).astype(dtype) for mask in (given, overlay.predicted)]
    side = -(-max(height, width) // HEAT_PX)
    heat = _hottest(overlay.heat_nats, side)
    steps = np.minimum(np.rint(heat * HEAT_STEPS_PER_NAT), _HOTTEST).astype(np.uint8)
    return View(
        photo=_webp(_fitted(overlay.photo, PHOTO_PX), _PHOTO_QUALITY),
        labels_size=size,
        labels=zlib.compress(b"".join(each.tobytes() for each in labels), 9),
        heat_size=(heat.shape[0], heat.shape[1]),
        heat_side_px=side,
        heat=zlib.compress(steps.tobytes(), 9),
    )


def region_document(region: Region) -> dict[str, Any]:
    """A region as JSON has it; image and size are said elsewhere."""
    return {
        "id": region_id(region),
        "bbox": region.bbox,
        "counts": region.counts,
        "area": region.area_px,
        "given": region.given,
        "predicted": region.predicted,
        "score": region.score,
        "kind": region.kind,
        "reason": region.reason,
        "points": region.points,
    }


def _fitted(photo: Image.Image, longest_px: int) -> Image.Image:
    small = photo.copy()
    small.thumbnail((longest_px, longest_px), Image.Resampling.BOX)
    return small


def _webp(photo: Image.Image, quality: int) -> bytes:
    buffer = BytesIO()
    photo.save(buffer, "WEBP", quality=quality, method=_FAST)
    return buffer.getvalue()


def _nearest(
    mask: npt.NDArray[np.integer[Any]], size: tuple[int, int]
) -> npt.NDArray[np.integer[Any]]:
    rows, columns = (
        ((2 * np.arange(wanted) + 1) * there // (2 * wanted))
        for wanted, there in zip(size, mask.shape, strict=True)
    )
    found: npt.NDArray[np.integer[Any]] = mask[rows[:, None], columns]
    return found


def _hottest(heat_nats: npt.NDArray[np.float32], side: int) -> npt.NDArray[np.float32]:
    """The largest heat of each square; those at the right and lower edges may be smaller."""
    height, width = heat_nats.shape
    padded = np.pad(heat_nats, ((0, -height % side), (0, -width % side)))
    squares = padded.reshape(padded.shape[0] // side, side, padded.shape[1] // side, side)
    found: npt.NDArray[np.float32] = squares.max(axis=(1, 3))
    return found
