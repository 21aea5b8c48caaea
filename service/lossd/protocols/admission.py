"""From a request's document and arrays to a job: every rule about shapes, dtypes and labels.

What passes here can be computed; what cannot is answered before it enters the queue, with the
field, the value and the range that is allowed. Only whether logits are finite is found later, in
the pass that reads them anyway.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from pydantic import ValidationError

from lossd.core.compiled import Family
from lossd.core.job import Job, LossCall, Part
from lossd.losses import Task, find_loss
from lossd.protocols.json_body import Inputs
from lossd.protocols.targets import (
    Channels,
    Labels,
    distribution_sums_to_one,
    read_channels,
    read_labels,
    read_mask,
    read_weight_map,
)
from lossd_client.errors import FieldError, InvalidInputError
from lossd_client.wire import NUMPY_DTYPES, Array, EvaluateRequest, GradientDtype

_INPUT_NAMES = ("logits", "target", "mask", "weight_map")
_FLOATS = ("float16", "bfloat16", "float32", "float64")
_SPATIAL_AXES = (1, 2, 3)
_MAX_ERRORS = 32
_SHOWN = 80  # characters of what the caller sent that an error repeats


@dataclass(frozen=True)
class RequestLimits:
    """What one request may hold."""

    samples: int
    classes: int


@dataclass(frozen=True)
class _Object:
    """One input object, shapes checked; `loc` is where it stands in the request."""

    loc: tuple[str | int, ...]
    logits: Array
    target: Array
    mask: Array | None
    weight_map: Array | None

    @property
    def spatial(self) -> tuple[int, ...]:
        return tuple(self.logits.shape[2:])

    @property
    def has_labels(self) -> bool:
        """The target is `[B, *S]`, without a channel axis."""
        return self.target.ndim == self.logits.ndim - 1


def read_request(document: Mapping[str, Any]) -> EvaluateRequest:
    """The document of a request, validated.

    Raises:
        InvalidInputError: a field is missing, unknown or out of range.
    """
    try:
        return EvaluateRequest.model_validate(document)
    except ValidationError as error:
        errors = [
            FieldError(tuple(_clipped(step) for step in entry["loc"]), _message(entry))
            for entry in error.errors(include_url=False, include_context=False)[:_MAX_ERRORS]
        ]
        first = errors[0]
        detail = f"{'.'.join(map(str, first.loc)) or 'request'}: {first.message}"
        raise InvalidInputError(detail, errors=errors) from error


def build_job(request: EvaluateRequest, inputs: Inputs, limits: RequestLimits) -> Job:
    """The job of a request.

    Raises:
        InvalidInputError: shapes, dtypes or fields do not fit together.
        InvalidParameterError: a parameter of a loss is out of range.
        LabelOutOfRangeError: a label that counts is not a class.
        UnknownLossError: there is no loss of a name.
    """
    for choice in request.losses:
        find_loss(choice.name)  # what does not exist is said before how its inputs are wrong
    several = len(inputs) > 1
    objects = [
        _read_object(entry, ("inputs", index) if several else ("inputs",), limits)
        for index, entry in enumerate(inputs)
    ]
    channels = _agreed({entry.logits.shape[1] for entry in objects}, "channels of logits")
    dtype = _agreed({entry.logits.dtype.name for entry in objects}, "dtype of logits")
    samples = sum(len(entry.logits) for entry in objects)
    if samples > limits.samples:
        _refuse(("inputs",), f"{samples} samples, one request takes at most {limits.samples}")
    task = _task(request, objects, channels)
    calls = tuple(
        _call(choice_index, request, task, channels) for choice_index in range(len(request.losses))
    )
    labelled = _agreed({entry.has_labels for entry in objects}, "kind of target (labels, channels)")
    family: Family = "sigmoid"
    if task == "multiclass":
        family = "softmax_labels" if labelled else "softmax_distribution"
    double = dtype == "float64"
    default_dtype: GradientDtype = "float64" if double else "float32"
    return Job(
        parts=tuple(_part(entry, request, task) for entry in objects),
        task=task,
        family=family,
        dtype=torch.float64 if double else torch.float32,
        calls=calls,
        gradient=request.gradient,
        gradient_dtype=request.gradient_dtype or default_dtype,
        maps=request.maps,
        per_class=request.per_class,
        statistics=request.statistics,
        aggregate=request.aggregate,
    )


def _read_object(
    entry: Mapping[str, Array], loc: tuple[str | int, ...], limits: RequestLimits
) -> _Object:
    _check_names(entry, loc)
    arrays = {name: _native(array, (*loc, name)) for name, array in entry.items()}
    logits, target = arrays["logits"], arrays["target"]
    _check_logits(logits, (*loc, "logits"), limits)
    found = _Object(loc, logits, target, arrays.get("mask"), arrays.get("weight_map"))
    labels = (len(logits), *found.spatial)
    if target.shape not in (labels, logits.shape):
        _refuse(
            (*loc, "target"),
            f"shape {list(target.shape)} fits logits {list(logits.shape)} neither as labels "
            f"{list(labels)} nor as channels {list(logits.shape)}",
        )
    for name in ("mask", "weight_map"):
        if name in arrays and arrays[name].shape != labels:
            _refuse(
                (*loc, name),
                f"shape {list(arrays[name].shape)}, expected {list(labels)} (no channel axis)",
            )
    return found


def _check_names(entry: Mapping[str, Array], loc: tuple[str | int, ...]) -> None:
    for name in entry:
        if name not in _INPUT_NAMES:
            known = ", ".join(_INPUT_NAMES)
            _refuse((*loc, name[:_SHOWN]), f"unknown input {name[:_SHOWN]!r}; there are {known}")
    for name in ("logits", "target"):
        if name not in entry:
            _refuse((*loc, name), f"{name} is missing")


def _native(array: Array, loc: tuple[str | int, ...]) -> Array:
    """The array in this machine's byte order; files bring the other, and things not numbers."""
    if array.dtype.kind not in "biuf" and array.dtype != NUMPY_DTYPES["bfloat16"]:
        _refuse(loc, f"dtype {array.dtype.name} is not a number")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _check_logits(logits: Array, loc: tuple[str | int, ...], limits: RequestLimits) -> None:
    axes = logits.ndim - 2
    if axes not in _SPATIAL_AXES:
        _refuse(
            loc,
            f"shape {list(logits.shape)}: logits are [B, C, *S] with 1, 2 or 3 spatial axes",
        )
    if logits.dtype.name not in _FLOATS:
        if logits.dtype.kind not in "iu":
            _refuse(loc, f"dtype {logits.dtype.name}: logits are {', '.join(_FLOATS)}")
        _refuse(
            loc, f"dtype {logits.dtype.name}: these are labels, logits are {', '.join(_FLOATS)}"
        )
    if 0 in logits.shape:
        _refuse(loc, f"shape {list(logits.shape)} holds nothing; every size is at least 1")
    if logits.shape[1] > limits.classes:
        _refuse(loc, f"{logits.shape[1]} channels, at most {limits.classes} are taken")


