"""One label a pixel out of objects that may overlap.

Every reader of objects says in which order it paints; a later object covers an earlier one.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lossd_client.qa.polygons import Patch
from lossd_client.qa.rle import MAX_PIXELS

Mask = npt.NDArray[np.integer]
"""Integer labels of an image, `[H, W]`."""

UNLABELLED = int(np.iinfo(np.int32).min)
"""Label of pixels that nothing was drawn on, where the classes have no background."""


@dataclass(frozen=True)
class Painted:
    """An object and the label that its pixels get."""

    label: int
    patch: Patch


def paint(
    objects: Iterable[Painted], height: int, width: int, *, background: int | None
) -> npt.NDArray[np.int32]:
    """Label mask of objects, painted one over the other.

    Args:
        objects: in the order of painting; may be made one at a time.
        height: rows of the image.
        width: columns of the image.
        background: label of pixels without object; None for `UNLABELLED`.

    Returns:
        `[H, W]` int32.

    Raises:
        ValueError: an image without pixels, or with more than `MAX_PIXELS`.

    Example:
        >>> import numpy as np
        >>> dot = Painted(2, Patch(0, 1, np.ones((1, 1), bool)))
        >>> paint([dot], 1, 3, background=0).tolist()
        [[0, 2, 0]]
    """
    if not 0 < height * width <= MAX_PIXELS or height < 0:
        raise ValueError(f"an image of {height} x {width}; allowed are 1 to {MAX_PIXELS} pixels")
    mask = np.full((height, width), UNLABELLED if background is None else background, np.int32)
    for item in objects:
        patch = item.patch
        rows, columns = patch.inside.shape
        window = mask[patch.top : patch.top + rows, patch.left : patch.left + columns]
        window[patch.inside] = item.label
    return mask


def largest_first(objects: Iterable[Painted]) -> list[Painted]:
    """Objects by falling area, so that a small one on a large one stays visible.

    Args:
        objects: in the order of the file, which decides between equal areas.

    Returns:
        The order of painting.
    """
    return sorted(objects, key=lambda item: -item.patch.area_px)
