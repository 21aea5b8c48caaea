"""Disputed regions for CVAT: issues to be posted, and an XML file of masks to be uploaded.

An issue is what `POST /api/issues` takes: `job`, `frame`, `message`, and `position`, of which four
numbers are two corners of a rectangle in pixels.
"""

import re
from collections.abc import Sequence
from typing import Any
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from lossd_client.qa.export.regions import Region, ReviewedImage, by_image, message
from lossd_client.qa.problems import Problem
from lossd_client.qa.rle import encode_cvat

_NO_XML_CHARACTER = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def cvat_issues(
    regions: Sequence[Region], images: Sequence[ReviewedImage]
) -> tuple[list[dict[str, Any]], list[Problem]]:
    """Issues of regions, the most disputed of an image first.

    Args:
        regions: of all images.
        images: with the jobs and frames that the annotations' file names.

    Returns:
        Bodies for `POST /api/issues`, one per region, and one problem per image whose job or
        frame is not known.

    Raises:
        ValueError: a region of an image that is not there.

    Example:
        >>> import numpy as np
        >>> from lossd_client.qa.export.regions import region_of
        >>> region = region_of(
        ...     np.ones((1, 2), bool), image="a", given="road", predicted="car", score=2.5,
        ...     kind="drop", reason="a car is missing",
        ... )
        >>> image = ReviewedImage("a", "a.png", (1, 2), job=7, frame=3)
        >>> issues, problems = cvat_issues([region], [image])
        >>> issues[0]["position"], issues[0]["frame"], problems
        ([0.0, 0.0, 2.0, 1.0], 3, [])
    """
    issues, problems = [], []
    for image, own in by_image(regions, images):
        if image.job is None or image.frame is None:
            told = f"its job or frame in CVAT is not known; {len(own)} issues are left out"
            problems.append(Problem("skipped", image.file_name, told))
            continue
        issues += [
            {
                "job": image.job,
                "frame": image.frame,
                "position": _position(region),
                "message": message(region),
            }
            for region in own
        ]
    return issues, problems


def cvat_xml(regions: Sequence[Region], images: Sequence[ReviewedImage]) -> bytes:
    """CVAT for images, with each region as a mask of the predicted class.

    Args:
        regions: of all images.
        images: their frames, or else their places in this list, become the images' ids.

    Returns:
        The file, UTF-8.

    Raises:
        ValueError: a region of an image that is not there, or a malformed one.
    """
    root = Element("annotations")
    SubElement(root, "version").text = "1.1"
    places = {image.name: place for place, image in enumerate(images)}
    for image, own in by_image(regions, images):
        frame = places[image.name] if image.frame is None else image.frame
        attributes = {
            "id": str(frame),
            "name": _xml_text(image.file_name),
            "width": str(image.size[1]),
            "height": str(image.size[0]),
        }
        parent = SubElement(root, "image", attributes)
        # The most disputed comes last, because later masks lie on top.
        for region in reversed(own):
            SubElement(parent, "mask", _mask_attributes(region))
    indent(root)
    document: bytes = tostring(root, encoding="utf-8", xml_declaration=True)
    return document


def _position(region: Region) -> list[float]:
    left, top, width, height = region.bbox
    return [float(left), float(top), float(left + width), float(top + height)]


def _mask_attributes(region: Region) -> dict[str, str]:
    left, top, width, height = region.bbox
    inside = region.mask()[top : top + height, left : left + width]
    return {
        "label": _xml_text(region.predicted),
        "source": "auto",
        "occluded": "0",
        "rle": encode_cvat(inside).replace(",", ", "),
        "left": str(left),
        "top": str(top),
        "width": str(width),
        "height": str(height),
        "z_order": "0",
    }


def _xml_text(text: str) -> str:
    return _NO_XML_CHARACTER.sub("\N{REPLACEMENT CHARACTER}", text)