def _task(request: EvaluateRequest, objects: Sequence[_Object], channels: int) -> Task:
    labelled = all(entry.has_labels for entry in objects)
    if request.ignore_index is not None and not labelled and not _binary_labels(objects):
        _refuse(
            ("ignore_index",),
            "needs integer labels without a channel axis; use mask with a target [B, C, *S]",
        )
    if request.task is None:
        return _inferred_task(objects, channels, labelled=labelled)
    if request.task == "binary" and channels != 1:
        _refuse(("task",), f"binary takes one logit channel, logits have {channels}")
    if request.task == "multiclass" and channels == 1:
        _refuse(("task",), "multiclass needs at least 2 logit channels, logits have 1")
    if request.task == "multilabel" and labelled and channels > 1:
        _refuse(
            ("inputs", "target"),
            f"multilabel needs a target per channel, [B, {channels}, *S], got labels [B, *S]",
        )
    return request.task


def _inferred_task(objects: Sequence[_Object], channels: int, *, labelled: bool) -> Task:
    if channels == 1:
        return "binary"
    if labelled or all(
        distribution_sums_to_one(entry.target, read_mask(entry.mask, (*entry.loc, "mask")))
        for entry in objects
    ):
        return "multiclass"
    return _refuse(
        ("task",),
        "the target's channels do not sum to 1 at every pixel; say task multilabel or multiclass",
    )


