"""YOLO label files: one `NAME.txt` per image, one object a line.

The rules, as Ultralytics' pages have them: the class's number, then x and y of each corner in parts
of the image's width and height (segmentation), or middle x, middle y, width and height likewise
(detection): four numbers are a box, six or more a polygon. An empty or missing file is an image
without objects. Sizes are not in the files, the images say them.

YOLO does not say which object is on top: painted is by falling area, as for COCO.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from lossd_client.qa.annotations.source import AnnotationSource, Entry, pixel_points
from lossd_client.qa.classes import ClassList, classes_of, read_classes
from lossd_client.qa.names import files_below, name_below, stem
from lossd_client.qa.painting import Mask, Painted, largest_first, paint
from lossd_client.qa.polygons import fill_polygon, polygon_points
from lossd_client.qa.problems import DataError, Problem

NAME_FILES = ("data.yaml", "dataset.yaml", "classes.txt", "obj.names")
"""Where class names may stand, in the folder of the labels or above it."""

OTHER_TEXTS = frozenset({"classes", "train", "val", "valid", "test", "labelmap", "readme", "notes"})
"""Text files of such folders that are no labels."""

_BOX_NUMBERS = 4
_MIN_POLYGON_NUMBERS = 6


def label_files(folder: Path) -> list[Path]:
    """The label files of a folder and the folders in it.

    Args:
        folder: where to look.

    Returns:
        Text files that are not known to be something else.
    """
    return [
        path
        for path in files_below(folder, frozenset({".txt"}))
        if path.stem.lower() not in OTHER_TEXTS and not path.stem.lower().startswith("readme")
    ]


def read_yolo(
    folder: Path, *, sizes: Mapping[str, tuple[int, int]], classes: ClassList | None = None
) -> AnnotationSource:
    """Annotations of a folder of YOLO label files.

    Args:
        folder: the label files.
        sizes: rows and columns of each image, by path name.
        classes: class names, if the user named them: the numbers in the files are places in them,
            or places without `background` where the first of them is that. By default the names
            beside the labels, with `background` before them.

    Returns:
        One entry per image. A label file without image is a problem.

    Raises:
        DataError: no class names were given or found.
    """
    file = str(folder)
    names = _names(folder)
    if names is None and classes is None:
        looked = ", ".join(NAME_FILES)
        raise DataError(file, f"names no classes ({looked}); name a file of them", kind="classes")
    known = classes_of(names.names if names else (), file, classes)
    labels = _labels(names, known, file)
    files, problems = _by_image(folder, sizes)
    entries = [
        Entry(
            name,
            str(files.get(name, folder / f"{name}.txt")),
            partial(_mask, files.get(name), size, labels, known.background),
            size,
        )
        for name, size in sizes.items()
    ]
    return AnnotationSource("YOLO labels", file, tuple(entries), known, tuple(problems))


def _names(folder: Path) -> ClassList | None:
    places = [place / name for place in (folder, folder.parent) for name in NAME_FILES]
    found = next((place for place in places if place.is_file()), None)
    return None if found is None else read_classes(found)


def _labels(names: ClassList | None, known: ClassList, file: str) -> list[int]:
    """Label of each number in the files."""
    if names is not None:
        return [known.label(name, file) for name in names.names]
    skipped = known.background
    return [label for label in range(len(known)) if label != skipped]


def _by_image(
    folder: Path, sizes: Mapping[str, tuple[int, int]]
) -> tuple[dict[str, Path], list[Problem]]:
    by_stem: dict[str, list[str]] = {}
    for name in sizes:
        by_stem.setdefault(stem(name), []).append(name)
    found: dict[str, Path] = {}
    problems = []
    for path in label_files(folder):
        name = name_below(path, folder)
        names = [name] if name in sizes else by_stem.get(stem(name), [])
        if len(names) == 1 and names[0] not in found:
            found[names[0]] = path
        else:
            what = "images" if not names else "one image of its own among " + ", ".join(names)
            problems.append(Problem("unmatched", str(path), f"has no partner: no {what}"))
    return found, problems


def _mask(
    path: Path | None, size: tuple[int, int], labels: list[int], background: int | None
) -> Mask:
    objects = [] if path is None else _objects(path, size, labels)
    return paint(largest_first(objects), *size, background=background)


def _objects(path: Path, size: tuple[int, int], labels: list[int]) -> list[Painted]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(str(path), f"cannot be read as text: {error}") from error
    return [
        _painted(line.split(), size, labels, f"{path}:{at}")
        for at, line in enumerate(lines, start=1)
        if line.strip()
    ]


def _painted(fields: list[str], size: tuple[int, int], labels: list[int], where: str) -> Painted:
    if not fields[0].isascii() or not fields[0].isdigit() or int(fields[0]) >= len(labels):
        raise DataError(
            where, f"class {fields[0]!r}; allowed are 0 to {len(labels) - 1}", kind="classes"
        )
    try:
        numbers = [float(field) for field in fields[1:]]
        corners = polygon_points(pixel_points(_parts(numbers), *size))
    except ValueError as error:
        raise DataError(where, str(error)) from error
    return Painted(labels[int(fields[0])], fill_polygon(corners, *size))


def _parts(numbers: list[float]) -> list[tuple[float, float]]:
    if len(numbers) == _BOX_NUMBERS:
        x, y, width, height = numbers
        left, top, right, bottom = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        return [(left, top), (right, top), (right, bottom), (left, bottom)]
    if len(numbers) < _MIN_POLYGON_NUMBERS or len(numbers) % 2:
        raise ValueError(f"{len(numbers)} numbers; a box has 4, a polygon an even number from 6 on")
    return list(zip(numbers[::2], numbers[1::2], strict=True))
