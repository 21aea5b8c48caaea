"""What people get wrong in inputs that can be computed nevertheless: warnings for the answer.

Each looks at as little as decides it; on inputs as they should be the first pixels do.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lossd.protocols.targets import distribution_sums_to_one
from lossd_client.wire import Array

_PEEK_PIXELS = 256
_SUM_TOLERANCE = 1e-3
_VOID = 255


def logits_that_look_like_probabilities(
    logits: Array, valid: Array | None, task: str
) -> Iterator[str]:
    """Warns of logits `[B, C, *S]` that are in [0, 1] and, for multiclass, sum to 1.

    Args:
        logits: as sent.
        valid: `[B, P]` bool, pixels that count; None where all do.
        task: of the request.
    """
    flat = logits.reshape(*logits.shape[:2], -1)
    if valid is None or bool(valid[0, 0]):
        first = flat[0, :, 0].tolist()
        if min(first) < 0 or max(first) > 1:
            return  # nearly always so
    valid = np.ones((len(flat), flat.shape[2]), np.bool_) if valid is None else valid
    peek = slice(0, _PEEK_PIXELS)
    if not _like_probabilities(flat[:, :, peek], valid[:, peek], task):
        return
    if bool(valid.any()) and _like_probabilities(flat, valid, task):
        yield (
            "logits look like probabilities: all of them lie in [0, 1]"
            + (" and sum to 1" if task == "multiclass" else "")
            + "; send probabilities as the input 'probabilities'"
        )


def _like_probabilities(logits: Array, valid: Array, task: str) -> bool:
    with np.errstate(invalid="ignore", over="ignore"):
        inside = ((logits >= 0) & (logits <= 1)).all(1)
        if task == "multiclass":
            inside &= np.abs(logits.astype(np.float32).sum(1) - 1.0) <= _SUM_TOLERANCE
    if task != "multiclass" and bool((logits == 0).all()):
        return False  # zero is the logit of not knowing
    return bool((inside | ~valid).all())


def probabilities_off_one(probabilities: Array, mask: Array | None) -> Iterator[str]:
    """Warns of probabilities `[B, C, *S]` of a multiclass task that do not sum to 1."""
    if not distribution_sums_to_one(probabilities, mask):
        yield "probabilities do not sum to 1 ± 0.001 at every pixel that counts; taken as they are"


def classes_on_the_last_axis(target: Array, mask: Array | None) -> Iterator[str]:
    """Warns of a target `[B, C, *S]` whose last axis, not its second, holds a class per pixel."""
    if target.shape[1] <= 1 or target.shape[-1] <= 1 or mask is not None:
        return
    moved = np.moveaxis(target, -1, 1)
    candidates = ((moved[:, :, :1], True), (target, False), (moved, True))
    if all(distribution_sums_to_one(one, None) is wanted for one, wanted in candidates):
        yield (
            f"the target {list(target.shape)} sums to 1 along its last axis, not along its "
            "second: is the class axis last? The class axis is the second, [B, C, *S]"
        )


def undeclared_void(labels: Array, classes: int, ignore_index: int | None) -> Iterator[str]:
    """Warns of the label 255 where it is a class but usually means that there is none.

    Args:
        labels: `[B, P]`, -1 where a pixel does not count.
        classes: how many there are.
        ignore_index: of the request.
    """
    if classes > _VOID and ignore_index is None and bool((labels == _VOID).any()):
        yield (
            "label 255 occurs and counts as a class; if it marks void pixels, say ignore_index 255"
        )
