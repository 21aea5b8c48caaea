"""CVAT for images, XML version 1.1.

The rules, as CVAT's format page and its converters have them: `<mask>` is a run-length code, row
after row inside the box `left`, `top`, `width`, `height`; `<polygon>` has `x,y` pairs with `;`
between them; `<box>` has two corners and `rotation` degrees about its middle, clockwise on the
screen; `<ellipse>` has middle and radii and the same `rotation`. Coordinates are pixels. An object
of higher `z_order` covers one of a lower; of equal ones the later covers the earlier.

A segment of `<meta>` is a job, its frames `start` to `stop`. Who drew it is only known as the
assignee of the job or task. Objects that have no area (points, lines, cuboids, skeletons, tags) are
told as skipped.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from xml.etree.ElementTree import Element

from lossd_client.qa.annotations.source import AnnotationSource, Entry
from lossd_client.qa.classes import ClassList, classes_of
from lossd_client.qa.documents import Record, XmlFile, image_size, number, text, whole
from lossd_client.qa.names import path_name
from lossd_client.qa.painting import Mask, Painted, paint
from lossd_client.qa.polygons import (
    Patch,
    box_points,
    ellipse_points,
    fill_polygon,
    polygon_points,
    rotate,
)
from lossd_client.qa.problems import DataError, Problem
from lossd_client.qa.rle import decode_cvat


@dataclass(frozen=True)
class _Job:
    name: str
    start: int
    stop: int
    task: int | None


@dataclass(frozen=True)
class _Meta:
    labels: tuple[str, ...] = ()
    jobs: tuple[_Job, ...] = ()
    annotators: Mapping[int | None, str] | None = None
    task: int | None = None

    def job_of(self, frame: int, task: int | None) -> str | None:
        """The job of a frame; a project numbers frames through, so only a task's single job."""
        jobs = [job for job in self.jobs if task is None or job.task == task]
        if self.task is None and len(jobs) > 1:
            return None
        return next((job.name for job in jobs if job.start <= frame <= job.stop), None)


def read_cvat(path: Path, *, classes: ClassList | None = None) -> AnnotationSource:
    """Annotations of a CVAT XML file.

    Args:
        path: the file.
        classes: class names, if the user named them; by default the labels in their order, with
            `background` before them.

    Returns:
        One entry per image, also for images without objects. An image's objects are kept as
        text until they are painted. Images that cannot be used are problems.

    Raises:
        DataError: the file is no such XML, or uses a label that `classes` lacks.
    """
    file = str(path)
    meta, images = _read_elements(path)
    used = _used_labels(images)
    known = classes_of(meta.labels or used, file, classes)
    for label in used:
        known.label(label, file)
    entries, problems = [], []
    for image in images:
        where = f"{file}:image {image.get('id')}"
        try:
            entries.append(_entry(image, meta, known, where))
        except DataError as error:
            problems.append(Problem.from_error(error))
        problems.extend(_skipped(image, where))
    return AnnotationSource("CVAT for images", file, tuple(entries), known, tuple(problems))


def _read_elements(path: Path) -> tuple[_Meta, list[Element]]:
    meta, images = _Meta(), []
    for element in XmlFile(path).elements():
        if element.tag == "meta":
            meta = _read_meta(element, str(path))
        elif element.tag == "image":
            images.append(element)
        elif element.tag == "track":
            raise DataError(str(path), "is CVAT for video; export it as 'CVAT for images'")
    if not images:
        raise DataError(str(path), "has no <image>; it is not CVAT for images")
    return meta, images


def _entry(image: Element, meta: _Meta, classes: ClassList, where: str) -> Entry:
    frame, size = whole(image.attrib, "id", where), image_size(image.attrib, where)
    own = whole(image.attrib, "task_id", where) if "task_id" in image.attrib else None
    task = meta.task if own is None else own
    return Entry(
        path_name(text(image.attrib, "name", where), where),
        where,
        partial(_mask, image, size, classes, where),
        size,
        annotator=(meta.annotators or {}).get(task),
        job=meta.job_of(frame, task),
        task=task,
        frame=frame,
    )


def _read_meta(meta: Element, file: str) -> _Meta:
    labels = [name.text or "" for name in meta.iterfind(".//labels/label/name")]
    own = meta.find("task")
    single = meta.find("job")
    tasks = list(meta.iterfind("project/tasks/task")) if own is None else [own]
    jobs = [job for task in tasks for job in _jobs(task, file)]
    if single is not None:
        tasks = [single]
        jobs = _jobs(single, file)
    annotators = {_task_id(task, file): name for task in tasks if (name := _assignee(task))}
    task_id = _task_id(tasks[0], file) if len(tasks) == 1 else None
    return _Meta(tuple(dict.fromkeys(labels)), tuple(jobs), annotators, task_id)


