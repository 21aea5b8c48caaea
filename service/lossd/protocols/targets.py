"""Targets, masks and weights of a request, checked and brought into the core's form.

In the core's form a target says itself which pixels count: -1 removes one.
"""

from __future__ import annotations

from typing import Any, NamedTuple, NoReturn

import numpy as np

from lossd.protocols.arrays import Loc, as_floats, first_index, refuse
from lossd_client.errors import FieldError, LabelOutOfRangeError
from lossd_client.wire import Array

_REMOVED, _WRONG = -1, -2
_SUM_TOLERANCE = 1e-3
_SHOWN = 5
_LARGEST_INT8, _LARGEST_INT16 = np.iinfo(np.int8).max, np.iinfo(np.int16).max

_HINTS = {
    (255, False): "255 usually marks void pixels: say ignore_index 255",
    (255, True): "a mask of 0 and 255 is sent as 0 and 1; where 255 marks void, say ignore_index "
    "255",
}
"""What a wrong label usually means, by label and whether the task is binary."""


class Labels(NamedTuple):
    """What the labels of a target may be."""

    classes: int
    ignore_index: int | None
    task: str


class Channels(NamedTuple):
    """What the channels of a target may be."""

    must_sum_to_one: bool


def read_mask(mask: Array | None, loc: Loc) -> Array | None:
    """Which pixels count, `[B, *S]` bool; None if all do.

    Raises:
        InvalidInputError: the mask holds NaN.
    """
    if mask is None:
        return None
    if mask.dtype.kind not in "biu" and bool((mask != mask).any()):  # noqa: PLR0124 - only NaN is
        refuse(loc, "holds NaN; 0 removes a pixel, anything else keeps it")
    return np.not_equal(mask, 0)


def read_weight_map(weight_map: Array | None, mask: Array | None, loc: Loc) -> Array | None:
    """Weights `[B, *S]` as float32 or float64, 0 where the mask removes the pixel.

    Raises:
        InvalidInputError: a weight that counts is negative, infinite or NaN.
    """
    if weight_map is None:
        return None
    weights = as_floats(weight_map)
    if mask is not None:
        weights[~mask] = 0.0
    wrong = ~(np.isfinite(weights) & (weights >= 0))
    if bool(wrong.any()):
        where = first_index(wrong)
        refuse(loc, f"{loc[-1]}{where} is {weights[tuple(where)]}; weights are finite and >= 0")
    return weights


def read_labels(target: Array, kind: Labels, mask: Array | None, loc: Loc) -> Array:
    """Labels `[B, *S]` in the smallest signed integers that hold them, -1 = removed.

    They are a view of the target where nothing has to be done.

    Raises:
        LabelOutOfRangeError: a label of a pixel that counts is neither a class nor the
            `ignore_index`.
    """
    plain = plain_labels(target, kind) if mask is None else None
    return marked_labels(target, kind, mask, loc) if plain is None else plain


def plain_labels(target: Array, kind: Labels) -> Array | None:
    """A target that holds nothing but classes, in bytes that the core takes as they are; or None.

    Every pixel of it counts.
    """
    if target.dtype.itemsize > 1 or kind.classes > _LARGEST_INT8 or not target.size:
        return None
    if kind.ignore_index is not None and 0 <= kind.ignore_index < kind.classes:
        return None
    if int(target.max()) >= kind.classes or (target.dtype.kind == "i" and int(target.min()) < 0):
        return None
    return target.view(np.int8)


def marked_labels(target: Array, kind: Labels, mask: Array | None, loc: Loc) -> Array:
    """Labels as `read_labels` gives them, always in memory of their own.

    Raises:
        LabelOutOfRangeError: as there.
    """
    small = np.dtype(np.int8 if kind.classes <= _LARGEST_INT8 else np.int16)
    if kind.classes > _LARGEST_INT16:
        small = np.dtype(np.int32)
    if target.dtype.itemsize == 1:
        labels = _translated(target, _table(target.dtype, kind, small))
    else:
        good = (target >= 0) & (target < kind.classes)
        labels = np.full(target.shape, _WRONG, small)
        np.copyto(labels, target, where=good, casting="unsafe")  # what is good fits
        if kind.ignore_index is not None:
            labels[target == kind.ignore_index] = _REMOVED
    if mask is not None:
        labels[~mask] = _REMOVED
    if labels.size and int(labels.min()) == _WRONG:
        _refuse_label(target, labels == _WRONG, kind, loc)
    return labels


