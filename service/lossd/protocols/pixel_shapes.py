"""Names, shapes and dtypes of the inputs of pixel losses; no value is looked at."""

from __future__ import annotations

from collections.abc import Mapping

from lossd.losses.kinds import PIXEL_INPUTS
from lossd.protocols.arrays import (
    FLOATS,
    Loc,
    RequestLimits,
    check_names,
    is_integer,
    native,
    refuse,
)
from lossd_client.wire import NUMPY_DTYPES, Array

_SPATIAL_AXES = (1, 2, 3)
_FLOAT_DTYPES = tuple(NUMPY_DTYPES[name] for name in FLOATS)


def check_object(entry: Mapping[str, Array], loc: Loc, limits: RequestLimits) -> None:
    """Refuses an input object whose names, shapes or dtypes are not those of pixels.

    Raises:
        InvalidInputError: always then.
    """
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
