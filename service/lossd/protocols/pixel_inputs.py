"""Requests of the pixel kind: scores with a target, checked and brought into the core's form."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch

from lossd.core.answer import PROBABILITY_FLOOR
from lossd.core.compiled import RICH_FAMILIES, Family
from lossd.core.job import Job, LossCall, Part
from lossd.losses import Loss, Task
from lossd.losses.declare import SampleLoss, TileLoss
from lossd.protocols.arrays import (
    Loc,
    RequestLimits,
    agreed,
    as_floats,
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
from lossd.protocols.pixel_shapes import check_object
from lossd.protocols.targets import (
    Channels,
    Labels,
    distribution_sums_to_one,
    marked_labels,
    plain_labels,
    read_channels,
    read_mask,
    read_weight_map,
)
from lossd.repeated import Remembered
from lossd_client.wire import Array, EvaluateRequest, GradientDtype, dtype_name

_PROBABILITY_SLACK = 1e-3
"""How far outside [0, 1] a probability may lie by rounding."""


class _Object(NamedTuple):
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


@dataclass(frozen=True)
class _Plan:
    """What follows from a request and the shapes and dtypes of its inputs, values unseen."""

    job: Job
    """Of no parts."""
    sees_whole: bool
    """A loss looks at whole samples, also behind the mask."""


_PLANS = Remembered[_Plan]()


def build_pixel_job(
    request: EvaluateRequest, losses: Sequence[Loss], inputs: Inputs, limits: RequestLimits
) -> Job:
    """The job of a request whose losses are all of pixels.

    Raises:
        InvalidInputError: shapes, dtypes or fields do not fit together.
        InvalidParameterError: a parameter of a loss is out of range.
        LabelOutOfRangeError: a label that counts is not a class.
    """
    shapes = (limits, *[_shapes(entry) for entry in inputs])
    plan = _PLANS.get(request, shapes)
    several = len(inputs) > 1
    objects: list[_Object] = []
    for index, entry in enumerate(inputs):
        loc: Loc = ("inputs", index) if several else ("inputs",)
        if plan is None:
            check_object(entry, loc, limits)
        objects.append(_object(entry, loc))
    if plan is not None:
        return _filled(plan, request, objects)
    plan = _plan(request, losses, objects, limits)
    job = _filled(plan, request, objects)
    # Without a task in the request it may have been told by the values of a target's channels.
    if request.task is not None or all(entry.has_labels for entry in objects):
        _PLANS.keep(request, shapes, _Plan(_reckoned(job, plan.job.warnings), plan.sees_whole))
    return job


def _shapes(entry: Mapping[str, Array]) -> tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...]:
    return tuple([(name, array.dtype, array.shape) for name, array in entry.items()])


def _reckoned(job: Job, warnings: tuple[str, ...]) -> Job:
    """The job without its parts, but with all that follows from their shapes."""
    for name in ("channels", "samples", "tiles", "workload"):
        getattr(job, name)
    return job.of((), warnings)


def _plan(
    request: EvaluateRequest,
    losses: Sequence[Loss],
    objects: Sequence[_Object],
    limits: RequestLimits,
) -> _Plan:
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
    family = _family(calls.rows, objects, task, labelled=labelled, activated=activated)
    job = Job(
        parts=(),
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
        warnings=calls.warnings,
        preset=calls.preset,
    )
    return _Plan(job, any(isinstance(call.loss, SampleLoss) for call in calls.rows))


def _filled(plan: _Plan, request: EvaluateRequest, objects: Sequence[_Object]) -> Job:
    """The job of a plan with what the request brought, its values checked."""
    task = plan.job.task
    parts: list[Part] = []
    noticed: list[str] = []
    for entry in objects:
        target, valid = _target(entry, request, task, entry.mask)
        parts.append(_part(entry, request, plan, target, valid))
        noticed += _observed(entry, target, valid, request, task)
    return plan.job.of(tuple(parts), (*plan.job.warnings, *dict.fromkeys(noticed)))


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


def _object(entry: Mapping[str, Array], loc: Loc) -> _Object:
    """An input object whose names, shapes and dtypes are in order."""
    arrays = {name: native(array, (*loc, name)) for name, array in entry.items()}
    activated = "probabilities" in arrays
    return _Object(
        loc,
        arrays["probabilities" if activated else "logits"],
        activated,
        arrays["target"],
        read_mask(arrays.get("mask"), (*loc, "mask")),
        arrays.get("weight_map"),
    )


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


def _part(
    entry: _Object, request: EvaluateRequest, plan: _Plan, target: Array, valid: Array | None
) -> Part:
    batch, channels = entry.scores.shape[:2]
    pixels = math.prod(entry.spatial)
    weight_map = read_weight_map(entry.weight_map, entry.mask, (*entry.loc, "weight_map"))
    scores = entry.scores.reshape(batch, channels, pixels)
    if entry.activated:
        scores = _sigmoid_logits(scores, valid, (*entry.loc, "probabilities"))
        target = _one_hot(target, channels)
    whole = None
    if plan.sees_whole and entry.mask is not None:
        whole = to_torch(_target_behind_mask(entry, request, plan.job.task))
    counts = (pixels,) * batch if valid is None else tuple(np.count_nonzero(valid, 1).tolist())
    return Part(
        logits=to_torch(scores),
        target=to_torch(target),
        weight_map=None if weight_map is None else to_torch(weight_map.reshape(batch, pixels)),
        shape=entry.scores.shape,
        valid_pixels=counts,
        whole_target=whole,
    )


def _sigmoid_logits(probabilities: Array, valid: Array | None, loc: Loc) -> Array:
    """Logits in float64 of probabilities `[B, C, P]`, kept off 0 and 1.

    A removed pixel keeps its probability, since windows look at it, or gets 0.5 if it has none.
    """
    values = probabilities.astype(np.float64)
    counts = np.True_ if valid is None else np.broadcast_to(valid[:, None], values.shape)
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


def _target(
    entry: _Object, request: EvaluateRequest, task: Task, mask: Array | None
) -> tuple[Array, Array | None]:
    """The target in the core's layout, and which pixels count.

    Returns:
        labels `[B, P]`, or `[B, C, P]`; `[B, P]` bool, None where all pixels count.
    """
    batch, channels = entry.scores.shape[:2]
    target, loc = entry.target, (*entry.loc, "target")
    if task == "multiclass" and entry.has_labels:
        if not is_integer(target):
            refuse(
                loc,
                f"dtype {target.dtype.name}: labels [B, *S] are integers; soft targets have the "
                "shape of the logits",
            )
        return _labels(target, Labels(channels, request.ignore_index, task), mask, loc)
    if channels == 1 and is_integer(target):
        off_or_on = Labels(2, request.ignore_index, task)
        labels, valid = _labels(target.reshape(batch, *entry.spatial), off_or_on, mask, loc)
        return labels[:, None], valid
    kind = Channels(must_sum_to_one=task == "multiclass")
    values = read_channels(target.reshape(entry.scores.shape), kind, mask, loc)
    values = values.reshape(batch, channels, -1)
    return values, values[:, 0] >= 0


def _labels(
    target: Array, kind: Labels, mask: Array | None, loc: Loc
) -> tuple[Array, Array | None]:
    """Labels `[B, P]`, and which count."""
    plain = plain_labels(target, kind) if mask is None else None
    if plain is not None:
        return plain.reshape(len(plain), -1), None
    marked = marked_labels(target, kind, mask, loc).reshape(len(target), -1)
    return marked, marked >= 0


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
    whole, _ = _target(entry, request, task, good)
    return _one_hot(whole, channels) if entry.activated else whole


def _binary_labels(objects: Sequence[_Object]) -> bool:
    """One channel of integers is labels with an axis too many."""
    return all(entry.scores.shape[1] == 1 and is_integer(entry.target) for entry in objects)


def _observed(
    entry: _Object, target: Array, valid: Array | None, request: EvaluateRequest, task: Task
) -> Iterator[str]:
    if entry.activated:
        if task == "multiclass":
            yield from probabilities_off_one(entry.scores, entry.mask)
    else:
        yield from logits_that_look_like_probabilities(entry.scores, valid, task)
    if not entry.has_labels:
        yield from classes_on_the_last_axis(entry.target, entry.mask)
    elif target.ndim == 2 and not entry.activated:  # noqa: PLR2004 - [B, P]
        yield from undeclared_void(target, entry.scores.shape[1], request.ignore_index)