def read_channels(target: Array, kind: Channels, mask: Array | None, loc: Loc) -> Array:
    """Targets `[B, C, *S]` in [0, 1], -1 in all channels of a removed pixel.

    Raises:
        InvalidInputError: a value that counts lies outside [0, 1], or the channels of a
            distribution do not sum to 1.
    """
    if target.dtype.kind in "biu":
        values = target.astype(np.int8) if target.dtype.itemsize == 1 else target.astype(np.int64)
        values = np.where((values == 0) | (values == 1), values, _WRONG).astype(np.int8)
    else:
        values = as_floats(target)
    removed = None if mask is None else np.broadcast_to(~mask[:, None], values.shape)
    with np.errstate(invalid="ignore"):
        wrong = ~((values >= 0) & (values <= 1))
    if removed is not None:
        wrong &= ~removed
    if bool(wrong.any()):
        where = first_index(wrong)
        refuse(loc, f"{loc[-1]}{where} is {target[tuple(where)]}; targets lie in [0, 1]")
    if kind.must_sum_to_one and not distribution_sums_to_one(target, mask):
        refuse(loc, f"channels of a multiclass target sum to 1 ± {_SUM_TOLERANCE} at every pixel")
    if removed is not None:
        values = np.where(removed, np.array(_REMOVED, dtype=values.dtype), values)
    return values


def distribution_sums_to_one(target: Array, mask: Array | None) -> bool:
    """Whether the channels of `[B, C, *S]` sum to 1 ± 1e-3 at every pixel that counts."""
    with np.errstate(invalid="ignore", over="ignore"):
        totals = as_floats(target).sum(1)
        near = np.abs(totals - 1.0) <= _SUM_TOLERANCE
    return bool(near.all() if mask is None else (near | ~mask).all())


def _table(dtype: np.dtype[Any], kind: Labels, small: np.dtype[Any]) -> Array:
    """What each of the 256 byte values of a target means."""
    values = np.arange(256, dtype=np.uint8)
    values = (values.view(np.int8) if dtype.kind == "i" else values).astype(np.int64)
    good = (values >= 0) & (values < kind.classes)
    table = np.where(good, values, _WRONG)
    if kind.ignore_index is not None:
        table[values == kind.ignore_index] = _REMOVED
    return table.astype(small)


def _translated(target: Array, table: Array) -> Array:
    if table.itemsize > 1:
        return table[target.view(np.uint8)]
    if _stays(target.view(np.uint8), table.view(np.uint8)):
        return target.astype(table.dtype, order="C")
    # numpy's indexing would make eight bytes of each index first.
    codes = bytearray(np.ascontiguousarray(target)).translate(table.tobytes())
    return np.frombuffer(codes, table.dtype).reshape(target.shape)


def _stays(codes: Array, table: Array) -> bool:
    """Whether the table changes none of the codes that occur."""
    is_kept = table == np.arange(table.size, dtype=np.uint8)
    if not is_kept[-1]:
        return False
    # 255 mostly says "ignored": it becomes 0 here, and leaves the largest label the largest.
    largest = int((codes + np.uint8(1)).max(initial=0))
    return bool(is_kept[:largest].all())


def _refuse_label(target: Array, wrong: Array, kind: Labels, loc: Loc) -> NoReturn:
    where = first_index(wrong)
    label = int(target[tuple(where)])
    found = np.unique(target[wrong])
    others = ", ".join(str(int(value)) for value in found[:_SHOWN]) + (
        ", …" if len(found) > _SHOWN else ""
    )
    ignore = "not set" if kind.ignore_index is None else str(kind.ignore_index)
    hint = _HINTS.get((label, kind.task == "binary")) if kind.ignore_index is None else None
    message = (
        f"label {label} at {loc[-1]}{where} is not one of the {kind.classes} classes "
        f"0 … {kind.classes - 1} of this {kind.task} task (ignore_index is {ignore}; "
        f"{int(wrong.sum())} pixels hold labels out of range: {others})"
    ) + (f"; {hint}" if hint else "")
    raise LabelOutOfRangeError(message, errors=[FieldError((*loc, *where), message)])
