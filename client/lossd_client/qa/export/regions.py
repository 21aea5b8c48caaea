"""Disputed regions, and what the tools need to know of their images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lossd_client.qa.polygons import cropped
from lossd_client.qa.rle import Inside, compress_coco, decode_coco, encode_coco

Point = tuple[int, int]
"""Column and row of a pixel."""

POINTS_PER_IMAGE = 5
"""Places of an image to look at first, at most."""


class Region(NamedTuple):
    """A part of an image where the model contradicts the annotation.

    Attributes:
        image: the image's name, that of its `ReviewedImage`.
        size: rows and columns of the image.
        bbox: left column, top row, width and height.
        counts: COCO's compressed run-length code.
        area_px: number of pixels.
        given: class that the annotation gives.
        predicted: class that the model predicts.
        score: how strongly it is disputed; higher = look first.
        kind: probable kind of the error.
        reason: why, in a sentence.
        points: pixels to look at first.

    Example:
        >>> import numpy as np
        >>> mask = np.array([[False, True, True]])
        >>> region = region_of(
        ...     mask, image="a", given="road", predicted="car", score=2.5, kind="drop", reason="car"
        ... )
        >>> region.bbox, region.area_px, region.counts
        ((1, 0, 2, 1), 2, '12')
    """

    image: str
    size: tuple[int, int]
    bbox: tuple[int, int, int, int]
    counts: str
    area_px: int
    given: str
    predicted: str
    score: float
    kind: str
    reason: str
    points: tuple[Point, ...] = ()

    def mask(self) -> Inside:
        """Pixels of the region.

        Returns:
            `[H, W]` bool.

        Raises:
            ValueError: `counts` is no code of an image of that size.
        """
        return decode_coco(self.counts, *self.size)


@dataclass(frozen=True)
class ReviewedImage:
    """An image that regions are of.

    Attributes:
        name: what regions call it.
        file_name: its path below the images' folder, as the annotation tool knows it.
        size: rows and columns.
        suspicion: how suspicious it is as a whole; None if that is not known.
        points: up to `POINTS_PER_IMAGE` pixels to look at first.
        job: CVAT's job id.
        frame: CVAT's frame.
        url: the address of the image in Label Studio.
    """

    name: str
    file_name: str
    size: tuple[int, int]
    suspicion: float | None = None
    points: tuple[Point, ...] = ()
    job: int | None = None
    frame: int | None = None
    url: str | None = None


def region_of(
    mask: Inside,
    *,
    image: str,
    given: str,
    predicted: str,
    score: float,
    kind: str,
    reason: str,
    points: Sequence[Point] = (),
) -> Region:
    """Region of a mask.

    Args:
        mask: `[H, W]` bool, True on at least one pixel.
        image: the image's name.
        given: class that the annotation gives.
        predicted: class that the model predicts.
        score: how strongly it is disputed.
        kind: probable kind of the error.
        reason: why, in a sentence.
        points: pixels to look at first.

    Returns:
        The region, its box as tight as can be.

    Raises:
        ValueError: the mask has no pixel.
    """
    patch = cropped(mask)
    if patch.area_px == 0:
        raise ValueError("a region without pixels")
    height, width = patch.inside.shape
    return Region(
        image=image,
        size=(mask.shape[0], mask.shape[1]),
        bbox=(patch.left, patch.top, width, height),
        counts=compress_coco(encode_coco(np.asarray(mask, np.bool_))),
        area_px=patch.area_px,
        given=given,
        predicted=predicted,
        score=score,
        kind=kind,
        reason=reason,
        points=tuple(points),
    )


def by_image(
    regions: Sequence[Region], images: Sequence[ReviewedImage]
) -> Iterator[tuple[ReviewedImage, list[Region]]]:
    """Each image that has regions, with them, the most disputed first.

    Args:
        regions: of all images.
        images: in the order of the answer.

    Yields:
        Image and regions.

    Raises:
        ValueError: a region of an image that is not there, or of another size.
    """
    own: dict[str, list[Region]] = {image.name: [] for image in images}
    sizes = {image.name: image.size for image in images}
    for region in regions:
        if sizes.get(region.image) != region.size:
            raise ValueError(
                f"a region of image {region.image!r} of size {region.size}; "
                f"the images say {sizes.get(region.image, 'nothing of it')}"
            )
        own[region.image].append(region)
    for image in images:
        if own[image.name]:
            yield image, sorted(own[image.name], key=lambda region: -region.score)


def message(region: Region) -> str:
    """What a person is told of a region, in one line."""
    return (
        f"{region.given} labelled, {region.predicted} predicted on {region.area_px} pixels "
        f"({region.kind}, score {region.score:.3g}): {region.reason}"
    )
