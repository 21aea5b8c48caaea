"""Pascal VOC: `SegmentationClass` masks, or `Annotations` with boxes.

The rules, as the challenge's development kit has them: masks are palette PNGs whose indices are
labels, 0 the background and 255 the border that does not count; boxes are pixels counted from 1,
the last one included. CVAT and Datumaro write colours with a `labelmap.txt` beside the folders
instead, see `index_masks`.

Boxes are painted by falling area, as COCO's objects are.
"""

from functools import partial
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from lossd_client.qa.annotations.index_masks import LABELMAP, read_index_masks
from lossd_client.qa.annotations.source import AnnotationSource, Entry
from lossd_client.qa.classes import ClassList, classes_of
from lossd_client.qa.documents import image_size, number, read_xml
from lossd_client.qa.names import files_below, name_below
from lossd_client.qa.painting import Mask, Painted, largest_first, paint
from lossd_client.qa.pictures import read_labelmap
from lossd_client.qa.polygons import Patch
from lossd_client.qa.problems import DataError, Problem

MASKS = "SegmentationClass"
BOXES = "Annotations"

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip
"""Classes of the challenge, by label."""


def read_voc(folder: Path, *, classes: ClassList | None = None) -> AnnotationSource:
    """Annotations of a Pascal VOC folder.

    Args:
        folder: with `SegmentationClass`, which is read if it has masks, or `Annotations`.
        classes: class names, if the user named them; by default those of `labelmap.txt`, and
            without that the challenge's.

    Returns:
        One entry per mask or XML file. Files that cannot be read are problems.

    Raises:
        DataError: the label map is malformed or has a class that `classes` lacks.
    """
    labelmap = folder / LABELMAP
    challenge = classes or ClassList(VOC_CLASSES, "Pascal VOC's classes")
    masks = folder / MASKS
    if masks.is_dir() and next(files_below(masks, frozenset({".png"})), None) is not None:
        if labelmap.is_file():
            return read_index_masks(masks, classes=classes, labelmap=labelmap)
        return read_index_masks(masks, classes=challenge)
    known = challenge
    if labelmap.is_file():
        known = classes_of(read_labelmap(labelmap)[0], str(labelmap), classes)
    return _read_boxes(folder / BOXES, known)


def _read_boxes(folder: Path, classes: ClassList) -> AnnotationSource:
    entries, problems = [], []
    for path in files_below(folder, frozenset({".xml"})):
        try:
            root = read_xml(path)
            size = _size(root, str(path))
        except DataError as error:
            problems.append(Problem.from_error(error))
            continue
        read = partial(_mask, path, size, classes)
        entries.append(Entry(name_below(path, folder), str(path), read, size))
    return AnnotationSource(
        "Pascal VOC boxes", str(folder), tuple(entries), classes, tuple(problems)
    )


def _size(root: Element, file: str) -> tuple[int, int]:
    stated = root.find("size")
    if stated is None:
        raise DataError(file, "has no <size>", kind="size")
    return image_size({child.tag: child.text for child in stated}, file)


def _mask(path: Path, size: tuple[int, int], classes: ClassList) -> Mask:
    boxes = [
        _box(found, size, classes, f"{path}, object {place}")
        for place, found in enumerate(read_xml(path).iterfind("object"))
    ]
    return paint(largest_first(boxes), *size, background=classes.background)


def _box(found: Element, size: tuple[int, int], classes: ClassList, where: str) -> Painted:
    box = found.find("bndbox")
    if box is None:
        raise DataError(where, "has no <bndbox>")
    fields = {child.tag: child.text for child in box}
    first = [number(fields, key, where) for key in ("ymin", "xmin")]
    last = [number(fields, key, where) for key in ("ymax", "xmax")]
    top, left = (max(0, round(value) - 1) for value in first)
    bottom, right = (min(side, round(value)) for side, value in zip(size, last, strict=True))
    inside = np.ones((max(0, bottom - top), max(0, right - left)), np.bool_)
    return Painted(
        classes.label((found.findtext("name") or "").strip(), where), Patch(top, left, inside)
    )
