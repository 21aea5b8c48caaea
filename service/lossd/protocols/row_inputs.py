"""Requests without pixels: boxes, values, embeddings or scores, checked against `kinds.KINDS`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from lossd.core.job import RowJob
from lossd.losses.declare import RowLoss
from lossd.losses.kinds import Input
from lossd.protocols.arrays import (
    FLOATS,
    SHOWN_CHARACTERS,
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
from lossd.protocols.calls import read_calls
from lossd.protocols.json_body import Inputs
from lossd_client.errors import FieldError, LabelOutOfRangeError
from lossd_client.wire import NUMPY_DTYPES, Array, EvaluateRequest, GradientDtype

_SPATIAL_AXES = (1, 2, 3)
Sizes = dict[str, tuple[int, ...]]
"""Sizes of named axes, `*S` and `…` possibly several."""


def build_row_job(
    request: EvaluateRequest, losses: Sequence[RowLoss], inputs: Inputs, limits: RequestLimits
) -> RowJob:
    """The job of a request whose losses are none of pixels.

    Raises:
        InvalidInputError: names, shapes, dtypes or values do not fit the losses.
        InvalidParameterError: a parameter of a loss is out of range.
        LabelOutOfRangeError: a label is not a class.
    """
    _refuse_pixel_fields(request)
    several = len(inputs) > 1
    parts: list[Mapping[str, Array]] = []
    classes: set[int] = set()
    for index, entry in enumerate(inputs):
        loc: Loc = ("inputs", index) if several else ("inputs",)
        arrays = _named(entry, losses, loc)
        sizes = [_check_shapes(arrays, loss, loc) for loss in losses]
        classes |= {size["C"][0] for size in sizes if "C" in size}
        _check_sizes(sizes, limits, loc)
        parts.append(_checked_values(arrays, losses, loc))
    samples = sum(len(next(iter(_rows(part, losses)))) for part in parts)
    if samples > limits.samples:
        refuse(("inputs",), f"{samples} samples, one request takes at most {limits.samples}")
    channels = agreed(classes, "numbers of classes") if classes else 0
    calls = read_calls(request, losses, task="multiclass", channels=channels)
    declared = [one for loss in losses for one in loss.inputs]
    differentiable = tuple(dict.fromkeys(one.name for one in declared if one.differentiable))
    double = any(entry[name].dtype == np.float64 for entry in inputs for name in differentiable)
    default_dtype: GradientDtype = "float64" if double else "float32"
    return RowJob(
        parts=tuple({name: to_torch(array) for name, array in part.items()} for part in parts),
        shared=tuple(dict.fromkeys(one.name for one in declared if "B" not in one.axes.split())),
        differentiable=differentiable,
        calls=calls.rows,
        gradient=request.gradient,
        gradient_dtype=request.gradient_dtype or default_dtype,
        warnings=calls.warnings,
        preset=calls.preset,
    )


def _refuse_pixel_fields(request: EvaluateRequest) -> None:
    given = {
        "ignore_index": request.ignore_index is not None,
        "statistics": request.statistics,
        "spacing": request.spacing is not None,
        "aggregate": request.aggregate != "sample",
    }
    for name, said in given.items():
        if said:
            refuse((name,), f"{name} is for losses of pixels; these losses have none")


def _named(entry: Mapping[str, Array], losses: Sequence[RowLoss], loc: Loc) -> dict[str, Array]:
    known = tuple(dict.fromkeys(one.name for loss in losses for one in loss.inputs))
    check_names(entry, known, loc)
    for name in known:
        if name not in entry:
            refuse((*loc, name), f"{name} is missing")
    return {name: native(array, (*loc, name)) for name, array in entry.items()}


def _check_shapes(arrays: Mapping[str, Array], loss: RowLoss, loc: Loc) -> Sizes:
    """Sizes of the axes of a loss's inputs; equal names have equal sizes."""
    sizes: Sizes = {}
    for one in loss.inputs:
        shape = arrays[one.name].shape
        found = _matched(one.axes.split(), shape)
        if found is None or 0 in shape:
            wanted = one.axes.replace(" ", ", ")
            refuse(
                (*loc, one.name),
                f"shape {list(shape)}: {loss.name} takes {one.name} [{wanted}], no size 0",
            )
        for axis, size in found.items():
            if sizes.setdefault(axis, size) != size:
                shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
                wanted = one.axes.replace(" ", ", ")
                refuse(
                    (*loc, one.name),
                    f"{axis} of [{wanted}] must be the same in all inputs, got {shapes}",
                )
    return sizes


