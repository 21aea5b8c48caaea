"""Requests of the pixel kind: scores with a target, checked and brought into the core's form."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch

from lossd.core.answer import PROBABILITY_FLOOR
from lossd.core.compiled import RICH_FAMILIES, Family
from lossd.core.job import Job, LossCall, Part
from lossd.losses import Loss, Task
from lossd.losses.declare import SampleLoss, TileLoss
from lossd.losses.kinds import PIXEL_INPUTS
from lossd.protocols.arrays import (
    FLOATS,
    Loc,
    RequestLimits,
    agreed,
    as_floats,
    check_names,
    first_index,
    is_integer,
    native,
    refuse,
    to_torch,
)
from lossd.protocols.calls import read_calls
from lossd.protocols.json_body import Inputs
from lossd.protocols.observations import (
    classes_on_the_last_axis,
    logits_that_look_like_probabilities,
    probabilities_off_one,
    undeclared_void,
)
from lossd.protocols.targets import (
    Channels,
    Labels,
    distribution_sums_to_one,
    read_channels,
    read_labels,
    read_mask,
    read_weight_map,
)
from lossd_client.wire import NUMPY_DTYPES, Array, EvaluateRequest, GradientDtype, dtype_name

_SPATIAL_AXES = (1, 2, 3)
_FLOAT_DTYPES = tuple(NUMPY_DTYPES[name] for name in FLOATS)
_PROBABILITY_SLACK = 1e-3
"""How far outside [0, 1] a probability may lie by rounding."""


@dataclass(frozen=True)
class _Object:
    """One input object, shapes checked; `loc` is where it stands in the request."""

    loc: Loc
    scores: Array
    """Logits, or probabilities if `activated`, `[B, C, *S]`."""
    activated: bool
    target: Array
    mask: Array | None
    """`[B, *S]` bool."""
    weight_map: Array | None

    @property
    def spatial(self) -> tuple[int, ...]:
        return tuple(self.scores.shape[2:])

    @property
    def has_labels(self) -> bool:
        """The target is `[B, *S]`, without a channel axis."""
        return self.target.ndim == self.scores.ndim - 1


def build_pixel_job(
    request: EvaluateRequest, losses: Sequence[Loss], inputs: Inputs, limits: RequestLimits
) -> Job:
    """The job of a request whose losses are all of pixels.

    Raises:
        InvalidInputError: shapes, dtypes or fields do not fit together.
        InvalidParameterError: a parameter of a loss is out of range.
        LabelOutOfRangeError: a label that counts is not a class.
    """
    several = len(inputs) > 1
    objects = [
        _read_object(entry, ("inputs", index) if several else ("inputs",), limits)
        for index, entry in enumerate(inputs)
    ]
    activated = agreed({entry.activated for entry in objects}, "logits or probabilities")
    what = "probabilities" if activated else "logits"
    channels = agreed({entry.scores.shape[1] for entry in objects}, f"channels of {what}")
    dtype = agreed({dtype_name(entry.scores) for entry in objects}, f"dtype of {what}")
    samples = sum(len(entry.scores) for entry in objects)
    if samples > limits.samples:
        refuse(("inputs",), f"{samples} samples, one request takes at most {limits.samples}")
    task = _task(request, objects, channels)
    calls = read_calls(request, losses, task=task, channels=channels)
    labelled = agreed({entry.has_labels for entry in objects}, "kind of target (labels, channels)")
    _check_spacing(request, objects)
    double = dtype == "float64"
    default_dtype: GradientDtype = "float64" if double else "float32"
    sees_whole = any(isinstance(call.loss, SampleLoss) for call in calls.rows)
    parts = tuple(_part(entry, request, task, sees_whole=sees_whole) for entry in objects)
    family = _family(calls.rows, objects, task, labelled=labelled, activated=activated)
    noticed = [
        warning
        for entry, part in zip(objects, parts, strict=True)
        for warning in _observed(entry, part, request, task)
    ]
    return Job(
        parts=parts,
        task=task,
        family=family,
        dtype=torch.float64 if double or activated or family in RICH_FAMILIES else torch.float32,
        map_dtype=torch.float64 if double else torch.float32,
        calls=calls.rows,
        gradient=request.gradient,
        gradient_dtype=request.gradient_dtype or default_dtype,
        maps=request.maps,
        per_class=request.per_class,
        statistics=request.statistics,
        aggregate=calls.aggregate,
        activated=activated,
        spacing=tuple(request.spacing or ()),
        warnings=(*calls.warnings, *dict.fromkeys(noticed)),
        preset=calls.preset,
    )


def _family(
    calls: Sequence[LossCall[Loss]],
    objects: Sequence[_Object],
    task: Task,
    *,
    labelled: bool,
    activated: bool,
) -> Family:
    """Which kernels: by activation, target, and the sums that the losses read."""
    soft_target = not all(is_integer(entry.target) for entry in objects)
    rich = any(
        call.loss.reads(call.options, soft_target=soft_target) == "rich"
        for call in calls
        if isinstance(call.loss, TileLoss)
    )
    if task != "multiclass" or activated:
        return "sigmoid_rich" if rich else "sigmoid"
    if rich:
        return "softmax_rich"
    return "softmax_labels" if labelled else "softmax_distribution"


def _read_object(entry: Mapping[str, Array], loc: Loc, limits: RequestLimits) -> _Object:
    check_names(entry, PIXEL_INPUTS, loc)
    activated = "probabilities" in entry
    what = "probabilities" if activated else "logits"
    if activated and "logits" in entry:
        refuse((*loc, "probabilities"), "stands in place of logits; give one of them")
    for name in (what, "target"):
        if name not in entry:
            refuse((*loc, name), f"{name} is missing")
    arrays = {name: native(array, (*loc, name)) for name, array in entry.items()}
    scores, target = arrays[what], arrays["target"]
    _check_scores(scores, (*loc, what), limits)
    labels = (len(scores), *scores.shape[2:])
    if target.shape not in (labels, scores.shape):
        refuse((*loc, "target"), _misfit(what, scores, target, labels))
    for name in ("mask", "weight_map"):
        if name in arrays and arrays[name].shape != labels:
            refuse(
                (*loc, name),
                f"shape {list(arrays[name].shape)}, expected {list(labels)} (no channel axis)",
            )
    mask = read_mask(arrays.get("mask"), (*loc, "mask"))
    return _Object(loc, scores, activated, target, mask, arrays.get("weight_map"))


def _misfit(what: str, scores: Array, target: Array, labels: tuple[int, ...]) -> str:
    message = (
        f"shape {list(target.shape)} fits {what} {list(scores.shape)} neither as labels "
        f"{list(labels)} nor as channels {list(scores.shape)}"
    )
    if target.shape in (scores.shape[:-1], (len(scores), *scores.shape[2:], scores.shape[1])):
        message += "; is a class axis last? It is the second one, [B, C, *S]"
    return message


def _check_scores(scores: Array, loc: Loc, limits: RequestLimits) -> None:
    what = loc[-1]
    if scores.ndim - 2 not in _SPATIAL_AXES:
        refuse(
            loc,
            f"shape {list(scores.shape)}: {what} are [B, C, *S] with 1, 2 or 3 spatial axes",
        )
    if scores.dtype not in _FLOAT_DTYPES:
        hint = "these are labels, " if is_integer(scores) else ""
        refuse(loc, f"dtype {scores.dtype.name}: {hint}{what} are {', '.join(FLOATS)}")
    if 0 in scores.shape:
        refuse(loc, f"shape {list(scores.shape)} holds nothing; every size is at least 1")
    if scores.shape[1] > limits.classes:
        refuse(loc, f"{scores.shape[1]} channels, at most {limits.classes} are taken")


def _check_spacing(request: EvaluateRequest, objects: Sequence[_Object]) -> None:
    if request.spacing is None:
        return
    for entry in objects:
        if len(request.spacing) != len(entry.spatial):
            refuse(
                ("spacing",),
                f"{len(request.spacing)} sizes for {len(entry.spatial)} spatial axes",
            )


def _task(request: EvaluateRequest, objects: Sequence[_Object], channels: int) -> Task:
    labelled = all(entry.has_labels for entry in objects)
    if request.ignore_index is not None and not labelled and not _binary_labels(objects):
        refuse(
            ("ignore_index",),
            "needs integer labels without a channel axis; use mask with a target [B, C, *S]",
        )
    if request.task is None:
        return _inferred_task(objects, channels, labelled=labelled)
    if request.task == "binary" and channels != 1:
        refuse(("task",), f"binary takes one logit channel, logits have {channels}")
    if request.task == "multiclass" and channels == 1:
        refuse(("task",), "multiclass needs at least 2 logit channels, logits have 1")
    if request.task == "multilabel" and labelled and channels > 1:
        refuse(
            ("inputs", "target"),
            f"multilabel needs a target per channel, [B, {channels}, *S], got labels [B, *S]",
        )
    return request.task


def _inferred_task(objects: Sequence[_Object], channels: int, *, labelled: bool) -> Task:
    if channels == 1:
        return "binary"
    if labelled or all(distribution_sums_to_one(entry.target, entry.mask) for entry in objects):
        return "multiclass"
    hints = chain.from_iterable(classes_on_the_last_axis(one.target, one.mask) for one in objects)
    message = "the target's channels do not sum to 1 at every pixel; say task multilabel or "
    return refuse(("task",), "; ".join([message + "multiclass", *dict.fromkeys(hints)]))


def _part(entry: _Object, request: EvaluateRequest, task: Task, *, sees_whole: bool) -> Part:
    batch, channels = entry.scores.shape[:2]
    pixels = math.prod(entry.spatial)
    target = _target(entry, request, task, entry.mask)
    valid = _first_channel(target) >= 0
    weight_map = read_weight_map(entry.weight_map, entry.mask, (*entry.loc, "weight_map"))
    scores = entry.scores.reshape(batch, channels, pixels)
    if entry.activated:
        scores = _sigmoid_logits(scores, valid, (*entry.loc, "probabilities"))
        target = _one_hot(target, channels)
    whole = None
    if sees_whole and entry.mask is not None:
        whole = to_torch(_target_behind_mask(entry, request, task))
    return Part(
        logits=to_torch(scores),
        target=to_torch(target),
        weight_map=None if weight_map is None else to_torch(weight_map.reshape(batch, pixels)),
        shape=tuple(entry.scores.shape),
        valid_pixels=tuple(int(np.count_nonzero(sample)) for sample in valid),
        whole_target=whole,
    )


def _first_channel(target: Array) -> Array:
    """`[B, P]` of a target `[B, P]` or `[B, C, P]`."""
    return target if target.ndim == 2 else target[:, 0]  # noqa: PLR2004 - [B, P]


def _sigmoid_logits(probabilities: Array, valid: Array, loc: Loc) -> Array:
    """Logits in float64 of probabilities `[B, C, P]`, kept off 0 and 1.

    A removed pixel keeps its probability, since windows look at it, or gets 0.5 if it has none.
    """
    values = probabilities.astype(np.float64)
    counts = np.broadcast_to(valid[:, None], values.shape)
    inside = (values >= -_PROBABILITY_SLACK) & (values <= 1 + _PROBABILITY_SLACK)
    wrong = ~inside & counts
    if bool(wrong.any()):
        where = first_index(wrong)
        refuse(loc, f"{values[tuple(where)]} at sample, channel, pixel {where} is no probability")
    known = np.where(inside, values, 0.5)
    clamped = np.clip(known, PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
    logits: Array = np.log(clamped) - np.log1p(-clamped)
    return logits


def _one_hot(target: Array, channels: int) -> Array:
    """A target of every channel `[B, C, P]`; labels become 0 and 1, removed pixels -1."""
    if target.ndim > 2:  # noqa: PLR2004 - [B, C, P]
        return target
    classes = np.arange(channels)[None, :, None]
    one_hot = (target[:, None] == classes).astype(np.int8)
    return np.where(target[:, None] < 0, np.int8(-1), one_hot)


def _target(entry: _Object, request: EvaluateRequest, task: Task, mask: Array | None) -> Array:
    """The target in the core's layout: `[B, P]` labels, or `[B, C, P]`."""
    batch, channels = entry.scores.shape[:2]
    target, loc = entry.target, (*entry.loc, "target")
    if task == "multiclass" and entry.has_labels:
        if not is_integer(target):
            refuse(
                loc,
                f"dtype {target.dtype.name}: labels [B, *S] are integers; soft targets have the "
                "shape of the logits",
            )
        classes = Labels(channels, request.ignore_index, task)
        return read_labels(target, classes, mask, loc).reshape(batch, -1)
    if channels == 1 and is_integer(target):
        off_or_on = Labels(2, request.ignore_index, task)
        labels = target.reshape(batch, *entry.spatial)
        return read_labels(labels, off_or_on, mask, loc).reshape(batch, 1, -1)
    kind = Channels(must_sum_to_one=task == "multiclass")
    values = read_channels(target.reshape(entry.scores.shape), kind, mask, loc)
    return values.reshape(batch, channels, -1)


