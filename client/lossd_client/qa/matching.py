"""Images, annotations and predictions of one data set, brought together by name.

An image's name in reports is its file name without extension; where folders hold the same name
twice, it is the path name. An annotation or prediction belongs to the image of its path name, or
else to the only image with its last part, if no other claims it.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from lossd_client.qa.annotations.source import AnnotationSource, Entry
from lossd_client.qa.classes import LabelRules
from lossd_client.qa.names import PHOTO_SUFFIXES, files_below, name_below, stem
from lossd_client.qa.pictures import photo_size
from lossd_client.qa.predictions import (
    Kind,
    PredictionEntry,
    PredictionSource,
    Values,
    check_values,
)
from lossd_client.qa.problems import DataError, Problem


class _Named(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def file(self) -> str: ...


_Item = TypeVar("_Item", bound=_Named)


@dataclass(frozen=True)
class Photo:
    """An image of the data set.

    Attributes:
        name: path name, see `names`.
        path: the file.
        size: rows and columns as shown on a screen.
    """

    name: str
    path: Path
    size: tuple[int, int]

    @property
    def file(self) -> str:
        """The file, for messages."""
        return str(self.path)


@dataclass(frozen=True)
class Pair:
    """An image with its annotation and its prediction.

    Attributes:
        name: what it is called in reports.
        photo: the image.
        annotation: what people drew.
        prediction: what the model says.
    """

    name: str
    photo: Photo
    annotation: Entry
    prediction: PredictionEntry

    def load(self, rules: LabelRules, kind: Kind) -> "LoadedPair":
        """Mask and prediction, held against the rules.

        Args:
            rules: what labels mean.
            kind: what the prediction is.

        Returns:
            The arrays.

        Raises:
            DataError: a file cannot be read, or holds what the rules do not allow.
        """
        mask = rules.apply(self.annotation.load().mask, self.annotation.file)
        values = self.prediction.read()
        check_values(values, kind, rules.class_count, self.prediction.file)
        for file, size in (
            (self.annotation.file, mask.shape),
            (self.prediction.file, values.shape[-2:]),
        ):
            if size != self.photo.size:
                raise size_error(file, (size[0], size[1]), self.photo)
        return LoadedPair(self.name, mask, values)


@dataclass(frozen=True)
class LoadedPair:
    """The arrays of a pair.

    Attributes:
        name: what it is called in reports.
        mask: `[H, W]` int32, labels and `IGNORED`.
        prediction: `[C, H, W]` or `[H, W]`, as the file has it.
    """

    name: str
    mask: npt.NDArray[np.int32]
    prediction: Values


@dataclass(frozen=True)
class Matched:
    """A data set that was brought together.

    Attributes:
        pairs: images with both partners and sizes that fit, in the order of their names.
        problems: everything else: files that cannot be read, names without partner or with too
            many, sizes that differ.
    """

    pairs: tuple[Pair, ...]
    problems: tuple[Problem, ...]


def read_photos(folder: Path) -> tuple[tuple[Photo, ...], tuple[Problem, ...]]:
    """Images of a folder and the folders in it; their pixels are not read.

    Args:
        folder: where they are.

    Returns:
        The images in the order of their names, and the files that cannot be read.

    Raises:
        DataError: there is no such folder, or no image in it.
    """
    photos, problems = [], []
    for path in files_below(folder, PHOTO_SUFFIXES) if folder.is_dir() else ():
        try:
            photos.append(Photo(name_below(path, folder), path, photo_size(path)))
        except DataError as error:
            problems.append(Problem.from_error(error))
    if not photos and not problems:
        looked = ", ".join(sorted(PHOTO_SUFFIXES))
        raise DataError(str(folder), f"holds no images. Looked for: {looked}")
    kept, doubled = _singles(photos)
    return tuple(kept), (*problems, *doubled)


def match(
    photos: Sequence[Photo], annotations: AnnotationSource, predictions: PredictionSource
) -> Matched:
    """Pairs of a data set, and what does not fit.

    Args:
        photos: the images.
        annotations: what people drew.
        predictions: what the model says.

    Returns:
        Pairs whose stated sizes agree, and problems; nothing was loaded.
    """
    drawn = _partners(photos, annotations.entries, "annotation")
    told = _partners(photos, predictions.entries, "prediction")
    problems = [*annotations.problems, *predictions.problems, *drawn.problems, *told.problems]
    stems = Counter(stem(photo.name) for photo in photos)
    pairs = []
    for photo in photos:
        entry, prediction = drawn.found.get(photo.name), told.found.get(photo.name)
        if entry is None or prediction is None:
            continue
        try:
            _check_sizes(photo, entry, prediction)
        except DataError as error:
            problems.append(Problem.from_error(error))
            continue
        short = stem(photo.name)
        name = short if stems[short] == 1 else photo.name
        pairs.append(Pair(name, photo, entry, prediction))
    return Matched(tuple(pairs), tuple(problems))


def check_classes(predictions: PredictionSource, class_count: int, file: str) -> list[Problem]:
    """Predictions whose number of classes is not that of the names.

    Args:
        predictions: the predictions; their headers are enough.
        class_count: number of class names.
        file: where the names stand, for messages.

    Returns:
        One problem per prediction that differs.
    """
    return [
        Problem(
            "classes",
            entry.file,
            f"has the shape {list(entry.shape)}, scores of {entry.class_count} classes; "
            f"{file} names {class_count}",
        )
        for entry in predictions
        if entry.class_count not in {None, class_count}
    ]


def check_labels(pairs: Iterable[Pair], rules: LabelRules) -> list[Problem]:
    """Masks that cannot be read or whose labels are not allowed; loads one after the other.

    Args:
        pairs: what is going to be scored.
        rules: what labels mean.

    Returns:
        One problem per mask.
    """
    problems = []
    for pair in pairs:
        entry = pair.annotation
        try:
            mask = rules.apply(entry.load().mask, entry.file)
            if mask.shape != pair.photo.size:
                raise size_error(entry.file, (mask.shape[0], mask.shape[1]), pair.photo)
        except DataError as error:
            problems.append(Problem.from_error(error))
    return problems


@dataclass(frozen=True)
class _Partners(Generic[_Item]):
    found: dict[str, _Item]
    problems: list[Problem]


def _partners(photos: Sequence[Photo], items: Sequence[_Item], what: str) -> _Partners[_Item]:
    """Items by the path name of their image, and names without partner on either side."""
    singles, problems = _singles(items)
    exact = {photo.name for photo in photos}
    by_stem: dict[str, list[str]] = {}
    for photo in photos:
        by_stem.setdefault(stem(photo.name), []).append(photo.name)
    found = {item.name: item for item in singles if item.name in exact}
    claims: dict[str, list[_Item]] = {}
    for item in singles:
        images = [name for name in by_stem.get(stem(item.name), []) if name not in found]
        if item.name in exact:
            continue
        if len(images) == 1:
            claims.setdefault(images[0], []).append(item)
        else:
            problems.append(_without_image(item, images, what))
    for image, claiming in claims.items():
        if len(claiming) == 1:
            found[image] = claiming[0]
        else:
            files = ", ".join(item.file for item in claiming)
            told = f"is the name of several {what}s: {files}"
            problems.append(Problem("duplicate", image, told))
    problems += [
        Problem("unmatched", photo.file, f"has no {what}")
        for photo in photos
        if photo.name not in found and photo.name not in claims
    ]
    return _Partners(found, problems)


def _without_image(item: _Named, images: Sequence[str], what: str) -> Problem:
    if images:
        told = f"{what} {item.name!r} may belong to any of {', '.join(images)}"
        return Problem("duplicate", item.file, told)
    return Problem("unmatched", item.file, f"{what} {item.name!r} has no image of its own")


def _singles(items: Sequence[_Item]) -> tuple[list[_Item], list[Problem]]:
    """Items whose name is theirs alone, and the others; the first does not win over the rest."""
    files: dict[str, list[str]] = {}
    for item in items:
        files.setdefault(item.name, []).append(item.file)
    doubled = [
        Problem("duplicate", name, f"is the name of several files: {', '.join(places)}")
        for name, places in files.items()
        if len(places) > 1
    ]
    return [item for item in items if len(files[item.name]) == 1], doubled


def _check_sizes(photo: Photo, entry: Entry, prediction: PredictionEntry) -> None:
    if entry.size is not None and entry.size != photo.size:
        raise size_error(entry.file, entry.size, photo)
    if prediction.size == photo.size:
        return
    if prediction.shape[:2] == photo.size:
        raise DataError(
            prediction.file,
            f"has the shape {list(prediction.shape)}, its classes last; wanted is [C, H, W]",
            kind="size",
        )
    raise size_error(prediction.file, prediction.size, photo)


def size_error(file: str, size: tuple[int, int], photo: Photo) -> DataError:
    """Error of a file whose size is not that of its image."""
    return DataError(
        file,
        f"is {size[0]} x {size[1]} (height x width), "
        f"{photo.path.name} is {photo.size[0]} x {photo.size[1]}",
        kind="size",
    )
