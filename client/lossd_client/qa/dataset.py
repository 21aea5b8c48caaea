"""A data set that is ready to be scored: what it consists of, and what is wrong with it.

Whatever contradicts what the user said (a number of classes, a class's name, a size, a label that
was not declared) refuses the whole data set, by file, before anything is scored. What merely is not
there, or cannot be read, is listed and left out.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import numpy as np

from lossd_client.qa.annotations import AnnotationSource, read_annotations
from lossd_client.qa.classes import ClassList, LabelRules, read_classes
from lossd_client.qa.matching import Pair, check_classes, match, read_photos, size_error
from lossd_client.qa.painting import Mask
from lossd_client.qa.predictions import (
    KindChoice,
    PredictionSource,
    RequestedKind,
    Values,
    check_values,
    choose_kind,
    read_predictions,
)
from lossd_client.qa.problems import DataError, Problem, ProblemKind
from lossd_client.qa.workers import groups_of, in_order

_REFUSED: frozenset[ProblemKind] = frozenset({"size", "classes", "labels"})
_MIN_CLASSES = 2
_KEPT_TARGET_BYTES = 32 << 20
"""Of labels that were read to be checked and need not be read again to be sent."""
_CHECKED_PIXELS, _CHECKED_TOGETHER = 1 << 19, 16
"""What a thread reads before it says what it found."""
_LABELS_KEY_LENGTH = 12
"""Characters; two states of one mask have to differ in them, not any two masks."""


class RefusedError(ValueError):
    """The data set contradicts what was said of it; nothing was scored.

    Attributes:
        problems: what is wrong, by file.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        super().__init__(f"{problems[0]}{more}")


@dataclass(frozen=True)
class Paths:
    """Where the parts of a data set are.

    Attributes:
        images: folder of the photos.
        annotations: what people drew, in any format that is read.
        predictions: what a model says, a folder or an `.npz`.
        classes: file with the classes' names; None where the annotations name them, or nobody does.
    """

    images: Path
    annotations: Path
    predictions: Path
    classes: Path | None = None


@dataclass(frozen=True)
class DataSet:
    """What is going to be scored. No pixel of it was read, but those the kind was told by.

    Attributes:
        pairs: images with annotation and prediction, in the order of their names.
        classes: names of the classes; their numbers where nobody names them.
        rules: what labels mean.
        choice: what the predictions are, and why.
        problems: what is left out.
        paths: where it is.
        annotation_format: what the annotations were found to be.
    """

    pairs: tuple[Pair, ...]
    classes: ClassList
    rules: LabelRules
    choice: KindChoice
    problems: tuple[Problem, ...]
    paths: Paths
    annotation_format: str

    def target(self, pair: Pair) -> Mask:
        """Labels of an image as they travel.

        Args:
            pair: one of `pairs`.

        Returns:
            `[H, W]` uint8, int16 or int32, with `rules.ignored_label` where nothing counts.

        Raises:
            DataError: the annotation cannot be read, has another size than the image, or labels
                that are not allowed.
        """
        entry = pair.annotation
        mask = self.rules.compacted(entry.load().mask, entry.file)
        if mask.shape != pair.photo.size:
            raise size_error(entry.file, (mask.shape[0], mask.shape[1]), pair.photo)
        return mask

    def prediction(self, pair: Pair) -> Values:
        """Prediction of an image as it travels.

        Scores are not looked at here; the service finds values that are not finite, or no
        probabilities, while it reads them anyway.

        Args:
            pair: one of `pairs`.

        Returns:
            `[C, H, W]` or `[H, W]` floats, which may still lie in the file, or `[H, W]` integers.

        Raises:
            DataError: the file cannot be read, or predicts labels that are no classes.
        """
        if self.choice.kind != "labels":
            values = pair.prediction.mapped()
            if not np.issubdtype(values.dtype, np.floating):
                told = f"holds {values.dtype}; {self.choice.kind} are floats"
                raise DataError(pair.prediction.file, told, kind="labels")
            return values
        values = pair.prediction.read()
        check_values(values, "labels", self.rules.class_count, pair.prediction.file)
        small = np.uint8 if self.rules.class_count <= np.iinfo(np.uint8).max else np.int16
        return values.astype(small, copy=False)


@dataclass(frozen=True, slots=True)
class Item:
    """An image of a data set whose annotation was read and is allowed.

    Attributes:
        pair: the image.
        key: changes when the annotation's labels, the prediction or their meaning change.
        labels_key: changes when the annotation's labels change.
        target: the labels as they travel; None where the first images took the room for them.
    """

    pair: Pair
    key: str
    labels_key: str
    target: Mask | None = field(default=None, compare=False, repr=False)

    @property
    def pixels(self) -> int:
        """Pixels of the image, ignored ones included."""
        return _pixels(self.pair)


