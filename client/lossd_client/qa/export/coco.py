"""Disputed regions as COCO JSON."""

from collections.abc import Sequence
from typing import Any

from lossd_client.qa.classes import ClassList
from lossd_client.qa.export.regions import POINTS_PER_IMAGE, Region, ReviewedImage


def coco_document(
    regions: Sequence[Region], images: Sequence[ReviewedImage], classes: ClassList
) -> dict[str, Any]:
    """COCO JSON of regions.

    An annotation's category is the predicted class, which is what an annotator would change the
    region to; a category's id is its label plus one. Beside COCO's own fields it has
    `given_class`, `predicted_class`, `score`, `kind`, `reason` and `points`.

    Args:
        regions: of all images.
        images: also those without regions.
        classes: names of the classes.

    Returns:
        The document, ready for `json.dumps`.

    Raises:
        ValueError: a region of an image or class that is not there.
    """
    numbers = {image.name: number for number, image in enumerate(images, start=1)}
    annotations = []
    for number, region in enumerate(regions, start=1):
        if region.image not in numbers:
            raise ValueError(f"a region of image {region.image!r}, which is not there")
        annotations.append(coco_annotation(region, number, numbers[region.image], classes))
    return {
        **coco_head(classes),
        "images": [coco_image(image, numbers[image.name]) for image in images],
        "annotations": annotations,
    }


def coco_head(classes: ClassList) -> dict[str, Any]:
    """The parts of the document that are the same for all images."""
    return {
        "info": {"description": "Regions where the model contradicts the annotation, by lossd"},
        "categories": [{"id": label + 1, "name": name} for label, name in enumerate(classes.names)],
    }


def coco_image(image: ReviewedImage, number: int) -> dict[str, Any]:
    """An image of the document, under that id."""
    entry: dict[str, Any] = {
        "id": number,
        "file_name": image.file_name,
        "height": image.size[0],
        "width": image.size[1],
        "points": [list(point) for point in image.points[:POINTS_PER_IMAGE]],
    }
    return entry if image.suspicion is None else {**entry, "suspicion": image.suspicion}


def coco_annotation(region: Region, number: int, image: int, classes: ClassList) -> dict[str, Any]:
    """A region of the document, under that id, of the image with the other.

    Raises:
        ValueError: its predicted class is not there.
    """
    return {
        "id": number,
        "image_id": image,
        "category_id": classes.label(region.predicted, region.image) + 1,
        "bbox": region.bbox,
        "segmentation": {"size": region.size, "counts": region.counts},
        "area": region.area_px,
        "iscrowd": 0,
        "score": region.score,
        "given_class": region.given,
        "predicted_class": region.predicted,
        "kind": region.kind,
        "reason": region.reason,
        "points": region.points,
    }
