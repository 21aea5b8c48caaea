"""What a preset is made of: one library's losses as parameters of the losses here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lossd.losses.sums import Task

ONE_OVER_CLASSES = "1/C"
"""Stands in a table for a list that holds 1/C for each of C classes."""


@dataclass(frozen=True)
class Convention:
    """One loss of a library, as parameters of the loss here."""

    library: str
    """The library's loss, with the arguments that differ from its defaults."""
    parameters: Mapping[str, Any]
    """What is filled in; `ONE_OVER_CLASSES` becomes a list of numbers."""
    tasks: tuple[Task, ...] = ()
    """Tasks it holds for; empty for losses without a task."""
    shift: float = 0.0
    """How much the value here lies above the library's; the gradient is the same."""
    remark: str = ""
    """Where the numbers part, and what else to know, in sentences."""


@dataclass(frozen=True)
class Preset:
    """The conventions of one library."""

    library: str
    """What people call it."""
    versions: Mapping[str, str]
    """Version of each distribution that the entries were compared with."""
    summary: str
    """What is particular to the library, in sentences."""
    losses: Mapping[str, tuple[Convention, ...]]
    """By wire name; several where the tasks differ."""
    absent: Mapping[str, str] = field(default_factory=dict)
    """By wire name: why the library's loss, or that of some task, cannot be had."""
    aggregate: Literal["sample", "batch"] | None = None
    """How the library sums regions; None leaves what the request says or its default."""


ALL: tuple[Task, ...] = ("binary", "multiclass", "multilabel")
SIGMOID: tuple[Task, ...] = ("binary", "multilabel")
SOFTMAX: tuple[Task, ...] = ("multiclass",)

HARD_TARGETS = "For targets of 0 and 1; soft targets get another focusing factor there."
POOLED_MEAN = (
    "The library takes one mean over the batch's valid pixels. With ignored pixels that is the "
    "mean of the samples here only if each has equally many valid ones."
)
POOLED_WEIGHTS = (
    "The library divides once, by the weights of all valid pixels of the batch. With class weights "
    "or ignored pixels that is the mean of the samples here only if the weights of each add up to "
    "the same, as in a batch of one."
)