def _jobs(task: Element, file: str) -> list[_Job]:
    found = []
    for segment in task.iterfind("segments/segment"):
        fields = {child.tag: child.text for child in segment}
        start, stop = whole(fields, "start", file), whole(fields, "stop", file)
        # The address ends in the job's id where a segment's own id differs from it.
        address = (fields.get("url") or "").rstrip("/").rpartition("/jobs/")[2]
        name = address if address.isdigit() else str(whole(fields, "id", file))
        found.append(_Job(name, start, stop, _task_id(task, file)))
    return found


def _task_id(task: Element, file: str) -> int | None:
    found = task.findtext("task_id") if task.tag == "job" else task.findtext("id")
    return None if not found else whole({"id": found}, "id", file)


def _assignee(task: Element) -> str | None:
    return task.findtext("assignee/username") or (task.findtext("assignee") or "").strip() or None


def _used_labels(images: Iterable[Element]) -> tuple[str, ...]:
    """Labels of objects with an area, in the order of first use."""
    return tuple(
        dict.fromkeys(
            shape.get("label", "") for image in images for shape in image if shape.tag in _SHAPES
        )
    )


def _skipped(image: Element, where: str) -> list[Problem]:
    tags = [shape.tag for shape in image if shape.tag not in _SHAPES]
    return [
        Problem("skipped", where, f"{tags.count(tag)} <{tag}> have no area")
        for tag in dict.fromkeys(tags)
    ]


def _mask(image: Element, size: tuple[int, int], classes: ClassList, where: str) -> Mask:
    shapes = [shape for shape in image if shape.tag in _SHAPES]
    layers = [whole({"z_order": "0", **shape.attrib}, "z_order", where) for shape in shapes]
    order = sorted(range(len(shapes)), key=layers.__getitem__)
    return paint(
        (_painted(shapes[place], size, classes, f"{where}, object {place}") for place in order),
        *size,
        background=classes.background,
    )


def _painted(shape: Element, size: tuple[int, int], classes: ClassList, where: str) -> Painted:
    label = classes.label(text(shape.attrib, "label", where), where)
    try:
        return Painted(label, _SHAPES[shape.tag](shape.attrib, size, where))
    except DataError:
        raise
    except ValueError as error:
        raise DataError(where, str(error)) from error


def _mask_patch(shape: Record, size: tuple[int, int], where: str) -> Patch:
    left, top = whole(shape, "left", where), whole(shape, "top", where)
    height, width = image_size(shape, where)
    if left < 0 or top < 0 or left + width > size[1] or top + height > size[0]:
        raise DataError(
            where,
            f"a mask of columns {left} to {left + width - 1} and rows {top} to {top + height - 1} "
            f"in an image of {size[0]} x {size[1]} (height x width)",
            kind="size",
        )
    return Patch(top, left, decode_cvat(text(shape, "rle", where), height, width))


def _polygon_patch(shape: Record, size: tuple[int, int], where: str) -> Patch:
    pairs = [pair.split(",") for pair in text(shape, "points", where).split(";")]
    return fill_polygon(polygon_points([float(value) for pair in pairs for value in pair]), *size)


def _box_patch(shape: Record, size: tuple[int, int], where: str) -> Patch:
    left, top, right, bottom = (number(shape, key, where) for key in ("xtl", "ytl", "xbr", "ybr"))
    middle = ((left + right) / 2, (top + bottom) / 2)
    angle_deg = number(shape, "rotation", where, default=0)
    return fill_polygon(rotate(box_points(left, top, right, bottom), angle_deg, middle), *size)


def _ellipse_patch(shape: Record, size: tuple[int, int], where: str) -> Patch:
    x, y, rx, ry = (number(shape, key, where) for key in ("cx", "cy", "rx", "ry"))
    angle_deg = number(shape, "rotation", where, default=0)
    return fill_polygon(rotate(ellipse_points(x, y, (rx, ry)), angle_deg, (x, y)), *size)


_SHAPES: dict[str, Callable[[Record, tuple[int, int], str], Patch]] = {
    "mask": _mask_patch,
    "polygon": _polygon_patch,
    "box": _box_patch,
    "ellipse": _ellipse_patch,
}
