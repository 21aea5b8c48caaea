"""Requests of annotation QA: checked, and brought into what the engine and the judge take.

What passes here can be scored. Only whether predictions are numbers, and probabilities lie in
[0, 1], is found later, in the pass that reads them anyway.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lossd.core.job import ObservationJob, ObservationPart
from lossd.protocols.admission import read_document
from lossd.protocols.arrays import (
    FLOATS,
    Loc,
    RequestLimits,
    agreed,
    check_names,
    first_index,
    is_integer,
    native,
    refuse,
    to_torch,
)
from lossd.protocols.json_body import Inputs
from lossd.protocols.observations import logits_that_look_like_probabilities, undeclared_void
from lossd.protocols.targets import Labels, read_labels
from lossd.qa.contexts import Context
from lossd.qa.findings import Evidence
from lossd_client.errors import FieldError, LabelOutOfRangeError
from lossd_client.qa_wire import (
    BYTE_CLASSES,
    EVIDENCE,
    LOSS_LEVELS,
    MARGIN,
    MAX_CLASSES,
    PREDICTED,
    PREDICTION,
    TARGET,
    ImageNote,
    ScoreRequest,
)
from lossd_client.wire import Array, Json

_IMAGE_AXES = 2
_BATCH_AXES = 3  # of labels: samples, rows, columns
_BYTE_MAX = 255
_TWO_CLASSES = 2


@dataclass(frozen=True)
class Scoring:
    """A request to score, ready: a job for the engine, or images that were looked at before."""

    asked: ScoreRequest
    classes: int
    job: ObservationJob | None
    labels: tuple[Array, ...]
    """Given classes of each image, `[H, W]`, -1 where a pixel does not count."""
    evidence: tuple[Evidence, ...]
    """One for each image where there is no job."""
    notes: tuple[ImageNote, ...]
    """One for each image."""
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Object:
    """One input object with its sample axis; `loc` is where it stands in the request."""

    loc: Loc
    arrays: Mapping[str, Array]
    """Targets and evidence `[B, H, W]`, predictions `[B, C, H, W]`, `[B, 1, H, W]` if labels."""

    @property
    def images(self) -> int:
        return len(self.arrays[TARGET])


def read_score_request(document: Mapping[str, Json]) -> ScoreRequest:
    """The document of a request to score, validated.

    Raises:
        InvalidInputError: a field is missing, unknown or out of range.
    """
    return read_document(ScoreRequest, document)


def build_scoring(
    asked: ScoreRequest, inputs: Inputs, limits: RequestLimits, context: Context | None
) -> Scoring:
    """What is to be done for a request.

    Args:
        asked: its document.
        inputs: its tensors.
        limits: what a request may hold.
        context: the one it names.

    Raises:
        InvalidInputError: shapes, dtypes or fields do not fit together.
        LabelOutOfRangeError: a label that counts is not a class.
    """
    several = len(inputs) > 1
    is_live = agreed({PREDICTION in entry for entry in inputs}, "prediction or evidence")
    objects = [
        _read_object(entry, asked, ("inputs", index) if several else ("inputs",), is_live=is_live)
        for index, entry in enumerate(inputs)
    ]
    images = sum(one.images for one in objects)
    if images > limits.samples:
        refuse(("inputs",), f"{images} images, one request takes at most {limits.samples}")
    classes = _classes(asked, objects, context, is_live=is_live)
    if classes > min(limits.classes, MAX_CLASSES):
        refuse(("inputs",), f"{classes} classes, at most {limits.classes} are taken")
    notes = _notes(asked, images, is_live=is_live)
    kind = Labels(classes, asked.ignore_index, "multiclass" if classes > _TWO_CLASSES else "binary")
    labels = [read_labels(one.arrays[TARGET], kind, None, (*one.loc, TARGET)) for one in objects]
    for one, given in zip(objects, labels, strict=True):
        _check_classes(one, given, classes)
    return Scoring(
        asked=asked,
        classes=classes,
        job=_job(asked, objects, labels, classes) if is_live else None,
        labels=tuple(image for given in labels for image in given),
        evidence=() if is_live else tuple(_evidence(objects, labels, classes, notes)),
        notes=notes,
        warnings=tuple(dict.fromkeys(_observed(asked, objects, labels, classes))),
    )


def _read_object(
    entry: Mapping[str, Array], asked: ScoreRequest, loc: Loc, *, is_live: bool
) -> _Object:
    names = (PREDICTION, TARGET) if is_live else (*EVIDENCE, TARGET)
    check_names(entry, names, loc)
    for name in names:
        if name not in entry:
            refuse((*loc, name), f"{name} is missing")
    arrays = {name: native(array, (*loc, name)) for name, array in entry.items()}
    target = arrays[TARGET]
    if not is_integer(target):
        refuse((*loc, TARGET), f"dtype {target.dtype.name}: labels are integers")
    if target.ndim not in (_IMAGE_AXES, _BATCH_AXES) or 0 in target.shape:
        refuse(
            (*loc, TARGET), f"shape {list(target.shape)}: labels are [B, H, W] or [H, W], no size 0"
        )
    target = target.reshape(-1, *target.shape[-_IMAGE_AXES:])
    read = {TARGET: target}
    if is_live:
        read[PREDICTION] = _prediction(arrays[PREDICTION], target, asked, (*loc, PREDICTION))
        return _Object(loc, read)
    for name in EVIDENCE:
        array = arrays[name]
        if array.shape not in (target.shape, target.shape[1:]) or array.size != target.size:
            _misfit(array, target, "[B, H, W]", (*loc, name))
        read[name] = _evidence_bytes(array.reshape(target.shape), name, (*loc, name))
    return _Object(loc, read)


def _prediction(array: Array, target: Array, asked: ScoreRequest, loc: Loc) -> Array:
    """The prediction `[B, C, H, W]`, with one channel for two classes and for labels."""
    if asked.prediction_kind == "labels":
        if not is_integer(array):
            refuse(loc, f"dtype {array.dtype.name}: predicted labels are integers")
        if array.shape not in (target.shape, target.shape[1:]) or array.size != target.size:
            _misfit(array, target, "[B, H, W]", loc)
        return array.reshape(len(target), 1, *target.shape[1:])
    if array.dtype.name not in FLOATS:
        hint = "; say prediction_kind labels for index masks" if is_integer(array) else ""
        refuse(loc, f"dtype {array.dtype.name}: {asked.prediction_kind} are floats{hint}")
    found = array
    if array.ndim == _IMAGE_AXES or (array.ndim == _BATCH_AXES and len(target) == len(array)):
        found = array.reshape(-1, 1, *array.shape[-_IMAGE_AXES:])
    elif array.ndim == _BATCH_AXES:
        found = array[None]
    outer = (*found.shape[:1], *found.shape[2:])
    if found.ndim != _BATCH_AXES + 1 or outer != target.shape or 0 in found.shape:
        _misfit(array, target, "[B, C, H, W]", loc)
    return found


def _misfit(array: Array, target: Array, wanted: str, loc: Loc) -> None:
    batch, height, width = target.shape
    sizes = wanted.replace("B", str(batch)).replace("H", str(height)).replace("W", str(width))
    refuse(
        loc,
        f"shape {list(array.shape)} does not fit the target {list(target.shape)}; {loc[-1]} is "
        f"{sizes}, without its first axis for one image",
    )


def _evidence_bytes(array: Array, name: str, loc: Loc) -> Array:
    if not is_integer(array):
        refuse(loc, f"dtype {array.dtype.name}: {name} is uint8, as the first pass answered")
    most = _BYTE_MAX if name != PREDICTED else MAX_CLASSES - 1
    if array.dtype != np.uint8:
        wrong = (array < 0) | (array > most)
        if bool(wrong.any()):
            where = first_index(wrong)
            refuse(loc, f"{name}{where} is {array[tuple(where)]}; it lies in [0, {most}]")
    if name != PREDICTED:
        return array.astype(np.uint8, copy=False)
    return array if array.dtype == np.uint8 else array.astype(np.int16)


def _classes(
    asked: ScoreRequest, objects: Sequence[_Object], context: Context | None, *, is_live: bool
) -> int:
    """How many classes there are: everything that says so must agree."""
    said: dict[str, int] = {}
    if is_live and asked.prediction_kind != "labels":
        channels = agreed(
            {one.arrays[PREDICTION].shape[1] for one in objects}, "channels of prediction"
        )
        agreed({one.arrays[PREDICTION].dtype.name for one in objects}, "dtype of prediction")
        said["inputs"] = max(channels, _TWO_CLASSES)
    if asked.class_names is not None:
        said["class_names"] = len(asked.class_names)
    if asked.classes is not None:
        said["classes"] = asked.classes
    if context is not None:
        said["context"] = context.classes
    if not said:
        refuse(("classes",), "nothing says how many classes there are; say classes or class_names")
    first, classes = next(iter(said.items()))
    for name, count in said.items():
        if count != classes:
            refuse((name,), f"{name} has {count} classes, {first} has {classes}")
    return classes


def _notes(asked: ScoreRequest, images: int, *, is_live: bool) -> tuple[ImageNote, ...]:
    notes = asked.images
    if notes is not None and len(notes) != images:
        refuse(("images",), f"{len(notes)} notes for {images} images")
    notes = notes or [ImageNote()] * images
    for index, note in enumerate(notes):
        if is_live and note.scores is not None:
            refuse(("images", index, "scores"), "scores come with evidence; these are made anew")
        if not is_live and note.scores is None:
            refuse(("images", index, "scores"), "evidence needs the scores of the first pass")
    return tuple(notes)


def _check_classes(one: _Object, given: Array, classes: int) -> None:
    """Refuses predicted labels that are no classes where a pixel counts."""
    for name in (PREDICTION, PREDICTED):
        array = one.arrays.get(name)
        if array is None or not is_integer(array):
            continue
        labels = array.reshape(given.shape)
        if int(labels.max()) < classes and int(labels.min()) >= 0:
            continue
        wrong = ((labels < 0) | (labels >= classes)) & (given >= 0)
        if bool(wrong.any()):
            where = first_index(wrong)
            message = f"{name}{where} is {labels[tuple(where)]}; classes are 0 … {classes - 1}"
            raise LabelOutOfRangeError(
                message, errors=[FieldError((*one.loc, name, *where), message)]
            )


def _job(
    asked: ScoreRequest, objects: Sequence[_Object], labels: Sequence[Array], classes: int
) -> ObservationJob:
    parts = []
    for one, given in zip(objects, labels, strict=True):
        prediction = one.arrays[PREDICTION]
        batch, channels, height, width = prediction.shape
        parts.append(
            ObservationPart(
                prediction=to_torch(prediction.reshape(batch, channels, -1)),
                target=to_torch(given.reshape(batch, -1)),
                size=(height, width),
                loc=(*one.loc, PREDICTION),
            )
        )
    return ObservationJob(tuple(parts), asked.prediction_kind, classes)


def _evidence(
    objects: Sequence[_Object],
    labels: Sequence[Array],
    classes: int,
    notes: Sequence[ImageNote],
) -> Iterator[Evidence]:
    scores = iter(note.scores for note in notes)
    for one, given in zip(objects, labels, strict=True):
        for index, image in enumerate(given):
            found = next(scores)
            assert found is not None  # noqa: S101 - `_notes` refused it
            yield Evidence(
                labels=image,
                levels=one.arrays[LOSS_LEVELS][index],
                predicted=_classes_only(one.arrays[PREDICTED][index], image, classes),
                margin=one.arrays[MARGIN][index],
                histogram=None,
                scores=found,
            )


def _classes_only(predicted: Array, labels: Array, classes: int) -> Array:
    """Predicted classes as the engine writes them; 0 where a pixel does not count and has none."""
    dtype = np.uint8 if classes <= BYTE_CLASSES else np.int16
    if int(predicted.max()) >= classes:
        predicted = np.where(labels < 0, 0, predicted)
    return predicted.astype(dtype, copy=False)


def _observed(
    asked: ScoreRequest, objects: Sequence[_Object], labels: Sequence[Array], classes: int
) -> Iterator[str]:
    for one, given in zip(objects, labels, strict=True):
        flat = given.reshape(len(given), -1)
        if PREDICTION in one.arrays and asked.prediction_kind == "logits":
            prediction = one.arrays[PREDICTION]
            task = "multiclass" if prediction.shape[1] > 1 else "binary"
            for warning in logits_that_look_like_probabilities(prediction, flat >= 0, task):
                looks, _, _ = warning.partition(";")
                yield f"{looks}; say prediction_kind probabilities"
        yield from undeclared_void(flat, classes, asked.ignore_index)