def _call(index: int, request: EvaluateRequest, task: Task, channels: int) -> LossCall:
    choice = request.losses[index]
    loss = find_loss(choice.name)
    options = loss.read_options(choice.params, task=task, channels=channels, loc=("losses", index))
    return LossCall(choice.row, loss, options, choice.weight)


def _part(entry: _Object, request: EvaluateRequest, task: Task) -> Part:
    batch, channels = entry.logits.shape[:2]
    pixels = math.prod(entry.spatial)
    mask = read_mask(entry.mask, (*entry.loc, "mask"))
    target = _target(entry, request, task, mask)
    first = target if target.ndim == 2 else target[:, 0]  # noqa: PLR2004 - [B, P]
    weight_map = read_weight_map(entry.weight_map, mask, (*entry.loc, "weight_map"))
    return Part(
        logits=to_torch(entry.logits.reshape(batch, channels, pixels)),
        target=to_torch(target),
        weight_map=None if weight_map is None else to_torch(weight_map.reshape(batch, pixels)),
        shape=tuple(entry.logits.shape),
        valid_pixels=tuple(int(count) for count in (first >= 0).sum(-1)),
    )


def _target(entry: _Object, request: EvaluateRequest, task: Task, mask: Array | None) -> Array:
    """The target in the layout of the job's family: `[B, P]` labels, or `[B, C, P]`."""
    batch, channels = entry.logits.shape[:2]
    target, loc = entry.target, (*entry.loc, "target")
    if task == "multiclass" and entry.has_labels:
        if not _is_integer(target):
            _refuse(
                loc,
                f"dtype {target.dtype.name}: labels [B, *S] are integers; soft targets have the "
                "shape of the logits",
            )
        classes = Labels(channels, request.ignore_index, task)
        return read_labels(target, classes, mask, loc).reshape(batch, -1)
    if channels == 1 and _is_integer(target):
        off_or_on = Labels(2, request.ignore_index, task)
        labels = target.reshape(batch, *entry.spatial)
        return read_labels(labels, off_or_on, mask, loc).reshape(batch, 1, -1)
    kind = Channels(must_sum_to_one=task == "multiclass")
    values = read_channels(target.reshape(entry.logits.shape), kind, mask, loc)
    return values.reshape(batch, channels, -1)


def _is_integer(array: Array) -> bool:
    return array.dtype.kind in "biu"


def _binary_labels(objects: Sequence[_Object]) -> bool:
    """One channel of integers is labels with an axis too many."""
    return all(entry.logits.shape[1] == 1 and _is_integer(entry.target) for entry in objects)


def to_torch(array: Array) -> torch.Tensor:
    """Tensor on the array's memory; a copy only where torch could not use that."""
    flags = array.flags
    if not (flags.writeable and flags.c_contiguous and flags.aligned):
        array = array.copy()
    if array.dtype == NUMPY_DTYPES["bfloat16"]:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _agreed(values: set[Any], what: str) -> Any:
    if len(values) != 1:
        _refuse(("inputs",), f"{what} differ between the input objects: {sorted(map(str, values))}")
    return next(iter(values))


def _clipped(step: str | int) -> str | int:
    return step[:_SHOWN] if isinstance(step, str) else step


def _message(entry: Mapping[str, Any]) -> str:
    message = str(entry["msg"]).removeprefix("Value error, ")
    if entry["type"] == "missing" or isinstance(entry["input"], (dict, list)):
        return message
    given = repr(entry["input"])
    return f"{message}, got {given if len(given) <= _SHOWN else given[:_SHOWN] + '…'}"


def _refuse(loc: tuple[str | int, ...], message: str) -> NoReturn:
    detail = f"{'.'.join(map(str, loc))}: {message}"
    raise InvalidInputError(detail, errors=[FieldError(loc, message)])
