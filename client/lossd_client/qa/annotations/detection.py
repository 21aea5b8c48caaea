"""Finds out which format a path holds, and reads it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from lossd_client.qa.annotations.coco import Overlap, read_coco
from lossd_client.qa.annotations.cvat import read_cvat
from lossd_client.qa.annotations.index_masks import SUFFIXES, read_index_masks
from lossd_client.qa.annotations.label_studio import Part, read_label_studio
from lossd_client.qa.annotations.source import AnnotationSource
from lossd_client.qa.annotations.voc import BOXES, MASKS, read_voc
from lossd_client.qa.annotations.yolo import label_files, read_yolo
from lossd_client.qa.classes import ClassList
from lossd_client.qa.names import files_below
from lossd_client.qa.problems import DataError

Format = Literal["coco", "cvat", "label-studio", "yolo", "voc", "masks"]

LOOKED_FOR = (
    "a .json file that is an object (COCO) or a list (Label Studio)",
    "an .xml file (CVAT for images)",
    f"a folder with {MASKS}/*.png or {BOXES}/*.xml (Pascal VOC)",
    "a folder with a single such .json or .xml file in it or in its folder annotations/",
    "a folder of .txt files with a number at the beginning of each line (YOLO)",
    "a folder of masks as .png, .bmp, .tif or .npy",
)
"""What `detect` looks for, in this order."""

_MARKS = {
    ".json": ('"annotations"', '"images"', '"categories"', '"info"', '"data"', '"annotator"'),
    ".xml": ("<annotations",),
}
"""What an export says at its beginning; other files of a folder of masks may be JSON too."""

_MIN_YOLO_FIELDS = 5
_HEAD_CHARACTERS = 4096


def detect(path: Path) -> tuple[Format, Path]:
    """Format of an annotation source, and the path that is to be read.

    Args:
        path: file or folder.

    Returns:
        The format, and `path` or the file in that folder.

    Raises:
        DataError: nothing there is an annotation source; the message lists what was looked for.
    """
    if path.is_dir():
        found = _folder_format(path)
    else:
        found = _file_format(path) if path.is_file() else None
    if found is None:
        looked = "; ".join(LOOKED_FOR)
        state = "holds no annotations" if path.exists() else "does not exist"
        raise DataError(str(path), f"{state}. Looked for: {looked}")
    return found


def read_annotations(
    path: Path,
    *,
    classes: ClassList | None = None,
    sizes: Mapping[str, tuple[int, int]] | None = None,
    overlap: Overlap = "area",
    part: Part = "annotations",
) -> AnnotationSource:
    """Annotations of a path, in whatever format they are.

    Args:
        path: file or folder.
        classes: class names, if the user named them.
        sizes: rows and columns of each image by path name; YOLO needs them, and tasks of
            Label Studio without regions.
        overlap: which of COCO's objects covers another.
        part: whose results of Label Studio are read.

    Returns:
        The source.

    Raises:
        DataError: no annotations are there, or they cannot be read at all.
    """
    kind, found = detect(path)
    if kind == "coco":
        return read_coco(found, classes=classes, overlap=overlap)
    if kind == "cvat":
        return read_cvat(found, classes=classes)
    if kind == "label-studio":
        return read_label_studio(found, classes=classes, part=part, sizes=sizes)
    if kind == "yolo":
        return read_yolo(found, sizes=sizes or {}, classes=classes)
    return (read_voc if kind == "voc" else read_index_masks)(found, classes=classes)


def _file_format(path: Path) -> tuple[Format, Path] | None:
    suffix = path.suffix.lower()
    if suffix == ".xml":
        return "cvat", path
    if suffix != ".json":
        return None
    return ("label-studio" if _head(path).lstrip().startswith("[") else "coco"), path


def _folder_format(path: Path) -> tuple[Format, Path] | None:
    if (path / MASKS).is_dir() or _has(path / BOXES, frozenset({".xml"})):
        return "voc", path
    # Before masks: an export may have its photos beside it.
    documents = [
        file
        for folder in (path, path / "annotations")
        if folder.is_dir()
        for file in sorted(folder.iterdir())
        if _is_export(file)
    ]
    if len(documents) == 1:
        return _file_format(documents[0])
    if any(_begins_with_numbers(file) for file in label_files(path)):
        return "yolo", path
    return ("masks", path) if _has(path, SUFFIXES) else None


def _is_export(file: Path) -> bool:
    marks = _MARKS.get(file.suffix.lower(), ())
    head = _head(file) if marks else ""
    return any(mark in head for mark in marks)


def _has(folder: Path, suffixes: frozenset[str]) -> bool:
    return folder.is_dir() and next(files_below(folder, suffixes), None) is not None


def _begins_with_numbers(path: Path) -> bool:
    fields = next((line.split() for line in _head(path).splitlines() if line.strip()), [])
    return len(fields) >= _MIN_YOLO_FIELDS and fields[0].isdigit() and all(map(_is_number, fields))


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _head(path: Path) -> str:
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            return file.read(_HEAD_CHARACTERS)
    except OSError as error:
        raise DataError(str(path), f"cannot be read: {error}") from error