def _matched(axes: Sequence[str], shape: tuple[int, ...]) -> Sizes | None:
    """Sizes by axis name, or None where the shape does not have these axes."""
    rest = shape[len(axes) - 1 :] if axes[-1] in ("*S", "…") else None
    if axes[-1] == "*S" and rest is not None and len(rest) not in _SPATIAL_AXES:
        return None
    if rest is not None:
        axes, shape = axes[:-1], shape[: len(axes) - 1]
    if len(axes) != len(shape):
        return None
    if any(axis.isdecimal() and int(axis) != size for axis, size in zip(axes, shape, strict=True)):
        return None
    sizes: Sizes = {
        axis: (size,) for axis, size in zip(axes, shape, strict=True) if not axis.isdecimal()
    }
    return sizes if rest is None else {**sizes, "*S": rest}


def _check_sizes(sizes: Sequence[Sizes], limits: RequestLimits, loc: Loc) -> None:
    for size in sizes:
        if size.get("C", (1,))[0] > limits.classes:
            refuse(loc, f"{size['C'][0]} classes, at most {limits.classes} are taken")


def _rows(part: Mapping[str, Array], losses: Sequence[RowLoss]) -> Iterator[Array]:
    """The arrays that have a sample axis."""
    for loss in losses:
        for one in loss.inputs:
            if "B" in one.axes.split():
                yield part[one.name]


def _checked_values(
    arrays: Mapping[str, Array], losses: Sequence[RowLoss], loc: Loc
) -> dict[str, Array]:
    checked: dict[str, Array] = {}
    for loss in losses:
        sizes = _check_shapes(arrays, loss, loc)
        for one in loss.inputs:
            classes = sizes.get("C", (0,))[0]
            checked[one.name] = _value(arrays[one.name], one, classes, (*loc, one.name))
    return checked


def _value(array: Array, one: Input, classes: int, loc: Loc) -> Array:
    """The array in float64, or int64 where the input holds integers."""
    if one.values in ("ids", "label"):
        return _integers(array, one, classes, loc)
    if one.values == "zero_or_one":
        _refuse_where(~np.isin(array, (0, 1)), array, "is neither 0 nor 1", loc)
        return array.astype(np.int64)
    if array.dtype.name not in FLOATS and not is_integer(array):
        refuse(loc, f"dtype {array.dtype.name[:SHOWN_CHARACTERS]} is no number")
    values = array.astype(np.float64)
    _refuse_where(~np.isfinite(values), array, "is not finite", loc)
    top = {"unit": 1, "bin": classes - 1}.get(one.values)
    if top is not None:
        wrong = (values < 0) | (values > top)
        _refuse_where(wrong, array, f"lies outside [0, {top}]", loc)
    return values


def _integers(array: Array, one: Input, classes: int, loc: Loc) -> Array:
    if not is_integer(array):
        refuse(loc, f"dtype {array.dtype.name}: {one.name} holds integers")
    wrong = array < 0
    if one.values == "label":
        wrong |= array >= classes
    if bool(wrong.any()):
        _refuse_label(array, wrong, one, classes, loc)
    return array.astype(np.int64)


def _refuse_label(array: Array, wrong: Array, one: Input, classes: int, loc: Loc) -> NoReturn:
    where = first_index(wrong)
    allowed = f"classes are 0 … {classes - 1}" if one.values == "label" else "ids are at least 0"
    message = f"{one.name}{where} is {array[tuple(where)]}; {allowed}"
    raise LabelOutOfRangeError(message, errors=[FieldError((*loc, *where), message)])


def _refuse_where(wrong: Array, array: Array, message: str, loc: Loc) -> None:
    if bool(wrong.any()):
        where = first_index(wrong)
        shown: Any = array[tuple(where)]
        if array.dtype == NUMPY_DTYPES["bfloat16"]:
            shown = float(shown)
        refuse(loc, f"{loc[-1]}{where} is {shown}; it {message}")