def _target_behind_mask(entry: _Object, request: EvaluateRequest, task: Task) -> Array:
    """The target as if nothing were masked; what is no target there has no class."""
    channels, target = entry.scores.shape[1], entry.target
    if is_integer(target) and (entry.has_labels or channels == 1):
        labels = target.reshape(len(target), *entry.spatial)
        good = (labels >= 0) & (labels < max(channels, 2))
    else:
        values = target.reshape(entry.scores.shape)
        with np.errstate(invalid="ignore", over="ignore"):
            good = ((values >= 0) & (values <= 1)).all(1)
            if task == "multiclass":
                good &= np.abs(as_floats(values).sum(1) - 1.0) <= _PROBABILITY_SLACK
    whole = _target(entry, request, task, good)
    return _one_hot(whole, channels) if entry.activated else whole


def _binary_labels(objects: Sequence[_Object]) -> bool:
    """One channel of integers is labels with an axis too many."""
    return all(entry.scores.shape[1] == 1 and is_integer(entry.target) for entry in objects)


def _observed(entry: _Object, part: Part, request: EvaluateRequest, task: Task) -> Iterator[str]:
    valid = _first_channel(part.target.numpy()) >= 0
    if entry.activated:
        if task == "multiclass":
            yield from probabilities_off_one(entry.scores, entry.mask)
    else:
        yield from logits_that_look_like_probabilities(entry.scores, valid, task)
    if not entry.has_labels:
        yield from classes_on_the_last_axis(entry.target, entry.mask)
    elif part.target.ndim == 2:  # noqa: PLR2004 - [B, P]
        yield from undeclared_void(part.target.numpy(), entry.scores.shape[1], request.ignore_index)
