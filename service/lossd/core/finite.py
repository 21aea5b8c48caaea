"""The error of a job whose logits are not finite where they count: found, and pointed at."""

from __future__ import annotations

import torch

from lossd.core.job import Job, Part
from lossd_client.errors import FieldError, NonFiniteLogitsError


def non_finite_error(job: Job) -> NonFiniteLogitsError:
    """Names the first logit that counts and is NaN, infinite or too large to subtract."""
    for index, part in enumerate(job.parts):
        where = _first(job, part)
        if where is not None:
            value, position = where
            loc: tuple[str | int, ...] = ("inputs", "logits")
            if len(job.parts) > 1:
                loc = ("inputs", index, "logits")
            msg = f"logits{position} is {value}; logits that count must be finite"
            return NonFiniteLogitsError(msg, errors=[FieldError((*loc, *position), msg)])
    return NonFiniteLogitsError(
        "logits of one pixel lie further apart than the float range; nothing can be computed"
    )


def _first(job: Job, part: Part) -> tuple[float, list[int]] | None:
    counts = part.target >= 0
    if counts.ndim < part.logits.ndim:
        counts = counts.unsqueeze(1)
    elif not job.by_channel:
        counts = counts[:, :1]
    wrong = ~torch.isfinite(part.logits) & counts
    found = wrong.flatten().nonzero()
    if not len(found):
        return None
    flat = int(found[0])
    position = [int(axis) for axis in torch.unravel_index(torch.tensor(flat), part.shape)]
    return float(part.logits.flatten()[flat]), position
