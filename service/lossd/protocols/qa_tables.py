"""Tables of annotation QA from outside: what contexts count, sub-scores of images; checked."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lossd.protocols.admission import read_document
from lossd.protocols.arrays import Loc, check_names, first_index, is_integer, native, refuse
from lossd.protocols.json_body import Inputs
from lossd.qa.levels import Counts
from lossd.qa.suspicion import Scores
from lossd_client.qa_wire import (
    HISTOGRAM,
    LEVELS,
    MAX_CLASSES,
    OUTLINE_SIZES,
    OUTLINE_SUMS,
    OUTLINES,
    SUB_SCORES,
    SUB_SCORES_TENSOR,
    SuspicionRequest,
)
from lossd_client.wire import Array, Json

_LEAST_CLASSES = 2
_MAY_BE_MISSING = ("boundary_loss", "straightness")
_MAX_COUNT = 2**53
"""Counts below it are exact in float64."""


def read_suspicion_request(document: Mapping[str, Json]) -> SuspicionRequest:
    """The document of a request for suspicions, validated.

    Raises:
        InvalidInputError: a field is missing, unknown or out of range.
    """
    return read_document(SuspicionRequest, document)


def read_context_tensors(
    tensors: Mapping[str, Array],
) -> tuple[Counts, Counts | None, Scores | None]:
    """Histogram, outlines and sub-scores of a context that is to be kept.

    Raises:
        InvalidInputError: a tensor is missing, unknown, of a wrong shape or out of range.
    """
    check_names(tensors, (HISTOGRAM, OUTLINES, SUB_SCORES_TENSOR), ("tensors",))
    if HISTOGRAM not in tensors:
        refuse(("tensors", HISTOGRAM), f"{HISTOGRAM} is missing")
    loc: Loc = ("tensors", HISTOGRAM)
    counts = _counts(tensors[HISTOGRAM], (LEVELS,), loc)
    if not _LEAST_CLASSES <= len(counts) <= MAX_CLASSES:
        refuse(loc, f"{len(counts)} classes; there are 2 to {MAX_CLASSES}")
    outlines, sub_scores = tensors.get(OUTLINES), tensors.get(SUB_SCORES_TENSOR)
    return (
        counts,
        None if outlines is None else _read_outlines(outlines, len(counts)),
        None if sub_scores is None else read_sub_scores(sub_scores, ("tensors", SUB_SCORES_TENSOR)),
    )


def _read_outlines(array: Array, classes: int) -> Counts:
    loc: Loc = ("tensors", OUTLINES)
    counts = _counts(array, (OUTLINE_SIZES, len(OUTLINE_SUMS)), loc)
    if len(counts) != classes:
        refuse(loc, f"{len(counts)} classes; {HISTOGRAM} has {classes}")
    _, places, chords, _ = np.moveaxis(counts, -1, 0)
    wrong = chords > places
    if bool(wrong.any()):
        where = first_index(wrong)
        at = tuple(where)
        refuse(loc, f"{OUTLINES}{where} has {chords[at]} chords; it has {places[at]} places")
    return counts


def _counts(array: Array, shape: tuple[int, ...], loc: Loc) -> Counts:
    """Counts `[rows, *shape]`."""
    counts = _rows(native(array, loc), (shape,), loc)
    if not is_integer(counts):
        refuse(loc, f"dtype {counts.dtype.name}: counts are integers")
    wrong = counts < 0
    if bool(wrong.any()):
        where = first_index(wrong)
        refuse(loc, f"{loc[-1]}{where} is {counts[tuple(where)]}; counts are at least 0")
    if float(counts.sum(dtype=np.float64)) >= _MAX_COUNT:
        refuse(loc, "counts more than 2^53")
    return counts.astype(np.int64)


def read_sub_scores(array: Array, loc: Loc) -> Scores:
    """Sub-scores `[N, 4]` of images in float64.

    Raises:
        InvalidInputError: the shape is another, there is no image, or a number is negative or not
            finite; NaN is taken in `boundary_loss` and `straightness` alone.
    """
    shapes = ((len(SUB_SCORES),), (len(SUB_SCORES) - 1,))
    given = _rows(native(array, loc), shapes, loc).astype(np.float64)
    if not len(given):
        refuse(loc, "holds no image")
    values = np.full((len(given), len(SUB_SCORES)), np.nan)
    values[:, : given.shape[1]] = given
    wrong = ~(np.isfinite(values) & (values >= 0))
    for name in _MAY_BE_MISSING:
        index = SUB_SCORES.index(name)
        wrong[:, index] &= ~np.isnan(values[:, index])
    if bool(wrong.any()):
        where = first_index(wrong)
        refuse(
            loc,
            f"{loc[-1]}{where} is {values[tuple(where)]}; sub-scores are finite and at least 0, "
            f"NaN only for a {' or '.join(_MAY_BE_MISSING)} that an image does not have",
        )
    return values


def sub_scores_of(inputs: Inputs) -> Scores:
    """Sub-scores of a request for suspicions.

    Raises:
        InvalidInputError: they are missing, or of a wrong shape or range, or there is more.
    """
    if len(inputs) != 1:
        refuse(("inputs",), f"one object with {SUB_SCORES_TENSOR} is taken, got {len(inputs)}")
    check_names(inputs[0], (SUB_SCORES_TENSOR,), ("inputs",))
    if SUB_SCORES_TENSOR not in inputs[0]:
        refuse(("inputs", SUB_SCORES_TENSOR), f"{SUB_SCORES_TENSOR} is missing")
    return read_sub_scores(inputs[0][SUB_SCORES_TENSOR], ("inputs", SUB_SCORES_TENSOR))


def _rows(array: Array, shapes: tuple[tuple[int, ...], ...], loc: Loc) -> Array:
    """The array `[rows, *shape]`, of one of some shapes of equal rank."""
    has_sample_axis = array.ndim == len(shapes[0]) + 2 and len(array) == 1  # a form's file
    rows = array[0] if has_sample_axis else array
    if rows.shape[1:] not in shapes:
        expected = ", ".join(map(str, shapes[0]))
        refuse(loc, f"shape {list(array.shape)}, expected [rows, {expected}]")
    return rows
