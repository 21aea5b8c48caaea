"""COCO instances: polygons and both run-length codes.

The rules, as COCO's format page and its tools have them: `segmentation` is a list of polygons whose
pixels are joined (a hole can therefore not be told by polygons, only by a run-length code), or an
object with `size` (height, width) and `counts`, a list or a string. `iscrowd: 1` marks a region of
many objects.

COCO does not say which object is on top. Painted is by falling area, so that what lies on something
larger stays visible, and crowds before everything else, since they are drawn around single objects
too; equal areas in the order of the file. `overlap="file"` paints in the order of the file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lossd_client.qa.annotations.source import AnnotationSource, Entry
from lossd_client.qa.classes import ClassList, classes_of, coco_categories
from lossd_client.qa.documents import Record, image_size, items, read_json, record, text, whole
from lossd_client.qa.names import path_name
from lossd_client.qa.painting import Mask, Painted, largest_first, paint
from lossd_client.qa.polygons import Patch, cropped, fill_polygon, polygon_points, union
from lossd_client.qa.problems import DataError, Problem
from lossd_client.qa.rle import decode_coco

Overlap = Literal["area", "file"]


@dataclass(frozen=True)
class _Image:
    number: int
    name: str
    size: tuple[int, int]


def read_coco(
    path: Path, *, classes: ClassList | None = None, overlap: Overlap = "area"
) -> AnnotationSource:
    """Annotations of a COCO JSON file.

    Args:
        path: the file.
        classes: class names, if the user named them; by default the categories by rising id,
            with `background` before them.
        overlap: which object covers another, `area` or `file`.

    Returns:
        One entry per image, also for images without objects. Images that cannot be used are
        problems.

    Raises:
        DataError: the file is no COCO JSON, or uses a category that `classes` lacks.
    """
    file = str(path)
    document = record(read_json(path), file)
    categories = coco_categories(document, file)
    known = classes_of([name for _, name in categories], file, classes)
    objects, problems = _by_image(items(document, "annotations", file), file)
    values = [entry.get("category_id") for own in objects.values() for _, entry in own]
    used = {value for value in values if isinstance(value, int | float)}
    labels = {number: known.label(name, file) for number, name in categories if number in used}
    painter = partial(_mask, labels=labels, background=known.background, overlap=overlap)
    entries = []
    images: dict[int, str] = {}
    for place, found in enumerate(items(document, "images", file)):
        where = f"{file}:images[{place}]"
        try:
            image = _image(found, where, images)
        except DataError as error:
            problems.append(Problem.from_error(error))
            continue
        images[image.number] = where
        own = objects.get(image.number, [])
        read = partial(painter, own, image.size, file=file)
        entries.append(Entry(image.name, where, read, image.size))
    problems += _strays(objects, images, file)
    return AnnotationSource("COCO JSON", file, tuple(entries), known, tuple(problems))


def _image(found: Any, where: str, before: Mapping[int, str]) -> _Image:
    entry = record(found, where)
    number = whole(entry, "id", where)
    if number in before:
        raise DataError(where, f"has the id {number} of {before[number]}", kind="duplicate")
    name = path_name(text(entry, "file_name", where), where)
    return _Image(number, name, image_size(entry, where))


def _by_image(
    found: Sequence[Any], file: str
) -> tuple[dict[int, list[tuple[int, Record]]], list[Problem]]:
    objects: dict[int, list[tuple[int, Record]]] = {}
    problems = []
    for place, value in enumerate(found):
        where = f"{file}:annotations[{place}]"
        try:
            entry = record(value, where)
            objects.setdefault(whole(entry, "image_id", where), []).append((place, entry))
        except DataError as error:
            problems.append(Problem.from_error(error))
    return objects, problems


def _strays(
    objects: Mapping[int, Sequence[Any]], images: Mapping[int, str], file: str
) -> list[Problem]:
    return [
        Problem(
            "unmatched", file, f"{len(own)} annotations are of image {number}, which is not there"
        )
        for number, own in objects.items()
        if number not in images
    ]


def _mask(
    objects: Sequence[tuple[int, Record]],
    size: tuple[int, int],
    *,
    labels: Mapping[int, int],
    background: int | None,
    overlap: Overlap,
    file: str,
) -> Mask:
    crowds: list[Painted] = []
    single: list[Painted] = []
    for place, entry in objects:
        painted = _painted(entry, size, labels, f"{file}:annotations[{place}]")
        (crowds if entry.get("iscrowd") else single).append(painted)
    if overlap == "area":
        crowds, single = largest_first(crowds), largest_first(single)
    return paint([*crowds, *single], *size, background=background)


def _painted(
    entry: Record, size: tuple[int, int], labels: Mapping[int, int], where: str
) -> Painted:
    category = whole(entry, "category_id", where)
    if category not in labels:
        known = ", ".join(map(str, sorted(labels)))
        raise DataError(where, f"category {category} is not one of {known}", kind="classes")
    try:
        return Painted(labels[category], _patch(entry.get("segmentation"), size, where))
    except DataError:
        raise
    except ValueError as error:
        raise DataError(where, str(error)) from error


def _patch(segmentation: Any, size: tuple[int, int], where: str) -> Patch:
    if isinstance(segmentation, dict):
        stated, counts = segmentation.get("size"), segmentation.get("counts")
        if stated != list(size):
            raise DataError(where, f"RLE of size {stated}, the image has {list(size)}", kind="size")
        if not isinstance(counts, str | list):
            raise DataError(where, "RLE without 'counts'")
        return cropped(decode_coco(counts, *size))
    if not isinstance(segmentation, list) or not segmentation:
        raise DataError(where, "has neither polygons nor an RLE in 'segmentation'")
    return union([fill_polygon(_corners(polygon, where), *size) for polygon in segmentation])


def _corners(polygon: Any, where: str) -> Any:
    if not isinstance(polygon, list) or not all(type(value) in {int, float} for value in polygon):
        raise DataError(where, "has a polygon that is no list of numbers")
    return polygon_points(polygon)
