"""Label Studio's JSON and JSON-MIN.

The rules, as Label Studio's pages have them: a region of type `brushlabels` holds a brush, see
`rle`; `polygonlabels` has `points` and `rectanglelabels` has `x`, `y`, `width`, `height`, all in
percent of the image's sides, the rectangle turned by `rotation` degrees about its upper left
corner, clockwise on the screen; `ellipselabels` has middle and radii in percent and the same
`rotation` about the middle. `original_width` and `original_height` are the image's size. Regions
are painted in the order of the list, a later one covers an earlier.

A task may have several annotations. Taken is the one marked as ground truth, or else the one that
was changed last; those that an annotator gave up (`was_cancelled`) are not taken. The others are
told as skipped.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lossd_client.qa.annotations.source import AnnotationSource, Entry, pixel_points
from lossd_client.qa.classes import ClassList, classes_of
from lossd_client.qa.documents import Record, image_size, items, number, read_json, record, text
from lossd_client.qa.names import stem, url_name
from lossd_client.qa.painting import Mask, Painted, paint
from lossd_client.qa.polygons import (
    Patch,
    cropped,
    ellipse_points,
    fill_polygon,
    polygon_points,
    rotate,
)
from lossd_client.qa.problems import DataError, Problem
from lossd_client.qa.rle import decode_label_studio

Part = Literal["annotations", "predictions"]

_PERCENT = 100
_LABEL_KEYS = ("brushlabels", "polygonlabels", "rectanglelabels", "ellipselabels", "labels")


def read_label_studio(
    path: Path,
    *,
    classes: ClassList | None = None,
    part: Part = "annotations",
    image_key: str | None = None,
    sizes: Mapping[str, tuple[int, int]] | None = None,
) -> AnnotationSource:
    """Annotations of a Label Studio export.

    Args:
        path: JSON, with `annotations` and `predictions`, or JSON-MIN, which has only results.
        classes: class names, if the user named them; by default the labels in the order of
            their names, with `background` before them.
        part: whose results are read, people's or models'.
        image_key: key of the image's address in a task's data; by default `image`, or the only
            text that it holds.
        sizes: rows and columns of each image by path name, for tasks without regions: the export
            has no size of them.

    Returns:
        One entry per task. Tasks that cannot be used, and annotations that are not taken, are
        problems.

    Raises:
        DataError: the file is no such JSON.
    """
    file = str(path)
    document = read_json(path, hook=_packed)
    if not isinstance(document, list):
        raise DataError(file, "is no list of tasks")
    known = classes_of(sorted(_labels_used(document)), file, classes)
    by_stem = {stem(name): size for name, size in (sizes or {}).items()}
    entries, problems = [], []
    for place, value in enumerate(document):
        where = f"{file}:[{place}]"
        try:
            task = record(value, where)
            result, others = _result(task, part, where)
            url = _address(task, image_key, where)
            name, regions = url_name(url, where), result.regions
            size = _size(regions, where) or by_stem.get(stem(name))
            read = partial(_mask, regions, size, known, where)
            number_of = task.get("id")
            entries.append(
                Entry(
                    name,
                    where,
                    read,
                    size,
                    annotator=result.annotator,
                    task=number_of if isinstance(number_of, int) else None,
                    url=url,
                )
            )
            problems.extend(others)
            problems.extend(_skipped(result, where))
        except DataError as error:
            problems.append(Problem.from_error(error))
    kind = "Label Studio JSON" if part == "annotations" else "predictions in Label Studio JSON"
    return AnnotationSource(kind, file, tuple(entries), known, tuple(problems))


class _Result:
    """The regions of a task that are taken, and who made them."""

    def __init__(self, regions: Sequence[Record], annotator: str | None) -> None:
        self.regions = regions
        self.annotator = annotator


def _packed(value: dict[str, Any]) -> dict[str, Any]:
    """Keeps a brush as bytes: a list of its numbers takes eight times the room."""
    rle = value.get("rle")
    if isinstance(rle, list):
        try:
            value["rle"] = bytes(rle)
        except (TypeError, ValueError):
            value["rle"] = None  # told when the brush is decoded
    return value


def _size(regions: Sequence[Record], where: str) -> tuple[int, int] | None:
    sizes = {
        image_size(region, where, height="original_height", width="original_width")
        for region in regions
    }
    if len(sizes) > 1:
        raise DataError(where, f"has regions of images of {sorted(sizes)}", kind="size")
    return next(iter(sizes), None)


def _result(task: Record, part: Part, where: str) -> tuple[_Result, list[Problem]]:
    if "annotations" not in task and "predictions" not in task:
        return _Result(_regions_of_min(task), _person(task.get("annotator"))), []
    found = [record(value, where) for value in items(task, part, where)]
    usable = [entry for entry in found if not entry.get("was_cancelled")]
    if not usable:
        raise DataError(where, f"has no {part} that were not cancelled", kind="unmatched")
    taken = max(usable, key=lambda entry: (bool(entry.get("ground_truth")), _changed(entry)))
    others = [entry.get("id") for entry in found if entry is not taken]
    told = f"{part} {others} are not taken, {taken.get('id')} is"
    problems = [Problem("skipped", where, told)] if others else []
    regions = [record(region, where) for region in items(taken, "result", where)]
    person = taken.get("completed_by") if part == "annotations" else taken.get("model_version")
    return _Result(_areas(regions), _person(person)), problems


def _regions_of_min(task: Record) -> list[Record]:
    """JSON-MIN puts a tag's regions under the tag's name, their values one level up."""
    lists = [value for value in task.values() if isinstance(value, list)]
    regions = [entry for found in lists for entry in found if isinstance(entry, dict)]
    return _areas(regions)


def _areas(regions: Sequence[Record]) -> list[Record]:
    """Regions that cover pixels.

    Where labels are a tag of their own, a region stands there twice under one id, once without its
    label.
    """
    labelled = {region.get("id") for region in regions if _labels_of(region)}
    return [
        region
        for region in regions
        if _kind(region) is not None and (_labels_of(region) or region.get("id") not in labelled)
    ]


def _changed(annotation: Record) -> str:
    """When it was changed; ISO 8601 in one time zone sorts as text."""
    changed = annotation.get("updated_at") or annotation.get("created_at")
    return changed if isinstance(changed, str) else ""


def _person(value: Any) -> str | None:
    if isinstance(value, dict):
        value = value.get("email") or value.get("username") or value.get("id")
    return None if value is None else str(value)


def _address(task: Record, image_key: str | None, where: str) -> str:
    data = record(task.get("data", task), where)
    if image_key is not None or "image" in data:
        return text(data, image_key or "image", where)
    texts = [value for value in data.values() if isinstance(value, str)]
    if len(texts) != 1:
        raise DataError(
            where, f"does not say which of {sorted(data)} is the image", kind="unmatched"
        )
    return texts[0]


def _value(region: Record) -> Record:
    """A region's drawing and labels: JSON-MIN and older exports have them one level up."""
    value = region.get("value")
    return {**region, **value} if isinstance(value, dict) else region


