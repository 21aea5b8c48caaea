"""Counts of pixels by labelled and predicted class: exact integers."""

from __future__ import annotations

import torch
from torch import Tensor

from lossd.core.job import Job, Part

_STRIP_PIXELS = 1 << 18
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
    """Counts `[4, C]` of a sample, a strip of pixels at a time, so that little memory is needed."""
    count = _count_labels if job.task == "multiclass" else _count_channels
    logits, target = part.logits[number], part.target[number]
    strips = zip(logits.split(_STRIP_PIXELS, -1), target.split(_STRIP_PIXELS, -1), strict=True)
    return torch.stack([count(*strip) for strip in strips]).sum(0)


def _count_labels(logits: Tensor, target: Tensor) -> Tensor:
    classes = len(logits)
    labels = target.argmax(0) if target.ndim > 1 else target.long()
    valid = (target if target.ndim == 1 else target[0]) >= 0
    given, predicted = labels[valid], logits.argmax(0)[valid]
    true_positive, positive, called = (
        torch.bincount(chosen, minlength=classes)
        for chosen in (given[given == predicted], given, predicted)
    )
    union = positive + called - true_positive
    return torch.stack(
        [true_positive, called - true_positive, positive - true_positive, len(given) - union]
    )


def _count_channels(logits: Tensor, target: Tensor) -> Tensor:
    valid, given, predicted = target >= 0, target > _ON, logits > 0
    return torch.stack(
        [
            (valid & given & predicted).sum(-1),
            (valid & ~given & predicted).sum(-1),
            (valid & given & ~predicted).sum(-1),
            (valid & ~given & ~predicted).sum(-1),
        ]
    )
