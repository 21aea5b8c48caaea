"""Counts of pixels by labelled and predicted class: exact integers."""

from __future__ import annotations

import torch
from torch import Tensor

from lossd.core.job import Job, Part

_ON = 0.5  # a soft target above this is on, as a probability above it is


def hard_counts(job: Job) -> dict[str, Tensor]:
    """`hard_tp`, `hard_fp`, `hard_fn`, `hard_tn` of every sample and class, `[B, C]` float64.

    Multiclass: the predicted class is the one with the largest logit, the first of equals, and a
    soft target's class likewise. Binary and multilabel: on means probability or target above 0.5.
    """
    rows = [_counts(job, part, number) for part in job.parts for number in range(len(part.logits))]
    table = torch.stack(rows).double()  # [B, 4, C]
    names = ("hard_tp", "hard_fp", "hard_fn", "hard_tn")
    return {name: table[:, index] for index, name in enumerate(names)}


def _counts(job: Job, part: Part, number: int) -> Tensor:
    logits, target = part.logits[number], part.target[number]
    if job.task != "multiclass":
        valid, given, predicted = target >= 0, target > _ON, logits > 0
    else:
        classes = torch.arange(job.channels)[:, None]
        labels = target.argmax(0) if target.ndim > 1 else target
        valid = (target if target.ndim == 1 else target[0]) >= 0
        given, predicted = labels == classes, logits.argmax(0) == classes
        valid = valid.expand_as(given)
    return torch.stack(
        [
            (valid & given & predicted).sum(-1),
            (valid & ~given & predicted).sum(-1),
            (valid & given & ~predicted).sum(-1),
            (valid & ~given & ~predicted).sum(-1),
        ]
    )