def _kind(region: Record) -> str | None:
    """What draws the region: the key that holds its drawing."""
    value = _value(region)
    if "rle" in value:
        return "rle"
    if "points" in value:
        return "points" if value.get("closed", True) else None
    if "radiusX" in value:
        return "ellipse"
    return "rectangle" if {"x", "y", "width", "height"} <= value.keys() else None


def _labels_of(region: Record) -> list[str]:
    value = _value(region)
    lists = [value[key] for key in _LABEL_KEYS if isinstance(value.get(key), list)]
    found: list[Any] = lists[0] if lists else []
    return [label for label in found if isinstance(label, str)]


def _labels_used(document: Sequence[Any]) -> set[str]:
    tasks = [task for task in document if isinstance(task, dict)]
    results = [
        region
        for task in tasks
        for part in ("annotations", "predictions")
        for entry in _records(task.get(part))
        for region in _records(entry.get("result"))
    ]
    results += [region for task in tasks for region in _regions_of_min(task)]
    return {label for region in results for label in _labels_of(region)}


def _records(value: Any) -> list[Record]:
    """Objects of what should be a list of them; what else is there is told task by task."""
    found = value if isinstance(value, list) else []
    return [entry for entry in found if isinstance(entry, dict)]


def _skipped(result: _Result, where: str) -> list[Problem]:
    several = [region.get("id") for region in result.regions if len(_labels_of(region)) > 1]
    if not several:
        return []
    return [Problem("skipped", where, f"only the first label of regions {several} is painted")]


def _mask(
    regions: Sequence[Record], size: tuple[int, int] | None, classes: ClassList, where: str
) -> Mask:
    if size is None:
        raise DataError(where, "has no region, and no image of its name says the size", kind="size")
    return paint(
        (
            _painted(region, size, classes, f"{where}, region {place}")
            for place, region in enumerate(regions)
        ),
        *size,
        background=classes.background,
    )


def _painted(region: Record, size: tuple[int, int], classes: ClassList, where: str) -> Painted:
    labels = _labels_of(region)
    if not labels:
        raise DataError(where, "has no label", kind="classes")
    if region.get("image_rotation"):
        raise DataError(where, f"is of an image turned by {region['image_rotation']} degrees")
    try:
        patch = _DRAWINGS[_kind(region) or ""](_value(region), size, where)
    except DataError:
        raise
    except ValueError as error:
        raise DataError(where, str(error)) from error
    return Painted(classes.label(labels[0], where), patch)


def _brush(value: Record, size: tuple[int, int], where: str) -> Patch:
    rle = value["rle"]
    if not isinstance(rle, bytes) or value.get("format", "rle") != "rle":
        raise DataError(where, "has a brush that is no list of bytes")
    return cropped(decode_label_studio(rle, *size))


def _polygon(value: Record, size: tuple[int, int], where: str) -> Patch:
    pairs = items(value, "points", where)
    if not all(isinstance(pair, list) and len(pair) == len("xy") for pair in pairs):
        raise DataError(where, "has a point that is no pair")
    named = [dict(zip("xy", pair, strict=True)) for pair in pairs]
    parts = [(_part(pair, "x", where), _part(pair, "y", where)) for pair in named]
    return fill_polygon(polygon_points(pixel_points(parts, *size)), *size)


def _rectangle(value: Record, size: tuple[int, int], where: str) -> Patch:
    x, y, width, height = (_part(value, key, where) for key in ("x", "y", "width", "height"))
    parts = [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
    corners = polygon_points(pixel_points(parts, *size))
    angle_deg = number(value, "rotation", where, default=0)
    return fill_polygon(rotate(corners, angle_deg, (corners[0, 0], corners[0, 1])), *size)


def _ellipse(value: Record, size: tuple[int, int], where: str) -> Patch:
    x, y, rx, ry = (_part(value, key, where) for key in ("x", "y", "radiusX", "radiusY"))
    middle = (x * size[1], y * size[0])
    outline = ellipse_points(*middle, (rx * size[1], ry * size[0]))
    angle_deg = number(value, "rotation", where, default=0)
    return fill_polygon(rotate(outline, angle_deg, middle), *size)


def _part(value: Record, key: str, where: str) -> float:
    return number(value, key, where) / _PERCENT


_DRAWINGS: Mapping[str, Callable[[Record, tuple[int, int], str], Patch]] = {
    "rle": _brush,
    "points": _polygon,
    "rectangle": _rectangle,
    "ellipse": _ellipse,
}