def open_data_set(
    paths: Paths,
    *,
    ignore_index: int | None = None,
    mapping: Mapping[int, int] | None = None,
    kind: RequestedKind = "auto",
) -> DataSet:
    """Finds out what a data set consists of.

    Args:
        paths: where it is.
        ignore_index: label that does not count, after the map.
        mapping: new labels of old ones, see `parse_map`.
        kind: what the predictions are.

    Returns:
        The data set.

    Raises:
        RefusedError: numbers or names of classes, or sizes, contradict each other.
        DataError: there are no images, annotations or predictions at all, or nobody says how many
            classes there are.

    Example:
        >>> paths = Paths(Path("images"), Path("annotations"), Path("predictions.npz"))
        >>> data = open_data_set(paths, ignore_index=255)  # doctest: +SKIP
        >>> len(data.pairs), data.choice.kind  # doctest: +SKIP
        (126, 'logits')
    """
    named = None if paths.classes is None else read_classes(paths.classes)
    photos, unreadable = read_photos(paths.images)
    sizes = {photo.name: photo.size for photo in photos}
    annotations = read_annotations(paths.annotations, classes=named, sizes=sizes)
    predictions = read_predictions(paths.predictions)
    choice = choose_kind(predictions, kind)
    classes = _class_list(named or annotations.classes, predictions, choice)
    matched = match(photos, annotations, predictions)
    problems = [*unreadable, *matched.problems]
    if choice.kind != "labels":
        problems += check_classes(predictions, len(classes), classes.file)
    _refuse(problems)
    if len(classes) < _MIN_CLASSES:
        told = f"names {len(classes)} class; there have to be at least {_MIN_CLASSES}"
        raise DataError(classes.file, told, kind="classes")
    if not matched.pairs:
        raise DataError(str(paths.images), _nothing(problems, annotations))
    rules = LabelRules(len(classes), dict(mapping or {}), ignore_index)
    return DataSet(
        matched.pairs, classes, rules, choice, tuple(problems), paths, annotations.format
    )


def check_data_set(data: DataSet, workers: int) -> tuple[tuple[Item, ...], tuple[Problem, ...]]:
    """Reads every annotation, and predictions that are labels.

    Args:
        data: the data set.
        workers: how many are read at a time.

    Returns:
        Images that can be scored, in the order of their names, and what cannot be read.

    Raises:
        RefusedError: labels that are not allowed, or a size that is not the image's.
    """
    items: list[Item] = []
    problems: list[Problem] = []
    room_bytes = _KEPT_TARGET_BYTES
    groups = groups_of(
        data.pairs, _pixels, most_weight=_CHECKED_PIXELS, most_items=_CHECKED_TOGETHER
    )
    # More threads than processors wait for Python's lock, which every small file is read under.
    workers = min(workers, os.cpu_count() or 1)
    checked = in_order(groups, lambda group: [_checked(data, pair) for pair in group], workers)
    for found in chain.from_iterable(checked):
        if isinstance(found, Item):
            size_bytes = 0 if found.target is None else found.target.nbytes
            items.append(found if size_bytes <= room_bytes else replace(found, target=None))
            room_bytes -= min(size_bytes, room_bytes)
        else:
            problems.append(found)
    _refuse(problems)
    return tuple(items), tuple(problems)


def _pixels(pair: Pair) -> int:
    height, width = pair.photo.size
    return height * width


def _checked(data: DataSet, pair: Pair) -> Item | Problem:
    try:
        if data.choice.kind == "labels":
            data.prediction(pair)
        return _item(data, pair)
    except DataError as error:
        return Problem.from_error(error)


def _item(data: DataSet, pair: Pair) -> Item:
    target = np.ascontiguousarray(data.target(pair))
    labels = hashlib.sha256(target.data).hexdigest()
    said = {
        "prediction": [pair.prediction.file, pair.prediction.version()],
        "kind": data.choice.kind,
        "classes": data.rules.class_count,
        "target": [str(target.dtype), list(target.shape), labels],
    }
    key = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    return Item(pair, key, labels[:_LABELS_KEY_LENGTH], target)


def _class_list(
    named: ClassList | None, predictions: PredictionSource, choice: KindChoice
) -> ClassList:
    if named is not None:
        return named
    counts = [entry.class_count for entry in predictions]
    if choice.kind == "labels" or counts[0] is None:
        told = "are labels, which do not say how many classes there are; say --classes"
        raise DataError(predictions.path, told, kind="classes")
    return ClassList(tuple(str(label) for label in range(counts[0])), predictions.entries[0].file)


def _refuse(problems: Sequence[Problem]) -> None:
    if refused := [problem for problem in problems if problem.kind in _REFUSED]:
        raise RefusedError(refused)


def _nothing(problems: Sequence[Problem], annotations: AnnotationSource) -> str:
    shown = "; ".join(str(problem) for problem in problems[:3])
    more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""  # noqa: PLR2004 - as shown
    return (
        f"no image has both an annotation and a prediction ({annotations.format} with "
        f"{len(annotations)} entries). {shown}{more}"
    )
