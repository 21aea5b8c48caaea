"""A folder of masks whose values are labels: pictures, or `.npy` arrays.

With a `labelmap.txt` beside them, as CVAT and Datumaro write it, colours stand for classes: that of
a palette's entry too, since palettes of exports have been in another order than the map.
"""

from functools import partial
from pathlib import Path

from lossd_client.qa.annotations.source import AnnotationSource, Entry
from lossd_client.qa.arrays import ArrayFile
from lossd_client.qa.classes import ClassList
from lossd_client.qa.names import files_below, name_below
from lossd_client.qa.painting import UNLABELLED, Mask
from lossd_client.qa.pictures import (
    Colours,
    as_integers,
    mask_size,
    read_colour_mask,
    read_index_mask,
    read_labelmap,
)
from lossd_client.qa.problems import DataError, Problem

SUFFIXES = frozenset({".png", ".bmp", ".tif", ".tiff", ".npy"})
LABELMAP = "labelmap.txt"

_MASK_AXES = 2  # rows and columns

_VOID_COLOUR = (224, 224, 192)
"""Colour of Pascal VOC for pixels that do not count; maps do not list it."""


def read_index_masks(
    folder: Path, *, classes: ClassList | None = None, labelmap: Path | None = None
) -> AnnotationSource:
    """Masks of a folder and the folders in it.

    Args:
        folder: where the masks are.
        classes: class names, if the user named them; with a label map, classes are brought to
            their order by name.
        labelmap: the map; by default `labelmap.txt` in the folder or the one above it.

    Returns:
        One entry per mask. A file whose header cannot be read is a problem.

    Raises:
        DataError: the label map is malformed or has a class that `classes` lacks.
    """
    found = labelmap or _labelmap_of(folder)
    known, colours = (classes, None) if found is None else _colours(found, classes)
    entries, problems = [], []
    for path in files_below(folder, SUFFIXES):
        try:
            entries.append(_entry(path, folder, colours))
        except DataError as error:
            problems.append(Problem.from_error(error))
    kind = "folder of masks" if colours is None else "folder of masks with labelmap.txt"
    return AnnotationSource(kind, str(folder), tuple(entries), known, tuple(problems))


def _entry(path: Path, folder: Path, colours: Colours | None) -> Entry:
    name, file = name_below(path, folder), str(path)
    if path.suffix.lower() == ".npy":
        shape, _ = ArrayFile(path).header()
        if len(shape) != _MASK_AXES:
            raise DataError(file, f"has the shape {list(shape)}; a mask is [H, W]", kind="size")
        size = shape[0], shape[1]
        return Entry(name, file, partial(_read_array, path), size)
    if colours is None:
        return Entry(name, file, partial(read_index_mask, path), mask_size(path))
    return Entry(name, file, partial(read_colour_mask, path, colours), mask_size(path))


def _read_array(path: Path) -> Mask:
    return as_integers(ArrayFile(path).read(), str(path))


def _labelmap_of(folder: Path) -> Path | None:
    places = (folder / LABELMAP, folder.parent / LABELMAP)
    return next((place for place in places if place.is_file()), None)


def _colours(labelmap: Path, classes: ClassList | None) -> tuple[ClassList, Colours]:
    names, colours = read_labelmap(labelmap)
    known = classes or ClassList(tuple(names), str(labelmap))
    labels = {colour: known.label(names[place], str(labelmap)) for colour, place in colours.items()}
    return known, {_VOID_COLOUR: UNLABELLED, **labels}
